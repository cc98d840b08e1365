"""Costs of whole models, counted here by hand from the kernels' shapes and the bytes of a sub-volume."""

import pytest

from benchmarks.aie.models import LLAMA_2, LLAMA_3, Model, model_cost
from qlinear.backends.aie.devices import PHX, STX

# Bytes of a block on phx at group 128: rows of sub-volumes (the bias's and K / 128) x N / 128 x 8512.
SQUARE = 33 * 32 * 8512  # 4096 x 4096
WIDE = 33 * 96 * 8512  # 4096 x 12288
WIDEST = 33 * 256 * 8512  # 4096 x 32768
DEEP = 87 * 32 * 8512  # 11008 x 4096


@pytest.mark.parametrize(
    "grouping, matmuls",
    [
        (
            "none",
            [
                ("q_proj", 4096, 4096),
                ("k_proj", 4096, 1024),
                ("v_proj", 4096, 1024),
                ("o_proj", 4096, 4096),
                ("gate_proj", 4096, 14336),
                ("up_proj", 4096, 14336),
                ("down_proj", 14336, 4096),
            ],
        ),
        (
            "q/k/v",
            [
                ("q/k/v", 4096, 6144),
                ("o_proj", 4096, 4096),
                ("gate_proj", 4096, 14336),
                ("up_proj", 4096, 14336),
                ("down_proj", 14336, 4096),
            ],
        ),
        (
            "q/k/v, gate/up",
            [("q/k/v", 4096, 6144), ("o_proj", 4096, 4096), ("gate/up", 4096, 28672), ("down_proj", 14336, 4096)],
        ),
    ],
)
def test_the_matmuls_of_a_layer(grouping, matmuls):
    assert LLAMA_3.layer(grouping) == matmuls


@pytest.mark.parametrize(
    "model, grouping, dispatches, layer_bytes",
    [
        (LLAMA_2, "none", 32 * 7, 4 * SQUARE + 2 * WIDE + DEEP),
        (LLAMA_2, "q/k/v", 32 * 5, WIDE + SQUARE + 2 * WIDE + DEEP),
        (LLAMA_2, "q/k/v, gate/up", 32 * 4, WIDE + SQUARE + WIDEST + DEEP),
        (LLAMA_3, "none", 32 * 8, 4 * SQUARE + 2 * WIDEST + 2 * DEEP),  # K = 14336 is two blocks of 11008
        (LLAMA_3, "q/k/v, gate/up", 32 * 5, WIDE + SQUARE + WIDEST + 2 * DEEP),
    ],
)
def test_weights_of_a_token_on_phx(model, grouping, dispatches, layer_bytes):
    counted = model_cost(model, PHX, grouping, 1, PHX.latency)
    assert (counted.dispatches, counted.weight_bytes) == (dispatches, 32 * layer_bytes)


def test_everything_of_a_token_of_llama_2_on_phx():
    counted = model_cost(LLAMA_2, PHX, "none", 1, PHX.latency)
    assert counted.matmuls == 224
    # q k v o gate up take 4096 bfloat16 and the 2048 bytes of parameters each, down takes 11008.
    activations = 32 * (6 * (4096 * 2 + 2048) + 11008 * 2 + 2048)
    # float32 comes back: 4096 of q k v o down, 12288 of gate and up
    results = 32 * (5 * 4096 + 2 * 12288) * 4
    assert (counted.activation_bytes, counted.result_bytes) == (activations, results)
    moved = 32 * (4 * SQUARE + 2 * WIDE + DEEP) + activations + results
    assert counted.bytes_moved == moved == 3_643_195_392
    useful, padded = 32 * 4096 * (4 * 4096 + 3 * 11008), 32 * 4096 * (4 * 4096 + 2 * 12288 + 11008)
    assert (counted.useful_macs, counted.padded_macs) == (useful, padded)
    assert counted.transfer_seconds == pytest.approx(moved / 37e9)
    assert counted.compute_seconds == pytest.approx(padded / (16 * 128 * 1e9 * 0.757))
    # every dispatch waits for its bytes, so the compute adds nothing
    assert counted.modelled_seconds == pytest.approx(moved / 37e9 + 224 * 0.4e-3)


def test_a_prompt_passes_the_weights_for_every_eight_rows_on_phx_and_once_on_stx():
    model = Model("one layer", 1, 4096, 4096, 4096, 0, 128)
    phx = model_cost(model, PHX, "none", 256, PHX.latency)
    assert (phx.dispatches, phx.weight_bytes) == (7 * 256 // 32, 7 * SQUARE * 256 // 8)
    stx = model_cost(model, STX, "none", 256, STX.latency)  # two kernels of 128 rows
    assert (stx.dispatches, stx.weight_bytes) == (7 * 2, 7 * 2 * 33 * 128 * 2176)


def test_layers_and_figures_count():
    model = Model("two layers", 2, 4096, 4096, 4096, 0, 128)
    slow = PHX.latency.set(dispatch_overhead=3.0)
    assert model_cost(model, PHX, "q/k/v", 1, slow).overhead_seconds == 2 * 5 * 3.0

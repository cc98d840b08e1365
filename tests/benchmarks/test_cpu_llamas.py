"""Random models as files, their sizes by hand, and our reader on one of them."""

import pytest
import torch
from torch import nn

from benchmarks.cpu.contestant import Job, Spec, do
from benchmarks.cpu.llamas import LLAMAS, Llama, gguf_read_bytes, random_packed, write_checkpoint, write_gguf
from benchmarks.cpu.models import _made
from benchmarks.cpu.moes import MOES, QwenMoe
from benchmarks.cpu.our_reader import OurReader, weights_of
from benchmarks.cpu.report import Engine, ModelSize
from engine.parts import ModuleParts
from engine.stack import describe
from tests import tiny

LLAMA = Llama(64, 128, 2, 4, 2, 96, 256)
# q and o, k and v of half the width, gate and up and down; two blocks.
BLOCK_PRODUCTS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
HEAD_PRODUCTS = 96 * 64


def test_the_linears_of_a_llama():
    found = list(LLAMA.linears())
    assert len(found) == 2 * 7 + 1 and sum(n * k for *_, n, k in found) == BLOCK_PRODUCTS + HEAD_PRODUCTS
    assert found[1] == ("model.layers.0.self_attn.k_proj", "blk.0.attn_k", 32, 64)
    assert found[-1] == ("lm_head", "output", 96, 64)
    assert len(list(LLAMA.norms())) == 5


@pytest.mark.parametrize("name, least, most", [("1.1b", 1.0e9, 1.1e9), ("7b", 6.5e9, 6.7e9)])
def test_the_models_have_the_weights_they_are_named_after(name, least, most):
    assert least < sum(n * k for *_, n, k in LLAMAS[name].linears()) < most


@pytest.mark.parametrize("bits", [4, 3])
def test_random_weights_keep_the_size_of_what_they_multiply(bits):
    import numpy as np

    weight = random_packed(256, 512, bits, 128, np.random.default_rng(0)).unpack().dequantize(torch.float64)
    x = torch.randn(64, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert 0.9 < float((x @ weight.t()).std()) < 1.1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama") / "w4"
    write_checkpoint(LLAMA, 4, 32, directory)
    return directory


@pytest.mark.parametrize("engine", [Engine.FUSED, Engine.MODULES])
def test_our_reader_knows_the_models_sizes_and_reads(checkpoint, engine):
    reader = OurReader(Spec(engine, str(checkpoint), torch.get_num_threads(), 24))
    weights = reader.facts.weights
    # a position has keys and values, bf16, of 2 heads of 16 in 2 layers
    assert weights.size == ModelSize(BLOCK_PRODUCTS, HEAD_PRODUCTS, 2 * 2 * 2 * 2 * 16)
    assert weights.read_bytes > (BLOCK_PRODUCTS + HEAD_PRODUCTS) / 2
    assert weights.all_bytes - weights.read_bytes == 2 * 96 * 64 + 4 * 5 * 64  # the embedding, and the norms in float32
    answer = do(Job(tuple(range(20)), (1, 2, 3, 4)), reader)
    assert answer.prompt_s > 0 and answer.token_s > 0
    do(Job(tuple(range(20)), ()), reader)  # again from the start


def test_a_stack_that_does_not_run_whole_is_no_contestant(checkpoint):
    with pytest.raises(SystemExit, match="does not run as fused but on ModuleDecoder: .* the activation relu"):
        OurReader(Spec(Engine.FUSED, str(_of_relu(checkpoint)), torch.get_num_threads(), 24))


def _of_relu(checkpoint):
    """The same with an activation that the fused decoder does not know."""
    import json
    import shutil

    other = checkpoint.with_name("other")
    shutil.copytree(checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    return other


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_that_is_the_head_too_is_counted_once_and_read(tied):
    model = tiny.tiny_model("llama", tie_word_embeddings=tied)
    weights = weights_of(describe(model.config, ModuleParts(model), 1))
    size = model.dtype.itemsize
    products = weights.size.block_products + weights.size.head_products
    assert weights.size.head_products == tiny.VOCAB * tiny.HIDDEN and weights.read_bytes == products * size
    norms = (2 * tiny.LAYERS + 1) * tiny.HIDDEN * size
    assert weights.all_bytes == weights.read_bytes + norms + (0 if tied else tiny.VOCAB * tiny.HIDDEN * size)


def test_a_token_reads_all_of_a_gguf_file_but_an_embedding_beside_the_head(tmp_path):
    write_gguf(LLAMA, tmp_path / "x.gguf")
    # Q4_0: 18 bytes for 32 weights; norms of 64 float32
    assert gguf_read_bytes(tmp_path / "x.gguf") == (BLOCK_PRODUCTS + HEAD_PRODUCTS) * 18 / 32 + 5 * 64 * 4


def test_a_file_is_made_once_and_under_another_name_until_it_is_whole(tmp_path):
    made = []

    def make(path):
        made.append(path.name)
        path.write_text("whole")

    for _ in range(2):
        assert _made(tmp_path / "x", make).read_text() == "whole"
    assert made == ["partial-x"] and [path.name for path in tmp_path.iterdir()] == ["x"]


MOE = QwenMoe(64, 96, 2, 4, 2, 96, 256, head_dim=32, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32)
# q and o, k and v of half the width; six experts' gate, up and down
ATTENTION = 2 * 128 * 64 + 2 * 64 * 64
EXPERT = 3 * 64 * 32


def test_the_linears_of_a_mixture_of_experts():
    found = list(MOE.linears())
    assert sum(n * k for *_, n, k in found) == 2 * (ATTENTION + 6 * EXPERT) + HEAD_PRODUCTS
    assert found[4 + 3 * 5 + 1] == ("model.layers.0.mlp.experts.5.up_proj", "blk.0.ffn_up_exps", 32, 64)
    assert (
        sum(n * k for *_, n, k in MOES["30b-a3b-12l"].linears())
        == 12 * (18874368 + 128 * 3 * 768 * 2048) + 32000 * 2048
    )


def test_a_token_reads_the_experts_it_chooses(tmp_path):
    import gguf

    write_gguf(MOE, tmp_path / "x.gguf")
    norms, routers = 4 * (5 * 64 + 2 * 2 * 32), 4 * 2 * 6 * 64
    read = 2 * (ATTENTION + 2 * EXPERT) + HEAD_PRODUCTS
    assert gguf_read_bytes(tmp_path / "x.gguf") == read * 18 / 32 + norms + routers
    shapes = {tensor.name: tensor.shape.tolist() for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert shapes["blk.1.ffn_down_exps.weight"] == [32, 64, 6] and shapes["blk.1.ffn_gate_inp.weight"] == [64, 6]
    assert shapes["blk.0.attn_k.weight"] == [64, 64] and shapes["blk.0.attn_k_norm.weight"] == [32]


def test_our_reader_counts_the_experts_that_a_token_chooses():
    model = tiny.tiny_model("qwen3_moe")  # 3 of 8 experts of 32 a token
    for layer in model.model.layers:
        sizes = dict(gate_proj=(64, 32), up_proj=(64, 32), down_proj=(32, 64))
        layer.mlp.experts = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(k, n, bias=False) for name, (k, n) in sizes.items()}) for _ in range(8)
        )
    weights, attention = weights_of(describe(model.config, ModuleParts(model), 1)), 2 * 64 * 64 + 2 * 32 * 64
    assert weights.size == ModelSize(2 * (attention + 3 * EXPERT), 128 * 64, 2 * 2 * 2 * 2 * 16)
    assert weights.read_bytes == 4 * (2 * (attention + 3 * EXPERT + 8 * 64) + 128 * 64)
    assert weights.all_bytes - weights.read_bytes == 4 * (2 * 5 * EXPERT + 128 * 64 + 5 * 64 + 2 * 2 * 16)

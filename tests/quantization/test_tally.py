"""The count that a run keeps: what it comes to, and that it survives the journal it is put on record in."""

import json
import math
from dataclasses import replace

import pytest

from qlinear.files import json_text
from quantization.tally import LinearLosses, Tally
from quantization.unit import BlockErrors, Fed

LAYERS = [
    LinearLosses("model.layers.0.mlp.up_proj", 32, 0.5, 0.25, 0.125, 0.35, Fed(40, None), 4),
    LinearLosses("model.layers.0.self_attn.q_proj", 32, 0.1, 0.1, None, None, Fed(80, "none"), 3),
    LinearLosses("lm_head", 64, None, None, None, None, None, 3),
]


def filled() -> Tally:
    return Tally(
        units=2,
        layers=list(LAYERS),
        blocks={"model.layers.0": BlockErrors(0.1, 1 / 3)},
        quantized_names=["lm_head", "model.layers.0.mlp.up_proj"],
        written={"model.norm.weight", "lm_head.weight", "lm_head.bias"},
        quantized_bytes=2**40 + 1,
        quantized_weights=2**41,
        bytes=2**42 + 7,
    )


def test_it_comes_back_from_json():
    tally = filled()
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally
    assert Tally.from_json(json.loads(json.dumps(Tally().to_json()))) == Tally()


def test_what_is_no_number_comes_back_as_none():
    """A block whose output is beyond all numbers is on record as null, and is no damage to the progress."""
    tally = filled()
    tally.blocks["model.layers.1"] = BlockErrors(math.inf, math.nan)
    again = Tally.from_json(json.loads(json_text(tally.to_json())))
    errors = again.blocks.pop("model.layers.1")
    assert math.isnan(errors.before) and math.isnan(errors.after) and again == filled()


def test_what_goes_on_is_not_what_is_on_record():
    tally = filled()
    record = tally.to_json()
    content = json.dumps(record)
    again = Tally.from_json(record)
    for one in (tally, again):
        one.layers.append(LAYERS[0])
        one.written.add("other")
        one.blocks["model.layers.1"] = BlockErrors(1, 0)
        one.units += 1
    assert record == json.loads(content) and again.units == tally.units == 3


def test_bits_per_weight():
    """1000 weights in 500 bytes of codes and 62 of scales and zeros, beside 100 that stay in bfloat16."""
    size = Tally(quantized_bytes=562, quantized_weights=1000, bytes=762).size(2 * 1100)
    assert (size.float_bytes, size.quantized_bytes) == (2200, 762)
    assert size.bits_per_weight == pytest.approx(8 * 562 / 1000)
    assert size.bits_per_weight_with_embeddings == pytest.approx(8 * 762 / 1100)


def test_the_loss_of_what_is_saved():
    assert [layer.loss_saved for layer in LAYERS] == [0.125, 0.1, None]
    assert replace(LAYERS[0], loss_solver=0.0).loss_saved == 0.0, "none at all is a loss that is known"

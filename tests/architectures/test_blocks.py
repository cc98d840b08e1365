"""Blocks that share weights are known as such."""

from architectures.blocks import find_blocks, shared_blocks
from benchmarks.models.tiny import Row, tiny_model


def test_blocks_that_hold_weights_of_each_other():
    model = tiny_model(Row("zamba2"))
    assert shared_blocks(model, find_blocks(model)) == ("model.layers.3", "model.layers.1")


def test_blocks_of_their_own():
    model = tiny_model(Row("jamba"))
    assert shared_blocks(model, find_blocks(model)) is None

"""Random models as files, their sizes by hand, and our reader on one of them."""

import pytest
import torch

from benchmarks.cpu.contestant import Job, Spec, do
from benchmarks.cpu.llamas import LLAMAS, Llama, gguf_read_bytes, random_packed, write_checkpoint, write_gguf
from benchmarks.cpu.models import _made
from benchmarks.cpu.our_reader import OurReader, weights_of
from benchmarks.cpu.report import Engine, ModelSize
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
    assert weights.all_bytes - weights.read_bytes == 2 * (96 * 64 + 5 * 64)  # the embedding and the norms
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
    weights = weights_of(model)
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

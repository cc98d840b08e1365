"""Several processes quantize one model: the same bytes as one alone, whoever is killed on the way."""

from pathlib import Path

import pytest
import torch

from tests.quantization.ranks import run_ranks
from tests.quantized import calibration_text, save_float


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_float(tmp_path_factory.mktemp("models") / "m", "qwen3_moe", num_hidden_layers=3)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory) -> tuple[bytes, list]:
    """What one process makes: the checkpoint's tensors and the scales it found."""
    folder = tmp_path_factory.mktemp("alone")
    (alone,) = run_ranks(folder, 1, *options(source))
    assert alone.code == 0, alone
    return made(folder)


def options(source: Path, *more: str) -> tuple:
    text = ("--calib_data", calibration_text(source), "--n_samples", 7, "--seqlen", 16, "--seed", 0)
    return (
        *("--task", "quantize", "--model_name", source, "--group_size", 32, "--awq", "run", "--solver", "gptq"),
        *("--bits_per_weight", 4.1, "--lm_head", "--distill", 2, "--output", "q", "--scales", "s.pt", *text, *more),
    )


def made(folder: Path) -> tuple[bytes, list]:
    found = torch.load(folder / "s.pt", weights_only=True)
    scales = [(prev, layers, vector.tolist()) for prev, layers, vector in found["scale"]]
    return (folder / "q" / "model.safetensors").read_bytes(), scales


def test_two_ranks_make_the_bytes_of_one(source, expected, tmp_path):
    """Seven samples: one rank has one more than the other."""
    leads, follows = run_ranks(tmp_path, 2, *options(source))
    assert (leads.code, follows.code) == (0, 0), (leads, follows)
    assert made(tmp_path) == expected
    assert leads.lines == []
    assert "saved in q; to run it:" in leads.out and (follows.out, follows.err) == ("", "")


def test_a_rank_that_is_killed_ends_the_others_and_one_goes_on(source, expected, tmp_path):
    change = "after_block = lambda work, index: ends() if rank == 1 and index == 1 else None"
    leads, killed, other = run_ranks(tmp_path, 3, *options(source), change=change)
    assert (leads.code, killed.code, other.code) == (2, -9, 2), (leads, killed, other)
    assert leads.lines[-1:] == ["error: rank 1 of 3 has ended without a word; all end with it"]
    assert "Traceback" not in leads.err and (other.out, other.err) == ("", "")
    assert not (tmp_path / "q").exists()
    (alone,) = run_ranks(tmp_path, 1, *options(source, "--resume"))
    assert alone.code == 0 and made(tmp_path) == expected


def test_two_go_on_where_one_was_stopped(source, expected, tmp_path):
    (stopped,) = run_ranks(tmp_path, 1, *options(source), change="after_block = lambda work, index: ends()")
    assert stopped.code == -9
    leads, follows = run_ranks(tmp_path, 2, *options(source, "--resume"))
    assert (leads.code, follows.code) == (0, 0), (leads, follows)
    assert "note: going on after 1 of 3 blocks" in leads.err
    assert made(tmp_path) == expected


def test_the_others_tell_when_it_is_the_leading_rank_that_is_killed(source, tmp_path):
    change = "after_block = lambda work, index: ends() if rank == 0 else None"
    killed, other = run_ranks(tmp_path, 2, *options(source), change=change)
    assert (killed.code, other.code) == (-9, 2)
    assert other.err == "error: rank 0 of 2 has ended without a word; all end with it\n"


def test_what_ails_another_rank_is_told_by_the_leading_one(source, tmp_path):
    change = """
from qlinear.errors import ModelError
def after_block(work, index):
    if rank == 1:
        raise ModelError("`model_name` is not to be read here")
"""
    leads, other = run_ranks(tmp_path, 2, *options(source), change=change)
    assert (leads.code, other.code) == (2, 2)
    assert leads.lines[-1] == ("error: rank 1 of 2 has ended: --model_name is not to be read here; all end with it")
    assert (other.out, other.err) == ("", "")


def test_a_mistake_is_told_once(source, tmp_path):
    leads, other = run_ranks(tmp_path, 2, *options(source, "--w_bit", "5"))
    assert (leads.code, other.code) == (2, 2)
    assert leads.err.startswith("error: Invalid value for '--w_bit'") and (other.out, other.err) == ("", "")

"""What checkpoints and scales files are called when nobody says."""

from pathlib import Path

import pytest

from qlinear.errors import OptionError
from quantization.paths import checkpoint_name, scales_path
from quantization.recipe import Recipe


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (dict(), "m-w4-g64-awq-gptq"),
        (dict(awq="run", solver="rtn"), "m-w4-g64-awq"),
        (dict(awq="load"), "m-w4-g64-awq"),
        (dict(awq="load", solver="learned", w_bit=3), "m-w3-g64-awq-learned"),
        (dict(awq="none"), "m-w4-g64-rtn"),
        (dict(awq="none", solver="hqq"), "m-w4-g64-hqq"),
        (dict(awq="none", solver="gptq"), "m-w4-g64-gptq"),
        (dict(symmetric=True, lm_head=True), "m-w4-g64-symmetric-awq-gptq-lm_head"),
        (dict(symmetric=True, awq="none", w_bit=3), "m-w3-g64-symmetric-rtn"),
        (dict(lm_head=True, flash_attention=True), "m-w4-g64-awq-gptq-lm_head-flash_attention"),
        (dict(lm_head=True, embedding_bits=8), "m-w4-g64-awq-gptq-lm_head-e8"),
        (dict(flash_attention=False, seed=7, n_samples=3), "m-w4-g64-awq-gptq"),
    ],
)
def test_a_checkpoint_is_named_after_its_recipe(fields, name):
    assert checkpoint_name("m", Recipe(**fields).settled(64)) == name


def test_any_group_size_is_a_star():
    assert checkpoint_name("m", Recipe().settled()) == "m-w4-g*-awq-gptq"
    assert checkpoint_name("m", Recipe(symmetric=True).settled()) == "m-w4-g*-symmetric-awq-gptq"


def test_scales_are_kept_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AWQ_CACHE", str(tmp_path))
    assert scales_path("m", Recipe(w_bit=3, group_size=32)) == tmp_path / "m-w3-g32.pt"
    assert scales_path("m", Recipe(group_size=32, symmetric=True)) == tmp_path / "m-w4-g32-symmetric.pt"
    monkeypatch.setenv("AWQ_CACHE", "")  # as good as none
    monkeypatch.setenv("HOME", "/home/somebody")
    assert scales_path("m", Recipe(group_size=128)) == Path("/home/somebody/.cache/run_awq/m-w4-g128.pt")


def test_an_environment_without_a_home(monkeypatch):
    """A user that the system does not know, as in many a container, and no HOME."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("AWQ_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OptionError, match="no home directory to keep scales in; set AWQ_CACHE or give `scales`"):
        scales_path("m", Recipe(group_size=128))

"""Which kernels the cuda target takes, and what it says of it: no GPU needed."""

import ctypes
import importlib.util

import pytest
import torch

from qlinear.backends.cuda import binary, choice
from qlinear.backends.cuda.humming import HummingBackend
from qlinear.backends.registry import open_target
from qlinear.errors import TargetError
from qlinear.packing import PackedWeight
from tests.qlinear.exact import random_weight


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """One with a GPU as far as torch says, on which nothing is chosen yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(choice.VARIABLE, raising=False)


def fails(reason):
    def opened():
        raise TargetError(reason)

    return opened


def test_its_own_kernels_come_first(monkeypatch):
    monkeypatch.setattr(choice, "_own", lambda: "own")
    assert choice.choose() == ("own", None)
    assert open_target("cuda").backend == "own"


def test_where_they_cannot_be_had_it_says_why(monkeypatch):
    monkeypatch.setattr(choice, "_own", fails("no NVRTC"))
    monkeypatch.setattr(choice, "_humming", lambda: "humming")
    assert choice.choose() == ("humming", "running on humming-kernels: no NVRTC")
    monkeypatch.setattr(choice, "_humming", fails("not installed"))
    backend, note = choice.choose()
    assert backend.name == "cuda/torch" and note == "running in plain torch, a byte for each weight: no NVRTC"


@pytest.mark.parametrize("named", choice.KERNELS)
def test_those_that_are_named_or_none(monkeypatch, named):
    monkeypatch.setenv(choice.VARIABLE, named)
    for kernels in choice.KERNELS:
        monkeypatch.setattr(choice, f"_{kernels}", lambda kernels=kernels: kernels)
    assert choice.choose() == (named, None)
    if named != choice.TORCH:
        monkeypatch.setattr(choice, f"_{named}", fails("why"))
        with pytest.raises(TargetError, match="^why$"):
            choice.choose()


def test_names_that_there_are_not(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "marlin")
    with pytest.raises(TargetError, match="KERNELS=marlin names no kernels; use one of own, humming, torch"):
        choice.choose()


def test_humming_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="humming-kernels are not installed"):
        HummingBackend()


def test_humming_wants_whole_words_of_zero_points(monkeypatch):
    backend = object.__new__(HummingBackend)
    monkeypatch.setitem(__import__("sys").modules, "humming.layer", type("module", (), {"HummingLayer": None}))
    with pytest.raises(TargetError, match="a multiple of 32 rows; this one has 40"):
        backend.prepare(PackedWeight.pack(random_weight(40, 64, 4, 64)), None)


def test_an_old_gpu():
    with pytest.raises(TargetError, match=r"need compute capability 8\.0; this GPU has 7\.5"):
        binary.kernel_image(7, 5)


class FakeNvrtc:
    version, compiled = "13.0", 0

    def compile(self, sources, architecture):
        FakeNvrtc.compiled += 1
        assert {"kernels.cu", "linear.h", "ptx.h"} <= set(sources)
        return f"image of {architecture}".encode()


def test_what_is_built_at_first_use_is_kept(monkeypatch, tmp_path):
    """By source, architecture and compiler; where there is no room it is built again."""
    monkeypatch.setattr(binary, "FATBIN", tmp_path / "none")
    monkeypatch.setattr(binary, "Nvrtc", FakeNvrtc)
    monkeypatch.setattr(binary, "_cache", lambda: tmp_path / "cache")
    FakeNvrtc.compiled = 0
    assert binary.kernel_image(9, 0) == binary.kernel_image(9, 0) == b"image of sm_90a"
    assert FakeNvrtc.compiled == 1
    assert binary.kernel_image(8, 9) == b"image of sm_89" and FakeNvrtc.compiled == 2
    monkeypatch.setattr(FakeNvrtc, "version", "13.1")
    assert binary.kernel_image(9, 0) == b"image of sm_90a" and FakeNvrtc.compiled == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(binary, "_cache", lambda: tmp_path / "file")
    binary.kernel_image(9, 0)
    binary.kernel_image(9, 0)
    assert FakeNvrtc.compiled == 5


def test_what_was_built_at_install_is_taken(monkeypatch, tmp_path):
    (tmp_path / "built").write_bytes(b"fatbin")
    monkeypatch.setattr(binary, "FATBIN", tmp_path / "built")
    assert binary.kernel_image(9, 0) == b"fatbin"


def test_a_machine_without_a_compiler(monkeypatch, tmp_path):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(binary, "FATBIN", tmp_path / "none")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(TargetError, match="are not built, and NVRTC, which could build them now, is not found"):
        binary.kernel_image(9, 0)

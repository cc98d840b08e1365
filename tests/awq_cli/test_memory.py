"""Memory that cannot be had is told in one line, whoever it is that asks for it."""

import resource

import pytest

from awq_cli import main
from qlinear.errors import is_out_of_memory
from qlinear.process import MARGIN, check_room
from quantization.work import Work


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=repr,
)
def test_it_is_told_in_one_line_and_is_no_fault(run, model, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(Work, "_solve", failing)
    line = run("--task", "quantize", "--model_name", model, "--awq", "none").error
    assert line.startswith("there is not enough memory (") and line.endswith("); give more of it, or ask for less")
    assert run.left() == []


def test_other_errors_are_not_taken_for_it():
    for error in (RuntimeError("shapes cannot be multiplied"), ValueError("memory"), OSError(28, "No space left")):
        assert not is_out_of_memory(error)


def test_a_reader_does_not_take_it_for_damage(run, model, monkeypatch):
    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", failing)
    assert run("--task", "quantize", "--model_name", model).error.startswith("there is not enough memory (MemoryError)")


def test_room_is_looked_for_before_libraries_die_of_its_lack(monkeypatch):
    check_room(2**60)  # no limit, nobody to ask
    monkeypatch.setattr("qlinear.process.resource.getrlimit", lambda _: (10**10, 10**10))
    check_room(0)
    with pytest.raises(MemoryError, match=r"1\.2e\+09 GB more are needed here and not to be had"):
        check_room(2**60)
    with pytest.raises(MemoryError):
        check_room(2**63)
    asked = []

    def short(_, size, **named):
        asked.append(size)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("qlinear.process.mmap.mmap", short)
    with pytest.raises(MemoryError):
        check_room(1000)
    assert asked == [1000 + MARGIN]


def test_every_block_and_the_head_ask_for_room(run, model, monkeypatch):
    asked = []
    monkeypatch.setattr("quantization.work.check_room", asked.append)
    run.result("--task", "quantize", "--model_name", model, "--awq", "none")
    block = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64  # q, o; k, v; the MLP; two norms
    assert asked == [12 * block, 12 * block, 12 * 512 * 64]


def test_a_limit_below_what_is_loaded_is_named(run, monkeypatch):
    monkeypatch.setattr(main.resource, "getrlimit", lambda _: (850 * 10**6, resource.RLIM_INFINITY))
    assert run("--task", "decode").error == (
        "the memory of this process is limited to 0.85 GB (ulimit -v), and what it loads alone takes 1 GB; raise the "
        "limit"
    )
    monkeypatch.setattr(main.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "no checkpoint" in run("--task", "decode").error


def test_a_text_is_read_as_it_is_found(tmp_path, monkeypatch):
    """Not into a buffer of the most there may be."""
    from quantization.texts.files import read_file

    sizes = []

    class Counting:
        def __init__(self, path, mode):
            self.left = [b"x" * 10, b"y" * 5, b""]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            sizes.append(size)
            return self.left.pop(0)

    monkeypatch.setattr("builtins.open", Counting)
    assert read_file(tmp_path, "x", RuntimeError) == "x" * 10 + "y" * 5
    assert sizes == [1 << 20] * 3

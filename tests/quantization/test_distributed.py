"""What ranks tell each other, how they know that one has ended, and what they refuse."""

import json
import socket
import threading

import pytest
import torch

from qlinear.errors import ModelError, OptionError, RankError, UntoldError
from qlinear.grid import Grid
from qlinear.process import rank_and_size
from qlinear.solvers.rtn import rtn
from quantization import lifeline
from quantization.distributed import open_ranks, pack, unpack
from quantization.lifeline import Lifeline
from quantization.quantize import _refuse_ranks
from run_awq import Recipe
from scales.ranks import ALONE, Ranks
from tests.awq_cli.conftest import Command


def test_a_message_comes_out_as_it_went_in():
    made = rtn(torch.randn(6, 64), Grid(4, 32))
    value = {
        3: (made, [torch.randn(5, 7).bfloat16(), None]),
        "empty": torch.empty(0, 4),
        "turned": torch.arange(12).view(3, 4).t(),
        "number": 0.1,
        "flag": torch.tensor(True),
    }
    found = unpack(pack(value))
    codes, (half, nothing) = found[3]
    assert codes.codes.equal(made.codes) and codes.scales.equal(made.scales) and codes.bits == 4
    assert half.equal(value[3][1][0]) and half.dtype == torch.bfloat16 and nothing is None
    assert found["empty"].shape == (0, 4) and found["turned"].equal(value["turned"])
    assert found["number"] == 0.1 and found["flag"].item() is True


def test_what_comes_out_shares_no_memory():
    first, second = unpack(pack([torch.zeros(3), torch.zeros(3)]))
    first += 1
    assert second.equal(torch.zeros(3))
    assert first.untyped_storage().nbytes() == 12


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, (0, 1)), ({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3)), ({"WORLD_SIZE": "1"}, (0, 1))],
)
def test_which_of_how_many(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_and_size() == expected


@pytest.mark.parametrize("environment", [("3", "3"), ("-1", "2"), ("one", "2"), ("0", "many"), ("1", "1")])
def test_what_is_no_rank(monkeypatch, environment):
    for name, value in zip(("RANK", "WORLD_SIZE"), environment, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="say no process of several; unset them"):
        rank_and_size()


def test_nobody_says_where_the_leading_rank_is(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(OptionError, match="WORLD_SIZE=2 and no MASTER_ADDR"), open_ranks():
        pass


def test_one_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with open_ranks() as ranks:
        assert ranks is ALONE and ranks.leads


def test_other_tasks_are_one_process_s(monkeypatch, tmp_path):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    error = Command(tmp_path)("--task", "decode").error
    assert error == "WORLD_SIZE=2: only --task quantize is shared among ranks; start one process"


def test_a_solver_that_is_not_shared():
    two = Ranks()
    two.size = 2
    with pytest.raises(OptionError, match="`solver=learned` moves a block's weights a step at a time, which 2 ranks"):
        _refuse_ranks(Recipe(solver="learned").settled(), two)
    _refuse_ranks(Recipe(solver="learned").settled(), ALONE)
    _refuse_ranks(Recipe().settled(), two)


@pytest.fixture
def pair(monkeypatch):
    """The two ends of a connection; the lifeline has the first. However long it takes, no process is ended."""
    monkeypatch.setattr(lifeline, "GRACE_S", 600)
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def fault(word: str | None) -> bytes:
    return json.dumps({"fault": word}).encode() + b"\n"


@pytest.mark.parametrize(
    ("rank", "said", "kind", "words"),
    [
        (0, b"", RankError, "rank 1 of 2 has ended without a word; all end with it"),
        (0, fault("no room"), RankError, "rank 1 of 2 has ended: no room; all end with it"),
        (1, b"", RankError, "rank 0 of 2 has ended without a word; all end with it"),
        (1, fault("no room"), UntoldError, "no room"),
    ],
)
def test_the_end_of_another_is_raised_wherever_one_is(pair, rank, said, kind, words):
    line = Lifeline(rank, 2, {1 - rank: pair[0]})
    waiting = threading.Event()
    with pytest.raises(kind) as raised, line.held():
        pair[1].sendall(said)
        pair[1].shutdown(socket.SHUT_WR)
        waiting.wait(60)  # which is never set
    assert str(raised.value) == words


def test_one_that_is_done_ends_nobody(pair):
    line = Lifeline(0, 2, {1: pair[0]})
    with line.held():
        pair[1].sendall(fault(None))
        pair[1].shutdown(socket.SHUT_WR)
        threading.Event().wait(0.2)
    assert json.loads(pair[1].recv(100)) == {"fault": None}


def test_what_fails_is_told_to_the_leading_rank(pair):
    line = Lifeline(1, 2, {0: pair[0]})
    with pytest.raises(UntoldError), line.held():
        raise ModelError("no such file")
    assert json.loads(pair[1].recv(100)) == {"fault": "no such file"}


def test_why_an_exchange_failed(pair, monkeypatch):
    monkeypatch.setattr(lifeline, "GRACE_S", 0.05)
    line = Lifeline(0, 2, {1: pair[0]})
    assert str(line.reason(RuntimeError("connection\nreset"))) == "the ranks have lost each other: connection reset"

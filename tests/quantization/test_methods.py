"""The table of methods: what each is called, when it reads text, and that its code is where the table says."""

import inspect

import pytest

from qlinear.solvers.gptq import gptq
from qlinear.solvers.hqq import hqq
from qlinear.solvers.rtn import rtn
from quantization.learned import learn_block
from quantization.methods import METHODS


@pytest.mark.parametrize(
    ("name", "linear", "block", "alone", "beside_awq"),
    [
        ("rtn", rtn, None, False, False),
        ("hqq", hqq, None, False, True),
        ("gptq", gptq, None, True, True),
        ("learned", gptq, learn_block, True, True),
    ],
)
def test_a_method(name, linear, block, alone, beside_awq):
    method = METHODS[name]
    assert method.linear is linear and method.block is block
    assert method.reads_text(awq=False) is alone and method.reads_text(awq=True) is beside_awq
    assert method.description and "\n" not in method.description


def test_every_solver_is_called_alike():
    assert sorted(METHODS) == ["gptq", "hqq", "learned", "rtn"]
    for method in METHODS.values():
        assert list(inspect.signature(method.linear).parameters)[:3] == ["weight", "grid", "gram"]

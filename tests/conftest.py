"""Settings of the whole suite, made before torch is loaded."""

import os

import pytest

# Threads that have nothing to do sleep: beside other busy processes, spinning ones take the cores from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Models here are tiny: a second thread takes more processor time than it saves. Tests of threads ask for theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from qlinear.backends.cpu import native  # noqa: E402
from qlinear.errors import TargetError  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Scales that a search finds are not left in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=native.ISAS)
def isa(request, monkeypatch):
    """Every instruction set of this machine, one after the other, for kernels and for backends opened meanwhile."""
    try:
        available = native.available_isas()
    except TargetError as error:
        pytest.skip(str(error))
    if request.param not in available:
        pytest.skip(f"this machine has no {request.param}")
    with monkeypatch.context() as patch:
        patch.setenv(native.ISA_VARIABLE, request.param)
        native.select_isa(request.param)
        yield request.param
    native.select_isa("")

"""The cpu target around its kernels: memory, choice of the instruction set, torch's compilers."""

import copy
import ctypes
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch

from qlinear.backends.cpu import native
from qlinear.errors import TargetError
from qlinear.packing import PackedWeight

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402
from qlinear.backends.cpu.memory import HUGE_PAGE, huge_pages  # noqa: E402
from qlinear.backends.cpu.weight import CpuWeight  # noqa: E402
from tests.qlinear.exact import random_weight  # noqa: E402


@pytest.fixture
def best():
    return CpuBackend()


def test_threads_of_our_own_give_the_same_bits(best):
    prepared = best.prepare(PackedWeight.pack(random_weight(515, 512, 4, 64)), None)
    x = torch.randn(9, 512, generator=torch.Generator().manual_seed(7)).bfloat16()
    on_torch = best.matmul(x, prepared)
    library = native.library()
    library.awq_set_threads(None, None, 3)
    try:
        assert torch.equal(best.matmul(x, prepared), on_torch)
    finally:
        library.awq_set_threads(*native.torch_threads(), 1)


def test_kernels_of_older_sources_are_told_of(monkeypatch):
    """As after `git pull` where the package is installed from its folder: their functions are others."""
    monkeypatch.setattr(native, "NEWEST", "awq_of_tomorrow")
    with pytest.raises(TargetError, match="the native kernels were built from older sources .* install it again"):
        native.library.__wrapped__()


@pytest.mark.parametrize("int8", [False, True])
def test_a_copied_or_pickled_weight_owns_its_memory(int8):
    best, weight = CpuBackend(int8), random_weight(33, 128, 4, 64)
    prepared = best.prepare(PackedWeight.pack(weight), torch.ones(33))
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(8)).bfloat16()
    expected = best.matmul(x, prepared)
    twins = copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))
    prepared.packed.zero_()
    for twin in twins:
        assert isinstance(twin, CpuWeight) and torch.equal(best.matmul(x, twin), expected)


def test_weights_lie_one_after_the_other_and_apart(best):
    small = PackedWeight.pack(random_weight(33, 128, 3, 64))
    first, second = best.prepare(small, None), best.prepare(small, None)
    assert second.packed.data_ptr() - first.packed.data_ptr() == -(-first.packed.nbytes // 64) * 64
    kept = second.packed.clone()
    first.packed.fill_(255)
    assert torch.equal(second.packed, kept)
    assert len(pickle.dumps(first)) < 2 * first.packed.nbytes


def test_memory_is_new_and_whole_huge_pages():
    size = 3 * HUGE_PAGE + 1
    huge_pages(size).fill(7)  # and let go
    memory = huge_pages(size)
    assert memory.size == 4 * HUGE_PAGE and memory.ctypes.data % HUGE_PAGE == 0
    assert not memory.any()


def test_more_memory_than_there_can_be():
    with pytest.raises(TargetError, match=r"^\d+\.\d GB of memory are not to be had: "):
        huge_pages(1 << 60)


def test_a_bias_that_is_float32_already_is_copied_too(best):
    bias = torch.arange(33.0)
    prepared = best.prepare(PackedWeight.pack(random_weight(33, 128, 4, 64)), bias)
    bias.zero_()
    assert torch.equal(best.matmul(torch.zeros(1, 128), prepared)[0], torch.arange(33.0))


def test_backend_is_named_after_the_instruction_set(monkeypatch):
    for isa in AVAILABLE:
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        assert CpuBackend().name == f"cpu/{isa}" and CpuBackend(int8=True).name == f"cpu/{isa} int8"
    monkeypatch.delenv(native.ISA_VARIABLE)
    assert CpuBackend().name == f"cpu/{native.select_isa('')}"


def test_the_best_is_found_again_by_every_process(tmp_path):
    """Where bf16 pairs or tiles might be slow, it is measured when a library is loaded; each copy is one of its own."""
    best = set()
    for i in range(10):
        copy_of_it = shutil.copy(native.LIBRARY, tmp_path / f"{i}.so")
        fresh = ctypes.CDLL(str(copy_of_it))
        fresh.awq_isa.restype = ctypes.c_char_p
        best.add(fresh.awq_isa().decode())
    fast = next(isa for isa in reversed(AVAILABLE) if isa not in ("avx512bf16", "amx"))
    measured = [isa for isa in AVAILABLE if isa in ("avx512bf16", "amx")]
    assert len(best) == 1 and best <= {fast, *measured}


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv(native.ISA_VARIABLE, "sse9")
    with pytest.raises(TargetError, match="RUN_AWQ_ISA=sse9 is not an instruction set; use one of scalar, avx2"):
        CpuBackend()


def test_missing_instruction_set(monkeypatch):
    best_only_scalar = SimpleNamespace(
        awq_select_isa=lambda name: 0 if name == b"scalar" else -1, awq_isa=lambda: b"scalar"
    )
    monkeypatch.setattr(native, "library", lambda: best_only_scalar)
    with pytest.raises(TargetError, match="RUN_AWQ_ISA=avx512 is not available on this machine, which has scalar"):
        native.select_isa("avx512")


def test_missing_library(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_kernels.so")
    with pytest.raises(TargetError, match="not built .* install again with g\\+\\+ or clang\\+\\+"):
        native.library.__wrapped__()


def test_other_dtypes_and_widths_are_refused(best):
    prepared = best.prepare(PackedWeight.pack(random_weight(9, 128, 4, 64)), None)
    with pytest.raises(TargetError, match="bfloat16 or float32 activations, not torch.float16"):
        best.matmul(torch.zeros(1, 128, dtype=torch.float16), prepared)
    with pytest.raises(ValueError, match="64 features, the weight has 128"):
        best.matmul(torch.zeros(1, 64), prepared)


def test_other_dtypes_than_bfloat16_are_not_rounded_to_int8():
    int8 = CpuBackend(int8=True)
    prepared = int8.prepare(PackedWeight.pack(random_weight(9, 128, 4, 64)), None)
    with pytest.raises(
        TargetError, match="^activations are rounded to int8 from bfloat16 only, not from torch.float32"
    ):
        int8.matmul(torch.zeros(1, 128), prepared)


class Layer(torch.nn.Module):
    def __init__(self, backend, prepared):
        super().__init__()
        self.backend, self.prepared = backend, prepared

    def forward(self, x):
        return torch.relu(self.backend.matmul(x * 2, self.prepared))


@pytest.fixture(params=[False, True], ids=["exact", "int8"])
def layer(request):
    backend, weight = CpuBackend(request.param), random_weight(35, 128, 4, 64)
    return Layer(backend, backend.prepare(PackedWeight.pack(weight), torch.linspace(-1, 1, 35)))


def test_torch_compile_keeps_the_operator(layer):
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(9)).bfloat16()
    compiled = torch.compile(layer, backend=keep, fullgraph=True)(x)
    assert torch.equal(compiled, layer(x))
    targets = [node.target for node in graphs[0].graph.nodes]
    assert torch.ops.run_awq.qlinear in targets or torch.ops.run_awq.qlinear.default in targets


def test_torch_export_passes_through(layer):
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(10)).bfloat16()
    exported = torch.export.export(layer, (x,))
    assert any(node.target is torch.ops.run_awq.qlinear.default for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x), layer(x))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bias", [None, torch.ones(35)])
def test_operator_and_its_fake_agree(bias, int8):
    w = CpuBackend(int8).prepare(PackedWeight.pack(random_weight(35, 128, 4, 64)), bias)
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(11)).bfloat16()
    fields = w.packed, w.bias, w.n, w.k, w.bits, w.group_size, w.int8
    torch.library.opcheck(torch.ops.run_awq.qlinear.default, (x, *fields))

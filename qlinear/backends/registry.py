"""Target name -> backend, imported only when asked for. A new target is one function and one line in `TARGETS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qlinear.backends.widths import Widths
from qlinear.errors import TargetError

if TYPE_CHECKING:
    from qlinear.backends.base import Backend


@dataclass(frozen=True)
class Target:
    """backend: what runs; note: what the user should know of it, where it is not what the name promises."""

    backend: "Backend"
    note: str | None = None


@dataclass(frozen=True)
class Npu:
    """Which NPU, for the targets that are one; latency: figures of its latency model to replace."""

    device: str = "phx"
    latency: Mapping[str, float] = field(default_factory=dict)


def _cpu(npu: Npu) -> Target:
    from qlinear.backends.cpu import native

    if native.is_built():
        from qlinear.backends.cpu.backend import CpuBackend

        return Target(CpuBackend())
    from qlinear.backends.reference import ReferenceBackend

    return Target(ReferenceBackend("cpu/torch"), f"running in plain torch, many times slower: {native.HOW_TO_BUILD}")


def _cuda(npu: Npu) -> Target:
    import torch

    from qlinear.backends.cuda.choice import choose

    if not torch.cuda.is_available():
        raise TargetError("`target=cuda`: torch finds no CUDA device on this machine; use `target=cpu`")
    return Target(*choose())


def _aie_emu(npu: Npu) -> Target:
    from qlinear.backends.aie.backend import AieBackend
    from qlinear.backends.aie.devices import find_device

    return Target(AieBackend(npu.device, find_device(npu.device).latency.set(**npu.latency)))


def _aie(npu: Npu) -> Target:
    from qlinear.backends.aie.npu import find_npu

    return Target(_aie_emu(npu).backend, f"`target=aie`: {find_npu()}")


# How a model may be asked to run: as floats, or quantized with activations in bfloat16 or, on the cpu, rounded to int8.
PRECISIONS = ("bf16", "w4abf16", "w4aint8")

# Of keys and values in the cache: bfloat16, or on the cpu int8 with a scale for each head and position.
KV_BITS = (16, 8)

# Of an output head that is not quantized: bfloat16, or on the cpu int8 with a scale for 64 weights.
HEAD_BITS = (16, 8)

# Those for which it matters which NPU is meant.
NPU_TARGETS = ("aie", "aie_emu")

TARGETS: dict[str, Callable[[Npu], Target]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "aie": _aie,
    "aie_emu": _aie_emu,
}


def open_target(name: str, npu: Npu = Npu(), int8: bool = False, widths: Widths = Widths()) -> Target:
    """The backend that runs on target `name` of this machine. Raises `TargetError` with the reason if none does.

    int8: with activations rounded to int8; widths: with what is not quantized in so many bits. The cpu's kernels alone
    do either.
    """
    if name not in TARGETS:
        raise TargetError(f"`target={name}` is not known; use one of {', '.join(TARGETS)}")
    for option, bits in (("kv_bits", widths.kv), ("head_bits", widths.head)):
        if bits != 16:
            _check_kernels(name, f"`{option}={bits}`", "16")
    if int8:
        _check_kernels(name, "`precision=w4aint8`", "w4abf16")
    if not int8 and widths == Widths():
        return TARGETS[name](npu)
    from qlinear.backends.cpu.backend import CpuBackend

    return Target(CpuBackend(int8, widths))


def _check_kernels(name: str, asked: str, instead: str) -> None:
    """Raise `TargetError` for another target than the cpu, and where its kernels are not built."""
    from qlinear.backends.cpu import native

    if name != "cpu":
        raise TargetError(f"{asked} runs on `target=cpu` only, not on {name}; use {instead}")
    if not native.is_built():
        raise TargetError(f"{asked}: {native.HOW_TO_BUILD}")

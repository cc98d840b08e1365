"""Target name -> backend, imported only when asked for. A new target is one function and one line in `TARGETS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


# Those for which it matters which NPU is meant.
NPU_TARGETS = ("aie", "aie_emu")

TARGETS: dict[str, Callable[[Npu], Target]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "aie": _aie,
    "aie_emu": _aie_emu,
}


def open_target(name: str, npu: Npu = Npu()) -> Target:
    """The backend that runs on target `name` of this machine; raises `TargetError` with the reason if none does."""
    if name not in TARGETS:
        raise TargetError(f"`target={name}` is not known; use one of {', '.join(TARGETS)}")
    return TARGETS[name](npu)

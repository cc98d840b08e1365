"""Target name -> backend, imported only when asked for. A new target is one function and one line in `TARGETS`."""

from collections.abc import Callable
from dataclasses import dataclass

from qlinear.backends.base import Backend
from qlinear.errors import TargetError


@dataclass(frozen=True)
class Target:
    """backend: what runs; note: what the user should know of it, where it is not what the name promises."""

    backend: Backend
    note: str | None = None


def _cpu(device: str) -> Target:
    from qlinear.backends import native

    if native.is_built():
        from qlinear.backends.cpu import CpuBackend

        return Target(CpuBackend())
    from qlinear.backends.reference import ReferenceBackend

    return Target(ReferenceBackend("cpu/torch"), f"running in plain torch, many times slower: {native.HOW_TO_BUILD}")


def _cuda(device: str) -> Target:
    import torch

    from qlinear.backends.reference import ReferenceBackend

    if not torch.cuda.is_available():
        raise TargetError("--target cuda: torch finds no CUDA device on this machine; use --target cpu")
    return Target(ReferenceBackend("cuda/torch", "cuda"))


def _aie_emu(device: str) -> Target:
    from qlinear.backends.aie import AieBackend

    return Target(AieBackend(device))


def _aie(device: str) -> Target:
    from qlinear.backends.aie import AieBackend, find_npu

    return Target(AieBackend(device), f"--target aie: {find_npu()}")


TARGETS: dict[str, Callable[[str], Target]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "aie": _aie,
    "aie_emu": _aie_emu,
}


def open_target(name: str, device: str = "phx") -> Target:
    """The backend that runs `--target name` on this machine; raises `TargetError` with the reason if none does.

    device: which NPU, for the targets that are one.
    """
    return TARGETS[name](device)

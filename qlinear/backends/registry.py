"""Target name -> backend, imported only when asked for. A new target is one file and one line in `TARGETS`."""

from collections.abc import Callable

from qlinear.backends.base import Backend


def _cpu() -> tuple[Backend, str | None]:
    from qlinear.backends.reference import ReferenceBackend

    return ReferenceBackend("cpu/torch"), None


def _cuda() -> tuple[Backend, str | None]:
    import torch

    from qlinear.backends.reference import ReferenceBackend
    from qlinear.errors import TargetError

    if not torch.cuda.is_available():
        raise TargetError("--target cuda: torch finds no CUDA device on this machine; use --target cpu")
    return ReferenceBackend("cuda/torch", "cuda"), None


TARGETS: dict[str, Callable[[], tuple[Backend, str | None]]] = {
    "cpu": _cpu,
    "cuda": _cuda,
}


def create_backend(target: str) -> tuple[Backend, str | None]:
    """The backend that runs `target` on this machine, and what the user should know of it, if anything.

    Raises `TargetError` with the reason if none does.
    """
    return TARGETS[target]()

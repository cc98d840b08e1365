"""Torch while a model is quantized: in its own defaults, with the library that multiplies float32 matrices fastest, and
where bfloat16 is the faster one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import RLock

import torch

_ONE_AT_A_TIME = RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """One at a time of a process, and in torch's own defaults, whatever the caller has set for what it does itself."""
    with _ONE_AT_A_TIME:
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        elsewhere = device if device.type != "cpu" else None
        torch.set_default_dtype(torch.float32)
        try:
            with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
                with nullcontext() if elsewhere is None else torch.device("cpu"):
                    yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let float32 matmuls go to the library that is fast on this processor: MKL on Intel's, oneDNN on others.

    torch's default, MKL, does not use all of an AMD core's vector width. On Intel's own cores it is the faster one, but
    for those with matrix tiles (AMX), which only oneDNN makes use of. The switch to oneDNN is torch's permission to
    form products of bfloat16-rounded inputs. On x86 it makes use of that in those tiles alone; there, activations,
    Gram matrices and factors are then as exact as bfloat16 is. Below AVX-512, torch ignores the switch.
    """
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    if not _mkl_is_faster():
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def product_dtype() -> torch.dtype:
    """In what the processor multiplies fastest: bfloat16, summed in float32, where it has instructions for that."""
    processor = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = processor.get("avx512_bf16", False) or processor.get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def _mkl_is_faster() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch does not tell
        return False
    processor = torch.cpu.get_capabilities()
    return "Intel" in processor.get("cpu_name", "") and not processor.get("amx_bf16", False)

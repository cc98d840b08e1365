"""Which library multiplies float32 matrices while scales are searched."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def onednn_float32() -> Iterator[None]:
    """Let float32 matmuls go to oneDNN, which uses all of an AMD core's vector width; torch's default, MKL, does not.

    The switch is torch's permission to form products of bfloat16-rounded inputs. oneDNN makes use of it only where the
    processor has matrix tiles (AMX), and the statistics of a bfloat16 model lose nothing by it.
    """
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before

"""A bfloat16 weight as int8 codes and scales, for a decoder that reads it whole for every token."""

import weakref
from dataclasses import dataclass

import numpy as np

from qlinear.backends.cpu import native
from qlinear.backends.cpu.memory import huge_pages

GROUP = 64  # weights in a row that share a scale (csrc/common/ops.h)


@dataclass(frozen=True, eq=False)
class Bytes:
    """codes: int8 `(N, groups, 64)`, as csrc/common/kernels.h has them; scales: bfloat16 `(N, groups)`; source: what
    they were made of.
    """

    codes: np.ndarray
    scales: np.ndarray
    source: np.ndarray


_made: "weakref.WeakValueDictionary[tuple, Bytes]" = weakref.WeakValueDictionary()


def in_bytes(weight: np.ndarray) -> Bytes:
    """weight: bfloat16 `(N, K)`, in one piece, not to be changed. The same again for as long as anyone holds it."""
    key = native.address(weight), weight.shape
    made = _made.get(key)
    if made is None:
        n, k = weight.shape
        groups = -(-k // GROUP)
        codes = huge_pages(n * groups * GROUP).view(np.int8)[: n * groups * GROUP].reshape(n, groups, GROUP)
        scales = np.empty((n, groups), np.uint16)
        native.library().awq_to_bytes(key[0], n, k, native.address(codes), native.address(scales))
        _made[key] = made = Bytes(codes, scales, weight)
    return made

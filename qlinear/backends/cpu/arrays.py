"""Arrays of the host: numpy's, with bfloat16 as the uint16 of its bits, and torch's tensors as such, without a copy."""

import numpy as np

from qlinear.backends.cpu import native
from qlinear.backends.stack import Array


def host_array(array: Array) -> np.ndarray:
    """The same memory as an array of numpy's; a tensor of torch's has to be on the cpu."""
    if isinstance(array, np.ndarray):
        return array
    import torch

    tensor = array.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def as_float32(array: Array) -> np.ndarray:
    """The values as float32, which holds all of bfloat16's and float16's."""
    array = host_array(array)
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def is_finite(array: np.ndarray) -> bool:
    """Whether bfloat16 values, as the uint16 of their bits, hold neither infinity nor NaN; by all threads."""
    array = np.ascontiguousarray(array)
    return bool(native.library().awq_is_finite(array.ctypes.data, array.size))


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Float32 values rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = array.astype(np.float32, copy=False).view(np.uint32)
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)

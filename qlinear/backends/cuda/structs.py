"""The structures of qlinear/csrc/cuda and the sizes that its kernels go by, for ctypes."""

import ctypes

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float

TILE, UNIT, RECORD = 16, 64, 48  # layout.h
STAGE, DEPTH, DEPTH_OF_TWO = 256, 4, 2  # stream.h
ATTENTION_THREADS, HEADS, MOST_FEATURES = 256, 4, 256  # attention.h
SCRATCH, MOST_HIDDEN = 2, 8192  # input.h
INPUT_ROW, INPUT_NORM = 0, 1  # enum InputKind
OUTPUT_BF16, OUTPUT_LOGITS, OUTPUT_SILU, OUTPUT_GELU = 0, 1, 2, 3  # enum OutputKind


class Weight(ctypes.Structure):
    """struct Weight"""

    _fields_ = [
        *((name, _POINTER) for name in ("codes", "records", "bias")),
        *((name, _INT) for name in ("n", "k", "group_size", "unused")),
    ]


class Input(ctypes.Structure):
    """struct Input"""

    _fields_ = [
        *((name, _POINTER) for name in ("row", "residual", "delta", "after", "norm", "residual_out")),
        ("epsilon", _FLOAT),
        ("kind", _INT),
    ]


class Output(ctypes.Structure):
    """struct Output"""

    _fields_ = [("y", _POINTER), ("cap", _FLOAT), ("kind", _INT)]


class RowJob(ctypes.Structure):
    """struct RowJob<1>"""

    _fields_ = [("weight", Weight * 1), ("input", Input), ("output", Output)]


class GateUpJob(ctypes.Structure):
    """struct RowJob<2>"""

    _fields_ = [("weight", Weight * 2), ("input", Input), ("output", Output)]


class RowsJob(ctypes.Structure):
    """struct RowsJob<1>"""

    _fields_ = [("weight", Weight * 1), ("x", _POINTER), ("y", _POINTER), ("rows", _INT), ("stride", _INT)]


class HalvesJob(ctypes.Structure):
    """struct RowsJob<2>"""

    _fields_ = [("weight", Weight * 2), ("x", _POINTER), ("y", _POINTER), ("rows", _INT), ("stride", _INT)]


class PackJob(ctypes.Structure):
    """struct PackJob"""

    _fields_ = [
        *((name, _POINTER) for name in ("words", "zeros", "scales", "codes", "records")),
        *((name, _INT) for name in ("n", "k", "group_size", "unused")),
    ]


class UnpackJob(ctypes.Structure):
    """struct UnpackJob"""

    _fields_ = [("weight", Weight), ("out", _POINTER), ("first_tile", _INT), ("rows", _INT)]


def _dense(rows: int) -> list:
    return [
        ("weight", _POINTER * rows),
        ("bias", _POINTER * rows),
        ("n", _INT),
        ("k", _INT),
        ("input", Input),
        ("output", Output),
    ]


class DenseJob(ctypes.Structure):
    """struct DenseJob<1>"""

    _fields_ = _dense(1)


class DenseGateUpJob(ctypes.Structure):
    """struct DenseJob<2>"""

    _fields_ = _dense(2)


class EmbedJob(ctypes.Structure):
    """struct EmbedJob"""

    _fields_ = [
        *((name, _POINTER) for name in ("embedding", "state", "residual")),
        ("scale", _FLOAT),
        ("hidden", _INT),
    ]


class AttentionJob(ctypes.Structure):
    """struct AttentionJob"""

    _fields_ = [
        *((name, _POINTER) for name in ("qkv", "q_norm", "k_norm", "cosines", "sines", "keys", "values", "state")),
        *((name, _POINTER) for name in ("split_out", "maxima", "sums", "tickets", "out")),
        *((name, _INT) for name in ("heads", "kv_heads", "head_dim", "rotary_dim", "max_tokens")),
        *((name, _INT) for name in ("window", "split", "splits")),
        *((name, _FLOAT) for name in ("scale", "cap", "epsilon")),
        ("unused", _INT),
    ]

"""The native decoder (qlinear/csrc/common/decoder.h) as ctypes structures and functions."""

import ctypes
import functools

from qlinear.backends.cpu.native import Weight, library

_POINTER, _INT64, _INT32, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
PARTS = 3  # weights of a projection at most
MAX_HEAD_DIM, MAX_SHARING, MAX_EXPERT_GROUPS = 256, 64, 64  # limits of decoder.h
# enum awq_activation: of gated MLPs, and of plain ones
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1}
PLAIN_ACTIVATIONS = ACTIVATIONS | {"gelu_new": 1, "relu2": 2, "xielu": 3}


class Matrix(ctypes.Structure):
    """struct awq_matrix"""

    _fields_ = [("weight", Weight), ("dense", _POINTER), ("bytes", _POINTER), ("byte_scales", _POINTER)]


class Projection(ctypes.Structure):
    """struct awq_projection"""

    _fields_ = [("part", Matrix * PARTS), ("parts", _INT64)]


class Mlp(ctypes.Structure):
    """struct awq_mlp"""

    _fields_ = [("gate_up", Projection), ("down", Projection), ("plain", _INT32), ("curve", _POINTER)]


class Router(ctypes.Structure):
    """struct awq_router"""

    _fields_ = [
        ("logits", Projection),
        ("correction", _POINTER),
        *((name, _INT64) for name in ("top_k", "groups", "top_groups")),
        *((name, _FLOAT) for name in ("scaling", "least_sum")),
        *((name, _INT32) for name in ("scoring", "normalized")),
    ]


class Mixture(ctypes.Structure):
    """struct awq_mixture"""

    _fields_ = [
        ("router", Router),
        ("experts", ctypes.POINTER(Mlp)),
        ("shared", ctypes.POINTER(Mlp)),
        ("shared_gate", Matrix),
    ]


class Block(ctypes.Structure):
    """struct awq_block"""

    _fields_ = [
        *((name, _POINTER) for name in ("input_norm", "attention_norm", "mlp_norm", "output_norm")),
        *((name, _POINTER) for name in ("q_norm", "k_norm", "all_q_norm", "all_k_norm")),
        *((name, _POINTER) for name in ("input_bias", "mlp_bias")),
        *((name, Projection) for name in ("qkv", "o")),
        ("mlp", Mlp),
        ("mixture", ctypes.POINTER(Mixture)),
        *((name, _POINTER) for name in ("cosines", "sines", "keys", "values")),
        ("window", _INT64),
    ]


class Model(ctypes.Structure):
    """struct awq_model"""

    _fields_ = [
        ("blocks", ctypes.POINTER(Block)),
        ("embedding", _POINTER),
        ("final_norm", _POINTER),
        ("final_bias", _POINTER),
        ("head", Projection),
        *((name, _INT64) for name in ("layers", "vocabulary", "hidden", "heads", "kv_heads")),
        *((name, _INT64) for name in ("head_dim", "rotary_dim", "max_tokens", "slots", "chunk")),
        *((name, _FLOAT) for name in ("epsilon", "embedding_scale", "attention_scale", "attention_cap", "logit_cap")),
        *((name, _INT32) for name in ("activation", "interleaved", "layer_norm", "parallel", "turned_first")),
        ("kv_bits", _INT32),
    ]


class Reading(ctypes.Structure):
    """struct awq_reading"""

    _fields_ = [("tokens", _POINTER), *((name, _INT64) for name in ("slot", "position", "count", "rows"))]


class RopeJob(ctypes.Structure):
    """struct awq_rope_job"""

    _fields_ = [
        *((name, _POINTER) for name in ("norm", "cosines", "sines")),
        ("epsilon", _FLOAT),
        *((name, _INT64) for name in ("head_dim", "rotary_dim")),
        *((name, _INT32) for name in ("interleaved", "turned_first")),
    ]


class AttentionJob(ctypes.Structure):
    """struct awq_attention_job"""

    _fields_ = [
        *((name, _POINTER) for name in ("q", "keys", "values")),
        *((name, _INT64) for name in ("rows", "group", "first", "window", "begin", "end", "width")),
        *((name, _FLOAT) for name in ("scale", "cap")),
        *((name, _POINTER) for name in ("maxima", "sums", "out")),
        ("kv_bits", _INT32),
    ]


class RouteJob(ctypes.Structure):
    """struct awq_route_job"""

    _fields_ = [
        ("router", ctypes.POINTER(Router)),
        *((name, _POINTER) for name in ("scores", "compared", "chosen", "weights")),
    ]


class MixJob(ctypes.Structure):
    """struct awq_mix_job"""

    _fields_ = [
        *((name, _POINTER) for name in ("rows", "places", "weights")),
        *((name, _INT64) for name in ("count", "n")),
    ]


_SIGNATURES = {
    "awq_decoder_create": (_POINTER, [ctypes.POINTER(Model)]),
    "awq_decoder_free": (None, [_POINTER]),
    "awq_decoder_copy": (None, [_POINTER, _INT64, _INT64, _INT64]),
    "awq_cache_bytes": (_INT64, [_INT64, _INT64, _INT64, _INT32]),
    "awq_decoder_read": (None, [_POINTER, ctypes.POINTER(Reading), _INT64, _POINTER]),
    "awq_rms_norm": (None, [_POINTER, _POINTER, _FLOAT, _INT64, _POINTER]),
    "awq_layer_norm": (None, [_POINTER, _POINTER, _POINTER, _FLOAT, _INT64, _POINTER]),
    "awq_rope": (None, [ctypes.POINTER(RopeJob), _POINTER, _POINTER]),
    "awq_attend": (None, [ctypes.POINTER(AttentionJob)]),
    "awq_gate": (None, [_POINTER, _POINTER, _INT64, _INT32, _POINTER]),
    "awq_activate": (None, [_POINTER, _INT64, _INT32, _POINTER, _POINTER]),
    "awq_route": (None, [ctypes.POINTER(RouteJob)]),
    "awq_mix": (None, [ctypes.POINTER(MixJob), _POINTER]),
    "awq_dense": (None, [ctypes.POINTER(Matrix), _POINTER, _INT64, _POINTER]),
}


@functools.cache
def decoder_library() -> ctypes.CDLL:
    """The library with the decoder's functions declared. Raises `TargetError` where it was not built."""
    loaded = library()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded

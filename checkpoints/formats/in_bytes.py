"""A float matrix stored as int8 codes with a scale for each group of a row, to be read as bfloat16 again.

Of a matrix `NAME.weight`, a checkpoint holds what compressed-tensors has for 8 bits, symmetric: `NAME.weight_packed`,
`(N, K / 4)` int32, four columns a word, each code plus 128, the first in the lowest byte; `NAME.weight_scale`,
`(N, groups)` bfloat16, the largest value of a group over 127; `NAME.weight_shape`. A value is its code times its scale,
rounded to bfloat16. The config's section has a group of its own for it, with the very names as targets.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlinear.backends.cpu import native
from qlinear.backends.cpu.arrays import as_float32, to_bfloat16
from qlinear.sizes import GROUP_SIZES

BITS, MOST, MIDDLE = 8, 127, 128
WORDS, SCALES, SHAPE = "weight_packed", "weight_scale", "weight_shape"
PARTS = (WORDS, SCALES, SHAPE)
# Rows turned at a time: what is between codes and bfloat16 stays in the cache.
ROWS = 128
_WEIGHTS = {
    "num_bits": BITS, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False,
    "observer": "memoryless_minmax", "observer_kwargs": {},
}  # fmt: skip


def group_size_for(columns: int) -> int | None:
    """The size of groups for rows of so many columns, 64 where it divides them; None where none does."""
    return next((size for size in (64, 32) if columns % size == 0), None)


def to_bytes(values: np.ndarray, group_size: int) -> dict[str, np.ndarray]:
    """The parts by name; values: `(N, K)` bfloat16 as the uint16 of its bits, as are the scales."""
    n, k = values.shape
    words, scales = np.empty((n, k // 4), np.int32), np.empty((n, k // group_size), np.uint16)
    for row in range(0, n, ROWS):
        groups = as_float32(values[row : row + ROWS]).reshape(-1, k // group_size, group_size)
        scales[row : row + ROWS] = to_bfloat16(np.abs(groups).max(2) / MOST)
        steps = as_float32(scales[row : row + ROWS])[:, :, None]
        codes = np.divide(groups, steps, out=np.zeros_like(groups), where=steps > 0)
        shifted = np.clip(np.rint(codes), -MOST, MOST) + MIDDLE
        words[row : row + ROWS] = shifted.astype(np.uint8).reshape(-1, k).view(np.int32)
    return {WORDS: words, SCALES: scales, SHAPE: np.array([n, k], np.int64)}


def from_bytes(words: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """`(N, K)` bfloat16 as the uint16 of its bits, and so are the scales."""
    n, groups = scales.shape
    out = np.empty((n, 4 * words.shape[1]), np.uint16)
    if native.is_built():
        words, scales = np.ascontiguousarray(words), np.ascontiguousarray(scales)
        k = out.shape[1]
        native.library().awq_from_bytes(*map(native.address, (words, scales)), n, k, k // groups, native.address(out))
        return out
    for row in range(0, n, ROWS):
        values = np.ascontiguousarray(words[row : row + ROWS]).view(np.uint8).astype(np.float32)
        values -= MIDDLE
        values.reshape(len(values), groups, -1)[:] *= as_float32(scales[row : row + ROWS])[:, :, None]
        out[row : row + ROWS] = to_bfloat16(values)
    return out


def described(names: list[str], group_size: int) -> dict:
    """The group of the section that says so of matrices; names: theirs in the files, without `.weight`."""
    return {"targets": names, "weights": _WEIGHTS | {"group_size": group_size}}


def taken_out(section: Any) -> tuple[Any, dict[str, int]]:
    """A `quantization_config` without what it says of such matrices, and their group sizes by name."""
    groups = section.get("config_groups") if isinstance(section, dict) else None
    if not isinstance(groups, dict):
        return section, {}
    ours = {key: group for key, group in groups.items() if _is_ours(group)}
    names = {name: group["weights"]["group_size"] for group in ours.values() for name in group["targets"]}
    left = {key: group for key, group in groups.items() if key not in ours}
    return section | {"config_groups": left}, names


def _is_ours(group: Any) -> bool:
    if (
        not isinstance(group, dict)
        or not isinstance(group.get("weights"), dict)
        or group.keys() != {"targets", "weights"}
    ):
        return False
    weights, targets = dict(group["weights"]), group["targets"]
    size = weights.pop("group_size", None)
    plain = isinstance(targets, list) and all(isinstance(name, str) and _is_name(name) for name in targets)
    return plain and weights == _WEIGHTS and type(size) is int and size in GROUP_SIZES


def _is_name(target: str) -> bool:
    """Of one module, and neither a pattern nor a class, as other programs write targets."""
    return not target.startswith("re:") and ("." in target or target.islower())


def shape_of(name: str, group_size: int, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Of the matrix, by the shapes of what is stored of it; None where these are not of one."""
    words, scales = (shapes.get(f"{name}.{part}") for part in (WORDS, SCALES))
    if words is None or scales is None or len(words) != 2 or shapes.get(f"{name}.{SHAPE}") != (2,):
        return None
    n, k = words[0], 4 * words[1]
    twice = f"{name}.weight" in shapes
    return (n, k) if scales == (n, k // group_size) and k % group_size == 0 and k and not twice else None

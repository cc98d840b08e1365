"""The bytes the array reads: weight sub-volumes, their order in a block's buffer, and the activation buffer.

The layouts are those of RyzenAI-SW 1.2 (`matrix_formatting.h`: `QuantMatrix` for phx, `mladfQuantMatrix` for stx). A
sub-volume holds zeros and scales row-major over (group, n), codes over (k, n) in strips; two 4-bit fields share a
byte, the even n in the low half. Sub-volumes wholly in the padding are zero bytes and exist only in the buffers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.backends.aie.devices import ZIG_ZAG, SubVolume
from qlinear.backends.aie.tiling import Tiling
from qlinear.grid import GridWeight

# The 4x4 cores of phx, the only device whose parameter words travel with the activations.
_CORES = 16


@dataclass(frozen=True)
class SubVolumes:
    """A layer as sub-volumes, row-major over the weight; buffers cut and reorder them.

    weights: `(ceil(K / k), ceil(N / n), size)` uint8; bias: `(ceil(N / n), size)` uint8.
    """

    weights: Tensor
    bias: Tensor


def pack(weight: GridWeight, bias: Tensor | None, tiling: Tiling) -> SubVolumes:
    """Lay a weight `(N, K)` and its bias `(N,)` (any float dtype, rounded to bfloat16) out in sub-volumes."""
    volume = tiling.sub_volume
    rows, columns = _live_grid(tiling)
    height, width = rows * volume.groups, columns * volume.n
    zeros = _pad(weight.zeros.t().repeat_interleave(tiling.replication, 0), height, width)
    scales = _pad(weight.scales.t().repeat_interleave(tiling.replication, 0), height, width)
    codes = _pad(weight.codes.t(), rows * volume.k, width)
    packed = torch.zeros(rows, columns, volume.size, dtype=torch.uint8)
    for at, field in (
        (volume.zeros_at, _by_sub_volume(_join_nibbles(zeros), rows, columns)),
        (volume.scales_at, _by_sub_volume(scales.view(torch.uint8), rows, columns)),
        (volume.codes_at, _by_sub_volume(_join_nibbles(codes), rows, columns, volume.n // volume.strip)),
    ):
        packed[..., at : at + field.shape[-1]] = field
    return SubVolumes(packed, _pack_bias(bias, tiling.n, columns, volume))


def unpack(packed: SubVolumes, tiling: Tiling) -> tuple[GridWeight, Tensor]:
    """The weight and the bias that `pack` was given, in groups of the kernel; codes and zeros as 4-bit fields."""
    volume = tiling.sub_volume
    groups = volume.groups

    def field(at: int, size: int) -> Tensor:
        return packed.weights[..., at : at + size]

    zeros = _split_nibbles(_by_row(field(volume.zeros_at, groups * volume.n // 2), groups))
    scales = _by_row(field(volume.scales_at, groups * volume.n * 2), groups).view(torch.bfloat16)
    codes = field(volume.codes_at, volume.k * volume.n // 2)
    codes = _split_nibbles(_by_row(codes, volume.k, volume.n // volume.strip))
    weight = GridWeight(
        codes[: tiling.k, : tiling.n].t().contiguous(),
        zeros[: tiling.k // volume.group, : tiling.n].t().contiguous(),
        scales[: tiling.k // volume.group, : tiling.n].t().contiguous(),
        tiling.bits,
    )
    return weight, packed.bias[:, : volume.n * 2].reshape(-1).view(torch.bfloat16)[: tiling.n]


def write_buffers(packed: SubVolumes, tiling: Tiling) -> list[Tensor]:
    """The weight buffer of every block, `(tiling.block_bytes,)` uint8 each, K block by K block.

    A buffer is a grid of sub-volumes, the bias row first (zero but for the first K block), zero padded; sub-volume
    (r, c) of `rows` rows lies at place `r * 4 + c % 4 + (c // 4) * rows * 4`.
    """
    rows, columns = tiling.grid
    buffers = []
    for k_block, n_block in _blocks(tiling):
        grid = torch.zeros(rows, columns, tiling.sub_volume.size, dtype=torch.uint8)
        for place, part in _parts(packed, tiling, k_block, n_block, grid):
            place.copy_(part)
        buffers.append(grid.view(rows, -1, ZIG_ZAG, tiling.sub_volume.size).transpose(0, 1).reshape(-1))
    return buffers


def read_buffers(buffers: list[Tensor], tiling: Tiling) -> SubVolumes:
    """The sub-volumes that `write_buffers` was given."""
    volume, (rows, columns) = tiling.sub_volume, tiling.grid
    weights = torch.empty(*_live_grid(tiling), volume.size, dtype=torch.uint8)
    packed = SubVolumes(weights, torch.empty_like(weights[0]))
    for (k_block, n_block), buffer in zip(_blocks(tiling), buffers, strict=True):
        grid = buffer.view(-1, rows, ZIG_ZAG, volume.size).transpose(0, 1).reshape(rows, columns, -1)
        for place, part in _parts(packed, tiling, k_block, n_block, grid):
            part.copy_(place)
    return packed


def activation_buffer(x: Tensor, tiling: Tiling, kernel_m: int) -> Tensor:
    """What is sent with one dispatch: `(rows, k)` bfloat16, zero padded to the kernel, then the parameter words."""
    padded = _pad(x, kernel_m, tiling.kernel.k).view(torch.uint8).view(-1)
    parameters = torch.zeros(tiling.device.parameter_bytes, dtype=torch.uint8)
    if tiling.device.parameter_bytes:
        words = torch.tensor(parameter_words(tiling, kernel_m), dtype=torch.int32)
        parameters[: words.nbytes] = words.view(torch.uint8)
    return torch.cat((padded, parameters))


def parameter_words(tiling: Tiling, kernel_m: int) -> tuple[int, int, int, int, int]:
    """outer_loop, inner_loop, kernel_rows, group size, sign: at a time, 16 cores take 8 rows x 128 columns each."""
    rows = tiling.device.rows_per_pass
    columns = _CORES * tiling.sub_volume.n
    outer_loop = max(kernel_m // rows, 1) * tiling.kernel.n // columns
    inner_loop = tiling.kernel.k // tiling.sub_volume.k
    return outer_loop, inner_loop, min(kernel_m, rows), tiling.kernel_group, int(tiling.signed)


def _pack_bias(bias: Tensor | None, n: int, columns: int, volume: SubVolume) -> Tensor:
    values = torch.zeros(columns * volume.n, dtype=torch.bfloat16)
    if bias is not None:
        values[:n] = bias.to(torch.bfloat16)
    packed = torch.zeros(columns, volume.size, dtype=torch.uint8)
    packed[:, : volume.n * 2] = values.view(torch.uint8).view(columns, -1)
    return packed


def _live_grid(tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of the sub-volumes that hold any of the weight."""
    return -(-tiling.k // tiling.sub_volume.k), -(-tiling.n // tiling.sub_volume.n)


def _by_sub_volume(values: Tensor, rows: int, columns: int, strips: int = 1) -> Tensor:
    """Bytes `(rows * r, columns * strips * b)` -> `(rows, columns, strips * r * b)`."""
    parts = values.view(rows, values.shape[0] // rows, columns, strips, -1)
    return parts.permute(0, 2, 3, 1, 4).reshape(rows, columns, -1)


def _by_row(volumes: Tensor, height: int, strips: int = 1) -> Tensor:
    """What `_by_sub_volume` was given, for `r = height`."""
    rows, columns, _ = volumes.shape
    return volumes.view(rows, columns, strips, height, -1).permute(0, 3, 1, 2, 4).reshape(rows * height, -1)


def _blocks(tiling: Tiling) -> list[tuple[int, int]]:
    return [(k_block, n_block) for k_block in range(tiling.k_blocks) for n_block in range(tiling.n_blocks)]


def _parts(packed: SubVolumes, tiling: Tiling, k_block: int, n_block: int, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views that belong together: the places in a block's grid, and the parts of `packed` that go there."""
    rows, columns = tiling.grid[0] - 1, tiling.grid[1]
    own_rows = slice(k_block * rows, (k_block + 1) * rows)
    own_columns = slice(n_block * columns, (n_block + 1) * columns)
    weights = packed.weights[own_rows, own_columns]
    parts = [(grid[1 : 1 + weights.shape[0], : weights.shape[1]], weights)]
    if k_block == 0:
        parts.append((grid[0, : weights.shape[1]], packed.bias[own_columns]))
    return parts


def _pad(values: Tensor, rows: int, columns: int) -> Tensor:
    """`values` in the upper left corner of zeros."""
    padded = torch.zeros(rows, columns, dtype=values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def _join_nibbles(values: Tensor) -> Tensor:
    """`(R, C)` values below 16 -> `(R, C / 2)` bytes, the even column in the low half."""
    return values[:, 0::2] | (values[:, 1::2] << 4)


def _split_nibbles(octets: Tensor) -> Tensor:
    """`(R, C)` bytes -> `(R, 2 C)` values below 16."""
    return torch.stack((octets & 15, octets >> 4), -1).view(octets.shape[0], -1)

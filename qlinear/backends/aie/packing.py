"""The bytes the array reads: weight sub-volumes, their order in a block's buffer, and the activation buffer.

The layouts are those of RyzenAI-SW 1.2 (`matrix_formatting.h`: `QuantMatrix` for phx, `mladfQuantMatrix` for stx). A
sub-volume holds zeros and scales row-major over (group, n), codes over (k, n) in strips; two 4-bit fields share a
byte, the even n in the low half. Sub-volumes wholly in the padding are zero bytes and exist only in the buffers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.backends.aie.devices import ZIG_ZAG, SubVolume
from qlinear.backends.aie.tiling import Plan
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


def pack(weight: GridWeight, bias: Tensor | None, plan: Plan) -> SubVolumes:
    """Lay a weight `(N, K)` and its bias `(N,)` (any float dtype, rounded to bfloat16) out in sub-volumes."""
    volume = plan.sub_volume
    rows, columns = _live_grid(plan)
    height, width = rows * volume.groups, columns * volume.n
    zeros = _pad(weight.zeros.t().repeat_interleave(plan.replication, 0), height, width)
    scales = _pad(weight.scales.t().repeat_interleave(plan.replication, 0), height, width)
    codes = _pad(weight.codes.t(), rows * volume.k, width)
    packed = torch.zeros(rows, columns, volume.size, dtype=torch.uint8)
    for at, field in (
        (volume.zeros_at, _tile(_join_nibbles(zeros), rows, columns)),
        (volume.scales_at, _tile(scales.view(torch.uint8), rows, columns)),
        (volume.codes_at, _tile(_join_nibbles(codes), rows, columns, volume.n // volume.strip)),
    ):
        packed[..., at : at + field.shape[-1]] = field
    return SubVolumes(packed, _pack_bias(bias, plan.n, columns, volume))


def unpack(packed: SubVolumes, plan: Plan) -> tuple[GridWeight, Tensor]:
    """The weight and the bias that `pack` was given, in groups of the kernel; codes and zeros as 4-bit fields."""
    volume = plan.sub_volume
    groups = volume.groups

    def field(at: int, size: int) -> Tensor:
        return packed.weights[..., at : at + size]

    zeros = _split_nibbles(_untile(field(volume.zeros_at, groups * volume.n // 2), groups))
    scales = _untile(field(volume.scales_at, groups * volume.n * 2), groups).view(torch.bfloat16)
    codes = field(volume.codes_at, volume.k * volume.n // 2)
    codes = _split_nibbles(_untile(codes, volume.k, volume.n // volume.strip))
    weight = GridWeight(
        codes[: plan.k, : plan.n].t().contiguous(),
        zeros[: plan.k // volume.group, : plan.n].t().contiguous(),
        scales[: plan.k // volume.group, : plan.n].t().contiguous(),
        plan.bits,
    )
    return weight, packed.bias[:, : volume.n * 2].reshape(-1).view(torch.bfloat16)[: plan.n]


def write_buffers(packed: SubVolumes, plan: Plan) -> list[Tensor]:
    """The weight buffer of every block, `(plan.block_bytes,)` uint8 each, K block by K block.

    A buffer is a grid of sub-volumes, the bias row first (zero but for the first K block), zero padded; sub-volume
    (r, c) of `rows` rows lies at place `r * 4 + c % 4 + (c // 4) * rows * 4`.
    """
    rows, columns = plan.grid
    buffers = []
    for k_block, n_block in _blocks(plan):
        grid = torch.zeros(rows, columns, plan.sub_volume.size, dtype=torch.uint8)
        for place, part in _parts(packed, plan, k_block, n_block, grid):
            place.copy_(part)
        buffers.append(grid.view(rows, -1, ZIG_ZAG, plan.sub_volume.size).transpose(0, 1).reshape(-1))
    return buffers


def read_buffers(buffers: list[Tensor], plan: Plan) -> SubVolumes:
    """The sub-volumes that `write_buffers` was given."""
    volume, (rows, columns) = plan.sub_volume, plan.grid
    weights = torch.empty(*_live_grid(plan), volume.size, dtype=torch.uint8)
    packed = SubVolumes(weights, torch.empty_like(weights[0]))
    for (k_block, n_block), buffer in zip(_blocks(plan), buffers, strict=True):
        grid = buffer.view(-1, rows, ZIG_ZAG, volume.size).transpose(0, 1).reshape(rows, columns, -1)
        for place, part in _parts(packed, plan, k_block, n_block, grid):
            part.copy_(place)
    return packed


def activation_buffer(x: Tensor, plan: Plan, kernel_m: int) -> Tensor:
    """What is sent with one dispatch: `(rows, k)` bfloat16, zero padded to the kernel, then the parameter words."""
    padded = _pad(x, kernel_m, plan.kernel.k).view(torch.uint8).view(-1)
    parameters = torch.zeros(plan.device.parameter_bytes, dtype=torch.uint8)
    if plan.device.parameter_bytes:
        words = torch.tensor(parameter_words(plan, kernel_m), dtype=torch.int32)
        parameters[: words.nbytes] = words.view(torch.uint8)
    return torch.cat((padded, parameters))


def parameter_words(plan: Plan, kernel_m: int) -> tuple[int, int, int, int, int]:
    """outer_loop, inner_loop, kernel_rows, group size, sign: at a time, 16 cores take 8 rows x 128 columns each."""
    rows = plan.device.rows_per_pass
    columns = _CORES * plan.sub_volume.n
    outer_loop = max(kernel_m // rows, 1) * plan.kernel.n // columns
    inner_loop = plan.kernel.k // plan.sub_volume.k
    return outer_loop, inner_loop, min(kernel_m, rows), plan.kernel_group, int(plan.signed)


def _pack_bias(bias: Tensor | None, n: int, columns: int, volume: SubVolume) -> Tensor:
    values = torch.zeros(columns * volume.n, dtype=torch.bfloat16)
    if bias is not None:
        values[:n] = bias.to(torch.bfloat16)
    packed = torch.zeros(columns, volume.size, dtype=torch.uint8)
    packed[:, : volume.n * 2] = values.view(torch.uint8).view(columns, -1)
    return packed


def _live_grid(plan: Plan) -> tuple[int, int]:
    """Rows and columns of the sub-volumes that hold any of the weight."""
    return -(-plan.k // plan.sub_volume.k), -(-plan.n // plan.sub_volume.n)


def _tile(values: Tensor, rows: int, columns: int, strips: int = 1) -> Tensor:
    """Bytes `(rows * r, columns * strips * b)` -> `(rows, columns, strips * r * b)`."""
    tiles = values.view(rows, values.shape[0] // rows, columns, strips, -1)
    return tiles.permute(0, 2, 3, 1, 4).reshape(rows, columns, -1)


def _untile(tiles: Tensor, height: int, strips: int = 1) -> Tensor:
    """What `_tile` was given, for `r = height`."""
    rows, columns, _ = tiles.shape
    return tiles.view(rows, columns, strips, height, -1).permute(0, 3, 1, 2, 4).reshape(rows * height, -1)


def _blocks(plan: Plan) -> list[tuple[int, int]]:
    return [(k_block, n_block) for k_block in range(plan.k_blocks) for n_block in range(plan.n_blocks)]


def _parts(packed: SubVolumes, plan: Plan, k_block: int, n_block: int, grid: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views that belong together: the places in a block's grid, and the parts of `packed` that go there."""
    rows, columns = plan.grid[0] - 1, plan.grid[1]
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

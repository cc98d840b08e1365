"""The bytes the array reads: weight sub-volumes, their order in a block's buffer, and the activation buffer.

The layouts are those of RyzenAI-SW 1.2 (`matrix_formatting.h`: `QuantMatrix` for phx, `mladfQuantMatrix` for stx). A
sub-volume holds zeros and scales row-major over (group, n), codes over (k, n) in strips; two 4-bit fields share a
byte, the even n in the low half. Sub-volumes wholly in the padding are zero bytes and exist only in the buffers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.backends.aie_array.devices import ZIG_ZAG, SubVolume
from qlinear.backends.aie_array.planner import Plan
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
    rows, columns = -(-plan.k // volume.k), -(-plan.n // volume.n)
    packed = torch.zeros(rows, columns, volume.size, dtype=torch.uint8)

    def write(values: Tensor, at: int) -> None:
        # (rows * r, columns * n) -> (rows, columns, bytes of r x n)
        tiles = values.view(rows, -1, columns, values.shape[1] // columns).transpose(1, 2)
        tiles = tiles.reshape(rows, columns, -1)
        packed[..., at : at + tiles.shape[-1]] = tiles

    repeat = plan.replication
    zeros = weight.zeros.t().repeat_interleave(repeat, 0)
    scales = weight.scales.t().repeat_interleave(repeat, 0)
    write(_join_nibbles(_pad(zeros, rows * volume.groups, columns * volume.n)), volume.zeros_at)
    write(_pad(scales, rows * volume.groups, columns * volume.n).view(torch.uint8), volume.scales_at)
    codes = _join_nibbles(_pad(weight.codes.t(), rows * volume.k, columns * volume.n))
    # (rows, k, columns, strips, strip bytes) -> (rows, columns, strips, k, strip bytes)
    strips = codes.view(rows, volume.k, columns, volume.n // volume.strip, volume.strip // 2)
    strips = strips.permute(0, 2, 3, 1, 4).reshape(rows, columns, -1)
    packed[..., volume.codes_at : volume.codes_at + strips.shape[-1]] = strips
    return SubVolumes(packed, _pack_bias(bias, plan.n, columns, volume))


def unpack(packed: SubVolumes, plan: Plan) -> tuple[GridWeight, Tensor]:
    """The weight and the bias that `pack` was given, in groups of the kernel; codes and zeros as 4-bit fields."""
    volume = plan.sub_volume
    rows, columns, _ = packed.weights.shape

    def read(at: int, count: int) -> Tensor:
        # (rows, columns, bytes of r x n) -> (rows * r, columns * n)
        field = packed.weights[..., at : at + volume.groups * count].view(rows, columns, volume.groups, count)
        return field.transpose(1, 2).reshape(rows * volume.groups, columns * count)

    zeros = _split_nibbles(read(volume.zeros_at, volume.n // 2))
    scales = read(volume.scales_at, volume.n * 2).view(torch.bfloat16)
    field = packed.weights[..., volume.codes_at : volume.codes_at + volume.k * volume.n // 2]
    # (rows, columns, strips, k, strip bytes) -> (rows, k, columns, strips, strip bytes)
    strips = field.view(rows, columns, volume.n // volume.strip, volume.k, volume.strip // 2)
    codes = _split_nibbles(strips.permute(0, 3, 1, 2, 4).reshape(rows * volume.k, -1))
    bias = packed.bias[:, : volume.n * 2].reshape(-1).view(torch.bfloat16)[: plan.n]
    groups = plan.k // volume.group
    weight = GridWeight(
        codes[: plan.k, : plan.n].t().contiguous(),
        zeros[:groups, : plan.n].t().contiguous(),
        scales[:groups, : plan.n].t().contiguous(),
        plan.bits,
    )
    return weight, bias


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
    weights = torch.empty(-(-plan.k // volume.k), -(-plan.n // volume.n), volume.size, dtype=torch.uint8)
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

"""The cuda target on kernels of its own: bfloat16 activations, packed 3- or 4-bit weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qlinear.backends.base import Backend
from qlinear.backends.cuda.launch import Launcher, stream_grid, suffix, unit_grid
from qlinear.backends.cuda.structs import (
    INPUT_ROW,
    OUTPUT_BF16,
    TILE,
    HalvesJob,
    Input,
    Output,
    PackJob,
    RowJob,
    RowsJob,
    UnpackJob,
)
from qlinear.backends.cuda.weight import CudaWeight, packed_bytes, tile_codes, tile_records, tiles
from qlinear.backends.stack import Stack, StackDecoder, Unsupported
from qlinear.packing import JoinedWeight, PackedWeight

AT_ONCE = 32  # rows of activations that the kernels take
MOST_ROWS = 96  # that are left to them; beyond, unpacking a weight for cuBLAS takes less time
PANEL_BYTES = 256 << 20  # unpacked at a time; smaller panels keep cuBLAS from filling the GPU


class CudaBackend(Backend):
    """`qlinear.backends.base.Backend` on the kernels of qlinear/csrc/cuda.

    Up to `MOST_ROWS` rows of bfloat16 activations are multiplied by the codes themselves, exactly. More rows are
    multiplied by the weight rounded to their dtype.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.device, self.name = launcher.device, launcher.name
        self.launcher = launcher

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> CudaWeight:
        """Lay the weight out on the GPU; `weight` is not needed afterwards."""
        (n, k), bits, group_size = weight.shape, weight.bits, weight.group_size
        packed = torch.empty(packed_bytes(n, k, bits, group_size), dtype=torch.uint8, device=self.device)
        whole_tiles = all(part.shape[0] % TILE == 0 for part in weight.parts[:-1])
        tile = 0
        for part in weight.parts if whole_tiles else (weight.concat(),):
            self._pack(part, packed, tile, tiles(n) * tile_codes(k, bits))
            tile += tiles(part.shape[0])
        self.launcher.finish()  # kernels that begin early read a weight before they wait for what was launched last
        bias = None if bias is None else bias.detach().to(self.device, torch.float32, copy=True).contiguous()
        return CudaWeight(packed, bias, (n, k), bits, group_size)

    def _pack(self, part: PackedWeight, packed: Tensor, tile: int, records: int) -> None:
        """Rows from `tile` on; records: where those of the whole weight begin."""
        (n, k), bits, group_size = part.shape, part.bits, part.group_size
        sources = [source.to(self.device).contiguous() for source in (part.words, part.zeros, part.scales)]
        job = PackJob(
            *(source.data_ptr() for source in sources),
            packed.data_ptr() + tile * tile_codes(k, bits),
            packed.data_ptr() + records + tile * tile_records(k, group_size),
            n, k, group_size,
        )  # fmt: skip
        self.launcher.launch(f"awq_pack_{bits}", job, unit_grid(tiles(n), k))

    def decoder(self, stack: Stack, max_tokens: int, chunk: int, slots: int = 1) -> StackDecoder:
        if slots > 1:
            raise Unsupported("the fused decoder on cuda reads one text at a time")
        from qlinear.backends.cuda.decoder import CudaDecoder

        return CudaDecoder(self, self.launcher, stack, max_tokens, chunk)

    def matmul(self, x: Tensor, prepared: CudaWeight) -> Tensor:
        """`x @ weight.T + bias`: `(..., K)` in, `(..., N)` out, both of the dtype of `x`; inference only."""
        n, k = prepared.shape
        if x.shape[-1] != k:
            raise ValueError(f"activations have {x.shape[-1]} features, the weight has {k}")
        rows = x.reshape(-1, k)
        if x.dtype != torch.bfloat16 or not 0 < len(rows) <= MOST_ROWS:
            return self._multiply_unpacked(rows, prepared).view(*x.shape[:-1], n)
        if not rows.is_contiguous() or rows.data_ptr() % 16:
            rows = rows.clone(memory_format=torch.contiguous_format)
        y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
        for x_part, y_part in zip(rows.split(AT_ONCE), y.view(-1, n).split(AT_ONCE), strict=True):
            self._multiply(x_part, prepared, y_part)
        return y

    def _multiply(self, x: Tensor, weight: CudaWeight, y: Tensor) -> None:
        (n, k), rows = weight.shape, len(x)
        given = x.data_ptr(), y.data_ptr(), rows, k
        if rows == 1:
            kernel, most, halves = "awq_row", 1, 1
            job = RowJob((weight.native,), Input(row=given[0], kind=INPUT_ROW), Output(given[1], 0.0, OUTPUT_BF16))
        elif rows <= 8:
            kernel, most, halves = "awq_rows_8", 8, 1
            job = RowsJob((weight.native,), *given)
        else:
            most, halves = (16, 2) if rows <= 16 else (32, 2)
            kernel, middle = f"awq_rows_{most}", min(n, -(-tiles(n) // 2) * TILE)
            job = HalvesJob((weight.rows(0, middle), weight.rows(middle, n - middle)), *given)
        grid = stream_grid(self.launcher, weight, -(-tiles(n) // halves) * TILE, halves, most)
        self.launcher.launch(f"{kernel}_{suffix(weight)}", job, grid)

    def _multiply_unpacked(self, x: Tensor, weight: CudaWeight) -> Tensor:
        """A panel of rows at a time: in bfloat16 for such activations, else in float32."""
        n, k = weight.shape
        dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        panel = torch.empty(
            min(n, max(TILE, PANEL_BYTES // (k * dtype.itemsize) // TILE * TILE)), k, dtype=dtype, device=x.device
        )
        y = torch.empty(len(x), n, dtype=x.dtype, device=x.device)
        inputs = x.to(dtype)
        for first in range(0, n, len(panel)):
            part = slice(first, min(n, first + len(panel)))
            rows = panel[: part.stop - first]
            self.unpack(weight, first, rows)
            bias = None if weight.bias is None else weight.bias[part].to(dtype)
            y[:, part] = F.linear(inputs, rows, bias)
        return y

    def unpack(self, weight: CudaWeight, first: int, out: Tensor) -> None:
        """Rows of a weight from `first` on, a multiple of `TILE`, into `out` `(rows, K)` bfloat16 or float32."""
        kind = "bf16" if out.dtype == torch.bfloat16 else "fp32"
        job = UnpackJob(weight.native, out.data_ptr(), first // TILE, len(out))
        self.launcher.launch(f"awq_unpack_{weight.bits}_{kind}", job, unit_grid(tiles(len(out)), weight.shape[1]))

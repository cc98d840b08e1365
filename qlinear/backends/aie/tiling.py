"""From the shape of a matmul to the dispatches the array needs for it, as AMD's host code chooses them."""

from dataclasses import dataclass
from functools import cache

from qlinear.backends.aie.devices import Device, Kernel, SubVolume
from qlinear.errors import TargetError


@dataclass(frozen=True)
class Tiling:
    """How the array multiplies `(m, k)` activations by a `(k, n)` weight.

    kernel: the compiled weight shape; kernel_group: the group size it runs, `group_size` or a divisor of it;
    row_blocks: the M of the kernel for each block of rows.
    """

    device: Device
    m: int
    k: int
    n: int
    bits: int
    group_size: int
    kernel: Kernel
    kernel_group: int
    row_blocks: tuple[int, ...]

    @property
    def sub_volume(self) -> SubVolume:
        return self.device.sub_volume(self.kernel_group)

    @property
    def replication(self) -> int:
        """How often each scale and zero is repeated to fill the kernel's smaller groups."""
        return self.group_size // self.kernel_group

    @property
    def signed(self) -> bool:
        """AMD sends 3-bit codes as "int4" and 4-bit codes as "uint4"; codes below 8 read the same either way."""
        return self.bits == 3

    @property
    def k_blocks(self) -> int:
        return -(-self.k // self.kernel.k)

    @property
    def n_blocks(self) -> int:
        return -(-self.n // self.kernel.n)

    @property
    def grid(self) -> tuple[int, int]:
        """Sub-volumes of one weight block: rows (the first is the bias) and columns."""
        return 1 + self.kernel.k // self.sub_volume.k, self.kernel.n // self.sub_volume.n

    @property
    def block_bytes(self) -> int:
        """Bytes of one weight block in the device's memory, padding included."""
        rows, columns = self.grid
        return rows * columns * self.sub_volume.size

    @property
    def dispatch_count(self) -> int:
        return len(self.row_blocks) * self.k_blocks * self.n_blocks

    @property
    def useful(self) -> float:
        """The part of the multiply-accumulates that is not padding."""
        done = sum(self.row_blocks) * self.k_blocks * self.kernel.k * self.n_blocks * self.kernel.n
        return self.m * self.k * self.n / done if done else 1.0

    def __str__(self) -> str:
        volume, (rows, columns) = self.sub_volume, self.grid
        repeat = f", each scale and zero {self.replication} times" if self.replication > 1 else ""
        counts = {m: self.row_blocks.count(m) for m in self.row_blocks}
        row_blocks = " + ".join(f"{count} of M = {m}" for m, count in counts.items()) or "none"
        host = ", K blocks added on the host" if self.k_blocks > 1 else ""
        return "\n".join(
            (
                f"{self.device.name} (emulated): ({self.m}, {self.k}) x ({self.k}, {self.n}), "
                f"{self.bits}-bit, group {self.group_size}",
                f"  kernel    K x N = {self.kernel.k} x {self.kernel.n}, group {self.kernel_group}{repeat}",
                f"  blocks    rows {row_blocks}; K {self.k_blocks}; N {self.n_blocks}{host}",
                f"  dispatch  {self.dispatch_count}, each with a weight block of {rows} x {columns} sub-volumes "
                f"of {volume.size} bytes ({self.block_bytes / 1e6:.2f} MB)",
                f"  useful    {self.useful:.1%} of the multiply-accumulates; the rest is padding",
            )
        )


@cache
def tile_matmul(device: Device, m: int, k: int, n: int, bits: int, group_size: int) -> Tiling:
    """The tiling for `m` rows times a weight of `k` x `n`; `TargetError` for what no kernel of `device` can run."""
    if bits not in (3, 4):
        raise TargetError(f"{bits}-bit weights cannot run on {device.name}: its kernels read 4-bit codes; use 3 or 4")
    if m < 0 or k < 1 or n < 1:
        raise TargetError(f"a matmul of M={m}, K={k}, N={n} cannot be tiled on {device.name}")
    group = _group_of(device, group_size)
    if k % group_size:
        raise TargetError(f"in_features {k} is not a multiple of group size {group_size}; use a size that divides it")
    kernel, kernel_group = _choose_kernel(device, k, n, group)
    return Tiling(device, m, k, n, bits, group_size, kernel, kernel_group, _row_blocks(device, m))


def _group_of(device: Device, group_size: int) -> int:
    """The largest of the array's groups that a weight's group holds; it has to hold it a whole number of times."""
    fitting = [group for group in device.groups if group <= group_size]
    if not fitting or group_size % max(fitting):
        groups = " and ".join(map(str, device.groups))
        raise TargetError(
            f"group size {group_size} cannot be tiled on {device.name}: its kernels run groups of {groups}; "
            f"use 32, 64 or 128"
        )
    return max(fitting)


def _choose_kernel(device: Device, k: int, n: int, group: int) -> tuple[Kernel, int]:
    """AMD's choice by shape, or the first kernel that has the group where that one was not compiled for it."""
    deep = device.kernels[-1]
    wide = device.kernels[:-1]
    by_shape = deep if k > wide[-1].k else next((kernel for kernel in wide if n <= kernel.n), wide[-1])
    return next(
        (kernel, max(fitting))
        for kernel in (by_shape, *device.kernels)
        if (fitting := [g for g in kernel.groups if g <= group])
    )


def _row_blocks(device: Device, m: int) -> tuple[int, ...]:
    """The M of each kernel run until `m` rows are covered; the last block picks the kernel for what is left."""
    blocks = []
    while m > 0:
        blocks.append(device.kernel_m(m))
        m -= blocks[-1]
    return tuple(blocks)

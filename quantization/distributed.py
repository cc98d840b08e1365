"""Several ranks that quantize one model together, over torch.distributed: the one file that knows of it.

torchrun, or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, starts the command once for each
rank. Quantizing is done on CPUs, so they speak gloo. Its waits have no end of their own: who ends is noticed by the
lifelines (`quantization.lifeline`).
"""

import io
import os
import pickle
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from qlinear.errors import AwqError, OptionError, RankError, one_line
from qlinear.process import rank_and_size
from quantization.lifeline import Lifeline, connect, listen
from scales.ranks import ALONE, Ranks

T = TypeVar("T")

# For all ranks to come together, and then: as long as the longest of all waits may be.
JOIN, WAIT = timedelta(minutes=15), timedelta(days=30)
ALIGNED = 64  # bytes, of the tensors in a message


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """The ranks that the environment tells of, or one alone. Raises `RankError` where they do not find each other.

    Whoever ends inside of it, by an error or a kill, ends all the others.
    """
    rank, size = rank_and_size()
    if size == 1:
        yield ALONE
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise OptionError(f"WORLD_SIZE={size} and no {name}: where is rank 0? torchrun sets it")
    ranks = _join(rank, size)
    with ranks.lifeline.held():
        yield ranks
    ranks.part()


def _join(rank: int, size: int) -> "Several":
    import torch.distributed as distributed

    try:
        distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=JOIN)
        group = distributed.new_group(backend="gloo", timeout=WAIT)
        met = Several(rank, size, group)
        socket, port = listen() if rank == 0 else (None, 0)
        port, token = met.told((port, secrets.token_hex(16)))
        met.lifeline = connect(rank, size, port, token, socket)
    except AwqError:
        raise
    except Exception as error:  # torch's own kinds, and the operating system's
        raise RankError(f"rank {rank} of {size} did not find the others: {one_line(error)}") from error
    return met


class Several(Ranks):
    """lifeline: tells of ranks that have ended."""

    lifeline: Lifeline

    def __init__(self, rank: int, size: int, group):
        self.rank, self.size, self._group = rank, size, group

    def part(self) -> None:
        """All is done: another run in this process may meet anew."""
        import torch.distributed as distributed

        distributed.destroy_process_group()

    def told(self, value: T) -> T:
        return self._exchange(lambda distributed: _broadcast(distributed, value, self._group))

    def each(self, mine: T) -> Iterator[T]:
        message = pack(mine)
        sizes = self._exchange(lambda distributed: _sizes(distributed, len(message), self.size, self._group))
        for rank, size in enumerate(sizes):
            shown = message if rank == self.rank else torch.empty(size, dtype=torch.uint8)
            self._exchange(lambda distributed, rank=rank, shown=shown: _show(distributed, shown, rank, self._group))
            yield mine if rank == self.rank else unpack(shown)

    def _exchange(self, exchange: Callable):
        import torch.distributed as distributed

        try:
            return exchange(distributed)
        except RuntimeError as error:
            if not hasattr(self, "lifeline"):
                raise
            raise self.lifeline.reason(error) from error


class _Packer(pickle.Pickler):
    """Tensors go beside what else there is: in one buffer, as they are."""

    def __init__(self, file):
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []
        self.end = 0

    def persistent_id(self, value):
        if not isinstance(value, Tensor):
            return None
        begin = self.end
        self.tensors.append(value.detach().contiguous())
        self.end += -(-value.nbytes // ALIGNED) * ALIGNED
        return begin, tuple(value.shape), value.dtype


class _Unpacker(pickle.Unpickler):
    def __init__(self, file, buffer: Tensor):
        super().__init__(file)
        self._buffer = buffer

    def persistent_load(self, place):
        begin, shape, dtype = place
        size = torch.Size(shape).numel() * dtype.itemsize
        return self._buffer[begin : begin + size].clone().view(dtype).view(shape)


def pack(value) -> Tensor:
    """A message, uint8: the length of the pickle in eight bytes, the pickle, and the tensors from a full line on."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    words = file.getvalue()
    head = -(-(8 + len(words)) // ALIGNED) * ALIGNED
    message = torch.empty(head + packer.end, dtype=torch.uint8)
    message[:8] = torch.frombuffer(bytearray(len(words).to_bytes(8, "little")), dtype=torch.uint8)
    message[8 : 8 + len(words)] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    begin = head
    for tensor in packer.tensors:
        message[begin : begin + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
        begin += -(-tensor.nbytes // ALIGNED) * ALIGNED
    return message


def unpack(message: Tensor):
    """What was packed."""
    length = int.from_bytes(message[:8].numpy().tobytes(), "little")
    head = -(-(8 + length) // ALIGNED) * ALIGNED
    return _Unpacker(io.BytesIO(message[8 : 8 + length].numpy().tobytes()), message[head:]).load()


def _broadcast(distributed, value, group):
    leads = distributed.get_rank(group) == 0
    message = pack(value) if leads else None
    size = torch.tensor([len(message) if leads else 0])
    distributed.broadcast(size, 0, group=group)
    if not leads:
        message = torch.empty(int(size), dtype=torch.uint8)
    _show(distributed, message, 0, group)
    return value if leads else unpack(message)


def _sizes(distributed, size: int, ranks: int, group) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks)]
    distributed.all_gather(sizes, torch.tensor([size]), group=group)
    return [int(size) for size in sizes]


def _show(distributed, message: Tensor, rank: int, group) -> None:
    distributed.broadcast(message, rank, group=group)

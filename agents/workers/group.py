"""The workers of a training: what one of them asks of the others, by `torch.distributed`.

Each worker owns as many rows as every other: worker r of N owns rows r B / N to (r + 1) B / N of the whole batch. In a
process that trains alone, `here()` is `Alone`, which answers at once.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

PATIENCE = datetime.timedelta(hours=1)
"""How long a worker waits for the others, who may be evaluating or writing. One that has died is noticed at once."""


class WorkerLost(RuntimeError):
    """Another worker is gone, so nothing can be added up any more."""


class Alone:
    """A process that trains by itself."""

    rank = 0
    """Number of this worker; 0 writes the files."""
    size = 1
    """How many workers there are."""

    def rows(self, count: int) -> slice:
        """Of the whole batch, the rows of this worker, who has `count`."""
        return slice(self.rank * count, (self.rank + 1) * count)

    def add(self, numbers: Tensor) -> None:
        """Replace the numbers by their sums over all workers."""

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors by those of worker 0."""

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[size, ...] of each tensor [...]: those of all workers, who have the same shapes, one type of device."""
        return [tensor.unsqueeze(0) for tensor in tensors]

    def objects(self, mine: Any) -> list[Any]:
        """What each worker gives."""
        return [mine]

    def of_first(self, mine: Any) -> Any:
        """What worker 0 gives."""
        return mine


class Together(Alone):
    """One of several processes; torch's process group exists."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def add(self, numbers: Tensor) -> None:
        """Replace the numbers by their sums over all workers."""
        with _explained():
            dist.all_reduce(numbers)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors by those of worker 0."""
        with _explained(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[size, ...] of each tensor [...]: those of all workers, who have the same shapes, one type of device."""
        if not tensors:
            return []
        # one message instead of one for each tensor
        parts = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
        mine = torch.cat(parts)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with _explained():
            dist.all_gather(found, mine)
        sizes = [part.numel() for part in parts]
        each = [part.split(sizes) for part in found]
        return [
            torch.stack([part[i].clone().view(tensor.dtype).view(tensor.shape) for part in each])
            for i, tensor in enumerate(tensors)
        ]

    def objects(self, mine: Any) -> list[Any]:
        """What each worker gives."""
        found = [None] * self.size
        with _explained():
            dist.all_gather_object(found, mine)
        return found

    def of_first(self, mine: Any) -> Any:
        """What worker 0 gives."""
        found = [mine]
        with _explained():
            dist.broadcast_object_list(found, 0)
        return found[0]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerLost(f"a worker is gone: {error}") from error


_alone = Alone()
_here: Alone = _alone


def here() -> Alone:
    """The workers as this process sees them."""
    return _here


@contextmanager
def joined(rank: int | None = None, size: int | None = None, file: Path | None = None) -> Iterator[Alone]:
    """Within it this process is one of several workers.

    Args:
        rank: number of this worker; None where torchrun's or Ray's environment variables say it.
        size: number of workers, with `rank`.
        file: a path at which the workers of one machine find each other, with `rank`. They then listen on the loopback
            interface alone.
    """
    global _here
    own = not dist.is_initialized()
    if own:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if file is None:
            dist.init_process_group(backend, timeout=PATIENCE)
        else:
            assert size is not None
            assert rank is not None
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(name, loopback())
            store = dist.FileStore(str(file), size)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _here = Together()
    try:
        yield _here
    finally:
        _here = _alone
        if own:
            dist.destroy_process_group()


def loopback() -> str:
    """The name of the loopback interface."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))

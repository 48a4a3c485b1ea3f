"""Kernels whose rows are independent, spread over as many threads as torch may use."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

STEPS_PER_THREAD = 512
"""Steps of rows that are worth a thread: about half a millisecond, many times what it costs to hand them over."""


def over_rows(kernel: Callable[..., None], T: int, B: int, *args: Any) -> None:
    """Run `kernel(first, last, *args)` for the rows 0 to B of T steps, in parts where `torch.get_num_threads` allows.

    The kernel must release the interpreter's lock and write nothing that another row reads.
    """
    parts = min(torch.get_num_threads(), B, T * B // STEPS_PER_THREAD)
    if parts <= 1:
        kernel(0, B, *args)
        return
    borders = [part * B // parts for part in range(parts + 1)]
    pool = _pool(parts - 1, os.getpid())
    others = [pool.submit(kernel, first, last, *args) for first, last in itertools.pairwise(borders[1:])]
    kernel(0, borders[1], *args)
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork inherits none, so it gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix="memory-kernels")

"""Kernels of independent rows, spread over the threads that torch may use."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

STEPS_PER_THREAD = 512
"""Steps, summed over rows, that are worth a thread: about half a millisecond, many times the cost of starting them."""


def over_rows(kernel: Callable[..., None], T: int, B: int, *args: Any) -> None:
    """Run `kernel(first, last, *args)` for the rows 0 to B of T steps, on as many threads as torch may use.

    The kernel must release Python's lock (`nogil`) and write nothing that another row reads.
    """
    in_parts(lambda first, last: kernel(first, last, *args), part_borders(T, B))


def part_borders(T: int, B: int) -> list[int]:
    """Borders, 0 to B, that cut B rows of T steps into parts: one for each thread of torch that is worth starting."""
    parts = max(1, min(torch.get_num_threads(), B, T * B // STEPS_PER_THREAD))
    return [part * B // parts for part in range(parts + 1)]


def in_parts(run: Callable[[int, int], Result], borders: list[int]) -> list[Result]:
    """What `run(first, last)` returns for the rows between neighbouring borders, in order; a thread each, no graph.

    `run` obeys the rules of `over_rows`. A backward pass that reads what the forward pass kept by part must use the
    same borders: the number of threads may have changed.
    """
    if len(borders) == 2:
        return [run(*borders)]
    pool = _pool(len(borders) - 2, os.getpid())

    def without_graph(first: int, last: int) -> Result:
        # each thread has its own setting of whether gradients are recorded
        with torch.no_grad():
            return run(first, last)

    others = [pool.submit(without_graph, first, last) for first, last in itertools.pairwise(borders[1:])]
    return [run(*borders[:2]), *(other.result() for other in others)]


@functools.cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """The threads of a process; a fork inherits none, so it gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix="memory-kernels")

"""Shared by the benchmarks: medians of calls that take turns, the work of matrix products, tables, the machine."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.agents.files.versions import versions


def side_by_side(
    contestants: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each call, after one warm-up. The calls take turns, so that noise affects all alike.

    For calls in one thread, `clock=time.thread_time` leaves out the time that other programs take.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            began = clock()
            run()
            if turn:
                times[name].append(clock() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def matrix_work(policy: nn.Module, n_envs: int, n_steps: int, n_epochs: int, minibatches: int) -> Callable[[], None]:
    """A function that computes the products of weights and activations of one PPO iteration, and nothing else.

    Each weight matrix is multiplied with every step of every row: once for acting, and in each epoch once forward and
    twice backward. Matrices named `weight_hh` are multiplied step by step.
    """
    columns = n_envs // minibatches

    def products(rows: int, recurrent: bool) -> list[tuple[Tensor, Tensor]]:
        matrices = {name: p.detach().t() for name, p in policy.named_parameters() if p.ndim == 2}
        chosen = [weight for name, weight in matrices.items() if ("weight_hh" in name) == recurrent]
        return [(torch.randn(rows, len(weight)), weight) for weight in chosen]

    act = products(n_envs, False) + products(n_envs, True)
    update, steps = products(n_steps * columns, False), products(columns, True)

    def run() -> None:
        with torch.no_grad():
            for _ in range(n_steps):
                for x, weight in act:
                    torch.mm(x, weight)
            for _ in range(3 * n_epochs * minibatches):
                for x, weight in update:
                    torch.mm(x, weight)
                for x, weight in steps:
                    for _ in range(n_steps):
                        torch.mm(x, weight)

    return run


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown."""

    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    first, *others = (f"| {' | '.join(line)} |" for line in [head, *([cell(value) for value in row] for row in rows)])
    return "\n".join([first, "|---" * len(head) + "|", *others])


def machine() -> dict[str, Any]:
    """The name of the processor, if Linux tells it, and the number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {"cpu": names[0] if names else "unknown", "cores": os.cpu_count()}


def report(title: str, options: Any, head: list[str], table: list[list[Any]]) -> None:
    """Print a table as a page of Markdown with machine, versions and options, and write it where `options.out` says."""
    told = {**machine(), **versions(), "options": {name: str(value) for name, value in asdict(options).items()}}
    text = "\n".join([f"# {title}\n", json.dumps(told), "", markdown(head, table)])
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")

"""Measure trainings of 1, 2 and 4 workers in one run, and fit a model of an iteration's time to them.

    python benchmarks/workers.py --quick
    python benchmarks/workers.py --out docs/workers.md

All workers of all sizes are started first. Then the sizes take turns, an iteration each, so that noise affects all
alike. Figures are medians over turns. The model, for N workers with a core each and r = B / N rows per worker:

    seconds(N) = a + b r + reductions * (latency * log2 N + bytes / bandwidth * 2 (N - 1) / N) + s sqrt(2 ln N)

a and b are fitted to the processor time of the workers' main threads, which waiting does not change: so 4 workers on 2
cores tell as much as on 4. Latency and bandwidth are fitted to sums of a few and of many numbers between two workers.
s is what two workers wait for each other in an iteration beyond that, times 1 / sqrt(2 ln 2); the largest of N normal
numbers grows so. Workers of several machines have another latency and bandwidth: --latency and --bandwidth give them.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from measure import machine, markdown

from palimpsest import envs
from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.versions import versions
from palimpsest.agents.workers.group import Alone, here, joined

N_STEPS, N_EPOCHS, MINIBATCHES = 128, 4, 4
TASKS = {"ours": "Palimpsest/EndlessTMaze-v0", "plain Python": "CartPole-v1"}
FEW, MANY = 16, 1_000_000
"""Numbers in the sums from which latency and bandwidth are read."""


@dataclass(frozen=True)
class Options:
    """Measure several workers."""

    quick: bool = False
    """Fewer turns."""
    memories: tuple[str, ...] = ("rewrite", "lstm", "ffm")
    """Names of memories."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Kinds of environments: ours, or plain Python."""
    num_envs: tuple[int, ...] = (8, 64)
    """Numbers of environments, of all workers together."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers. 1 and 2 must be among them."""
    carry_over: float = 0.9
    """`memory_carry_over`."""
    latency: float | None = None
    """Seconds of a small sum between two workers, for the predictions. Default: as measured here."""
    bandwidth: float | None = None
    """Bytes per second between two workers, for the predictions. Default: as measured here."""
    out: Path | None = None
    """A Markdown file to write as well."""


class Turn(NamedTuple):
    """One iteration of one worker."""

    wall: float
    processor: float
    waited: float
    reductions: int


class Network(NamedTuple):
    """What a sum over two workers costs."""

    latency: float
    bandwidth: float

    def seconds(self, size: int, numbers: int) -> float:
        """Of a sum of float32 numbers over `size` workers."""
        return self.latency * math.log2(size) + 4 * numbers / self.bandwidth * 2 * (size - 1) / size


class Model(NamedTuple):
    """An iteration's time; see above."""

    a: float
    b: float
    straggling: float
    reductions: int
    numbers: int

    def seconds(self, size: int, rows: int, network: Network) -> float:
        """With `size` workers of `rows` rows altogether."""
        if size == 1:
            return self.a + self.b * rows
        reduced = self.reductions * network.seconds(size, self.numbers)
        return self.a + self.b * rows / size + reduced + self.straggling * math.sqrt(2 * math.log(size))


@contextlib.contextmanager
def watched(workers: Alone) -> Iterator[list[float]]:
    """Within it, the list gets the seconds of each wait for the other workers."""
    waits: list[float] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                waits.append(time.perf_counter() - began)

        return run

    names = ("add", "gather", "objects")
    for name in names:
        setattr(workers, name, timed(getattr(workers, name)))
    try:
        yield waits
    finally:
        for name in names:
            delattr(workers, name)


def train(pipe: Connection, rank: int, size: int, file: Path, memory: str, task: str, rows: int, carry: float) -> None:
    """Be a worker: do what is asked until nothing is."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with joined(rank, size, file) if size > 1 else contextlib.nullcontext():
        model = MemoryPPO(
            "MlpMemoryPolicy",
            envs.make_vec(TASKS[task], rows // size, seed=0),
            n_steps=N_STEPS,
            batch_size=N_STEPS * rows // MINIBATCHES,
            n_epochs=N_EPOCHS,
            memory_carry_over=carry,
            policy_kwargs={"memory": memory},
            device="cpu",
            seed=0,
        )
        model.learn(2 * N_STEPS * rows)
        numbers = sum(parameter.numel() for parameter in model.policy.parameters())
        pipe.send(numbers)
        while (asked := pipe.recv()) is not None:
            pipe.send(_iteration(model, rows) if asked == "iteration" else _sum_seconds(asked))


def _iteration(model: MemoryPPO, rows: int) -> Turn:
    with watched(here()) as waits:
        began, used = time.perf_counter(), time.thread_time()
        model.learn(N_STEPS * rows, reset_num_timesteps=False)
        return Turn(time.perf_counter() - began, time.thread_time() - used, sum(waits), N_EPOCHS * MINIBATCHES)


def _sum_seconds(numbers: int) -> float:
    found, summed = [], torch.zeros(numbers)
    for _ in range(40):
        began = time.perf_counter()
        here().add(summed)
        found.append(time.perf_counter() - began)
    return statistics.median(found[5:])


class Group:
    """The processes of one training."""

    def __init__(self, size: int, folder: Path, *job: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["palimpsest.agents.learn.ppo", "torch._dynamo"])
        self.pipes, self.processes = [], []
        for rank in range(size):
            mine, its = context.Pipe()
            process = context.Process(target=train, args=(its, rank, size, folder / str(size), *job))
            process.start()
            its.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def heard(self) -> list[Any]:
        """What each worker sends."""
        return [pipe.recv() for pipe in self.pipes]

    def ask(self, what: Any) -> list[Any]:
        """What each worker answers."""
        for pipe in self.pipes:
            pipe.send(what)
        return self.heard()

    def end(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)
            process.kill()


def measured(options: Options, memory: str, task: str, rows: int) -> tuple[list[Any], Model, Network]:
    """The row of a table for one job, and the model that fits it."""
    turns: dict[int, list[list[Turn]]] = {size: [] for size in options.workers if rows % size == 0}
    with tempfile.TemporaryDirectory() as folder:
        groups = {size: Group(size, Path(folder), memory, task, rows, options.carry_over) for size in turns}
        try:
            numbers = {size: group.heard()[0] for size, group in groups.items()}[1]
            for _ in range(3 if options.quick else 15):
                for size, group in groups.items():
                    turns[size].append(group.ask("iteration"))
            few, many = (statistics.median(groups[2].ask(count)) for count in (FEW, MANY))
        finally:
            for group in groups.values():
                group.end()
    network = Network(few, 4 * (MANY - FEW) / max(many - few, 1e-9))
    model = fitted(turns, rows, numbers, network)
    wall = {size: statistics.median(turn[0].wall for turn in found) for size, found in turns.items()}
    row = [f"{memory}, {task}, {rows}", *(1e3 * seconds for seconds in wall.values())]
    return [*row, *(wall[1] / seconds for size, seconds in wall.items() if size > 1)], model, network


def fitted(turns: dict[int, list[list[Turn]]], rows: int, numbers: int, network: Network) -> Model:
    """The model of one job, from the turns of each number of workers."""

    def median(size: int, part: Callable[[Turn], float]) -> float:
        return statistics.median(statistics.fmean(map(part, turn)) for turn in turns[size])

    points = [(rows / size, median(size, lambda turn: turn.processor)) for size in turns]
    b, a = np.polyfit([rows for rows, _ in points], [seconds for _, seconds in points], 1)
    reductions = turns[1][0][0].reductions
    waited = median(2, lambda turn: turn.waited)
    beyond = max(waited - reductions * network.seconds(2, numbers), 0.0)
    return Model(float(max(a, 0)), float(b), beyond / math.sqrt(2 * math.log(2)), reductions, numbers)


def main(options: Options) -> None:
    """Measure, fit, print, save."""
    jobs = [(m, t, n) for n in options.num_envs for t in options.tasks for m in options.memories]
    rows, fits, sizes = [], [], [2**k for k in range(1, 8)]
    for memory, task, count in jobs:
        row, model, network = measured(options, memory, task, count)
        row += [""] * (2 * len(options.workers) - len(row))
        rows.append(row)
        there = Network(options.latency or network.latency, options.bandwidth or network.bandwidth)
        one = model.seconds(1, count, there)
        # as many rows for each worker as one has here: the batch grows with the workers
        weak = [size * one / model.seconds(size, size * count, there) for size in sizes]
        strong = [one / model.seconds(size, count, there) if count % size == 0 else "" for size in sizes]
        told = [1e3 * model.a, 1e6 * model.b, 1e3 * model.straggling, model.numbers, 1e6 * there.latency]
        fits.append((row[0], told, strong, weak))
        print(row, flush=True)
    others = [size for size in options.workers if size > 1]
    head = ["memory, environments, rows", *(f"ms, {size} workers" for size in options.workers)]
    parts = [
        "# Several workers\n",
        json.dumps({**machine(), **versions(), "options": {k: str(v) for k, v in asdict(options).items()}}),
        f"\nMedians of an iteration ({N_STEPS} steps, {N_EPOCHS} epochs, {MINIBATCHES} minibatches).\n",
        markdown([*head, *(f"x, {size}" for size in others)], rows),
        "\nThe model's numbers.\n",
        markdown(
            ["job", "a, ms", "b, us per row", "s, ms", "parameters", "latency, us"], [[n, *t] for n, t, *_ in fits]
        ),
        "\nPredicted speed-up with a core each, the same rows divided among N workers.\n",
        markdown(["job", *(f"N = {size}" for size in sizes)], [[name, *strong] for name, _, strong, _ in fits]),
        "\nPredicted speed-up in steps per second, N times as many rows.\n",
        markdown(["job", *(f"N = {size}" for size in sizes)], [[name, *weak] for name, *_, weak in fits]),
    ]
    text = "\n".join(parts)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))

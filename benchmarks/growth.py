"""How time grows with the sequence length and memory use with the number of environments, for every memory.

    python benchmarks/growth.py --quick
    python benchmarks/growth.py --out docs/growth

Time is the time of a scan, forward and backward, per token. A flat line means that a scan is linear in T. Memory use is
the peak increase of the resident set of a fresh process while it makes a model and collects one rollout.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import machine, markdown, side_by_side

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.versions import versions

FEATURES = 64
N_STEPS = 32
"""Steps of a rollout. At each step only observations, actions and the like are stored."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Measure the growth of time and memory use."""

    quick: bool = False
    """Short sequences, few environments, one repeat."""
    memories: tuple[str, ...] = tuple(memory.names())
    """Memories to measure, with their default arguments."""
    columns: int = 1
    """Batch size B of the sequences."""
    seed: int = 0
    """Seed of weights, inputs and starts."""
    threads: int = 1
    """Threads for torch."""
    out: Path | None = None
    """A path without suffix; PATH.md, PATH.jsonl and PATH.png are written as well."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths T of the sequences."""
        return (64, 256, 1024) if self.quick else (64, 256, 1024, 4096, 16384)

    @property
    def num_envs(self) -> tuple[int, ...]:
        """Numbers of environments of the rollouts."""
        return (8, 64) if self.quick else (8, 64, 512, 4096)


def scan_times(options: Options) -> Iterator[Row]:
    """Microseconds per token of a scan, forward and backward. An episode starts at a token with probability 1/50."""
    torch.manual_seed(options.seed)
    for T in options.lengths:
        x, start = torch.randn(T, options.columns, FEATURES), torch.rand(T, options.columns) < 1 / 50
        contestants = {name: scanner(name, x, start) for name in options.memories}
        for name, seconds in side_by_side(contestants, 1 if options.quick else 3).items():
            yield {"memory": name, "T": T, "us_per_token": 1e6 * seconds / start.numel()}


def scanner(name: str, x: torch.Tensor, start: torch.Tensor) -> Callable[[], None]:
    """A function that runs one scan of this memory, forward and backward."""
    made = memory.make(name, FEATURES)
    state = made.initial_state(x.shape[1])

    def run() -> None:
        made.zero_grad()
        made.scan(x, start, state)[0].square().mean().backward()

    return run


def rollout_peaks(options: Options) -> Iterator[Row]:
    """Peak increase of the resident set in MiB, and the part of it that is the state of all rows.

    A dash: it does not fit into memory.
    """
    context = multiprocessing.get_context("spawn")
    room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in options.memories:
        row_bytes = sum(s.numel() * s.element_size() for s in memory.make(name, FEATURES).initial_state(1))
        for n in options.num_envs:
            found = None
            # the state, the next state, the state after a reset, and the arrays of a step
            if 5 * n * row_bytes < room:
                with context.Pool(1) as pool:
                    found = pool.apply(rollout_peak, (name, n, options.seed, options.threads))
            yield {"memory": name, "envs": n, "peak_MiB": found, "state_MiB": n * row_bytes / 2**20}


def rollout_peak(name: str, n: int, seed: int, threads: int) -> float:
    """Peak increase in MiB of this process while it makes a model and collects one rollout of `n` environments."""
    torch.set_num_threads(threads)
    collect(name, 2, seed)  # imports and compiled code are not measured
    before = highest_mib()
    collect(name, n, seed)
    return highest_mib() - before


def collect(name: str, n: int, seed: int) -> None:
    """Make a model and collect one rollout."""
    model = MemoryPPO(
        "MlpMemoryPolicy",
        envs.make_vec("Palimpsest/EndlessTMaze-v0", n, seed),
        n_steps=N_STEPS,
        batch_size=N_STEPS * n,
        policy_kwargs={"memory": name},
        device="cpu",
        seed=seed,
    )
    _, callback = model._setup_learn(N_STEPS * n)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)


def highest_mib() -> float:
    """The peak resident set of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where a process inherits ru_maxrss from its parent
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


PARTS: dict[str, tuple[Callable[[Options], Iterator[Row]], str, tuple[str, ...]]] = {
    "time": (scan_times, "T", ("us_per_token",)),
    "memory": (rollout_peaks, "envs", ("peak_MiB", "state_MiB")),
}
"""Part -> the function that measures it, the size that grows, and the names of the figures."""


def table(rows: list[Row], over: str, figures: tuple[str, ...]) -> str:
    """A Markdown table with one line per memory and one column per size."""
    sizes = sorted({row[over] for row in rows})
    found = {(row["memory"], row[over]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["memory"] for row in rows):
        cells = [[found[name, size][figure] for figure in figures] for size in sizes]
        lines.append([name, *(" of which ".join("-" if f is None else f"{f:,.1f}" for f in cell) for cell in cells)])
    return markdown(["memory", *(f"{over} = {size:,}" for size in sizes)], lines)


def draw(rows: dict[str, list[Row]], picture: Path) -> None:
    """Draw both parts side by side, with logarithmic axes."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {"time": ("T, steps", "microseconds per token"), "memory": ("environments", "MiB at the highest")}
    for axes, (part, found) in zip(figure.subplots(1, 2), rows.items()):
        _, over, figures = PARTS[part]
        for name in dict.fromkeys(row["memory"] for row in found):
            own = [row for row in found if row["memory"] == name and row[figures[0]] is not None]
            axes.plot([row[over] for row in own], [row[figures[0]] for row in own], marker=".", label=name)
        axes.set(xscale="log", yscale="log", xlabel=labels[part][0], ylabel=labels[part][1])
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(picture, dpi=120)


def main(options: Options) -> None:
    """Measure, print, save."""
    torch.set_num_threads(options.threads)
    record = {**machine(), **versions(), "seed": options.seed, "B": options.columns}
    pages = [f"# Growth\n\nMedians of repeats taken in turns; {json.dumps(record)}"]
    measured: dict[str, list[Row]] = {}
    for part, (measure, over, figures) in PARTS.items():
        measured[part] = list(measure(options))
        summary = inspect.getdoc(measure)
        pages.append(f"### {part}\n\n{summary}\n\n{table(measured[part], over, figures)}")
        print(pages[-1], flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".md").write_text("\n\n".join(pages) + "\n")
        lines: list[Row] = [{"record": record, "options": asdict(options)}]
        lines += [{"part": part, **row} for part, rows in measured.items() for row in rows]
        options.out.with_suffix(".jsonl").write_text("".join(json.dumps(line, default=str) + "\n" for line in lines))
        draw(measured, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Options))

"""How time and memory use of a scan grow with its length, and memory use of a rollout with its environments.

    python benchmarks/growth.py --quick
    python benchmarks/growth.py --out docs/growth
    python benchmarks/growth.py --out docs/growth --only peak

Time is the time of a scan, forward and backward, per token. A flat line means that a scan is linear in T. Memory use is
the peak increase of the resident set of a fresh process during one scan, or while it makes a model and collects one
rollout.
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

import numpy as np
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

INTRODUCTION = """
How time and memory use of a scan grow with its length T, and memory use of a rollout with its environments. Times are
medians of repeats taken in turns. "Power" is the power of the size that fits the last three columns best: a time per
token is flat where it is 0, and memory use linear where it is 1.
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Measure the growth of time and memory use."""

    quick: bool = False
    """Short sequences, few environments, one repeat."""
    only: tuple[str, ...] = ("time", "peak", "memory")
    """Parts to measure. Those that PATH's lines already have are kept where they are not measured anew."""
    memories: tuple[str, ...] = tuple(memory.names())
    """Memories to measure, with their default arguments."""
    columns: int = 1
    """Batch size B of the sequences."""
    seed: int = 0
    """Seed of weights, inputs and starts."""
    threads: int = 1
    """Threads for torch."""
    out: Path | None = None
    """A path without suffix: PATH.md and PATH.png are written as well, and lines of its name in `results/` there."""

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


def scan_peaks(options: Options) -> Iterator[Row]:
    """Peak increase of the resident set in MiB during one scan of T steps, forward and backward.

    Each memory has a fresh process, which has made one scan of 64 steps before, and scans from short to long in it.
    """
    for name in options.memories:
        lengths = options.lengths[-3:]
        found = in_fresh_process(scan_peak, name, lengths, options.columns, options.seed, options.threads)
        yield from ({"memory": name, "T": T, "peak_MiB": peak} for T, peak in zip(lengths, found))


def scan_peak(name: str, lengths: tuple[int, ...], columns: int, seed: int, threads: int) -> list[float]:
    """Peak increases in MiB of this process until it has made one scan of each length, forward and backward."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x, start = torch.randn(lengths[-1], columns, FEATURES), torch.rand(lengths[-1], columns) < 1 / 50
    scanner(name, x[:64], start[:64])()  # imports and compiled code are not measured
    before, found = highest_mib(), []
    for T in lengths:
        scanner(name, x[:T], start[:T])()
        found.append(highest_mib() - before)
    return found


def in_fresh_process(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a process of its own, where everything is imported and nothing has run."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["palimpsest.agents", "palimpsest.envs", "matplotlib.figure", "tyro"])
    with context.Pool(1) as pool:
        return pool.apply(function, given)


def rollout_peaks(options: Options) -> Iterator[Row]:
    """Peak increase of the resident set in MiB, and the part of it that is the state of all rows.

    A dash: it does not fit into memory.
    """
    room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in options.memories:
        row_bytes = sum(s.numel() * s.element_size() for s in memory.make(name, FEATURES).initial_state(1))
        for n in options.num_envs:
            found = None
            # the state, the next state, the state after a reset, and the arrays of a step
            if 5 * n * row_bytes < room:
                found = in_fresh_process(rollout_peak, name, n, options.seed, options.threads)
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
    "peak": (scan_peaks, "T", ("peak_MiB",)),
    "memory": (rollout_peaks, "envs", ("peak_MiB", "state_MiB")),
}
"""Part -> the function that measures it, the size that grows, and the names of the figures."""


def table(rows: list[Row], over: str, figures: tuple[str, ...]) -> str:
    """A Markdown table with one line per memory and one column per size, and the power of the size that fits."""
    sizes = sorted({row[over] for row in rows})
    found = {(row["memory"], row[over]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["memory"] for row in rows):
        cells = [[found[name, size][figure] for figure in figures] for size in sizes]
        fitted = power({size: cell[0] for size, cell in zip(sizes, cells)})
        texts = [" of which ".join("-" if f is None else f"{f:,.1f}" for f in cell) for cell in cells]
        lines.append([name, *texts, "-" if fitted is None else f"{fitted:.2f}"])
    return markdown(["memory", *(f"{over} = {size:,}" for size in sizes), "power"], lines)


def power(figures: dict[int, float | None]) -> float | None:
    """The power of the size that fits the figures of the three largest sizes best; None where a figure lacks.

    It is the slope of a straight line through their logarithms, by least squares.
    """
    sizes = sorted(figures)[-3:]
    values = [figures[size] for size in sizes]
    if len(sizes) < 2 or not all(values):
        return None
    return float(np.polyfit(np.log(sizes), np.log(np.array(values, float)), 1)[0])


def draw(rows: dict[str, list[Row]], picture: Path) -> None:
    """Draw the parts side by side, with logarithmic axes."""
    figure = Figure(figsize=(5 * len(rows) + 2, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {
        "time": ("T, steps", "microseconds per token"),
        "peak": ("T, steps", "MiB at the highest, scan"),
        "memory": ("environments", "MiB at the highest, rollout"),
    }
    for axes, (part, found) in zip(np.ravel(figure.subplots(1, len(rows))), rows.items()):
        _, over, figures = PARTS[part]
        names = dict.fromkeys(row["memory"] for row in found)
        for number, name in enumerate(memory.names()):
            if name not in names:
                continue
            own = [row for row in found if row["memory"] == name and row[figures[0]] is not None]
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
            axes.plot([row[over] for row in own], [row[figures[0]] for row in own], marker=".", label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel=labels[part][0], ylabel=labels[part][1])
        axes.grid(alpha=0.3)
    most = max(figure.axes, key=lambda axes: len(axes.get_lines()))
    figure.legend(*most.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(picture, dpi=120)


def kept_lines(path: Path) -> dict[str, list[Row]]:
    """Lines that were written before, by part; the first of a part is its record."""
    kept: dict[str, list[Row]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        kept.setdefault(row.pop("part"), []).append(row)
    return kept


def main(options: Options) -> None:
    """Measure, print, save."""
    torch.set_num_threads(options.threads)
    record = {**machine(), **versions(), "seed": options.seed, "B": options.columns}
    kept = None if options.out is None else options.out.parent / "results" / f"{options.out.name}.jsonl"
    lines = {} if kept is None else kept_lines(kept)
    pages = {}
    for part, (measure, over, figures) in PARTS.items():
        if part in options.only:
            lines[part] = [{"record": record, "options": asdict(options)}]
            for row in measure(options):
                print(json.dumps(row), flush=True)
                lines[part].append(row)
        if part in lines:
            (head, *rows), told = lines[part], inspect.getdoc(measure)
            pages[part] = f"### {part}\n\n{told}\n\n{json.dumps(head['record'])}\n\n{table(rows, over, figures)}"
        if part in options.only:
            print(pages[part], flush=True)
    if options.out is None or kept is None:
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    text = [json.dumps({"part": part, **row}, default=str) for part in pages for row in lines[part]]
    kept.write_text("\n".join(text) + "\n")
    picture = options.out.with_suffix(".png")
    draw({part: lines[part][1:] for part in pages}, picture)
    intro = f"# Growth\n\n{inspect.cleandoc(INTRODUCTION)}\n\n![what grows with what]({picture.name})"
    options.out.with_suffix(".md").write_text("\n\n".join([intro, *pages.values()]) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))

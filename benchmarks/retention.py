"""Whether every memory holds a cue over 5 and over 40 steps: T-Maze (one corridor), each memory's own defaults.

    python benchmarks/retention.py train --seeds 0 1 2
    python benchmarks/retention.py table

One set of PPO's hyperparameters for all but the learning rate. Resumable as `generalisation.py` is, whose trainings
these are; a memory that has no way to know, "none", stays at chance, 0.5.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from generalisation import Train as Training
from generalisation import read
from generalisation import train as run

import memory

STEPS = {5: 200_000, 40: 800_000}
"""Corridor length -> environment steps of a training."""

LEARNING_RATE = 1e-3
RATES = {("ffm", 40): 3e-3}
"""Where `LEARNING_RATE` is not what a memory learns with."""


@dataclass(frozen=True)
class Train:
    """Train and test; one line of JSON per training."""

    memories: tuple[str, ...] = field(default_factory=lambda: tuple(memory.names()))
    """Registered names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    lengths: tuple[int, ...] = tuple(STEPS)
    """Lengths of the corridor."""
    out: Path = Path("runs/retention.jsonl")
    """Where the lines go."""


@dataclass(frozen=True)
class Table:
    """Print the table of a file as Markdown."""

    out: Path = Path("runs/retention.jsonl")
    """What `train` wrote."""


def train(options: Train) -> None:
    """Do every training that the file does not hold yet, the short corridor first."""
    for length in options.lengths:
        for name in options.memories:
            run(
                Training(
                    memories=(name,),
                    label=f"{name} {length}",
                    seeds=options.seeds,
                    corridors=1,
                    length=length,
                    regimes=("fixed",),
                    carry_over=(0.0,),
                    total_timesteps=STEPS[length],
                    num_envs=16,
                    learning_rate=RATES.get((name, length), LEARNING_RATE),
                    ent_coef=0.005,
                    test_corridors=(),
                    test_lengths=(),
                    out=options.out,
                )
            )


def table(options: Table) -> str:
    """Markdown: a row per memory; greedy success of each seed and the median step of .95 in training."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in read(options.out):
        name, _, length = row["label"].rpartition(" ")
        groups[name][length].append(row)
    lengths = [str(length) for length in STEPS]
    head = [f"l {length}: {what}" for length in lengths for what in ("success by seed", "steps to .95")]
    lines = ["| memory | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name, by_length in groups.items():
        cells = []
        for length in lengths:
            rows = sorted(by_length[length], key=lambda row: row["config"]["seed"])
            cells.append(", ".join(f"{row['cells']['train']:.2f}" for row in rows) or "-")
            reached = [row["steps_to_95"] for row in rows if row["steps_to_95"] is not None]
            cells.append(f"{np.median(reached) / 1e3:.0f} k" if rows and len(reached) == len(rows) else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command = tyro.cli(Train | Table)
    if isinstance(command, Train):
        train(command)
    else:
        print(table(command))

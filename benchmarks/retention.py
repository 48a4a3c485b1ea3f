"""Whether every memory holds a cue over 5 and over 40 steps: T-Maze (one corridor), each memory's own defaults.

    python benchmarks/retention.py train --seeds 0 1 2
    python benchmarks/retention.py table

One set of PPO's hyperparameters but for steps and learning rate. Resumable as `generalisation.py` is, whose trainings
these are. "none" cannot know and stays at chance, 0.5.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from generalisation import Train as Training
from generalisation import read
from generalisation import train as run

import memory


class Setting(NamedTuple):
    """What a memory is trained with."""

    steps: int
    learning_rate: float


SHORT = dict.fromkeys(memory.names(), Setting(300_000, 1e-3))
SHORT |= dict.fromkeys(("hcam", "sat", "gtrxl"), Setting(200_000, 5e-4))
LONG = {
    "rewrite": Setting(600_000, 1e-3),
    "ffm": Setting(1_500_000, 1e-3),
    "hcam": Setting(600_000, 5e-4),
    "sat": Setting(800_000, 5e-4),
    "lstm": Setting(1_200_000, 1e-3),
    "gru": Setting(1_500_000, 1e-3),
    "rnn": Setting(3_000_000, 1e-3),
    "gtrxl": Setting(400_000, 5e-4),
    "shm": Setting(2_000_000, 1e-3),
    "none": Setting(600_000, 1e-3),
}
"""The slower an update, the fewer steps; rates by trial with seed 0, from 5e-4, 1e-3, 2e-3 and 3e-3."""

SETTINGS = {5: SHORT, 40: LONG}
"""Length of the corridor -> memory -> what it is trained with."""


@dataclass(frozen=True)
class Train:
    """Train and test; one line of JSON per training."""

    memories: tuple[str, ...] = field(default_factory=lambda: tuple(memory.names()))
    """Registered names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    lengths: tuple[int, ...] = tuple(SETTINGS)
    """Lengths of the corridor."""
    out: Path = Path("runs/retention.jsonl")
    """Where the lines go."""


@dataclass(frozen=True)
class Table:
    """Print the table of a file as Markdown."""

    out: Path = Path("runs/retention.jsonl")
    """What `train` wrote."""


def train(options: Train) -> None:
    """Do every training that the file does not hold yet, seed by seed."""
    for seed, length, name in itertools.product(options.seeds, options.lengths, options.memories):
        setting = SETTINGS[length][name]
        run(
            Training(
                memories=(name,),
                label=f"{name} {length}",
                seeds=(seed,),
                corridors=1,
                length=length,
                regimes=("fixed",),
                carry_over=(0.0,),
                total_timesteps=setting.steps,
                num_envs=64,
                num_minibatches=16,
                learning_rate=setting.learning_rate,
                ent_coef=0.005,
                test_corridors=(),
                test_lengths=(),
                out=options.out,
            )
        )


def table(options: Table) -> str:
    """Markdown: a row per memory; success of each seed, greedy and sampled, and the median step of .95 in training."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in read(options.out):
        name, _, length = row["label"].rpartition(" ")
        groups[name][length].append(row)
    lengths = [str(length) for length in SETTINGS]
    head = [f"l {length}, {what}" for length in lengths for what in ("greedy", "sampled", "steps to .95")]
    lines = ["| memory | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name, by_length in groups.items():
        cells = []
        for length in lengths:
            rows = sorted(by_length[length], key=lambda row: row["config"]["seed"])
            for cell in ("train", "train sampled"):
                cells.append(", ".join(f"{row['cells'][cell]:.2f}" for row in rows) or "-")
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

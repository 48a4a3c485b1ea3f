"""Test whether each memory holds a cue over 5 and over 40 steps: T-Maze (one corridor), default arguments.

    python benchmarks/retention.py train --seeds 0 1 2
    python benchmarks/retention.py table

All memories have the same hyperparameters of PPO, except for the number of steps and the learning rate. The trainings
are those of `generalisation.py`, and can be stopped and continued. "none" has no memory and stays at chance, 0.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import generalisation
import numpy as np
from measure import markdown
from trainings import Options, Row, Training, by_seed, command_line, grouped, per_row, steps_to_95

from palimpsest import memory


class Setting(NamedTuple):
    """The hyperparameters that depend on the memory."""

    steps: int
    learning_rate: float


SHORT = dict.fromkeys(memory.names(), Setting(300_000, 1e-3))
SHORT |= dict.fromkeys(("hcam", "sat", "gtrxl"), Setting(200_000, 5e-4))
LONG = dict.fromkeys(memory.names(), Setting(1_500_000, 1e-3))
LONG |= {
    "rewrite": Setting(600_000, 1e-3),
    "hcam": Setting(600_000, 5e-4),
    "sat": Setting(1_000_000, 3e-4),
    "lstm": Setting(1_200_000, 1e-3),
    "rnn": Setting(3_000_000, 1e-3),
    "gtrxl": Setting(600_000, 5e-4),
    "shm": Setting(2_000_000, 1e-3),
    "none": Setting(600_000, 1e-3),
}
"""Slower memories have fewer steps. Learning rates were chosen with seed 0 from 5e-4, 1e-3, 2e-3 and 3e-3."""

SETTINGS = {5: SHORT, 40: LONG}
"""Length of the corridor -> memory -> setting."""


@dataclass(frozen=True)
class Train(Options):
    """Train and test. Each training gives one line of JSON."""

    memories: tuple[str, ...] = tuple(memory.names())
    """Registered names."""
    lengths: tuple[int, ...] = tuple(SETTINGS)
    """Lengths of the corridor."""
    out: Path = Path("runs/retention.jsonl")


def trainings(options: Train) -> Iterator[Training]:
    """All trainings, ordered by seed."""
    for seed, length, name in itertools.product(options.seeds, options.lengths, options.memories):
        setting = SETTINGS[length][name]
        yield from generalisation.trainings(
            generalisation.Train(
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
                # with an annealed weight of the entropy, `shm` stays undecided or loses the cue
                anneal_entropy=False,
                test_corridors=(),
                test_lengths=(),
            )
        )


def table(rows: list[Row]) -> str:
    """One line per memory: success of each seed, greedy and sampled, and the median step of .95 in training."""
    groups = grouped(by_seed(rows), "label")
    lines = []
    for name in dict.fromkeys(row["label"].rpartition(" ")[0] for row in rows):
        line = [name]
        for length in SETTINGS:
            own = groups.get((f"{name} {length}",), [])
            reached = steps_to_95(own)
            steps = f"{np.median(reached) / 1e3:.0f} k" if own and len(reached) == len(own) else "-"
            line += [per_row(own, "train"), per_row(own, "train sampled"), steps]
        lines.append(line)
    head = [f"l {length}, {what}" for length in SETTINGS for what in ("greedy", "sampled", "steps to .95")]
    return markdown(["memory", *head], lines)


if __name__ == "__main__":
    command_line(Train, trainings, table)

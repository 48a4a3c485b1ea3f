"""Which memories learn worlds where facts change: Color-Cubes by default, any of ours by argument.

    python benchmarks/rewriting.py train --seeds 0 1 2
    python benchmarks/rewriting.py table

Hyperparameters are those of `train.py` but for steps and rate; resumable as `generalisation.py` is. Tested on seeds
that training never sees, in the training setting and in those that close a run of `train.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
from measure import markdown
from trainings import Cell, Options, Row, Training, by_seed, cell_names, command_line, grouped, per_row

from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.presets import DEFAULT


@dataclass(frozen=True)
class Train(Options):
    """Train and test; one line of JSON per training."""

    envs: tuple[str, ...] = ("Palimpsest/ColorCubes-Medium-v0", "Palimpsest/ColorCubes-Extreme-v0")
    """Registered ids of ours."""
    memories: tuple[str, ...] = ("rewrite", "lstm")
    """Registered names."""
    share_memory: bool = True
    """Whether actor and critic read one memory; if not, the table says "critic apart"."""
    carry_over: float = 0.0
    """Chance that a memory outlives its episode in training."""
    total_timesteps: int = 5_000_000
    """Environment steps of each training."""
    learning_rate: float = 1e-3
    """Of Adam, annealed to 0."""
    episodes: int = 100
    """Test episodes in each cell."""
    out: Path = Path("runs/rewriting.jsonl")


def trainings(options: Train) -> Iterator[Training]:
    """Seed by seed."""
    for seed, env, memory in itertools.product(options.seeds, options.envs, options.memories):
        config = TrainConfig(
            env=env,
            memory=memory,
            share_memory=options.share_memory,
            seed=seed,
            carry_over=options.carry_over,
            total_timesteps=options.total_timesteps,
            learning_rate=options.learning_rate,
            num_minibatches=DEFAULT.num_minibatches,
        )
        label = memory if options.share_memory else f"{memory}, critic apart"
        about = {"env": env, "memory": label, "seed": seed, "carry_over": options.carry_over}
        yield Training(config, cells(env), about, options.episodes)


def cells(env: str) -> dict[str, Cell]:
    """The training setting and those that close a run of `train.py`, greedy and sampled."""
    found: dict[str, Cell] = {}
    for change in ({}, *getattr(gym.make(env).unwrapped, "closing_settings", ())):
        name = " ".join(f"{key}={value}" for key, value in change.items()) or "as trained"
        found |= {f"{name}, greedy": Cell(change), f"{name}, sampled": Cell(change, greedy=False)}
    return found


def table(rows: list[Row]) -> str:
    """A row per environment, memory and carry-over; one figure per seed, in order."""
    rows = by_seed(rows)
    names = cell_names(rows)
    lines = []
    for (env, memory, carry_over), own in sorted(grouped(rows, "env", "memory", "carry_over").items()):
        steps = ", ".join(f"{row['steps_to_95'] / 1e6:.2f} M" if row["steps_to_95"] else "-" for row in own)
        lines.append([env.split("/")[-1], memory, str(carry_over), steps, *(per_row(own, name) for name in names)])
    return markdown(["environment", "memory", "carry-over", "steps to .95", *names], lines)


if __name__ == "__main__":
    command_line(Train, trainings, table)

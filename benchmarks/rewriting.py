"""Test which memories learn environments where facts change: Color-Cubes by default, or any of ours.

    python benchmarks/rewriting.py train --seeds 0 1 2
    python benchmarks/rewriting.py table

Hyperparameters are those of `train.py`, except for the number of steps and the learning rate. The script can be stopped
and continued, like `generalisation.py`. Tests use seeds that training never sees. They use the training setting and the
closing settings of the environment, which also end a run of `train.py`.
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


@dataclass(frozen=True)
class Train(Options):
    """Train and test. Each training gives one line of JSON."""

    envs: tuple[str, ...] = ("Palimpsest/ColorCubes-Medium-v0", "Palimpsest/ColorCubes-Extreme-v0")
    """Registered ids of our environments."""
    memories: tuple[str, ...] = ("rewrite", "lstm")
    """Registered names."""
    share_memory: bool = True
    """Whether actor and critic share one memory; if not, the table says "critic apart"."""
    carry_over: float = 0.0
    """Probability of keeping the memory after a training episode."""
    total_timesteps: int = 5_000_000
    """Environment steps of each training."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, annealed to 0."""
    episodes: int = 100
    """Test episodes in each cell."""
    out: Path = Path("runs/rewriting.jsonl")


def trainings(options: Train) -> Iterator[Training]:
    """All trainings, ordered by seed."""
    for seed, env, memory in itertools.product(options.seeds, options.envs, options.memories):
        config = TrainConfig(
            env=env,
            memory=memory,
            share_memory=options.share_memory,
            seed=seed,
            carry_over=options.carry_over,
            total_timesteps=options.total_timesteps,
            learning_rate=options.learning_rate,
            num_envs=64,
            num_minibatches=4,
        )
        label = memory if options.share_memory else f"{memory}, critic apart"
        about = {"env": env, "memory": label, "seed": seed, "carry_over": options.carry_over}
        yield Training(config, cells(env), about, options.episodes)


def cells(env: str) -> dict[str, Cell]:
    """Test cells: the training setting and the closing settings, each greedy and sampled."""
    found: dict[str, Cell] = {}
    for change in ({}, *getattr(gym.make(env).unwrapped, "closing_settings", ())):
        name = " ".join(f"{key}={value}" for key, value in change.items()) or "as trained"
        found |= {f"{name}, greedy": Cell(change), f"{name}, sampled": Cell(change, greedy=False)}
    return found


def table(rows: list[Row]) -> str:
    """One line per environment, memory and carry-over, with one figure per seed, in order."""
    rows = by_seed(rows)
    names = cell_names(rows)
    lines = []
    for (env, memory, carry_over), own in sorted(grouped(rows, "env", "memory", "carry_over").items()):
        steps = ", ".join(f"{row['steps_to_95'] / 1e6:.2f} M" if row["steps_to_95"] else "-" for row in own)
        lines.append([env.split("/")[-1], memory, str(carry_over), steps, *(per_row(own, name) for name in names)])
    return markdown(["environment", "memory", "carry-over", "steps to .95", *names], lines)


if __name__ == "__main__":
    command_line(Train, trainings, table)

"""Which memories learn worlds where facts change: Color-Cubes by default, any of ours by argument.

    python benchmarks/rewriting.py train --seeds 0 1 2
    python benchmarks/rewriting.py table

Hyperparameters are those of `train.py` but for steps and rate; resumable as `generalisation.py` is. Tested on seeds
that training never sees, in the training setting and in those that close a run of `train.py`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from generalisation import FirstAbove, read, test

from agents.config import TrainConfig
from agents.experiment import make_env, make_model, versions


@dataclass(frozen=True)
class Train:
    """Train and test; one line of JSON per training."""

    envs: tuple[str, ...] = ("Palimpsest/ColorCubes-Medium-v0", "Palimpsest/ColorCubes-Extreme-v0")
    """Registered ids of ours."""
    memories: tuple[str, ...] = ("rewrite", "lstm")
    """Registered names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    carry_over: float = 0.0
    """Chance that a memory outlives its episode in training."""
    total_timesteps: int = 5_000_000
    """Environment steps of each training."""
    learning_rate: float = 1e-3
    """Of Adam, annealed to 0."""
    episodes: int = 100
    """Test episodes in each cell."""
    out: Path = Path("runs/rewriting.jsonl")
    """Where the lines go."""


@dataclass(frozen=True)
class Table:
    """Print the table of a file as Markdown."""

    out: Path = Path("runs/rewriting.jsonl")
    """What `train` wrote."""


def train(options: Train) -> None:
    """Do every training that the file does not hold yet, seed by seed."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read(options.out)}
    for seed, env, memory in itertools.product(options.seeds, options.envs, options.memories):
        config = TrainConfig(
            env=env,
            memory=memory,
            seed=seed,
            carry_over=options.carry_over,
            total_timesteps=options.total_timesteps,
            learning_rate=options.learning_rate,
        )
        if (key := config.to_toml()) in done:
            continue
        row = {"key": key, "env": env, "memory": memory, "seed": seed, "carry_over": options.carry_over}
        row |= train_and_test(config, options.episodes)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({name: row[name] for name in row if name not in ("key", "versions")}), flush=True)


def train_and_test(config: TrainConfig, episodes: int) -> dict[str, Any]:
    """One training and its tests."""
    venv, note = make_env(config), FirstAbove()
    model = make_model(config, venv)
    began = time.perf_counter()
    model.learn(config.total_timesteps, note)
    seconds = time.perf_counter() - began
    venv.close()
    world = gym.make(config.env).unwrapped
    cells = {}
    for change in ({}, *getattr(world, "closing_settings", ())):
        name = " ".join(f"{key}={value}" for key, value in change.items()) or "as trained"
        for greedy in (True, False):
            found = test(model, config, change, episodes, deterministic=greedy)
            cells[f"{name}, {'greedy' if greedy else 'sampled'}"] = found
    return {
        "steps_to_95": note.step,
        "steps": model.num_timesteps,
        "seconds": round(seconds, 1),
        "cells": cells,
        "versions": versions(),
    }


def table(options: Table) -> str:
    """Markdown: a row per environment and memory; one figure per seed, in order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(read(options.out), key=lambda row: row["seed"]):
        groups[row["env"], row["memory"]].append(row)
    names = list(dict.fromkeys(name for rows in groups.values() for row in rows for name in row["cells"]))
    lines = ["| environment | memory | steps to .95 | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for (env, memory), rows in sorted(groups.items()):
        reached = [row["steps_to_95"] or np.inf for row in rows]
        cells = [", ".join(f"{row['cells'].get(name, np.nan):.2f}" for row in rows) for name in names]
        steps = ", ".join(f"{step / 1e6:.2f} M" if np.isfinite(step) else "-" for step in reached)
        lines.append(f"| {env.split('/')[-1]} | {memory} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command = tyro.cli(Train | Table)
    if isinstance(command, Train):
        train(command)
    else:
        print(table(command))

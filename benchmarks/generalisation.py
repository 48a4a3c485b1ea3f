"""Train memories on one setting of Endless T-Maze and test them on many: corridors, lengths, greedy and sampled.

    python benchmarks/generalisation.py train --memories lstm rewrite --seeds 0 1 2 --out runs/generalisation.jsonl
    python benchmarks/generalisation.py table --out runs/generalisation.jsonl

Every training is one line of JSON in the file; a training that is already there is not repeated, so the script can
be stopped and started again. The table gives the mean over seeds and, in brackets, the lowest seed.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from stable_baselines3.common.callbacks import BaseCallback

import envs
from agents import MemoryPPO
from agents.arguments import parse_key_values
from agents.config import TrainConfig
from agents.evaluation import play, summary
from agents.experiment import make_env, make_model, versions
from memory import memory_class

ENV = "Palimpsest/EndlessTMaze-v0"


@dataclass(frozen=True)
class Train:
    """Train and test; one line of JSON per training."""

    memories: tuple[str, ...] = ("rewrite", "lstm")
    """Registered names."""
    memory_args: tuple[str, ...] = ()
    """KEY=VALUE arguments of every memory in the list."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    corridors: int = 10
    """n of the training setting."""
    length: int = 10
    """l of the training setting."""
    regimes: tuple[Literal["fixed", "uniform"], ...] = ("fixed", "uniform")
    """Regimes to train and test in."""
    carry_over: tuple[float, ...] = (0.5, 0.0)
    """Chances that a memory outlives its episode in training."""
    total_timesteps: int = 1_500_000
    """Environment steps of each training."""
    num_envs: int = TrainConfig.num_envs
    """Environments stepped together."""
    num_minibatches: int = TrainConfig.num_minibatches
    """Minibatches per pass over a rollout."""
    learning_rate: float = 1e-3
    """Of Adam, annealed to 0."""
    ent_coef: float = TrainConfig.ent_coef
    """Weight of the entropy."""
    min_advantage_std: float = TrainConfig.min_advantage_std
    """Smallest standard deviation that advantages are divided by."""
    test_corridors: tuple[int, ...] = (100, 1000)
    """Numbers of corridors to test on, at the training length."""
    test_lengths: tuple[int, ...] = (5, 15, 20, 50)
    """Lengths to test on, at the training number of corridors."""
    episodes: int = 100
    """Test episodes in each cell."""
    label: str = ""
    """A name for this form of the memory in the table; default its name and arguments."""
    out: Path = Path("runs/generalisation.jsonl")
    """Where the lines go."""


@dataclass(frozen=True)
class Table:
    """Print the table of a file as Markdown."""

    out: Path = Path("runs/generalisation.jsonl")
    """What `train` wrote."""


@dataclass
class FirstAbove(BaseCallback):
    """Notes the step at which training's success over the last 100 episodes first reached `threshold`."""

    threshold: float = 0.95
    step: int | None = field(default=None)

    def __post_init__(self) -> None:
        super().__init__()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        recent = self.model.ep_success_buffer
        assert recent is not None
        if self.step is None and len(recent) == recent.maxlen and np.mean(recent) >= self.threshold:
            self.step = self.num_timesteps


def train(options: Train) -> None:
    """Do every training of `options` that the file does not hold yet."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["key"] for row in read(options.out)}
    for memory in options.memories:
        arguments = parse_key_values(list(options.memory_args), memory_class(memory), skip={"input_size"})
        for seed in options.seeds:
            for regime in options.regimes:
                for carry_over in options.carry_over:
                    config = TrainConfig(
                        env=ENV,
                        env_args={"corridors": options.corridors, "length": options.length, "regime": regime},
                        memory=memory,
                        memory_args=arguments,
                        carry_over=carry_over,
                        total_timesteps=options.total_timesteps,
                        num_envs=options.num_envs,
                        num_minibatches=options.num_minibatches,
                        learning_rate=options.learning_rate,
                        ent_coef=options.ent_coef,
                        min_advantage_std=options.min_advantage_std,
                        seed=seed,
                    )
                    label = options.label or " ".join([memory, *options.memory_args])
                    key = json.dumps([label, config.to_toml()])
                    if key not in done:
                        row = {"key": key, "label": label} | train_and_test(config, options)
                        with options.out.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                        print(json.dumps({name: row[name] for name in row if name not in ("key", "versions")}))


def train_and_test(config: TrainConfig, options: Train) -> dict[str, Any]:
    """One training and its tests."""
    env = make_env(config)
    model = make_model(config, env)
    note = FirstAbove()
    began = time.perf_counter()
    model.learn(config.total_timesteps, note)
    seconds = time.perf_counter() - began
    env.close()
    cells = {
        "train": test(model, config, {}, options.episodes),
        "train sampled": test(model, config, {}, options.episodes, deterministic=False),
    }
    for corridors in options.test_corridors:
        cells[f"n {corridors}"] = test(model, config, {"corridors": corridors}, options.episodes)
    for length in options.test_lengths:
        cells[f"l {length}"] = test(model, config, {"length": length}, options.episodes)
        cells[f"l {length} sampled"] = test(model, config, {"length": length}, options.episodes, deterministic=False)
    return {
        "config": {k: v for k, v in asdict(config).items() if k in ("memory", "memory_args", "carry_over", "seed")},
        "regime": config.env_args["regime"],
        "carry_over": config.carry_over,
        "steps_to_95": note.step,
        "steps": model.num_timesteps,
        "seconds": round(seconds, 1),
        "cells": cells,
        "versions": versions(),
    }


def test(
    model: MemoryPPO, config: TrainConfig, change: dict[str, Any], episodes: int, deterministic: bool = True
) -> float:
    """Success under changed arguments of the environment."""
    venv = envs.make_vec(config.env, episodes, seed=0, **{**config.env_args, **change})
    try:
        return float(summary(play(model, venv, episodes, deterministic))["success"])
    finally:
        venv.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none where it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(options: Table) -> str:
    """Markdown: a row per memory, regime and carry-over; mean over seeds (lowest seed)."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in read(options.out):
        groups[row["label"], row["regime"], row["carry_over"]].append(row)
    if not groups:
        return "no results"
    cells = list(next(iter(groups.values()))[0]["cells"])
    lines = [
        "| memory | regime | carry-over | seeds | steps to .95 | " + " | ".join(cells) + " |",
        "|---" * (len(cells) + 5) + "|",
    ]
    for (label, regime, carry_over), rows in sorted(groups.items(), key=lambda item: item[0][1:]):
        reached = [row["steps_to_95"] for row in rows if row["steps_to_95"] is not None]
        steps = f"{np.median(reached) / 1e6:.2f} M" if len(reached) == len(rows) else f"{len(reached)} of {len(rows)}"
        values = []
        for cell in cells:
            found = [row["cells"][cell] for row in rows if cell in row["cells"]]
            values.append(f"{np.mean(found):.2f} ({min(found):.2f})" if found else "-")
        lines.append(f"| {label} | {regime} | {carry_over} | {len(rows)} | {steps} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main(command: Train | Table) -> None:
    """Train and test, or print the table."""
    if isinstance(command, Train):
        train(command)
    else:
        print(table(command))


if __name__ == "__main__":
    main(tyro.cli(Train | Table))

"""Run each training once: train, test in many settings, write a line of JSON, print the lines as a table."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from tyro.conf import subcommand

from palimpsest import envs
from palimpsest.agents.evaluation.play import play, summary
from palimpsest.agents.files.versions import versions
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model

Row = dict[str, Any]
"""A line of JSON: what the training was, "steps_to_95", "steps", "seconds", "cells" (name -> success), "versions"."""


class Cell(NamedTuple):
    """A test of a trained model."""

    change: dict[str, Any]
    """Arguments of the environment that differ from the training."""
    greedy: bool = True
    """Whether the agent takes the most likely action instead of sampling."""


@dataclass(frozen=True)
class Training:
    """A training and its tests. Two with the same configuration and label are the same training."""

    config: TrainConfig
    cells: dict[str, Cell]
    about: Row
    """What the line holds beside the figures; "label" if the forms of a memory have names."""
    episodes: int = 100
    """Test episodes in each cell."""

    @property
    def key(self) -> str:
        """The identity of the training in the file."""
        config = self.config.to_toml()
        return json.dumps([self.about["label"], config]) if "label" in self.about else config


@dataclass(frozen=True)
class Options:
    """The options of every script's `train`. A script adds its own and sets the default file."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, one training each."""
    out: Path = Path("runs/trainings.jsonl")
    """The file for the lines."""


@dataclass(frozen=True)
class Table:
    """Print the table of a file as Markdown."""

    out: Path
    """The file that `train` wrote."""


def command_line(
    options: type[Options], trainings: Callable[[Any], Iterable[Training]], table: Callable[[list[Row]], str]
) -> None:
    """Run a script: `train` runs the trainings of its `options`, `table` prints the table of a file."""
    train = Annotated[options, subcommand("train")]  # type: ignore[valid-type]
    show = Annotated[Table, subcommand("table", default=Table(options.out))]
    chosen: Any = tyro.cli(train | show)
    if isinstance(chosen, Table):
        print(table(read(chosen.out)))
    else:
        do(trainings(chosen), chosen.out)


def do(trainings: Iterable[Training], out: Path) -> None:
    """Run every training that is not in the file yet."""
    for training in trainings:
        if all(row["key"] != training.key for row in read(out)):
            row = {"key": training.key, **training.about, **train_and_test(training)}
            append(out, row)
            print(json.dumps({name: row[name] for name in row if name not in ("key", "versions")}), flush=True)


def read(path: Path) -> list[Row]:
    """The lines of a file; none if the file does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: Row) -> None:
    """Add a line to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def train_and_test(training: Training) -> Row:
    """Run one training and its tests; returns the figures."""
    config, note = training.config, FirstAbove()
    env = make_env(config)
    model = make_model(config, env)
    began = time.perf_counter()
    model.learn(config.total_timesteps, note)
    seconds = time.perf_counter() - began
    env.close()
    return {
        "steps_to_95": note.step,
        "steps": model.num_timesteps,
        "seconds": round(seconds, 1),
        "cells": {name: test(model, config, cell, training.episodes) for name, cell in training.cells.items()},
        "versions": versions(),
    }


@dataclass
class FirstAbove(BaseCallback):
    """Records the step at which the success over the last 100 training episodes first reached `threshold`."""

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


def test(model: SavedAlgorithm, config: TrainConfig, cell: Cell, episodes: int) -> float:
    """Success in a cell, on seeds that training never sees."""
    venv = envs.make_vec(config.env, episodes, seed=0, **{**config.env_args, **cell.change})
    try:
        return float(summary(play(model, venv, episodes, cell.greedy))["success"])
    finally:
        venv.close()


def grouped(rows: list[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Lines grouped by their values of `names`, in the order of the first line of each group."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def by_seed(rows: list[Row]) -> list[Row]:
    """Lines ordered by seed."""
    return sorted(rows, key=lambda row: row["seed"] if "seed" in row else row["config"]["seed"])


def cell_names(rows: list[Row]) -> list[str]:
    """The names of all cells, in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["cells"]))


def per_row(rows: list[Row], cell: str) -> str:
    """Success in a cell, one figure per line: "nan" if it was not tested; "-" if there are no lines."""
    return ", ".join(f"{row['cells'].get(cell, np.nan):.2f}" for row in rows) or "-"


def steps_to_95(rows: list[Row]) -> list[int]:
    """The steps to .95 of the trainings that reached it."""
    return [row["steps_to_95"] for row in rows if row["steps_to_95"] is not None]

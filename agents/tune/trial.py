"""One trial of a search, in a process of its own: trainings that report their evaluations to the study."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from palimpsest.agents.files.archive import write_atomically
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.sweep.work import Places, guarded
from palimpsest.agents.tune import studies


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that has its hyperparameters."""

    name: str
    """The name of its files."""
    number: int
    id: int
    """The key of the trial in the study's storage."""
    url: str
    study: str
    pruner: str
    metric: str
    config: TrainConfig
    seeds: tuple[int, ...]

    @property
    def evaluations(self) -> int:
        """Evaluations of one training."""
        return math.ceil(self.config.total_timesteps / self.config.eval_every)


class Pruned(Exception):
    """The study ends the trial early."""


def attempt(trial: PlannedTrial, folder: Path) -> None:
    """Do a trial; see `sweep.work.guarded`."""
    guarded(_search, trial, folder)


def outcome(trial: PlannedTrial, folder: Path) -> dict[str, Any] | None:
    """What a trial wrote at its end: pruned, value, metric, evaluations, seconds; None if it died or was stopped."""
    path = Places(folder, trial).result
    return json.loads(path.read_text()) if path.exists() else None


def score(row: Mapping[str, Any], metric: str) -> tuple[str, float]:
    """The metric that counts, and its value in the row of an evaluation.

    Raises:
        ValueError: success is asked for, and the environment does not report it.
    """
    if metric == "auto":
        metric = "return" if row["success"] is None else "success"
    if metric == "return":
        return metric, float(row["return_mean"])
    if row["success"] is None and not row.get("stalled"):
        raise ValueError("metric is 'success', which the environment does not report; choose --metric return")
    # an environment reports success at an episode's end; where no episode reached it, none was won
    return metric, float(row["success"] or 0)


def _search(trial: PlannedTrial, places: Places, console: Console) -> None:
    if places.directory.exists():  # Ray starts a trial again whose worker has died
        shutil.rmtree(places.directory)
    began = time.monotonic()
    watch = _Watch(trial)
    pruned = False
    try:
        for seed in trial.seeds:
            config = dataclasses.replace(trial.config, seed=seed, run_dir=places.directory / f"seed-{seed}")
            experiment.train(config, console, close=False, watch=watch.see)
            watch.next_training()
    except Pruned:
        pruned = True
    result = {
        "pruned": pruned,
        "metric": watch.metric,
        "value": watch.value,
        "evaluations": watch.step,
        "seconds": round(time.monotonic() - began, 1),
    }
    write_atomically(places.result, json.dumps(result).encode())


class _Watch:
    """Reports the evaluations of a trial's trainings to its study, and asks whether the trial goes on.

    A step of the study is an evaluation. Its value is the mean over the trainings so far, each by its last evaluation.
    """

    def __init__(self, trial: PlannedTrial) -> None:
        self.trial = trial
        self.metric, self.value = trial.metric, math.nan
        self.step = 0
        self._finished: list[float] = []
        self._last = math.nan
        self._reported = studies.opened_trial(trial.url, trial.study, trial.pruner, trial.id)

    def see(self, row: dict[str, Any]) -> None:
        """Take note of an evaluation; `Pruned` if the study wants no more of them."""
        self.metric, self._last = score(row, self.metric)
        values = [*self._finished, self._last]
        self.value = sum(values) / len(values)
        each, config = self.trial.evaluations, self.trial.config
        step = len(self._finished) * each + min(each, max(1, row["step"] // config.eval_every))
        if step <= self.step:
            return  # a rollout that is longer than the steps between two evaluations
        self.step = step
        self._reported.report(self.value, step)
        if step < each * len(self.trial.seeds) and self._reported.should_prune():
            raise Pruned

    def next_training(self) -> None:
        """Begin the training with the next seed."""
        self._finished.append(self._last)

"""Search for hyperparameters: plan trials, run them on an engine, tell the study how they ended, and report.

The folder of a search holds `runs/` (a folder per trial with a run directory per seed), `logs/`, `results/`, study.db,
best.toml, history.png and importances.png.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from palimpsest import memory
from palimpsest.agents import printing
from palimpsest.agents.files.lock import locked
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import Interrupted, RunFailed
from palimpsest.agents.sweep.report import make_folder
from palimpsest.agents.sweep.work import Places
from palimpsest.agents.tune import report, studies
from palimpsest.agents.tune import space as spaces
from palimpsest.agents.tune.config import TuneConfig
from palimpsest.agents.tune.space import Space
from palimpsest.agents.tune.trial import PlannedTrial, attempt, outcome

EVALUATIONS = 10
"""Evaluations of a training, if no flag says how often it is evaluated."""

HERE = frozenset({"device", "threads", "progress", "keep_checkpoints", "checkpoint_every"})
"""Fields that may change when a search goes on: they do not change what it finds."""


def tune(
    config: TuneConfig, training: TrainConfig, fixed: frozenset[str] = frozenset(), console: Console | None = None
) -> None:
    """Do what is left of a search.

    Args:
        config: how to search.
        training: the first trial. Its task, its budget and what is fixed are those of every trial.
        fixed: names that are not searched: fields of a training, "memory_args.NAME", "algo_args.NAME".
        console: where to print.

    Raises:
        ValueError: Optuna is not installed, the space or the study is not allowed, or another process uses the folder.
        Interrupted: a signal stopped the search. The same command continues it.
        RunFailed: no trial has a value, and some died.
    """
    console = console or printing.output()
    studies.optuna()
    memory.register_from(training.memory)
    training, space = _prepared(config, training, fixed)
    folder = config.folder(training)
    url = studies.address(config.study, folder)
    if config.study is not None:
        studies.storage(url)  # refused before a folder is made
    make_folder(folder)
    with locked(folder):
        search = _Search(config, training, fixed, space, url, console)
        try:
            number = _run(config, search)
        finally:
            search.close()
        report.write(search.study, training, fixed, folder, console)
    if number is not None:
        console.print("the same command continues the search", highlight=False)
        raise Interrupted(number)
    if search.died and not studies.ranked(search.study):
        raise RunFailed(f"no trial has a value, and {search.died} died, as said above; logs are in {folder / 'logs'}")


def _prepared(config: TuneConfig, training: TrainConfig, fixed: frozenset[str]) -> tuple[TrainConfig, Space]:
    """The training with what the space's file fixes, and the space of what is left."""
    if config.space is None:
        space = spaces.usual(training, fixed)
    else:
        space, values = spaces.load(config.space, training, fixed)
        training = spaces.configured(training, {name: v for name, v in values.items() if name not in fixed}, fixed)
    if "eval_every" not in fixed:
        training = dataclasses.replace(training, eval_every=max(1, training.total_timesteps // EVALUATIONS))
    if training.eval_every == 0:
        raise ValueError("eval_every must be 1 or more: a trial is judged by its evaluations; got 0")
    return training, spaces.searched(space, training, fixed)


def _run(config: TuneConfig, search: _Search) -> int | None:
    jobs = config.jobs or os.cpu_count() or 1
    search.console.print(
        f"study {search.study.study_name}: {config.trials} trials, {search.done} of them done, {jobs} at a time, into "
        f"{search.folder}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    common = (search.plan(), search.folder, jobs, search.ended, search.tick, attempt)
    if config.engine == "ray":
        from palimpsest.agents.sweep import cluster

        return cluster.run_all(*common, config.address, most_at_once=jobs)
    from palimpsest.agents.sweep import processes

    return processes.run_all(*common)


class _Search:
    """Makes the trials of a study, tells it how they ended, and shows how far it is.

    Args:
        config: how to search.
        training: the first trial.
        fixed: names that are not searched.
        space: what is searched.
        url: of the study's storage.
        console: where to print.
    """

    def __init__(
        self,
        config: TuneConfig,
        training: TrainConfig,
        fixed: frozenset[str],
        space: Space,
        url: str,
        console: Console,
    ) -> None:
        self.config, self.training, self.fixed, self.url, self.console = config, training, fixed, url, console
        self.folder = config.folder(training).absolute()
        self.study = studies.study(url, config.name(training), config.pruner, training.seed)
        self.died = 0
        known = {name: part for name, part in tomllib.loads(training.to_toml()).items() if name not in HERE}
        asked = {**known, "space": json.loads(json.dumps(space)), "metric": config.metric}
        studies.check_same(self.study, {**asked, "seeds_per_trial": config.seeds_per_trial})
        self._distributions = studies.distributions(space)
        self._trials: dict[int, Any] = {}
        if not self._all():
            self.study.enqueue_trial(spaces.first(training, space))
        self._progress = Progress(
            TextColumn("{task.completed} / {task.total} trials"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=config.trials, completed=self.done, now="")
        self._take_up()

    def _all(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    @property
    def done(self) -> int:
        """The trials of the study that need no further attempt."""
        return sum(map(studies.finished, self._all()))

    def plan(self) -> Iterator[PlannedTrial]:
        """The trials that are left, each made when it is asked for, so that it knows of those before."""
        while (
            sum(studies.finished(trial) or trial.state.name == "RUNNING" for trial in self._all()) < self.config.trials
        ):
            trial = self.study.ask(self._distributions)
            trial.set_user_attr("folder", str(self.folder))
            self._trials[trial.number] = trial
            try:
                planned = self._planned(trial.number, trial._trial_id, trial.params)
            except ValueError as error:
                self._tell(trial.number, None, str(error))
                continue
            for path in (Places(self.folder, planned).result, Places(self.folder, planned).error):
                path.unlink(missing_ok=True)  # of an earlier study in this folder
            yield planned

    def _planned(self, number: int, id: int, values: dict[str, Any]) -> PlannedTrial:
        config = spaces.configured(self.training, values, self.fixed)
        return PlannedTrial(
            f"trial-{number:04d}",
            number,
            id,
            self.url,
            self.study.study_name,
            self.config.pruner,
            self._metric(),
            dataclasses.replace(config, checkpoint_every=0, progress=False, threads=config.threads or 1),
            tuple(range(config.seed, config.seed + self.config.seeds_per_trial)),
        )

    def _metric(self) -> str:
        """What all trials are compared by; "auto" until the first one has shown what the environment reports."""
        known = (trial.user_attrs.get("metric") for trial in self._all())
        return next(filter(None, known), "auto") if self.config.metric == "auto" else self.config.metric

    def _take_up(self) -> None:
        """End the trials of an earlier command in this folder that still count as running."""
        for frozen in self._all():
            if frozen.state.name == "RUNNING" and frozen.user_attrs.get("folder") == str(self.folder):
                self._trials[frozen.number] = studies.optuna().trial.Trial(self.study, frozen._trial_id)
                self.ended(self._planned(frozen.number, frozen._trial_id, frozen.params), "")

    def tick(self, running: list[PlannedTrial]) -> None:
        """Look at the trials under way."""
        names = ", ".join(trial.name for trial in running[:4]) + (", ..." if len(running) > 4 else "")
        self._progress.update(self._task, now=names)

    def ended(self, trial: PlannedTrial, words: str) -> None:
        """Tell the study how a trial has ended, and say it."""
        error = Places(self.folder, trial).error
        self._tell(trial.number, outcome(trial, self.folder), error.read_text().strip() if error.exists() else words)
        self._progress.update(self._task, completed=self.done)

    def _tell(self, number: int, result: dict[str, Any] | None, words: str) -> None:
        trial, states = self._trials.pop(number), studies.optuna().trial.TrialState
        value = math.nan if result is None else result["value"]
        if result is not None and not math.isfinite(value):
            result, words = None, f"its value is {value}"
        if result is not None:
            trial.set_user_attr("metric", result["metric"])
            trial.set_user_attr("seconds", result["seconds"])
            reached = f"{result['metric']} {result['value']:.4g}"
            if result["pruned"]:
                self.study.tell(number, state=states.PRUNED)
                said = f"pruned after evaluation {result['evaluations']}, at {reached}"
            else:
                self.study.tell(number, result["value"])
                best = studies.ranked(self.study)[0]
                said = f"{reached} (best {best.value:.4g}, trial {best.number})"
        elif words:
            self.died += 1
            trial.set_user_attr("died", words)
            self.study.tell(number, state=states.FAIL)
            said = f"DIED: {words}"
        else:
            self.study.tell(number, state=states.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={"again": number})
            said = "interrupted, to be tried anew"
        self.console.print(f"trial {number}: {said}", highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Stop the live bar and restore the terminal."""
        self._progress.stop()

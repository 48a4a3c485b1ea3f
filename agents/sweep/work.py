"""One run of a sweep, in a process of its own: train or resume it, test it, write its rows."""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv

from palimpsest import envs
from palimpsest.agents.environments import innermost
from palimpsest.agents.evaluation.play import play, summary
from palimpsest.agents.files.archive import one_line, remove_parts, write_atomically
from palimpsest.agents.files.lock import LOCK
from palimpsest.agents.files.versions import VERSIONS_FILE, note_versions
from palimpsest.agents.run import experiment
from palimpsest.agents.run.callbacks import reached, read_evaluations
from palimpsest.agents.run.config import CONFIG_FILE, Arguments, TrainConfig
from palimpsest.agents.run.resume import Checkpoints, Interrupted
from palimpsest.agents.run.runs import MOST_ROWS, Run, environments, evaluate, load_run
from palimpsest.agents.sweep.suite import Named, PlannedRun
from palimpsest.agents.sweep.table import Row

SHOWN_VERSIONS = ("commit", "palimpsest-rl", "python", "torch", "stable-baselines3", "gymnasium", "numba", "numpy")

RunT = TypeVar("RunT", bound=Named)


class Places:
    """Where a run's files are in a sweep's folder."""

    def __init__(self, folder: Path, run: Named) -> None:
        self.directory = folder / "runs" / run.name
        """The run directory, as `palimpsest train` makes it."""
        self.result = folder / "results" / f"{run.name}.json"
        """The rows of the finished run."""
        self.log = folder / "logs" / f"{run.name}.log"
        """What it printed."""
        self.error = folder / "logs" / f"{run.name}.error"
        """One line, if the run died of an error."""
        self.seconds = folder / "logs" / f"{run.name}.seconds"
        """The seconds that it has trained for."""

    def make(self) -> None:
        """Make the folders, but not the run directory."""
        for path in (self.directory, self.result, self.log):
            path.parent.mkdir(parents=True, exist_ok=True)


def attempt(run: PlannedRun, folder: Path) -> None:
    """Do what is left of a run; see `guarded`."""
    guarded(_work, run, folder)


def guarded(work: Callable[[RunT, Places, Console], None], run: RunT, folder: Path) -> None:
    """Do `work`, which is given a console that prints to the run's log. An error is written to the run's files.

    Raises:
        Interrupted: a signal stopped the run, which is left with a checkpoint.
    """
    places = Places(folder, run)
    places.make()
    places.error.unlink(missing_ok=True)
    with places.log.open("a", buffering=1) as log:
        try:
            work(run, places, Console(file=log, width=120))
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(2) from None
        except Exception as error:
            traceback.print_exc(file=log)
            write_atomically(places.error, f"{type(error).__name__}: {one_line(error)}\n".encode())


def finished(run: PlannedRun, places: Places) -> list[Row] | None:
    """The rows of a run that is done with all its tests; None if something is left to do."""
    if not places.result.exists():
        return None
    result = json.loads(places.result.read_text())
    return result["rows"] if result["asked"] == _asked(run) else None


def steps_done(places: Places) -> int:
    """Environment steps of a run at its last evaluation or checkpoint."""
    rows = read_evaluations(places.directory / "evaluations.csv")
    checkpoints = Checkpoints(places.directory / "checkpoints", 1).paths()
    return max([0, *(int(row["step"]) for row in rows[-1:]), *(int(path.stem) for path in checkpoints[-1:])])


def _asked(run: PlannedRun) -> Any:
    return json.loads(json.dumps([run.tests, run.episodes, run.returns]))


def _work(run: PlannedRun, places: Places, console: Console) -> None:
    directory = places.directory
    if (directory / "model.zip").exists():
        trained = load_run(directory, run.config.device)
        experiment.set_threads(run.config)
    else:
        clock = _Clock(places)
        if (directory / CONFIG_FILE).exists():
            config = dataclasses.replace(run.config, resume=directory)
        else:
            if directory.exists():  # it was killed before it wrote its configuration
                remove_parts(directory)
                for name in (LOCK, VERSIONS_FILE):
                    (directory / name).unlink(missing_ok=True)
                directory.rmdir()
            config = dataclasses.replace(run.config, run_dir=directory)
        try:
            trained = experiment.train(config, console, close=False)
        finally:
            clock.stop()
    rows = [{**_about(run, trained, places), **_test(run, trained, test)} for test in ({}, *run.tests)]
    write_atomically(places.result, json.dumps({"asked": _asked(run), "rows": rows}, indent=2).encode())


class _Clock:
    """Seconds of training, over all attempts. Of a killed attempt, those until its last checkpoint count."""

    def __init__(self, places: Places) -> None:
        self.path = places.seconds
        total, began = json.loads(self.path.read_text()) if self.path.exists() else (0.0, None)
        if began is not None:
            saved = Checkpoints(places.directory / "checkpoints", 1).paths()[-1:]
            total += max([0.0, *(path.stat().st_mtime - began for path in saved)])
        self.total, self.began = total, time.time()
        self._write(self.began)

    def stop(self) -> None:
        self.total += time.time() - self.began
        self._write(None)

    def _write(self, began: float | None) -> None:
        write_atomically(self.path, json.dumps([self.total, began]).encode())


def _about(run: PlannedRun, trained: Run, places: Places) -> Row:
    """The columns of a row that do not depend on the test."""
    config = run.config
    note_versions(trained.directory)
    versions = json.loads((trained.directory / VERSIONS_FILE).read_text(encoding="utf-8"))
    evaluations = read_evaluations(trained.directory / "evaluations.csv")
    step, worst = after_solved({"success": config.solved, "return_mean": config.solved_return}, evaluations)
    return {
        "suite": run.suite,
        "run": run.name,
        "env": config.env,
        "env_args": config.env_args,
        "setting": run.setting,
        "memory": config.memory,
        "fully_observed": config.fully_observed,
        "seed": config.seed,
        "budget": config.total_timesteps,
        "steps": trained.model.num_timesteps,
        "wall_seconds": round(json.loads(places.seconds.read_text())[0], 1),
        "solved_step": step,
        "worst_after_solved": worst,
        "best_return": max((float(row["return_mean"]) for row in evaluations), default=None),
        **{name.replace("-", "_"): versions[name] for name in SHOWN_VERSIONS},
    }


def after_solved(goals: dict[str, float | None], evaluations: list[dict[str, str]]) -> tuple[int | None, float | None]:
    """When a run first reached its goals, and the worst success from then on; None if it did not or is not known.

    Args:
        goals: column of the evaluations -> the value to reach; None for no goal.
        evaluations: the rows of an evaluations file, in order.
    """
    first = next((i for i, row in enumerate(evaluations) if reached(goals, [row])), None)
    if first is None:
        return None, None
    successes = [float(row["success"]) for row in evaluations[first:] if row["success"]]
    return int(evaluations[first]["step"]), min(successes, default=None)


def _test(run: PlannedRun, trained: Run, test: Arguments) -> Row:
    """The columns of a row that a test gives."""
    result = evaluate(trained, env_args=test, episodes=run.episodes)
    expert = _expert(trained.config, result["env_args"], run.episodes)
    by = "success" if run.returns is None else "return_mean"
    low, high = run.returns or (0.0, 1.0)
    return {
        "test": test,
        "episodes": result["episodes"],
        "first_seed": result["seed"],
        "success": result["success"],
        "success_se": result["success_se"],
        "return_mean": result["return_mean"],
        "return_se": result["return_se"],
        "score": None if result[by] is None else (result[by] - low) / (high - low),
        "chance": result["chance"],
        "expert_success": expert.get("success"),
        "expert_return": expert.get("return_mean"),
        "success_by": result["success_by"],
    }


class _Expert:
    """The expert of a world as a player."""

    def __init__(self, env: VecEnv) -> None:
        self.env, self.world = env, getattr(innermost(env), "world", None)

    def predict(self, obs: Any, state: Any, start: Any, deterministic: bool) -> tuple[np.ndarray, None]:
        """The expert's action in every row."""
        if self.world is not None:
            return self.world.expert(), None
        return np.stack(self.env.env_method("expert_action")), None


def _expert(config: TrainConfig, env_args: Arguments, episodes: int) -> dict[str, Any]:
    """How the expert plays the episodes of a test, in the run's wrappers.

    Empty for an environment without an expert, and where a wrapper takes other actions than the expert's.
    """
    if config.env not in envs.ids():
        return {}
    rows = min(episodes, 8 if config.wrapper else MOST_ROWS)
    env = environments(dataclasses.replace(config, env_args=env_args, vec=None), rows)
    try:
        own = env.get_attr("unwrapped", [0])[0].action_space
        if env.action_space != own or any(env.env_is_wrapped(gym.ActionWrapper)):
            return {}
        return summary(play(_Expert(env), env, episodes))
    finally:
        env.close()

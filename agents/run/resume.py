"""Resume a run exactly where it stopped: its checkpoints, its state beside the model, and stop signals."""

from __future__ import annotations

import random
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import innermost
from palimpsest.agents.files.archive import CorruptFile, remove_parts
from palimpsest.agents.learn.model_file import PLACE_IN_ROLLOUT, SavedAlgorithm, load_model, save_model
from palimpsest.agents.learn.rollout import RememberingAlgorithm
from palimpsest.agents.off_policy.algorithm import OffPolicyMemoryAlgorithm
from palimpsest.agents.run.presets import algorithm_class
from palimpsest.agents.run.program import COMMAND
from palimpsest.agents.tree import tree_map
from palimpsest.agents.workers.group import here
from palimpsest.agents.workers.rows import of_all, own


class Interrupted(Exception):
    """A signal stopped the run. The exit code is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class EvaluationStopped(Exception):
    """A signal came during an evaluation in training, which is then dropped."""


class RunFailed(Exception):
    """A run failed because of a disk or of its environments' processes. Its checkpoints are intact."""

    exit_code = 1


class Checkpoints:
    """The last checkpoints of a run. Each is written between two iterations.

    Args:
        directory: the folder of the checkpoints. It is made with the first one.
        keep: the number of checkpoints to keep.
        algo: name of the algorithm that is trained.
    """

    def __init__(self, directory: Path, keep: int, algo: str = "ppo") -> None:
        self.directory = directory
        self.keep = keep
        self.algo = algo

    def paths(self) -> list[Path]:
        """The paths of the checkpoints, oldest first."""
        return sorted(self.directory.glob("*.zip"))

    def remedy(self) -> str:
        """What to do after a failure, in words."""
        paths = self.paths()
        run = self.directory.parent
        if not run.exists():
            return f"The run directory {str(run)!r} is gone: start a new run"
        kept = f"The last checkpoint, {paths[-1]}, is kept" if paths else "There is no checkpoint yet"
        return f"{kept}; fix the cause and continue with: {COMMAND} --resume {run}"

    def save(self, model: SavedAlgorithm) -> None:
        """Write a checkpoint with the number of steps as its name, then delete the oldest ones beyond `keep`.

        It holds the whole: every worker gives its rows, and worker 0 writes.
        """
        extra = {"alive": alive_state(model), **whole_place(model)}
        if here().rank:
            return
        self.directory.mkdir(exist_ok=True)
        save_model(model, self.directory / f"{model.num_timesteps:012d}.zip", extra=extra)
        for old in self.paths()[: -self.keep]:
            old.unlink()

    def load(self, env: VecEnv, device: str) -> SavedAlgorithm | None:
        """The model of the newest intact checkpoint, with its environments in the state of that moment.

        None if there is no checkpoint. With several workers all load what worker 0 has found.

        A torn or altered checkpoint is skipped with a message on standard error, and the one before it is tried. Parts
        of files that a killed process left are removed.

        Raises:
            ValueError: no checkpoint is intact.
        """
        workers = here()
        if workers.rank:
            path = workers.of_first(None)
            return None if path is None else restore(path, env, device, self.algo)
        remove_parts(self.directory)
        paths = self.paths()
        if not paths:
            return workers.of_first(None)
        for path in reversed(paths):
            try:
                model = restore(path, env, device, self.algo)
            except CorruptFile as error:
                print(f"skipped: {error}", file=sys.stderr)
            else:
                workers.of_first(path)
                return model
        raise ValueError(f"{str(self.directory)!r} holds no intact checkpoint; start a new run with --config")


def alive_state(model: SavedAlgorithm) -> dict[str, Any]:
    """The state that a model file leaves out: random generators, environments, replay, and values not logged yet."""
    assert model.env is not None
    logger = model.logger
    world = innermost(model.env)
    streams = here().objects((np.random.get_state(), random.getstate()))  # noqa: NPY002  foreign environments may draw
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": streams[0][0],
        "python": streams[0][1],
        "others": streams[1:],
        "env": of_all(world.snapshot() if hasattr(world, "snapshot") else None),
        "replay": model.replay.contents() if isinstance(model, OffPolicyMemoryAlgorithm) else None,
        "records": {
            name: (value, logger.name_to_count[name], logger.name_to_excluded[name])
            for name, value in logger.name_to_value.items()
            if isinstance(value, int | float | np.number)
        },
    }


def restore(path: Path, env: VecEnv, device: str, algo: str = "ppo") -> SavedAlgorithm:
    """A model that continues from a checkpoint.

    Our environments continue from their saved state. Others are reset with `seed + iteration`, and a message on
    standard error says so. The run then equals a run whose environments were reset at that step.
    """
    model, extra = load_model(algorithm_class(algo), path, env, device, force_reset=False)
    alive = extra["alive"]
    assert model.env is not None
    world = innermost(model.env)
    if alive["env"] is not None and hasattr(world, "snapshot"):
        world.restore(own(alive["env"]))
    else:
        reset_environments(model)
    if isinstance(model, OffPolicyMemoryAlgorithm):
        model.replay.restore(alive["replay"], repr(str(path)))
    torch.set_rng_state(alive["torch"].cpu())
    if torch.cuda.is_available() and alive["cuda"]:
        if here().size == 1:
            torch.cuda.set_rng_state_all([state.cpu() for state in alive["cuda"]])
        else:
            torch.cuda.set_rng_state(alive["cuda"][0].cpu(), model.device)
    _restore_streams(model, alive)
    model.set_logger(Logger(None, []))
    for name, record in alive.get("records", {}).items():
        for store, part in zip(_stores(model.logger), record, strict=True):
            store[name] = part
    return model


def whole_place(model: SavedAlgorithm) -> dict[str, Any]:
    """The model's place in the environments of all workers, by attribute; empty where it trains alone."""
    if here().size == 1:
        return {}
    place = {name: getattr(model, name) for name in PLACE_IN_ROLLOUT if hasattr(model, name)}
    return of_all(place | {"_last_state": model.recall()})


def _restore_streams(model: SavedAlgorithm, alive: dict[str, Any]) -> None:
    """Restore numpy's and Python's global streams, which are each worker's own."""
    workers, streams = here(), [(alive["numpy"], alive["python"]), *alive.get("others", ())]
    if len(streams) == workers.size or workers.rank == 0:
        state, python_state = streams[workers.rank]
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python_state)
    else:
        seed = (model.seed or 0) + model.num_timesteps + workers.rows(model.n_envs).start
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)


def use_logger(model: SavedAlgorithm, logger: Logger) -> None:
    """Log with `logger`. It first takes over what a restored model recorded but did not write, so no value is lost."""
    if hasattr(model, "_logger"):
        for store, old in zip(_stores(logger), _stores(model.logger), strict=True):
            store.update(old)
    model.set_logger(logger)


def _stores(logger: Logger) -> tuple[dict[str, Any], ...]:
    return logger.name_to_value, logger.name_to_count, logger.name_to_excluded


def reset_environments(model: SavedAlgorithm) -> None:
    """Start new episodes, with fresh memories, in environments whose state cannot be restored."""
    assert model.env is not None
    workers = here()
    iteration = model.num_timesteps // (model.n_steps * model.n_envs * workers.size)  # type: ignore[attr-defined]
    seed = (model.seed or 0) + iteration + workers.rows(model.n_envs).start
    print(f"these environments cannot be restored; they are reset with seeds from {seed} on", file=sys.stderr)
    model.env.seed(seed)
    model._last_obs = tree_map(np.array, model.env.reset())
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    if isinstance(model, RememberingAlgorithm):
        model._last_memory_starts = np.ones(model.n_envs, dtype=bool)
    model._return_so_far = np.zeros(model.n_envs)  # type: ignore[attr-defined]


class StopSignals:
    """A context that stores the first SIGINT or SIGTERM in `number`. A second one raises `Interrupted` at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # only the main thread may watch signals, and Ray Train works in another
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, ended: int = 0) -> None:
        """Called after every step of an evaluation: EvaluationStopped after a signal.

        Several workers finish their evaluation, as each waits for the others.
        """
        if self.number is not None and here().size == 1:
            raise EvaluationStopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        print(
            f"{signal.Signals(number).name}: the run stops after this iteration; a second signal stops it at once",
            file=sys.stderr,
        )

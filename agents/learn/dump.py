"""What a training leaves behind when numbers go bad: a file from which `failure` raises the error again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palimpsest.agents.learn.model_file import save_model
from palimpsest.agents.learn.numerics import NotFinite
from palimpsest.agents.learn.rollout import RememberingAlgorithm
from palimpsest.agents.tree import tree_map

FILE = "not_finite.zip"
"""The dump's name in the logger's directory: the run directory of `train.py`, that of `tensorboard_log`, ..."""


@contextmanager
def dumped(model: RememberingAlgorithm) -> Iterator[None]:
    """Keep what led to a `NotFinite` raised inside, as `FILE` in the logger's directory.

    The file holds the model as it is (a failed update has not touched its parameters), the rollout so far and what
    the failed check looked at. Without `tensorboard_log` SB3 gives a logger a directory of its own among the
    temporary files; the message names it.
    """
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{error}; {_dump(model, error)}", error.check, error.evidence) from error


def _dump(model: RememberingAlgorithm, error: NotFinite) -> str:
    directory = model.logger.dir
    if directory is None:
        return "with a tensorboard_log or a logger with a directory, the rollout is kept in a file"
    path = Path(directory) / FILE
    buffer, steps = model.rollout_buffer, model.rollout_buffer.pos
    rollout = {
        "observations": tree_map(lambda leaf: leaf[:steps], buffer.observations),
        "actions": buffer.actions[:steps],
        "rewards": buffer.rewards[:steps],
        "episode_start": buffer.episode_start[:steps],
        "memory_start": buffer.memory_start[:steps],
        "state": buffer.state,
    }
    failure = {"message": str(error), "check": error.check, "evidence": error.evidence, "rollout": rollout}
    try:
        save_model(model, path, extra={"failure": failure})
    except (OSError, ValueError) as problem:
        return f"no file could be kept of it: {problem}"
    return f"python -m palimpsest.agents.learn.failure {path} raises this again"

"""The dump of a training that met NaN or infinity: a file from which `failure` raises the error again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palimpsest.agents.learn.model_file import save_model
from palimpsest.agents.learn.numerics import NotFinite
from palimpsest.agents.learn.rollout import RememberingAlgorithm
from palimpsest.agents.tree import tree_map

FILE = "not_finite.zip"
"""The file name of the dump in the logger's directory: `train.py`'s run directory, or that of `tensorboard_log`."""


@contextmanager
def dumped(model: RememberingAlgorithm) -> Iterator[None]:
    """When the body raises `NotFinite`, write a dump to `FILE` in the logger's directory and raise the error again.

    The dump holds the model, the rollout so far and the inputs of the failed check. A failed update has not changed
    the model's parameters. Without `tensorboard_log`, SB3 gives the logger a temporary directory; the message names it.
    """
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{error}; {_dump(model, error)}", error.check, error.evidence) from error


def _dump(model: RememberingAlgorithm, error: NotFinite) -> str:
    directory = model.logger.dir
    if directory is None:
        return "set tensorboard_log, or a logger with a directory, to get a dump of the rollout"
    path = Path(directory) / FILE
    buffer, steps = model.rollout_buffer, model.rollout_buffer.pos
    rollout = {
        "observations": tree_map(lambda leaf: leaf[:steps], buffer.columns.observations),
        "actions": buffer.columns.actions[:steps],
        "rewards": buffer.rewards[:steps],
        "episode_starts": buffer.episode_starts[:steps],
        "memory_start": buffer.columns.memory_start[:steps],
        "action_masks": None if buffer.columns.action_masks is None else buffer.columns.action_masks[:steps],
        "state": buffer.columns.state,
    }
    failure = {"message": str(error), "check": error.check, "evidence": error.evidence, "rollout": rollout}
    try:
        save_model(model, path, extra={"failure": failure})
    except (OSError, ValueError) as problem:
        return f"no dump could be written: {problem}"
    return f"python -m palimpsest.agents.learn.failure {path} raises this error again"

"""Train as a configuration says: in this process, with workers that are started, or as one of those of torchrun."""

from __future__ import annotations

import dataclasses
import os

from rich.console import Console

from palimpsest.agents.launch.follow import follow, on_device, remedy
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import RunFailed
from palimpsest.agents.run.runs import Run
from palimpsest.agents.workers.group import WorkerLost, joined


def world() -> tuple[int, int]:
    """The number of this process among those that torchrun or another starter has made, and how many they are."""
    if all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def train(
    config: TrainConfig, console: Console | None = None, close: bool = True, engine: str = "processes"
) -> Run | None:
    """`experiment.train` with as many workers as the configuration says; arguments and errors are the same.

    `engine` is what starts them, one of `agents.run.presets.ENGINES`.

    Returns:
        The run; None in a process of torchrun that is not the first, and with the engine ray.

    Raises:
        RunFailed: also where a worker died. The last checkpoint is intact.
    """
    if config.resume is None and config.run_dir is None:
        config = dataclasses.replace(config, run_dir=config.new_run_dir())
    rank, size = world()
    if size > 1:
        return join(dataclasses.replace(config, workers=size), rank, console, close)
    if engine == "ray":
        from palimpsest.agents.launch import cluster

        cluster.train(config)
        return None
    if config.workers > 1:
        from palimpsest.agents.launch import processes

        return processes.train(config, console, close)
    return experiment.train(config, console, close)


def join(config: TrainConfig, rank: int, console: Console | None = None, close: bool = True) -> Run | None:
    """Train as worker `rank` of a process group that torch's environment variables or Ray describe."""
    config = on_device(config, int(os.environ.get("LOCAL_RANK", rank)))
    try:
        with joined() as workers:
            if config.resume is None:
                config = dataclasses.replace(config, run_dir=workers.of_first(config.run_dir))
            if rank == 0:
                return experiment.train(config, console, close)
            follow(config)
            return None
    except WorkerLost as error:
        raise RunFailed(f"{error}. {remedy(config)}") from error

"""Workers of Ray Train (the extra "cluster"). After the loss of one, Ray starts them again from the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from palimpsest.agents.launch.follow import follow, remedy
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import Interrupted, RunFailed
from palimpsest.agents.workers.group import joined

RETRIES = 3
"""How often Ray starts the workers again after one was lost."""


def train(config: TrainConfig) -> None:
    """Train with `config.workers` workers of Ray Train. All machines must see the run directory under the same path.

    Ray is started on this machine, or it is the cluster whose address is in the environment variable RAY_ADDRESS.

    Raises:
        ValueError: Ray Train is not installed.
        RunFailed: the workers failed more often than Ray starts them again.
        Interrupted: a signal stopped the run. The last checkpoint is intact.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise ValueError(
            "engine 'ray' needs Ray Train; install it with: pip install 'palimpsest-rl[cluster]'"
        ) from None
    directory = (config.resume or config.run_dir or config.new_run_dir()).absolute()
    resume = None if config.resume is None else directory
    config = dataclasses.replace(config, run_dir=directory, resume=resume)
    gpus = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {} if address else {"num_cpus": max(config.workers, 1), "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    try:
        with tempfile.TemporaryDirectory() as folder, _interruptible():
            trainer = TorchTrainer(
                work,
                train_loop_config={"config": config},
                torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
                scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpus),
                run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=RETRIES)),
            )
            _beside(trainer.fit)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise RunFailed(f"Ray Train gave up: {_first_line(error)}. {remedy(config)}") from error
    finally:
        ray.shutdown()


def work(given: dict[str, Any]) -> None:
    """Be a worker of Ray Train, at the first start or after a loss."""
    config: TrainConfig = given["config"]
    directory = config.resume or config.run_dir
    assert directory is not None
    with joined() as workers:
        if workers.of_first(directory.exists()):
            config = dataclasses.replace(config, resume=directory, run_dir=None)
        if workers.rank:
            follow(config)
        else:
            experiment.train(config, Console(quiet=True))


def _beside(call: Callable[[], object]) -> None:
    """Call in another thread, because Ray's waiting lets no signal through in this one; raise what it raises."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # whatever it is, the caller gets it
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
    if raised:
        raise raised[0]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise `Interrupted`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

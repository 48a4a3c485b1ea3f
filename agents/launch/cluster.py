"""Workers on a Ray cluster, by Ray Train (the extra "cluster"). A worker that is lost is retried from the checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import RunFailed

RETRIES = 3
"""How often Ray starts the workers again after one was lost."""


def train(config: TrainConfig) -> None:
    """Train with `config.workers` workers of Ray Train, which see the run directory under the same path.

    Ray runs on this machine, or is the cluster of the environment variable RAY_ADDRESS.

    Raises:
        ValueError: Ray Train is not installed.
        RunFailed: the workers failed as often as Ray tries again.
    """
    try:
        import ray
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise ValueError("engine 'ray' needs Ray Train; install it with: pip install 'palimpsest-rl[cluster]'") from None

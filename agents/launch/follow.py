"""What every worker but the first does of a training. The first does `experiment.train`, and writes the files."""

from __future__ import annotations

import dataclasses

import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from palimpsest import memory
from palimpsest.agents.evaluation.play import play_together, summary
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.run.callbacks import CheckpointCallback, EvaluationCallback
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import evaluation_environments, make_env, make_model, set_threads
from palimpsest.agents.run.resume import Checkpoints, StopSignals, use_logger
from palimpsest.agents.worlds.vectors import close_all


def follow(config: TrainConfig) -> None:
    """Train with the first worker; arguments and errors are those of `experiment.train`."""
    directory = config.resume or config.run_dir
    assert directory is not None
    checkpoints = Checkpoints(directory / "checkpoints", config.keep_checkpoints, config.algo)
    env, evaluation_env = make_env(config), None
    memory.register_from(config.memory)
    try:
        set_threads(config)
        model = checkpoints.load(env, config.device) if config.resume else None
        model = model or make_model(config, env)
        evaluation_env = evaluation_environments(config)
        # a directory, but nothing is written there, unless NaN is met
        use_logger(model, Logger(str(directory), []))
        with StopSignals() as signals:
            _learn(config, model, evaluation_env, checkpoints, signals)
    finally:
        close_all(env, evaluation_env)


def _learn(
    config: TrainConfig,
    model: SavedAlgorithm,
    evaluation_env: VecEnv,
    checkpoints: Checkpoints,
    signals: StopSignals,
) -> None:
    evaluation = EvaluationCallback(
        lambda: summary(play_together(model, evaluation_env, config.eval_episodes)),
        checkpoints.directory.parent / "evaluations.csv",
        config.eval_every,
    )
    saving = CheckpointCallback(lambda: checkpoints.save(model), config.checkpoint_every, signals)
    left = config.total_timesteps - model.num_timesteps
    if (left > 0 or evaluation.lacks_last(model.num_timesteps)) and not evaluation.solved:
        model.learn(max(left, 0), CallbackList([evaluation, saving]), reset_num_timesteps=False)


def on_device(config: TrainConfig, local_rank: int) -> TrainConfig:
    """The configuration of the worker with this number on its machine: with GPUs each has one of its own."""
    # a run that goes on may name the device of its first worker
    if not config.device.startswith(("auto", "cuda")) or not torch.cuda.is_available():
        return config
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"this machine has {torch.cuda.device_count()} GPUs, one for each worker; got worker {local_rank + 1}: "
            "start fewer, or give --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return dataclasses.replace(config, device=f"cuda:{local_rank}")


def remedy(config: TrainConfig) -> str:
    """What to do after the loss of a worker, in words."""
    directory = config.resume or config.run_dir
    assert directory is not None
    return Checkpoints(directory / "checkpoints", config.keep_checkpoints).remedy()

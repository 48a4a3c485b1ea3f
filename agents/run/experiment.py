"""Train as a configuration says. A run directory holds everything about a run.

config.toml  versions.json  events.out.tfevents.*  checkpoints/  best.zip  model.zip  evaluations.csv
learning_curve.png  closing.json  README.md
"""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from rich.console import Console
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from palimpsest import memory
from palimpsest.agents import printing
from palimpsest.agents.board.callback import TensorBoardCallback
from palimpsest.agents.board.events import run_logger
from palimpsest.agents.board.first_page import COMPARED
from palimpsest.agents.environments import chance_level
from palimpsest.agents.evaluation.play import play_together, summary
from palimpsest.agents.evaluation.plots import learning_curve
from palimpsest.agents.files.archive import remove_parts, write_atomically
from palimpsest.agents.files.lock import locked
from palimpsest.agents.files.model_card import write_model_card
from palimpsest.agents.files.versions import note_versions
from palimpsest.agents.learn.hyperparameters import Hyperparameters
from palimpsest.agents.learn.model_file import PLACE_IN_ROLLOUT, SavedAlgorithm
from palimpsest.agents.run import closing
from palimpsest.agents.run.callbacks import (
    CheckpointCallback,
    EvaluationCallback,
    LogCallback,
    ProgressCallback,
    Watch,
    cut_evaluations,
)
from palimpsest.agents.run.config import CONFIG_FILE, TrainConfig
from palimpsest.agents.run.presets import LOG_STD_INIT, TARGET_KL, TARGET_KL_OF_A_BOX, algorithm_class, replaying
from palimpsest.agents.run.program import COMMAND
from palimpsest.agents.run.resume import Checkpoints, Interrupted, RunFailed, StopSignals, use_logger
from palimpsest.agents.run.runs import Run, environments, give_weights
from palimpsest.agents.workers.group import here
from palimpsest.agents.worlds.vectors import close_all, most_rows
from palimpsest.refusals import closest, refuse

COLUMNS_PER_THREAD = 64
"""Columns of a minibatch for each thread of torch. With fewer columns one more thread does not pay off:
docs/speed.md."""


def make_env(config: TrainConfig) -> VecEnv:
    """The training environments of a configuration; ValueError for an unknown id or argument."""
    return environments(config, config.num_envs // here().size, here().rank, config.overlap)


def evaluation_environments(config: TrainConfig) -> VecEnv:
    """The environments in which this worker plays its share of the episodes of an evaluation."""
    rows = most_rows(config.env, config.wrapper, config.vec, 128, 128, config.num_envs)
    return SavedAlgorithm._wrap_env(environments(config, min(-(-config.eval_episodes // here().size), rows)))


def make_model(config: TrainConfig, env: VecEnv, verbose: int = 0) -> SavedAlgorithm:
    """The agent of a configuration; ValueError if the memory, an argument or a space does not fit."""
    set_threads(config)
    model = algorithm_class(config.algo)(
        policy_name(env.observation_space),
        env,
        **_arguments(config, isinstance(env.action_space, spaces.Box)),
        verbose=verbose,
        seed=config.seed,
        device=config.device,
    )
    if config.start_from is not None:
        give_weights(model, config.start_from)
    return model


def preset(memory: str = "rewrite", num_envs: int = 16, **changes: Any) -> dict[str, Any]:
    """The arguments of `MemoryPPO`, or with `algo` of another algorithm, with which the command line trains a memory.

    `MemoryPPO("MlpMemoryPolicy", env, **preset("lstm", env.num_envs), seed=0)` learns as `palimpsest train --memory
    lstm` does. `MemoryPPO`'s own defaults are sb3-contrib's, but for `normalize_returns`.

    Args:
        memory: a name of `memory.names()`.
        num_envs: B, environments stepped together, by which the rollout's steps and the batch size are chosen.
        **changes: other fields of `TrainConfig`, as n_steps, gamma, carry_over, share_memory. For actions in a Box,
            give use_sde=True, as the command line does by itself.

    Raises:
        ValueError: a name or a value that is not allowed.
    """
    known = [spec.name for spec in dataclasses.fields(TrainConfig)]
    for name in changes:
        if name not in known:
            raise ValueError(f"preset has no argument {name!r}{closest(name, known)}; known: {', '.join(known)}")
    return _arguments(TrainConfig(memory=memory, num_envs=num_envs, **changes), bool(changes.get("use_sde")))


def _arguments(config: TrainConfig, continuous: bool) -> dict[str, Any]:
    """The arguments of the algorithm that a configuration says, but for the environment, the seed and the device.

    `continuous` says whether actions are a Box.
    """
    memory.register_from(config.memory)

    def annealed(value: float | None, falls: bool) -> float | Schedule:
        assert value is not None
        return LinearSchedule(value, 0.0, 1.0) if falls else value

    policy_kwargs: dict[str, Any] = {
        "memory": config.memory,
        "memory_kwargs": config.memory_args,
        "share_memory": config.share_memory,
        **config.layers(config.width),
    }
    shared = {"learning_rate": annealed(config.learning_rate, config.anneal), "policy_kwargs": policy_kwargs}
    if config.algo != "ppo":
        for name in ("gamma", "normalize_observations", "normalize_returns"):
            shared[name] = getattr(config, name)
        return shared | replaying(config.algo, config.num_envs) | config.algo_args
    hyperparameters = {spec.name: getattr(config, spec.name) for spec in dataclasses.fields(Hyperparameters)}
    hyperparameters["ent_coef"] = annealed(config.ent_coef, config.anneal_entropy)
    hyperparameters["clip_range"] = annealed(config.clip_range, config.anneal_clip_range)
    usual_kl = TARGET_KL_OF_A_BOX if continuous else TARGET_KL
    hyperparameters["target_kl"] = (usual_kl if config.target_kl is None else config.target_kl) or None
    hyperparameters["use_sde"] = config.use_sde and continuous
    if hyperparameters["use_sde"]:
        policy_kwargs.setdefault("log_std_init", LOG_STD_INIT)
    own = {"batch_size": config.minibatch_size, "memory_carry_over": config.carry_over}
    if config.batch_size is not None and config.batch_size * config.num_envs < config.rollout_size:
        own["sequence_length"] = config.batch_size  # as the flag says: nothing to warn of
    return hyperparameters | shared | own


def set_threads(config: TrainConfig) -> None:
    """Set torch's number of threads. By default it is one per COLUMNS_PER_THREAD columns of a minibatch."""
    if config.algo == "ppo":
        columns = config.minibatch_size * config.num_envs // config.rollout_size // here().size
    else:
        columns = (replaying(config.algo, config.num_envs) | config.algo_args)["batch_size"]
    wanted = columns // COLUMNS_PER_THREAD
    torch.set_num_threads(config.threads or max(1, min(os.cpu_count() or 1, wanted)))


def policy_name(space: spaces.Space) -> str:
    """The name of the policy for an observation space."""
    if isinstance(space, spaces.Dict):
        return "MultiInputMemoryPolicy"
    if isinstance(space, spaces.Box) and is_image_space(space):
        return "CnnMemoryPolicy"
    return "MlpMemoryPolicy"


def train(config: TrainConfig, console: Console | None = None, close: bool = True, watch: Watch | None = None) -> Run:
    """Train as configured, or resume the run in `config.resume`. Everything is written to the run directory.

    Args:
        config: the configuration.
        console: where to print progress and the final table; default standard output.
        close: test the finished agent (`agents.run.closing.close`).
        watch: called with the row of each evaluation. An exception that it raises ends the training.

    Raises:
        ValueError: the configuration does not fit (then no directory is made), or another process uses the directory.
        NotFinite: NaN or infinity in an observation, a reward, the policy or an update. The last checkpoint is intact.
        Interrupted: a signal stopped the run. The last checkpoint is intact.
        RunFailed: a disk or the environments' processes failed. The last checkpoint is intact.
    """
    if config.workers != here().size:
        refuse("workers", f"{here().size} here; agents.launch.start.train starts more", config.workers)
    console = console or printing.output()
    directory = config.resume or config.run_dir or config.new_run_dir()
    if config.resume is None and directory.exists():
        raise ValueError(f"run directory {str(directory)!r} exists; choose another --run-dir, or leave it out")
    checkpoints = Checkpoints(directory / "checkpoints", config.keep_checkpoints, config.algo)
    env = make_env(config)
    evaluation_env = None
    held = ExitStack()
    memory.register_from(config.memory)
    try:
        if config.resume is None:
            model = make_model(config, env)
            directory.mkdir(parents=True)
            held.enter_context(locked(directory))
            _write_origin(config, directory)
            console.print(f"{config.agent} on {config.env}, into {directory}", highlight=False, soft_wrap=True)
        else:
            set_threads(config)
            held.enter_context(locked(directory))
            # A run without a checkpoint starts again from its configuration. It then repeats itself exactly.
            if not checkpoints.paths() and (directory / "model.zip").exists():
                raise ValueError(
                    f"{str(directory)!r} has finished and holds no checkpoint to continue from; start a new run with "
                    f"--from {directory}"
                )
            model = checkpoints.load(env, config.device) or make_model(config, env)
            remove_parts(directory)
            note_versions(directory)
            cut_evaluations(directory / "evaluations.csv", model.num_timesteps)
            console.print(f"{directory} continues from step {model.num_timesteps:,}", highlight=False, soft_wrap=True)
            _prolong(config, directory, model, console)
        evaluation_env = evaluation_environments(config)
        with StopSignals() as signals:
            _learn(config, directory, model, evaluation_env, checkpoints, signals, console, watch)
    finally:
        held.close()
        close_all(env, evaluation_env)
    run = Run(directory, config, model)
    write_model_card(directory)
    if signals.number is not None:
        said = f"the run has finished; tests are left out: {COMMAND} evaluate {directory}"
        console.print(said, highlight=False, soft_wrap=True)
        raise Interrupted(signals.number)
    if close:
        closing.close(run, console)
    return run


def _prolong(config: TrainConfig, directory: Path, model: SavedAlgorithm, console: Console) -> None:
    """Write down that a resumed run has become longer, and say so. Its model is then no longer the final one."""
    before = TrainConfig.load(directory).total_timesteps
    if config.total_timesteps == before:
        return
    write_atomically(directory / CONFIG_FILE, config.to_toml().encode())
    (directory / "model.zip").unlink(missing_ok=True)
    falls = "; what falls to 0 over a run goes on from where the longer run would be now" if config.anneal else ""
    console.print(
        f"prolonged from {before:,} to {config.total_timesteps:,} steps{falls}", highlight=False, soft_wrap=True
    )


def _learn(
    config: TrainConfig,
    directory: Path,
    model: SavedAlgorithm,
    evaluation_env: VecEnv,
    checkpoints: Checkpoints,
    signals: StopSignals,
    console: Console,
    watch: Watch | None,
) -> None:
    use_logger(model, run_logger(directory, model.num_timesteps))
    progress = ProgressCallback(config.whole_timesteps, console)
    off_policy = config.algo != "ppo"
    board = _board(config)
    evaluation = EvaluationCallback(
        lambda: board.seen(summary(play_together(model, evaluation_env, config.eval_episodes, signals.check))),
        directory / "evaluations.csv",
        config.eval_every,
        on_best=lambda row: model.save(directory / "best.zip", exclude=PLACE_IN_ROLLOUT),
        success=config.solved,
        mean_return=config.solved_return,
        watch=watch,
    )
    callbacks = CallbackList(
        [
            *([LogCallback()] if off_policy else []),
            board,
            evaluation,
            CheckpointCallback(lambda: checkpoints.save(model), config.checkpoint_every, signals),
            *([progress] if config.progress else []),
        ]
    )
    try:
        left = config.total_timesteps - model.num_timesteps
        if left > 0 and evaluation.solved:
            console.print("its last evaluations reach its goals: nothing is left to train", highlight=False)
        if (left > 0 or evaluation.lacks_last(model.num_timesteps)) and not evaluation.solved:
            model.learn(max(left, 0), callbacks, sys.maxsize if off_policy else 1, reset_num_timesteps=False)
        model.save(directory / "model.zip", exclude=PLACE_IN_ROLLOUT)
    except Interrupted:
        if model.num_timesteps >= config.total_timesteps:
            said = "all steps are done; the last evaluation, if it was stopped, and the closing tests are left out"
            console.print(said, highlight=False, soft_wrap=True)
        console.print(f"continue with: {COMMAND} --resume {directory}", highlight=False, soft_wrap=True)
        raise
    except OSError as error:
        raise RunFailed(f"{error}. {checkpoints.remedy()}") from error
    finally:
        progress.close()
        with suppress(OSError):  # a disk that fails here has failed above, where the error is reported
            model.logger.close()
            _draw(config, directory, evaluation_env)


def _board(config: TrainConfig) -> TensorBoardCallback:
    """What TensorBoard shows beside scalars, at every evaluation."""
    left_out = config.OF_PPO if config.algo != "ppo" else ()
    compared = {name: getattr(config, name) for name in COMPARED if name not in left_out}
    text = "\n".join(f"    {line}" for line in config.to_toml().splitlines())
    return TensorBoardCallback(config.eval_every, compared, {"configuration": text})


def _draw(config: TrainConfig, directory: Path, env: VecEnv) -> None:
    evaluations = directory / "evaluations.csv"
    if evaluations.exists():
        title = f"{config.agent} on {config.env.rpartition('/')[2]}"
        learning_curve(evaluations, directory / "learning_curve.png", title, chance_level(env))


def _write_origin(config: TrainConfig, directory: Path) -> None:
    # the configuration last: a directory that holds it can be resumed
    note_versions(directory)
    write_atomically(directory / CONFIG_FILE, config.to_toml().encode())

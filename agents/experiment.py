"""A run: from a configuration to a directory that holds everything about it.

config.toml  versions.json  events.out.tfevents.*  checkpoints/  best.zip  model.zip  evaluations.csv
learning_curve.png  closing.json
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.tensorboard import SummaryWriter

import envs
from agents.callbacks import CheckpointCallback, EvaluationCallback, ProgressCallback, cut_evaluations
from agents.config import CONFIG_FILE, EvaluateConfig, TrainConfig
from agents.evaluation import evaluate as evaluate_model
from agents.evaluation import play, summary
from agents.plots import learning_curve
from agents.ppo import MemoryPPO
from agents.resume import Checkpoints, Interrupted, StopSignals, locked
from agents.runs import Run
from agents.vec_env import chance_level, closing_settings

PACKAGES = ("palimpsest-rl", "torch", "stable-baselines3", "gymnasium", "numba", "numpy", "minigrid")


def make_env(config: TrainConfig) -> VecEnv:
    """The training environments of a configuration; ValueError where the id or an argument is not known."""
    return envs.make_vec(config.env, config.num_envs, seed=config.seed, **config.env_args)


def make_model(config: TrainConfig, env: VecEnv, verbose: int = 0) -> MemoryPPO:
    """The agent of a configuration; ValueError where the memory, an argument or a space does not fit."""
    set_threads(config)
    rate = config.learning_rate
    return MemoryPPO(
        policy_name(env.observation_space),
        env,
        learning_rate=LinearSchedule(rate, 0.0, 1.0) if config.anneal else rate,
        n_steps=config.n_steps,
        batch_size=config.minibatch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        memory_carry_over=config.carry_over,
        policy_kwargs={
            "memory": config.memory,
            "memory_kwargs": config.memory_args,
            "share_memory": config.share_memory,
            "encoder_arch": [config.width],
            "net_arch": [config.width],
        },
        verbose=verbose,
        seed=config.seed,
        device=config.device,
    )


def set_threads(config: TrainConfig) -> None:
    """Give torch the configured number of threads; by default one, the fastest for minibatches of this size."""
    torch.set_num_threads(config.threads or 1)


def policy_name(space: spaces.Space) -> str:
    """The policy for an observation space."""
    if isinstance(space, spaces.Dict):
        return "MultiInputMemoryPolicy"
    if isinstance(space, spaces.Box) and is_image_space(space):
        return "CnnMemoryPolicy"
    return "MlpMemoryPolicy"


def train(config: TrainConfig, console: Console | None = None) -> Run:
    """Train as configured, or go on with the run that `config.resume` names, and leave everything in its directory.

    Args:
        config: what to do.
        console: where progress and the closing table are shown; default standard output.

    Raises:
        ValueError: something does not fit; then no directory was made.
        Interrupted: a signal asked to stop; the last checkpoint is whole.
    """
    console = console or Console()
    directory = config.resume or config.run_dir or config.new_run_dir()
    if config.resume is None and directory.exists():
        raise ValueError(f"run directory {str(directory)!r} exists; choose another --run-dir, or leave it out")
    checkpoints = Checkpoints(directory / "checkpoints", config.keep_checkpoints)
    env = make_env(config)
    evaluation_env = None
    try:
        if config.resume is None:
            model = make_model(config, env)
            directory.mkdir(parents=True)
            _write_origin(config, directory)
            console.print(f"{config.memory} on {config.env}, into {directory}", highlight=False)
        else:
            set_threads(config)
            model = checkpoints.load(env, config.device)
            cut_evaluations(directory / "evaluations.csv", model.num_timesteps)
            console.print(f"{directory} goes on from step {model.num_timesteps:,}", highlight=False)
        evaluation_env = MemoryPPO._wrap_env(
            envs.make_vec(config.env, min(config.eval_episodes, 128), seed=config.seed, **config.env_args)
        )
        with locked(directory), StopSignals() as signals:
            _learn(config, directory, model, evaluation_env, checkpoints, signals, console)
    finally:
        env.close()
        if evaluation_env is not None:
            evaluation_env.close()
    run = Run(directory, config, model)
    _close(run, console)
    return run


def _learn(
    config: TrainConfig,
    directory: Path,
    model: MemoryPPO,
    evaluation_env: VecEnv,
    checkpoints: Checkpoints,
    signals: StopSignals,
    console: Console,
) -> None:
    model.set_logger(run_logger(directory, model.num_timesteps))
    progress = ProgressCallback(config.num_iterations * config.rollout_size, console)
    callbacks = CallbackList(
        [
            EvaluationCallback(
                lambda: summary(play(model, evaluation_env, config.eval_episodes)),
                directory / "evaluations.csv",
                config.eval_every,
                on_best=lambda row: model.save(directory / "best.zip"),
            ),
            CheckpointCallback(lambda: checkpoints.save(model), config.checkpoint_every, signals),
            *([progress] if config.progress else []),
        ]
    )
    try:
        if model.num_timesteps < config.total_timesteps:
            model.learn(config.total_timesteps - model.num_timesteps, callbacks, reset_num_timesteps=False)
    except Interrupted:
        console.print(f"go on with: python train.py --resume {directory}", highlight=False)
        raise
    finally:
        progress.close()
        model.logger.close()
        _draw(config, directory, evaluation_env)
    model.save(directory / "model.zip")


def run_logger(directory: Path, step: int) -> Logger:
    """TensorBoard in the run's directory; what an earlier process wrote after `step` is hidden (`purge_step`)."""
    board = TensorBoardOutputFormat(str(directory))
    if step:
        board.writer.close()
        board.writer = SummaryWriter(str(directory), purge_step=step + 1)
    return Logger(str(directory), [board])


def _draw(config: TrainConfig, directory: Path, env: VecEnv) -> None:
    evaluations = directory / "evaluations.csv"
    if evaluations.exists():
        title = f"{config.memory} on {config.env.rpartition('/')[2]}"
        learning_curve(evaluations, directory / "learning_curve.png", title, chance_level(env))


def _close(run: Run, console: Console) -> None:
    """Test the finished agent where it was trained and on the harder settings its environment names."""
    config = run.config
    settings: list[dict[str, Any]] = [{}]
    env = envs.make_vec(config.env, 1, seed=0, **config.env_args)
    settings += closing_settings(env)
    env.close()
    table = Table(
        "setting", "success", "chance", "mean return", "episodes", title="Greedy, on episodes never trained on"
    )
    results = []
    for setting in settings:
        result = evaluate_model(run.model, config.env, env_args={**config.env_args, **setting})
        results.append(result)
        label = " ".join(f"{key}={value}" for key, value in setting.items()) or "as trained"
        table.add_row(
            label,
            "-" if result["success"] is None else f"{result['success']:.3f}",
            "-" if result["chance"] is None else f"{result['chance']:.3g}",
            f"{result['return_mean']:.2f}",
            str(result["episodes"]),
        )
    (run.directory / "closing.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(table)
    console.print(f"watch: tensorboard --logdir {run.directory}", highlight=False)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a run as configured; the result is also written as JSON where a file is given."""
    result = evaluate_model(
        config.run_dir,
        config.env,
        config.episodes,
        config.deterministic,
        config.env_args,
        seed=config.first_seed,
        device=config.device,
        max_steps=config.max_steps,
    )
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


def versions() -> dict[str, Any]:
    """Python, packages, machine, threads and commit, as a run's record."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": sys.argv,
        **found,
    }


def _commit() -> str | None:
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _write_origin(config: TrainConfig, directory: Path) -> None:
    (directory / CONFIG_FILE).write_text(config.to_toml(), encoding="utf-8")
    (directory / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")

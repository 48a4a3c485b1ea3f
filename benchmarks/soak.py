"""Does memory grow? Fifty million environment steps, then long trainings, with the resident set sampled all along.

    python benchmarks/soak.py --out docs/soak.json
    python benchmarks/soak.py --steps 1000000 --train-steps 20000 --memories gru

Every part runs in a fresh process, so that none hides in what another has freed. Growth compares the medians of the
first and of the last tenth of the samples after a warm-up, which is the first fifth of the part. Exit code 1 where a
part grew by 1 % or more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from palimpsest import envs, memory
from palimpsest.agents.evaluation.play import play, summary
from palimpsest.agents.run.callbacks import CheckpointCallback, EvaluationCallback
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model, run_logger, versions
from palimpsest.agents.run.resume import Checkpoints, StopSignals

LIMIT = 0.01
"""Growth that is too much, as a fraction."""
WARM_UP = 0.2
"""Share of the samples that is left out at the beginning."""
ROWS, CHUNK = 64, 64


@dataclass(frozen=True)
class Options:
    """Look for leaks."""

    steps: int = 50_000_000
    """Steps of the worlds alone, all ids and faces together."""
    train_steps: int = 1_000_000
    """Environment steps of each training."""
    memories: tuple[str, ...] = ("rewrite", "ffm", "hcam", "sat", "lstm")
    """Memories to train."""
    out: Path | None = None
    """A JSON file for the figures and samples."""


@dataclass(frozen=True)
class Part:
    """What one process showed."""

    name: str
    steps: int
    seconds: float
    warm: float
    """MiB, resident, median of the first tenth of the samples after the warm-up."""
    last: float
    """MiB, resident, median of the last tenth."""
    growth: float
    """(last - warm) / warm"""
    samples: list[tuple[int, float]]
    """(steps, MiB), at most 200 of them."""


def resident() -> float:
    """MiB of this process in memory; where /proc does not tell, the most there ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return pages * resource.getpagesize() / 2**20


def judged(name: str, seconds: float, samples: list[tuple[int, float]]) -> Part:
    """Growth from samples in the order in which they were taken, ten or more."""
    after = [size for _, size in samples[int(WARM_UP * len(samples)) :]]
    tenth = max(1, len(after) // 10)
    warm, last = statistics.median(after[:tenth]), statistics.median(after[-tenth:])
    shown = samples[:: max(1, len(samples) // 200)]
    return Part(name, samples[-1][0], seconds, warm, last, (last - warm) / warm, shown)


def worlds(steps: int) -> Part:
    """Every id through gymnasium's VectorEnv and SB3's VecEnv, with what users do now and then: pictures, seeds,
    hidden states put back, environments made and closed.
    """
    began = time.perf_counter()
    faces = [face for env_id in envs.ids() for face in (vector_face(env_id), sb3_face(env_id))]
    rounds = max(10, steps // (len(faces) * ROWS * CHUNK))
    samples, done = [], 0
    for turn in range(rounds):
        for play_chunk in faces:
            done += play_chunk(turn)
        extras(envs.ids()[turn % len(envs.ids())], turn)
        samples.append((done, resident()))
    return judged("worlds", time.perf_counter() - began, samples)


def vector_face(env_id: str) -> Callable[[int], int]:
    """Plays CHUNK steps of ROWS rows; gives how many that were."""
    env = gym.make_vec(env_id, ROWS, vectorization_mode="vector_entry_point")
    rng = np.random.default_rng(0)
    n = int(env.single_action_space.n)  # type: ignore[attr-defined]
    env.reset(seed=0)

    def play_chunk(turn: int) -> int:
        for actions in rng.integers(n, size=(CHUNK, ROWS)):
            env.step(actions)
        if turn % 10 == 9:
            env.reset(options={"hidden_state": env.unwrapped.hidden_state()})  # type: ignore[attr-defined]
        return CHUNK * ROWS

    return play_chunk


def sb3_face(env_id: str) -> Callable[[int], int]:
    """The same through SB3's VecEnv, reset with new seeds now and then."""
    venv = envs.make_vec(env_id, ROWS, seed=0)
    rng = np.random.default_rng(0)
    n = int(venv.action_space.n)  # type: ignore[attr-defined]
    venv.reset()

    def play_chunk(turn: int) -> int:
        for actions in rng.integers(n, size=(CHUNK, ROWS)):
            venv.step(actions)
        if turn % 10 == 4:
            venv.seed(turn)
            venv.reset()
        return CHUNK * ROWS

    return play_chunk


def extras(env_id: str, turn: int) -> None:
    """A short life of a single environment, with pictures or text, and of a small batch."""
    env = gym.make(env_id, render_mode=("rgb_array", "ansi")[turn % 2])
    env.reset(seed=turn)
    for _ in range(5):
        _, _, terminated, truncated, _ = env.step(env.unwrapped.expert_action())  # type: ignore[attr-defined]
        env.render()
        if terminated or truncated:
            env.reset()
    env.close()
    venv = envs.make_vec(env_id, 4, seed=turn, render_mode="rgb_array")
    venv.reset()
    venv.render()
    venv.close()


class Sampler(BaseCallback):
    """The resident set after every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.samples.append((self.num_timesteps, resident()))


def training(name: str, steps: int) -> Part:
    """A training as `train.py` does it: evaluations, checkpoints, TensorBoard, all more often than usual."""
    began = time.perf_counter()
    config = TrainConfig(
        memory=name,
        env_args={"corridors": 3, "length": 5},
        total_timesteps=max(steps, 10 * 2048),
        num_envs=32,
        n_steps=64,
        num_minibatches=4,
        n_epochs=1,
        device="cpu",
        progress=False,
    )
    every = max(config.rollout_size, config.total_timesteps // 50)
    venv, test = make_env(config), make_env(config)
    sampler = Sampler()
    with tempfile.TemporaryDirectory() as place, StopSignals() as signals:
        directory = Path(place)
        model = make_model(config, venv)
        model.set_logger(run_logger(directory, 0))
        checkpoints = Checkpoints(directory / "checkpoints", 3)
        evaluation = EvaluationCallback(
            lambda: summary(play(model, test, 20, max_steps=200)),
            directory / "evaluations.csv",
            every,
            on_best=lambda row: model.save(directory / "best.zip"),
        )
        saving = CheckpointCallback(lambda: checkpoints.save(model), every, signals)
        model.learn(config.total_timesteps, CallbackList([evaluation, saving, sampler]))
        model.logger.close()
    return judged(f"training {name}", time.perf_counter() - began, sampler.samples)


def run(job: tuple[str, int]) -> Part:
    torch.set_num_threads(1)
    name, steps = job
    return worlds(steps) if name == "worlds" else training(name, steps)


def main(options: Options) -> int:
    """Run every part, print a table, save the figures; 1 where memory grew."""
    if unknown := set(options.memories) - set(memory.names()):
        raise ValueError(f"unknown memories {sorted(unknown)}; known: {', '.join(memory.names())}")
    jobs = [("worlds", options.steps), *((name, options.train_steps) for name in options.memories)]
    spawn = multiprocessing.get_context("spawn")
    parts: list[Part] = []
    print("| part | env steps | seconds | MiB after warm-up | MiB at the end | growth |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for part in pool.map(run, jobs):
            parts.append(part)
            print(
                f"| {part.name} | {part.steps:,} | {part.seconds:.0f} | {part.warm:.1f} | {part.last:.1f} | "
                f"{part.growth:+.2%} |",
                flush=True,
            )
    told: dict[str, Any] = versions()
    print(f"commit {told['commit']}, Python {told['python']}, torch {told['torch']}, {os.cpu_count()} CPUs")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"versions": told, "parts": [asdict(part) for part in parts]}) + "\n")
    return int(any(part.growth >= LIMIT for part in parts))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

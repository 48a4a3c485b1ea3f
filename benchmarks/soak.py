"""Look for memory leaks: fifty million environment steps, then long trainings, with samples of the resident set.

    python benchmarks/soak.py --out docs/soak.json
    python benchmarks/soak.py --steps 1000000 --train-steps 20000 --memories gru

Each part runs in a fresh process, because a leak could hide in memory that an earlier part has freed. The first fifth
of a part is the warm-up. Growth compares the medians of the first and the last tenth of the other samples. The exit
code is 1 if a part grew by 1 % or more.
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
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from palimpsest import envs, memory
from palimpsest.agents.board.events import run_logger
from palimpsest.agents.evaluation.play import play, summary
from palimpsest.agents.files.versions import versions
from palimpsest.agents.run.callbacks import CheckpointCallback, EvaluationCallback
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.agents.run.resume import Checkpoints, StopSignals
from palimpsest.envs.actions import random_actions

LIMIT = 0.01
"""Growth, as a fraction, at which the script fails."""
WARM_UP = 0.2
"""Fraction of the samples at the beginning that is ignored."""
ROWS, CHUNK = 64, 64


@dataclass(frozen=True)
class Options:
    """Look for memory leaks."""

    steps: int = 50_000_000
    """Environment steps without training, all ids and interfaces together."""
    train_steps: int = 1_000_000
    """Environment steps of each training."""
    memories: tuple[str, ...] = ("rewrite", "ffm", "hcam", "sat", "lstm")
    """Memories to train."""
    off_policy: tuple[Literal["dqn", "sac"], ...] = ("dqn", "sac")
    """Algorithms with a replay, each of which trains the last of these memories."""
    out: Path | None = None
    """A JSON file for the figures and the samples."""


@dataclass(frozen=True)
class Part:
    """The result of one process."""

    name: str
    steps: int
    seconds: float
    warm: float
    """Resident set in MiB, the median of the first tenth of the samples after the warm-up."""
    last: float
    """Resident set in MiB, the median of the last tenth."""
    growth: float
    """(last - warm) / warm"""
    samples: list[tuple[int, float]]
    """(steps, MiB), at most 200."""


def resident() -> float:
    """Resident set of this process in MiB; without /proc, its peak so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return pages * resource.getpagesize() / 2**20


def judged(name: str, seconds: float, samples: list[tuple[int, float]]) -> Part:
    """The growth of a part from its samples in order of time, ten or more."""
    after = [size for _, size in samples[int(WARM_UP * len(samples)) :]]
    tenth = max(1, len(after) // 10)
    warm, last = statistics.median(after[:tenth]), statistics.median(after[-tenth:])
    shown = samples[:: max(1, len(samples) // 200)]
    return Part(name, samples[-1][0], seconds, warm, last, (last - warm) / warm, shown)


def worlds(steps: int) -> Part:
    """Play every id through gymnasium's VectorEnv and SB3's VecEnv.

    Now and then it also renders pictures, sets seeds, restores hidden states, and makes and closes environments.
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
    """A function that plays CHUNK steps in ROWS rows and returns their number."""
    env = gym.make_vec(env_id, ROWS, vectorization_mode="vector_entry_point")
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def play_chunk(turn: int) -> int:
        for actions in random_actions(env.single_action_space, rng, CHUNK, ROWS):
            env.step(actions)
        if turn % 10 == 9:
            env.reset(options={"hidden_state": env.unwrapped.hidden_state()})  # type: ignore[attr-defined]
        return CHUNK * ROWS

    return play_chunk


def sb3_face(env_id: str) -> Callable[[int], int]:
    """The same through SB3's VecEnv, with a new seed and a reset now and then."""
    venv = envs.make_vec(env_id, ROWS, seed=0)
    rng = np.random.default_rng(0)
    venv.reset()

    def play_chunk(turn: int) -> int:
        for actions in random_actions(venv.action_space, rng, CHUNK, ROWS):
            venv.step(actions)
        if turn % 10 == 4:
            venv.seed(turn)
            venv.reset()
        return CHUNK * ROWS

    return play_chunk


def extras(env_id: str, turn: int) -> None:
    """Make, play, render and close a single environment and a small batch."""
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
    """Samples the resident set after every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.samples.append((self.num_timesteps, resident()))


def training(name: str, steps: int, algo: str = "ppo") -> Part:
    """Train as `train.py` does, but with more frequent evaluations and checkpoints, and with TensorBoard.

    A replay is small enough to be full before the warm-up ends.
    """
    began = time.perf_counter()
    steps = max(steps, 10 * 2048)
    config = TrainConfig(
        memory=name,
        env_args={"corridors": 3, "length": 5},
        total_timesteps=steps,
        num_envs=32,
        device="cpu",
        progress=False,
        algo=algo,
        **(
            dict(n_steps=64, num_minibatches=4, n_epochs=1)
            if algo == "ppo"
            else dict(algo_args={"buffer_size": min(steps // 10, 100_000)})
        ),
    )
    every = max(config.rollout_size, config.total_timesteps // 50)
    venv, test = make_env(config), make_env(config)
    sampler = Sampler()
    with tempfile.TemporaryDirectory() as place, StopSignals() as signals:
        directory = Path(place)
        model = make_model(config, venv)
        model.set_logger(run_logger(directory, 0))
        checkpoints = Checkpoints(directory / "checkpoints", 3, algo)
        evaluation = EvaluationCallback(
            lambda: summary(play(model, test, 20, max_steps=200)),
            directory / "evaluations.csv",
            every,
            on_best=lambda row: model.save(directory / "best.zip"),
        )
        saving = CheckpointCallback(lambda: checkpoints.save(model), every, signals)
        model.learn(config.total_timesteps, CallbackList([evaluation, saving, sampler]))
        model.logger.close()
    return judged(f"training {name}" + f" with {algo}" * (algo != "ppo"), time.perf_counter() - began, sampler.samples)


def run(job: tuple[Any, ...]) -> Part:
    torch.set_num_threads(1)
    name, *arguments = job
    return worlds(*arguments) if name == "worlds" else training(name, *arguments)


def main(options: Options) -> int:
    """Run every part, print a table and save the figures. Returns 1 if memory grew."""
    if unknown := set(options.memories) - set(memory.names()):
        raise ValueError(f"unknown memories {sorted(unknown)}; known: {', '.join(memory.names())}")
    jobs: list[tuple[Any, ...]] = [("worlds", options.steps)]
    jobs += [(name, options.train_steps) for name in options.memories]
    jobs += [(options.memories[-1], options.train_steps, algo) for algo in options.off_policy]
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

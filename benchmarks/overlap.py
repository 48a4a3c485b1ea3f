"""Measure rollouts of environments in other processes, one half of which steps while the policy acts for the other.

    python benchmarks/overlap.py --quick
    python benchmarks/overlap.py --out docs/overlap.md

A step of the environment sleeps for E milliseconds, as one does that waits for a simulator or a server. Both ways take
turns, a rollout each, so that noise affects all alike. Figures are medians over turns, from the first action of a
rollout to its last result: the update is not among them.

W is the processor time that this process needs for a step of all rows: messages, policy, buffer. In one piece a step
takes E + W. Of two halves that take turns, each is ready again after E + W / 2, and this process after W. So a machine
with cores to spare makes (E + W) / max(W, E + W / 2) times as many steps, 1.5 at most. The last column is that, from
the processor times of both ways: other programs, which take cores away, do not change it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from measure import report
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from palimpsest.agents import MemoryPPO
from palimpsest.envs.halves import VecHalves
from palimpsest.envs.sb3 import VectorEnvAdaptor

N_STEPS = 128


@dataclass(frozen=True)
class Options:
    """Measure rollouts with and without overlap."""

    quick: bool = False
    """Fewer turns."""
    memories: tuple[str, ...] = ("rewrite", "lstm", "ffm")
    """Names of memories."""
    vecs: tuple[str, ...] = ("subproc", "async")
    """SB3's SubprocVecEnv, gymnasium's AsyncVectorEnv."""
    num_envs: tuple[int, ...] = (8, 16)
    """Numbers of environments, each in a process of its own."""
    milliseconds: tuple[float, ...] = (2.0,)
    """How long a step of an environment sleeps."""
    memory_size: int = 128
    """Numbers that the memory gives out."""
    out: Path | None = None
    """A Markdown file to write as well."""


class Waiting(gym.Env):
    """Observations of 16 random numbers, episodes of 100 steps; a step sleeps."""

    observation_space = gym.spaces.Box(-1, 1, (16,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 16).astype(np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        self.t += 1
        return self.seen(), float(action == 0), False, self.t == 100, {}


@dataclass(frozen=True)
class Maker:
    """Makes one environment in another process."""

    seconds: float
    monitored: bool

    def __call__(self) -> gym.Env:
        return Monitor(Waiting(self.seconds)) if self.monitored else Waiting(self.seconds)


def rows(vec: str, count: int, seconds: float) -> VecEnv:
    """Environments in processes of their own. Forked ones need not import torch."""
    if vec == "subproc":
        return SubprocVecEnv([Maker(seconds, True)] * count, start_method="fork")
    makers = [Maker(seconds, False)] * count
    return VectorEnvAdaptor(AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP, context="fork"))


class Timed(MemoryPPO):
    """Notes the steps per second of its rollouts, and does not learn."""

    def collect_rollouts(self, env: VecEnv, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        began, used = time.perf_counter(), time.thread_time()
        went_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        self.speed = n_rollout_steps * env.num_envs / (time.perf_counter() - began)
        self.processor = (time.thread_time() - used) / n_rollout_steps
        return went_on

    def train(self) -> None:
        """Nothing."""


def measured(options: Options, memory: str, vec: str, count: int, seconds: float) -> list[Any]:
    """A row of the table."""
    first, second = (rows(vec, count // 2, seconds) for _ in range(2))
    envs = rows(vec, count, seconds), VecHalves(first, second)
    models = []
    for env in envs:
        models.append(
            Timed(
                "MlpMemoryPolicy",
                env,
                n_steps=N_STEPS,
                batch_size=N_STEPS * count,
                policy_kwargs={"memory": memory, "memory_kwargs": {"output_size": options.memory_size}},
                memory_carry_over=0.9,
                device="cpu",
                seed=0,
            ).learn(N_STEPS * count)
        )
    speeds: tuple[list[float], ...] = ([], [])
    processor: tuple[list[float], ...] = ([], [])
    for _ in range(5 if options.quick else 15):
        for k, model in enumerate(models):
            model.learn(N_STEPS * count, reset_num_timesteps=False)
            speeds[k].append(model.speed)
            processor[k].append(model.processor)
    for env in envs:
        env.close()
    whole, halves = map(statistics.median, speeds)
    ratio = statistics.median(b / a for a, b in zip(*speeds))
    w, w_halves = map(statistics.median, processor)
    spare = (seconds + w) / max(w_halves, seconds + w_halves / 2)
    return [memory, vec, count, 1e3 * seconds, whole, halves, ratio, 1e3 * w, 1e3 * w_halves, spare]


def main(options: Options) -> None:
    """Measure, print, save."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = []
    for milliseconds in options.milliseconds:
        for count in options.num_envs:
            for vec in options.vecs:
                for memory in options.memories:
                    table.append(measured(options, memory, vec, count, milliseconds / 1e3))
                    print(table[-1], flush=True)
    head = ["memory", "vec", "environments", "ms a step", "steps/s", "steps/s, overlapped", "times as many"]
    head += ["W, ms", "W, ms, overlapped", "times as many with cores to spare"]
    report("Overlapped rollouts", options, head, table)


if __name__ == "__main__":
    main(tyro.cli(Options))

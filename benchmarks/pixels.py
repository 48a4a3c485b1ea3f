"""Measure the update of pixels: NatureCNN, an LSTM of 256 numbers, heads; beside sb3-contrib's RecurrentPPO.

    python benchmarks/pixels.py --quick
    python benchmarks/pixels.py --out docs/pixels.md

Both learn from the same frames, 84 x 84 x 4 bytes, whose episodes end at the same steps, in as many minibatches, with
networks of the same sizes. Theirs has an LSTM for the actor and one for the critic by default; with one LSTM they do
the work that ours does. The times are of `train` alone, in processor seconds of one thread, in turns.
"""

from __future__ import annotations

import functools
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from measure import report, side_by_side
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv

from palimpsest.agents import MemoryPPO

WIDTH = 256


@dataclass(frozen=True)
class Options:
    """Compare updates of pixels."""

    quick: bool = False
    """Fewer turns and steps."""
    num_envs: int = 8
    """Environments."""
    n_steps: int = 128
    """Steps of each per rollout."""
    minibatches: int = 4
    """Minibatches of a pass; there is one pass."""
    lengths: tuple[int, ...] = (0, 64, 16)
    """Mean steps of an episode, whose end comes by chance; 0 for episodes that outlast the rollout."""
    memories: tuple[str, ...] = ("lstm", "rewrite")
    """Ours."""
    out: Path | None = None
    """A Markdown file to write as well."""


class Frames(gym.Env):
    """Frames of noise, drawn once; an episode ends by chance."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)
    frames = np.random.default_rng(0).integers(0, 256, (32, 4, 84, 84), np.uint8)

    def __init__(self, row: int, length: int) -> None:
        self.length, self.rng = length, np.random.default_rng(row)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.frames[self.rng.integers(32)], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        over = bool(self.length and self.rng.random() < 1 / self.length)
        return self.frames[self.rng.integers(32)], float(self.rng.normal()), over, False, {}


def agents(options: Options, length: int) -> dict[str, Any]:
    """Theirs and ours, each with a rollout to learn from."""

    def rows() -> DummyVecEnv:
        return DummyVecEnv([functools.partial(Frames, row, length) for row in range(options.num_envs)])

    heads = {"pi": [64], "vf": [64]}
    shared: dict[str, Any] = dict(
        n_steps=options.n_steps,
        batch_size=options.n_steps * options.num_envs // options.minibatches,
        n_epochs=1,
        device="cpu",
        seed=0,
    )
    theirs: dict[str, Any] = {
        "sb3-contrib, two LSTMs": {},
        "sb3-contrib, one LSTM": dict(shared_lstm=True, enable_critic_lstm=False),
    }
    found: dict[str, Any] = {}
    for name, more in theirs.items():
        sizes = dict(lstm_hidden_size=WIDTH, net_arch=heads, **more)
        found[name] = RecurrentPPO("CnnLstmPolicy", rows(), policy_kwargs=sizes, **shared)
    for memory in options.memories:
        kwargs: dict[str, Any] = dict(
            memory=memory, memory_kwargs={"output_size": WIDTH}, encoder_arch=[], net_arch=heads
        )
        kwargs["features_extractor_kwargs"] = {"features_dim": 512}
        found[f"ours, {memory}"] = MemoryPPO("CnnMemoryPolicy", rows(), policy_kwargs=kwargs, **shared)
    for model in found.values():
        model.learn(options.n_steps * options.num_envs)
    return found


def rows_of_table(options: Options, length: int) -> list[list[Any]]:
    """Samples per second of each contestant."""
    made = agents(options, length)
    calls = {name: model.train for name, model in made.items()}
    seconds = side_by_side(calls, 1 if options.quick else 5, time.thread_time)
    base, one = (seconds[name] for name in list(seconds)[:2])
    samples = options.n_steps * options.num_envs
    return [[length or "-", name, samples / found, base / found, one / found] for name, found in seconds.items()]


def main(options: Options) -> None:
    """Measure, print, save."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = []
    for length in options.lengths:
        table += rows_of_table(options, length)
        print(*table[-4:], sep="\n", flush=True)
    head = ["episode, steps", "", "samples/s", "times two LSTMs'", "times one LSTM's"]
    report("Updates of pixels", options, head, table)


if __name__ == "__main__":
    main(tyro.cli(Options))

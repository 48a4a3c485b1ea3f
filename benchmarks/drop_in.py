"""Train MemoryPPO at RecurrentPPO's published settings, and RecurrentPPO beside it: docs/from-recurrent-ppo.md.

The settings are those of sb3-contrib's own performance test and of rl-zoo3's `ppo_lstm` files. Nothing is tuned here:
both algorithms get the same arguments, and networks of the same shape. Each line of JSON holds the mean return of
100 greedy episodes on seeds that training never saw, and that of the last 100 training episodes.

    python benchmarks/drop_in.py --tasks contrib_test pendulum --seeds 0 1 2
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers import TransformObservation
from measure import machine, markdown
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.versions import versions


@dataclass(frozen=True)
class Task:
    """An environment without velocities and what its publication trains with."""

    id: str
    kept: list[int]
    """Indices of the observation that are left."""
    steps: int
    rows: int
    arguments: dict[str, Any]
    hidden: int = 256
    """Units of the LSTM."""
    net_arch: Any = None
    ortho_init: bool = True
    normalized: bool = False
    linear: tuple[str, ...] = ()
    """Arguments that fall to 0 with the remaining progress."""
    bar: float = 0.0
    """The published return."""


TASKS = {
    "contrib_test": Task(
        "CartPole-v1",
        [0, 2],
        50_000,
        8,
        dict(n_steps=128, learning_rate=7e-4, batch_size=256, n_epochs=10, max_grad_norm=1.0, gae_lambda=0.98),
        hidden=64,
        net_arch=dict(vf=[64], pi=[]),
        ortho_init=False,
        normalized=True,
        bar=450,
    ),
    "cartpole": Task(
        "CartPole-v1",
        [0, 2],
        100_000,
        8,
        dict(n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, learning_rate=1e-3, clip_range=0.2),
        linear=("learning_rate", "clip_range"),
        bar=500,
    ),
    "pendulum": Task(
        "Pendulum-v1",
        [0, 1],
        100_000,
        4,
        dict(
            n_steps=1024,
            gae_lambda=0.95,
            gamma=0.9,
            n_epochs=10,
            learning_rate=1e-3,
            clip_range=0.2,
            use_sde=True,
            sde_sample_freq=4,
        ),
        bar=-218,
    ),
}


def without_velocities(task: Task) -> Callable[[], gym.Env]:
    """A function that makes the task's environment."""

    def make() -> gym.Env:
        env = gym.make(task.id)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        kept = gym.spaces.Box(space.low[task.kept], space.high[task.kept], dtype=np.float32)
        return TransformObservation(env, lambda observation: observation[task.kept], kept)

    return make


@dataclass(frozen=True)
class Options:
    """Which trainings to run; those in `out` already are not run again."""

    tasks: tuple[Literal["contrib_test", "cartpole", "pendulum"], ...] = ("contrib_test", "cartpole", "pendulum")
    algorithms: tuple[Literal["MemoryPPO", "RecurrentPPO"], ...] = ("MemoryPPO", "RecurrentPPO")
    memory: str = "lstm"
    """MemoryPPO's memory."""
    memory_kwargs: dict[str, int] | None = None
    """Its arguments, beside its size."""
    normalize_returns: bool | None = None
    """Whether MemoryPPO's critic predicts scaled returns; RecurrentPPO's does not. Default: MemoryPPO's."""
    refresh_states: bool = False
    """Whether MemoryPPO's later passes compute the states before segments again."""
    hidden: int | None = None
    """Units of the LSTM. Default: the task's."""
    steps: int | None = None
    """Environment steps. Default: the task's."""
    label: str = ""
    """A name for these options in the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 100
    out: Path = Path("docs/results/drop_in.jsonl")


def train(task: Task, algorithm: str, seed: int, options: Options) -> dict[str, Any]:
    """A line of JSON."""
    task = replace(task, hidden=options.hidden or task.hidden, steps=options.steps or task.steps)
    env = make_vec_env(without_velocities(task), n_envs=task.rows, seed=seed)
    if task.normalized:
        env = VecNormalize(env)
    arguments = dict(task.arguments)
    for name in task.linear:
        arguments[name] = lambda progress, at_first=arguments[name]: at_first * progress
    net_arch = dict(pi=[64, 64], vf=[64, 64]) if task.net_arch is None else task.net_arch
    policy = dict(net_arch=net_arch, ortho_init=task.ortho_init)
    if algorithm == "MemoryPPO":
        policy |= dict(memory=options.memory, share_memory=False, encoder_arch=[])
        policy["memory_kwargs"] = dict(output_size=task.hidden) | (options.memory_kwargs or {})
        arguments |= dict(policy_kwargs=policy)
        arguments |= dict(normalize_returns=options.normalize_returns, refresh_states=options.refresh_states)
        model: Any = MemoryPPO("MlpMemoryPolicy", env, seed=seed, device="cpu", **arguments)
    else:
        from sb3_contrib import RecurrentPPO

        policy |= dict(lstm_hidden_size=task.hidden)
        model = RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=policy, seed=seed, device="cpu", **arguments)
    began = time.perf_counter()
    model.learn(task.steps)
    seconds = time.perf_counter() - began
    unseen: Any = make_vec_env(without_velocities(task), n_envs=10, seed=1_000_000 + seed)
    if task.normalized:
        unseen = VecNormalize(unseen, training=False, norm_reward=False)
        unseen.obs_rms = env.obs_rms  # type: ignore[attr-defined]
    returns, _ = evaluate_policy(model, unseen, options.episodes, return_episode_rewards=True)
    return dict(
        mean=float(np.mean(returns)),
        worst=float(np.min(returns)),
        training=float(np.mean([episode["r"] for episode in model.ep_info_buffer])),
        episodes=options.episodes,
        bar=task.bar,
        steps=task.steps,
        seconds=round(seconds, 1),
        versions=versions(),
        machine=machine(),
    )


def main(options: Options) -> None:
    """Run what is missing and print the table."""
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["task"], line["algorithm"], line["label"], line["seed"]): line for line in lines}
    for seed in options.seeds:
        for name in options.tasks:
            for algorithm in options.algorithms:
                label = options.label or (options.memory if algorithm == "MemoryPPO" else "")
                if (name, algorithm, label, seed) in done:
                    continue
                row = dict(task=name, algorithm=algorithm, label=label, seed=seed)
                row |= train(TASKS[name], algorithm, seed, options)
                done[name, algorithm, label, seed] = row
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: row[key] for key in ("task", "algorithm", "label", "seed", "mean", "seconds")}, flush=True)
    kinds = sorted({(task, algorithm, label) for task, algorithm, label, _ in done})
    table = []
    for kind in kinds:
        rows = [row for key, row in sorted(done.items()) if key[:3] == kind]
        means = [row["mean"] for row in rows]
        error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")
        seconds = float(np.median([row["seconds"] for row in rows]))
        seeds = ", ".join(f"{mean:.0f}" for mean in means)
        table.append([*kind, f"{np.mean(means):.0f} ± {error:.0f}", seeds, f"{rows[0]['bar']:.0f}", seconds])
    print(markdown(["task", "algorithm", "memory", "mean ± standard error", "by seed", "published", "seconds"], table))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Train MemoryDQN and MemorySAC with the command line's arguments and print the table of docs/off-policy.md.

Each line of JSON holds the result on episodes that training never saw, greedy, of one seed. Runs that are in the file
are not repeated.

    python benchmarks/off_policy.py --tasks cartpole tmaze pendulum --memories lstm none --seeds 0
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from measure import machine, markdown

from palimpsest.agents import evaluate
from palimpsest.agents.files.versions import versions
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model


@dataclass(frozen=True)
class Task:
    """An environment, how an agent is trained in it, and what it is to reach."""

    env: str
    algo: str
    steps: int
    bar: float
    measure: str = "return_mean"
    """What of an evaluation the bar is about."""
    env_args: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` besides."""


TASKS = {
    "cartpole": Task("Palimpsest/CartPoleNoVel-v0", "dqn", 50_000, 475),
    "tmaze": Task("Palimpsest/EndlessTMaze-v0", "dqn", 50_000, 0.98, "success", {"corridors": 1, "length": 10}),
    "pendulum": Task("Palimpsest/PendulumNoVel-v0", "sac", 20_000, -200, changes={"gamma": 0.98}),
    "mountain_car": Task("Palimpsest/MountainCarContinuousNoVel-v0", "sac", 50_000, 90),
}


@dataclass(frozen=True)
class Options:
    """What is trained."""

    tasks: tuple[Literal["cartpole", "tmaze", "pendulum", "mountain_car"], ...] = ("cartpole", "tmaze", "pendulum")
    memories: tuple[str, ...] = ("lstm",)
    seeds: tuple[int, ...] = (0,)
    num_envs: int = 8
    episodes: int = 200
    out: Path = Path("docs/results/off_policy.jsonl")
    """Where the lines are kept."""


def train(name: str, memory: str, seed: int, options: Options) -> dict[str, Any]:
    """The line of one run."""
    task = TASKS[name]
    config = TrainConfig(
        env=task.env,
        env_args=task.env_args,
        memory=memory,
        memory_args={"output_size": 64},
        algo=task.algo,
        total_timesteps=task.steps,
        num_envs=options.num_envs,
        seed=seed,
        device="cpu",
        **task.changes,
    )
    env = make_env(config)
    model = make_model(config, env)
    began = time.perf_counter()
    model.learn(task.steps)
    seconds = time.perf_counter() - began
    env.close()
    result = evaluate(model, task.env, options.episodes, env_args=task.env_args)
    return {
        "task": name,
        "algo": task.algo,
        "memory": memory,
        "seed": seed,
        "result": result[task.measure],
        "steps": task.steps,
        "episodes": options.episodes,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "machine": machine(),
    }


def main(options: Options) -> None:
    """Run what is missing and print the table."""
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["task"], line["memory"], line["seed"]): line for line in lines}
    for seed in options.seeds:
        for name in options.tasks:
            for memory in options.memories:
                if (name, memory, seed) not in done:
                    row = done[name, memory, seed] = train(name, memory, seed, options)
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    table = []
    for name, memory in sorted({key[:2] for key in done}):
        rows = [row for key, row in sorted(done.items()) if key[:2] == (name, memory)]
        task, seconds = TASKS[name], float(np.median([row["seconds"] for row in rows]))
        found = ", ".join(f"{row['result']:.4g}" for row in rows)
        table.append([task.env, task.algo, memory, f"{task.steps:,}", found, f"{task.bar:g}", seconds])
    print(markdown(["environment", "algorithm", "memory", "steps", "by seed", "bar", "seconds"], table))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

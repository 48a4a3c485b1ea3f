"""Train MemoryDQN and MemorySAC with the command line's defaults and print the table of docs/off-policy.md.

Beside them learn SB3's DQN and SAC, which remember nothing, with SB3's defaults, and MemoryPPO with the command line's.
Each line of JSON holds the result of one seed: greedy, on episodes that neither training nor its evaluations saw. A run
of ours is evaluated twenty times, in 50 episodes, and stops when three evaluations in a row reach the bar. Runs that
are in the file are not repeated.

    python benchmarks/off_policy.py --tasks cartpole tmaze pendulum --agents replay sb3 ppo --seeds 0 1 2
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import stable_baselines3
import torch
import tyro
from measure import machine, markdown
from rich.console import Console

from palimpsest import envs
from palimpsest.agents import evaluate
from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.files.versions import versions
from palimpsest.agents.run import experiment
from palimpsest.agents.run.callbacks import read_evaluations
from palimpsest.agents.run.config import TrainConfig

FIRST_SEED = EVALUATION_SEED + 10_000
"""Of the episodes of the result; those of the evaluations come before."""


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


TASKS = {
    "cartpole": Task("Palimpsest/CartPoleNoVel-v0", "dqn", 50_000, 475),
    "tmaze": Task("Palimpsest/EndlessTMaze-v0", "dqn", 50_000, 0.98, "success", {"corridors": 1, "length": 10}),
    "endless": Task("Palimpsest/EndlessTMaze-v0", "dqn", 100_000, 0.98, "success", {"corridors": 3, "length": 5}),
    "repeat": Task("Palimpsest/POPGym-RepeatPrevious-Easy-v0", "dqn", 100_000, 0.95),
    "pendulum": Task("Palimpsest/PendulumNoVel-v0", "sac", 20_000, -200),
    "mountain_car": Task("Palimpsest/MountainCarContinuousNoVel-v0", "sac", 50_000, 90),
}

Name = Literal["cartpole", "tmaze", "endless", "repeat", "pendulum", "mountain_car"]


@dataclass(frozen=True)
class Options:
    """What is trained."""

    tasks: tuple[Name, ...] = get_args(Name)
    agents: tuple[Literal["replay", "sb3", "ppo"], ...] = ("replay", "sb3", "ppo")
    """MemoryDQN or MemorySAC, SB3's DQN or SAC without memory, MemoryPPO."""
    memory: str = "lstm"
    units: int | None = None
    """`output_size` of the memory. Default: its own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 200
    out: Path = Path("docs/results/off_policy.jsonl")
    """Where the lines are kept."""


def train(name: str, agent: str, seed: int, options: Options) -> dict[str, Any]:
    """The line of one run."""
    task = TASKS[name]
    made_with, began = versions(), time.perf_counter()
    if agent == "sb3":
        env = envs.make_vec(task.env, 1, seed, **task.env_args)
        cls = getattr(stable_baselines3, task.algo.upper())
        model = cls("MlpPolicy", env, seed=seed, device="cpu").learn(task.steps, log_interval=10**9)
        env.close()
        memory, algo, curve = "none", f"SB3's {task.algo}", []
    else:
        memory, algo = options.memory, task.algo if agent == "replay" else agent
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                env=task.env,
                env_args=task.env_args,
                memory=memory,
                memory_args={} if options.units is None else {"output_size": options.units},
                algo=algo,
                total_timesteps=task.steps,
                seed=seed,
                device="cpu",
                eval_every=task.steps // 20,
                eval_episodes=50,
                solved=task.bar if task.measure == "success" else None,
                solved_return=task.bar if task.measure == "return_mean" else None,
                checkpoint_every=0,
                run_dir=Path(folder, "run"),
                progress=False,
            )
            run = experiment.train(config, Console(quiet=True), close=False)
            model, rows = run.model, read_evaluations(run.directory / "evaluations.csv")
        curve = [[int(row["step"]), float(row[task.measure])] for row in rows]
    seconds = time.perf_counter() - began
    result = evaluate(model, task.env, options.episodes, env_args=task.env_args, seed=FIRST_SEED)
    return {
        "task": name,
        "agent": agent,
        "algo": algo,
        "memory": memory,
        "units": options.units,
        "seed": seed,
        "result": result[task.measure],
        "steps": model.num_timesteps,
        "curve": curve,
        "episodes": options.episodes,
        "seconds": round(seconds, 1),
        "versions": made_with,
        "machine": machine(),
    }


def main(options: Options) -> None:
    """Run what is missing and print the table."""
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(line["task"], line["agent"], line["memory"], line["seed"]): line for line in lines}
    for seed in options.seeds:
        for name in options.tasks:
            for agent in options.agents:
                key = name, agent, "none" if agent == "sb3" else options.memory, seed
                if key not in done:
                    done[key] = train(name, agent, seed, options)
                    with options.out.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
    table = []
    for name, agent, memory in sorted({key[:3] for key in done}, key=lambda key: (list(TASKS).index(key[0]), key[1:])):
        rows = [row for key, row in sorted(done.items()) if key[:3] == (name, agent, memory)]
        task, seconds = TASKS[name], float(np.median([row["seconds"] for row in rows]))
        found = ", ".join(f"{row['result']:.4g} ({row['seed']}, {row['steps']:,})" for row in rows)
        where = task.env.rpartition("/")[2] + "".join(f", {key} {value}" for key, value in task.env_args.items())
        table.append([where, rows[0]["algo"], memory, f"{task.steps:,}", found, f"{task.bar:g}", seconds])
    print(
        markdown(
            ["environment", "algorithm", "memory", "steps at most", "by seed (and steps)", "bar", "seconds"], table
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

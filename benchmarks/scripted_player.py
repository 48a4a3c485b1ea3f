"""MemoryDQN learns T-Maze off-policy, while a script plays: is it the updates that fail, or the exploration?

The script walks with a given chance in a corridor and else turns, and chooses at random at the junction, so every
replay holds both cues and both turns. All else is the command line's, but the learning rate, which stays. Each line
tells how often the greedy agent turns right, what its values say at the start, where the best return is 1 - 0.01 L, and
in how much of the corridor they say: walk.

    python benchmarks/scripted_player.py --steps 4000 --walk 0.7
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from palimpsest import envs
from palimpsest.agents import MemoryDQN, evaluate, preset


@dataclass(frozen=True)
class Options:
    """What is learned, by what."""

    length: int = 10
    walk: float = 0.7
    """Chance of a step forward in the corridor."""
    steps: int = 4000
    every: int = 1000
    """Environment steps between lines."""
    memory: str = "lstm"
    units: int = 64
    num_envs: int = 16
    gamma: float = 0.99
    seed: int = 0
    algo_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of MemoryDQN that replace the preset's."""


class Scripted(MemoryDQN):
    """A MemoryDQN that watches a script play; its memory reads along."""

    walk: float

    def _choose(self, obs: Any, state: Any, start: Tensor | None, warm: bool) -> tuple[np.ndarray, Any]:
        _, after = self.policy.q_step(obs, state, start)
        turns = self.rng.integers(3, size=self.n_envs)
        walks = (obs[:, 2].numpy(force=True) < 1) & (self.rng.random(self.n_envs) < self.walk)
        return np.where(walks, 0, turns), after


def values(model: MemoryDQN) -> tuple[float, float]:
    """The mean value at the start, in units of rewards, and the share of the corridor where to walk is best."""
    batch = model.replay.sample(64, np.random.default_rng(0))
    with torch.no_grad():
        q = model.policy.q_scan(batch.observations, batch.state, batch.memory_start)
    x = batch.observations[..., 2]
    scale = 1.0 if model.policy.return_scale is None else float(model.policy.return_scale.std)
    return float(q[x == 0].amax(-1).mean()) * scale, float((q[x < 1].argmax(-1) == 0).float().mean())


def main(options: Options) -> None:
    """Learn and print."""
    torch.set_num_threads(1)
    env_args: dict[str, Any] = {"corridors": 1, "length": options.length}
    env = envs.make_vec("Palimpsest/EndlessTMaze-v0", options.num_envs, options.seed, **env_args)
    arguments = preset(
        options.memory,
        options.num_envs,
        algo="dqn",
        gamma=options.gamma,
        memory_args={"output_size": options.units},
        anneal=False,
    )
    model = Scripted("MlpMemoryPolicy", env, **arguments | options.algo_args, seed=options.seed, device="cpu")
    model.walk = options.walk
    for step in range(options.every, options.steps + 1, options.every):
        model.learn(options.every, log_interval=10**9, reset_num_timesteps=False)
        start, walks = values(model)
        success = evaluate(model, "Palimpsest/EndlessTMaze-v0", 50, env_args=env_args)["success"]
        told = f"success {success:.2f}  value at the start {start:.2f}  walks {walks:.2f}"
        print(f"step {step:6,}  updates {model._n_updates:6,}  {told}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""How much of a policy's first gradient is signal: |mean|^2 / variance over rollouts, before any training.

    python benchmarks/gradient_noise.py --memories rewrite gru lstm

Actions are random and independent, so an action has no part in later rewards: its advantage is its own reward, which is
standardised within a rollout of 16 rows. The gradient is that of -E[log pi(a) A], one for each rollout. The signal is
the mean over rollouts, without what noise adds to a mean of so many. The second figure is of gradients whose components
have been divided by their root mean square, as Adam does. Actor and critic have a memory each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces
from measure import report
from torch import Tensor

from palimpsest import envs
from palimpsest.agents import MemoryPPO, preset

ROWS = 16


@dataclass(frozen=True)
class Options:
    """What is measured."""

    env: str = "Palimpsest/POPGym-CountRecall-Easy-v0"
    """An environment whose rewards depend on the last action alone."""
    steps: int = 51
    """Steps of a rollout; one episode of the environment above."""
    memories: tuple[str, ...] = ("rewrite", "gru", "lstm")
    rollouts: int = 96
    seed: int = 0
    out: Path | None = None
    """File for the table."""


def gradients(memory: str, options: Options) -> Tensor:
    """One gradient of the actor's parameters per rollout, [rollouts, parameters] float64."""
    venv = envs.make_vec(options.env, num_envs=ROWS, seed=options.seed)
    arguments = preset(memory, num_envs=ROWS, share_memory=False)
    policy = MemoryPPO("MlpMemoryPolicy", venv, **arguments, seed=options.seed).policy
    rng = np.random.default_rng(options.seed)
    assert isinstance(venv.action_space, spaces.Discrete)
    found = []
    for _ in range(options.rollouts):
        seen: Any = venv.reset()
        observations, actions, rewards = [], [], []
        for _ in range(options.steps):
            action = rng.integers(venv.action_space.n, size=ROWS)
            observations.append(torch.as_tensor(np.array(seen)))
            actions.append(torch.as_tensor(action))
            seen, reward, _, _ = venv.step(action)
            rewards.append(torch.as_tensor(reward))
        start = torch.zeros(options.steps, ROWS, dtype=torch.bool)
        start[0] = True
        advantage = torch.stack(rewards)
        advantage = (advantage - advantage.mean()) / advantage.std()
        state = policy.initial_state(ROWS)
        policy.zero_grad()
        told = policy.evaluate_actions(torch.stack(observations), torch.stack(actions), state, start)
        (-told.log_prob * advantage).mean().backward()
        # the critic's have none
        parts = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        found.append(torch.cat(parts).double())
    venv.close()
    return torch.stack(found)


def share(gradients: Tensor) -> float:
    """Signal to noise of samples [n, parameters]: |mean|^2 without what noise adds to it, over the variance."""
    mean = gradients.mean(0)
    noise = (gradients - mean).square().sum() / (len(gradients) - 1)
    return float((mean.square().sum() - noise / len(gradients)) / noise)


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    table = []
    for memory in options.memories:
        found = gradients(memory, options)
        scaled = found / found.square().mean(0).sqrt().clamp(min=1e-12)
        table.append([memory, f"{share(found):.3f}", f"{share(scaled):.3f}"])
    report("Noise of the first gradient", options, ["memory", "signal / noise", "scaled as by Adam"], table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""What a linear map can read off a memory before any training: the time, counts, and inputs of some steps ago.

    python benchmarks/first_features.py --memories rewrite gru lstm ffm s5

The inputs are those of POPGym's CountRecall: at each step a card is dealt and another is asked for, one-hot each. The
features are what the policy's heads read. A linear map is fitted to half of the rows by least squares. The figures are
R², the share of the variance that it explains in the other half:

    time            steps since the episode began
    counts          how often each card was dealt, less what the time alone says
    lag n           the card that was dealt n steps ago

A policy's first gradient reaches the heads before it changes the memory. So what is not there at first is learned late.
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

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO, preset

ENV = "Palimpsest/POPGym-CountRecall-Easy-v0"
ROWS = 64
RIDGE = 1.0
"""Added to the diagonal of the normal equations; features have variance 1, and there are some 20,000 samples."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    memories: tuple[str, ...] = ("rewrite", "gru", "lstm", "ffm", "s5")
    """Registered names, or module:name."""
    steps: int = 51
    """Steps of a rollout; one episode."""
    rollouts: int = 12
    lags: tuple[int, ...] = (1, 2, 4, 8, 16)
    seed: int = 0
    out: Path | None = None
    """File for the table."""


def features(name: str, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """What the actor's head reads, [T, rows, D], and the cards dealt, one-hot [T, rows, cards]."""
    memory.register_from(name)
    venv = envs.make_vec(ENV, num_envs=ROWS, seed=options.seed)
    policy = MemoryPPO("MlpMemoryPolicy", venv, **preset(name, num_envs=ROWS), seed=options.seed).policy
    policy.compiled = False  # hooks run
    read: list[Any] = []
    policy.mlp_extractor.policy_net.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    rng = np.random.default_rng(options.seed)
    assert isinstance(venv.action_space, spaces.Discrete)
    found, dealt = [], []
    for _ in range(options.rollouts):
        seen: Any = venv.reset()
        observations, actions = [], []
        for _ in range(options.steps):
            actions.append(torch.as_tensor(rng.integers(venv.action_space.n, size=ROWS)))
            observations.append(torch.as_tensor(np.array(seen)))
            seen, *_ = venv.step(actions[-1].numpy())
        start = torch.zeros(options.steps, ROWS, dtype=torch.bool)
        start[0] = True
        with torch.no_grad():
            policy.evaluate_actions(torch.stack(observations), torch.stack(actions), policy.initial_state(ROWS), start)
        found.append(read.pop().unflatten(0, start.shape).numpy())
        cards = torch.stack(observations).numpy()
        dealt.append(cards[..., : cards.shape[-1] // 2])
    venv.close()
    return np.concatenate(found, 1), np.concatenate(dealt, 1)


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """R² of y [T, rows, N] by a linear map of x [T, rows, D], fitted to the first half of the rows."""
    half = x.shape[1] // 2
    own, other = (np.concatenate(part.swapaxes(0, 1)) for part in (x[:, :half], x[:, half:]))
    target, unseen = (np.concatenate(part.swapaxes(0, 1)) for part in (y[:, :half], y[:, half:]))
    mean, scale, center = own.mean(0), own.std(0) + 1e-8, target.mean(0)
    own, other = (own - mean) / scale, (other - mean) / scale
    weights = np.linalg.solve(own.T @ own + RIDGE * np.eye(own.shape[1]), own.T @ (target - center))
    return float(1 - np.square(other @ weights + center - unseen).sum() / np.square(unseen - center).sum())


def measured(name: str, options: Options) -> list[str]:
    """A row of the table."""
    x, dealt = features(name, options)
    T, _, cards = dealt.shape
    time = np.broadcast_to(np.arange(T)[:, None, None], (*dealt.shape[:2], 1)).astype(float)
    found = [explained(x, time), explained(x, dealt.cumsum(0) - time / cards)]
    found += [explained(x[lag:], dealt[:-lag]) for lag in options.lags]
    return [name, *(f"{each:.2f}" for each in found)]


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    head = ["memory", "time", "counts", *(f"lag {lag}" for lag in options.lags)]
    report("What can be read before training", options, head, [measured(name, options) for name in options.memories])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""What the situations of SB3's tests share here: small agents, and the memories that each is tried with."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter, Spaces

from palimpsest.agents import MemoryPPO

MEMORIES = ("none", "lstm", "rewrite")


def agent(policy: Any, env: Any, memory: str = "lstm", policy_kwargs: dict | None = None, **kwargs) -> MemoryPPO:
    """An agent of rollouts of 16 steps; a name without "MemoryPolicy" is one of ours."""
    name = f"{policy}MemoryPolicy" if policy in ("Mlp", "Cnn", "MultiInput") else policy
    arguments = small_policy(memory, **(policy_kwargs or {}))
    defaults = dict(n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    return MemoryPPO(name, env, policy_kwargs=arguments, **{**defaults, **kwargs})


def counters(n: int = 2, **kwargs) -> DummyVecEnv:
    """Rows of `Counter`, each in a Monitor; row r ends at step 3 + r."""
    return DummyVecEnv([lambda row=row: Monitor(Counter(row, **kwargs)) for row in range(n)])


def samples(observations: spaces.Space, actions: spaces.Space | None = None, n: int = 1) -> DummyVecEnv:
    """Rows whose observations are samples of a space."""
    actions = spaces.Discrete(2) if actions is None else actions
    return DummyVecEnv([lambda: Spaces(observations, actions) for _ in range(n)])


def assert_finite(model: MemoryPPO) -> None:
    """Training has left finite parameters and a finite loss."""
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert torch.tensor(model.logger.name_to_value["train/loss"]).isfinite()


class Kept(Logger):
    """A logger that writes nothing and forgets nothing."""

    def __init__(self) -> None:
        super().__init__("", [])

    def dump(self, step: int = 0) -> None:
        """Values stay in `name_to_value`."""


class Look(BaseCallback):
    """Keeps the names and values that a step leaves in `locals`."""

    def _on_step(self) -> bool:
        self.seen = dict(self.locals)
        return True

"""A small `MemoryDQN` and the environments that it learns from."""

from __future__ import annotations

import numpy as np
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter

from palimpsest.agents import MemoryDQN

B = 3
"""Rows."""


def counters(rows=B, truncate=True):
    return DummyVecEnv([lambda row=row: Counter(row, truncate) for row in range(rows)])


def make(name="gru", env=None, policy=None, **kwargs):
    settings = dict(sequence_length=4, burn_in=2, buffer_size=300, learning_starts=20, batch_size=3, seed=0)
    settings |= dict(device="cpu", target_update_interval=30)
    return MemoryDQN(
        "MlpMemoryPolicy",
        counters() if env is None else env,
        policy_kwargs=small_policy(name) | (policy or {}),
        **settings | kwargs,
    )


def played(model):
    rng, state, start, taken = np.random.default_rng(0), None, np.ones(B, bool), []
    for _ in range(20):
        action, state = model.predict(rng.random((B, 2)).astype(np.float32), state, start, deterministic=True)
        start = rng.random(B) < 0.2
        taken.append(action)
    return np.stack(taken)

"""What laws of every registered environment share: its ids, its faces, and play on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from palimpsest import envs
from palimpsest.envs.core import World

TINY = "Test/Tiny-v0"
IDS = [*(id for id in envs.ids() if not re.search(r"/POPGym-\w+-(Medium|Hard)-", id)), TINY]
"""Every registered environment, and one with a Dict observation whatever is registered. Of POPGym's games only the easy
level: the others run the same code with other numbers, and `tests/envs/popgym` has them all."""
ROWS = 5


def make(id: str, **kwargs: Any) -> World:
    world = gym.make(id, **kwargs).unwrapped
    assert isinstance(world, World)
    return world


FAMILIES = {type(make(id)): id for id in IDS[:-1]}
"""Every family, with the last of its ids."""


def make_rows(id: str, rows: int = ROWS, **kwargs: Any) -> Any:
    return gym.make_vec(id, rows, vectorization_mode="vector_entry_point", **kwargs)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, types and shapes included."""
    return data_equivalence(a, b, exact=True)


def at(obs: Any, i: int) -> Any:
    """Row i of a batch of observations."""
    return {key: part[i] for key, part in obs.items()} if isinstance(obs, dict) else obs[i]


def play(vector: Any, steps: int, seed: int) -> Iterator[tuple[np.ndarray, tuple]]:
    """Step, the even rows as the expert mostly, the odd ones at random: so rows end at different steps."""
    rng = np.random.default_rng(seed)
    B = vector.num_envs
    skill = np.where(np.arange(B) % 2 == 0, 0.97, 0.2)
    for _ in range(steps):
        actions = rng.integers(vector.single_action_space.n, size=B)
        actions = np.where(rng.random(B) < skill, vector.expert_action(), actions)
        yield actions, vector.step(actions)


def until_ends(vector: Any, wanted: int = 6, most: int = 4000) -> Iterator[tuple[np.ndarray, tuple]]:
    """`play` until rows have ended at `wanted` different steps."""
    for actions, result in play(vector, most, seed=1):
        yield actions, result
        wanted -= (result[2] | result[3]).any()
        if wanted == 0:
            return
    raise AssertionError(f"too few ends in {most} steps")

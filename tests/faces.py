"""What laws of every registered environment share: its ids, its faces, and play on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence

from palimpsest import envs
from palimpsest.envs.actions import random_actions
from palimpsest.envs.core import World

TINY = "Test/Tiny-v0"
TINIES = {TINY: "Tiny", "Test/TinyPair-v0": "TinyPair", "Test/TinyPush-v0": "TinyPush"}
"""Worlds of the tests, with Discrete, MultiDiscrete and Box actions, whatever is registered. Observations are Dicts."""
IDS = [id for id in (*envs.ids(), *TINIES) if not id.endswith(("-Medium-v0", "-Hard-v0")) or "/POPGym-" not in id]
"""Every registered environment; of POPGym's games, whose difficulties share their code, the easy ones."""
ROWS = 5


def make(id: str, **kwargs: Any) -> World:
    world = gym.make(id, **kwargs).unwrapped
    assert isinstance(world, World)
    return world


FAMILIES = {type(make(id)): id for id in IDS if id not in TINIES}
"""Every family, with the last of its ids."""


def make_rows(id: str, rows: int = ROWS, **kwargs: Any) -> Any:
    return gym.make_vec(id, rows, vectorization_mode="vector_entry_point", **kwargs)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, types and shapes included."""
    return data_equivalence(a, b, exact=True)


def at(obs: Any, i: int) -> Any:
    """Row i of a batch of observations."""
    return {key: part[i] for key, part in obs.items()} if isinstance(obs, dict) else obs[i]


def any_actions(vector: Any, rng: np.random.Generator) -> np.ndarray:
    """A random action for every row."""
    return random_actions(vector.single_action_space, rng, vector.num_envs)


def nothing(env: World) -> np.ndarray:
    """The action of zeros."""
    return np.zeros(env.action_space.shape, env.action_space.dtype)


def mixed(mask: np.ndarray, actions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`actions` [B, ...] in the rows where `mask` [B] is true, `others` in the rest."""
    return np.where(mask.reshape(-1, *[1] * (actions.ndim - 1)), actions, others)


def play(vector: Any, steps: int, seed: int) -> Iterator[tuple[np.ndarray, tuple]]:
    """Step, the even rows as the expert mostly, the odd ones at random: so rows end at different steps."""
    rng = np.random.default_rng(seed)
    B = vector.num_envs
    skill = np.where(np.arange(B) % 2 == 0, 0.97, 0.2)
    for _ in range(steps):
        actions = any_actions(vector, rng)
        actions = mixed(rng.random(B) < skill, vector.expert_action(), actions)
        yield actions, vector.step(actions)


def until_ends(vector: Any, wanted: int = 6, most: int = 4000) -> Iterator[tuple[np.ndarray, tuple]]:
    """`play` until rows have ended at `wanted` different steps."""
    for actions, result in play(vector, most, seed=1):
        yield actions, result
        wanted -= (result[2] | result[3]).any()
        if wanted == 0:
            return
    raise AssertionError(f"too few ends in {most} steps")


def unlawful(space: spaces.Space) -> tuple[list, list, list]:
    """For a batch of three rows: actions out of range, arrays of a wrong shape or type; and single wrong actions."""
    zeros = np.zeros((3, *space.shape), space.dtype)
    shapes = np.zeros(2, int), np.zeros(4, int), np.zeros(0, int), zeros[:, None], zeros[None], zeros[:2], 0, None
    types = zeros.astype(bool), zeros.astype(str), zeros.astype(object), zeros.astype(complex)
    singles = None, "0", "", [], [None], {}, zeros[:2], zeros[0].astype(bool), zeros[0].astype(str), [[0]], [0] * 99
    if isinstance(space, spaces.Box):
        values = [*map(float, ("nan", "inf", "-inf")), 1e300, np.float32("inf")]
        alone = [0.0, True]
    else:
        n = int(np.max(space.n if space.shape == () else space.nvec))
        values = [n, -1, 2**63 - 1, -(2**63), np.uint64(2**64 - 1), np.int8(-1)]
        types = *types, zeros.astype(float), np.full_like(zeros, np.nan, float)
        alone = [2**64, 0.0, np.array(0.0), float("nan"), np.float32("nan"), True, np.zeros((), bool)]
    out_of_range = []
    for value in values:
        for row in range(3):
            bad = zeros.astype(np.asarray(value).dtype)
            bad[row] = value
            out_of_range.append(bad)
    wrong = [bad[0] for bad in out_of_range[::3]] if space.shape else values
    return out_of_range, [*shapes, *types], [*singles, *alone, *wrong]


def reported(success: bool) -> dict:
    """What a gymnasium face tells at an episode's end: its own key, and the one that SB3 counts."""
    return {"success": success, "is_success": success}

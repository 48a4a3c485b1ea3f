"""Players without memory of MiniGrid's memory task: what they win, and what shows the cue."""

from __future__ import annotations

import numpy as np
from test_minigrid_memory import (
    BALL,
    EAST,
    FORWARD,
    KEY,
    LEFT,
    NORTH,
    RIGHT,
    SOUTH,
    WEST,
    arguments,
    each_setting,
    package_mazes,
    places,
    put,
)

from palimpsest.envs.minigrid_memory import MiniGridMemory
from palimpsest.envs.minigrid_view import WALL
from palimpsest.envs.vector import WorldVectorEnv


def reactive(obs: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A player without memory that looks back at the junction and seldom goes forward there.

    A view of 3 cells, in which nothing can be won so, is continued with cells out of sight.
    """
    objects, direction = obs["image"][..., 0], obs["direction"]
    beside = (7 - objects.shape[1]) // 2
    objects = np.pad(objects, ((0, 0), (beside, beside), (2 * beside, 0)))
    thing = np.isin(objects, (KEY, BALL))
    B = len(direction)
    ahead_blocked = objects[:, 3, 5] == WALL & 15
    at_junction = np.where(direction == EAST, ahead_blocked, thing[:, 1, 6] & thing[:, 5, 6] & (direction == WEST))
    facing_one = thing[:, 3, 4] & (direction % 2 == 1)
    cue = np.where(thing[..., :6], objects[..., :6], 0).max((1, 2))
    to_right = cue == objects[:, 5, 6]
    back = np.where(direction == NORTH, LEFT, RIGHT)
    action = np.where(direction == EAST, FORWARD, np.where(direction == SOUTH, LEFT, RIGHT))
    action = np.where(facing_one, np.where(rng.random(B) < 0.03, FORWARD, back), action)
    looked = at_junction & (direction == WEST)
    guess = np.where(cue > 0, to_right, rng.random(B) < 0.5)
    action = np.where(looked, np.where(guess, RIGHT, LEFT), action)
    return np.where(at_junction & (direction == EAST), np.where(rng.random(B) < 0.5, LEFT, RIGHT), action)


@each_setting
def test_without_memory(setting):
    """Short mazes can be won by looking back; the long ones are a guess, and the bound given holds."""
    B = 400
    vector = WorldVectorEnv(MiniGridMemory, B, **arguments(setting))
    obs, _ = vector.reset(seed=0)
    ends = vector.world.state.end.copy()
    rng = np.random.default_rng(0)
    won, going = np.zeros(B, bool), np.ones(B, bool)
    while going.any():
        obs, reward, terminated, truncated, _ = vector.step(reactive(obs, rng))
        won |= going & (reward > 0)
        going &= ~(terminated | truncated)
    short = ends + 1 <= setting[2]
    assert not short.any() or won[short].mean() > 0.93
    count = (~short).sum()
    assert count == 0 or abs(won[~short].mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    assert won.mean() < vector.chance_level() + 4 * 0.5 / np.sqrt(B)


def test_nothing_shows_the_cue_beyond_its_reach():
    """So a player without memory that has passed there is left with a guess."""
    for setting in ((11, False, 7), (13, False, 7), (17, True, 7), (13, False, 5), (9, False, 3), (11, False, 3)):
        size, _, reach = setting
        mazes = package_mazes(setting)
        end = size - 3
        for upper in (0, 1):
            key, ball = mazes[end, 0, upper], mazes[end, 1, upper]
            for place in places(key):
                if place[0] > reach or place == (reach, size // 2, EAST):
                    views = [put(env, *place).gen_obs()["image"] for env in (key, ball)]
                    assert np.array_equal(*views)


def test_short_mazes_are_a_guess_for_deterministic_players_without_memory():
    """Up to looking west at the junction, no view tells the cues. A player gets to look west only by turning on when
    it looks north or south there; a deterministic one then always turns on there, and never wins on that side.
    """
    for size in (7, 9):
        mazes = package_mazes((size, False, 7))
        end = size - 3
        for upper in (0, 1):
            key, ball = mazes[end, 0, upper], mazes[end, 1, upper]
            for x, direction in ((end, EAST), (end + 1, EAST), (end + 1, NORTH), (end + 1, SOUTH)):
                views = [put(env, x, size // 2, direction).gen_obs()["image"] for env in (key, ball)]
                assert np.array_equal(*views)

"""MountainCarContinuous without velocities: rock a weak car out of a valley, seeing only where it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, chance, compiled, run_rows
from palimpsest.envs.raster import AGENT, FLOOR, GOAL, Canvas
from palimpsest.refusals import check_flag

POWER, GRAVITY = 0.0015, 0.0025
LEFTMOST, RIGHTMOST, MOST_SPEED, GOAL_AT = map(np.float32, (-1.2, 0.6, 0.07, 0.45))


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    velocities: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    position: np.ndarray
    """float64; rounded to float32 from the first step on, as in gymnasium"""
    velocity: np.ndarray
    """float64, likewise"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """At rest in the valley."""
    state.position[i] = -0.6 + 0.2 * chance(state.rng, i)
    state.velocity[i] = 0.0


@compiled
def rounded(number: float, to_single: bool) -> float:
    """`number` as float32 where `to_single`."""
    return np.float64(np.float32(number)) if to_single else number


@compiled
def move(rules: Rules, state: State, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
    """The action is a force, clipped to -1 to 1; the cost is that of the action before it is clipped.

    gymnasium computes in float32, except for the first step of an episode and for a force that it has clipped.
    """
    single = state.steps[i] > 0
    force = action[0]
    slope = GRAVITY * np.cos(rounded(3.0 * state.position[i], single))
    if (force >= -1) & (force <= 1):
        push = np.float64(np.float32(force) * np.float32(POWER) - np.float32(slope))
    else:
        push = rounded((POWER if force > 0 else -POWER) - slope, single)
    velocity = rounded(state.velocity[i] + push, single)
    velocity = min(max(velocity, np.float64(-MOST_SPEED)), np.float64(MOST_SPEED))
    position = np.float64(np.float32(state.position[i] + velocity))
    position = min(max(position, np.float64(LEFTMOST)), np.float64(RIGHTMOST))
    if (position == LEFTMOST) & (velocity < 0):
        velocity = 0.0
    state.position[i], state.velocity[i] = position, rounded(velocity, True)
    arrived = (position >= GOAL_AT) & (velocity >= 0)
    return (100.0 if arrived else 0.0) - np.float64(force) * np.float64(force) * 0.1, arrived, arrived


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Where the car is."""
    obs[j, 0] = state.position[i]
    if rules.velocities:
        obs[j, 1] = state.velocity[i]


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class MountainCarContinuousNoVel(World):
    """MountainCarContinuous-v0 without velocity: the player sees where the car is and must remember where it was.

    The engine is too weak to climb from rest, so the car must be rocked: pushed the way it rolls. The masked task of
    the RL Zoo and of sb3-contrib's RecurrentPPO.

    Observation: Box of float32, (1,), or (2,) with `velocities`.

    | index | meaning | range |
    |---|---|---|
    | 0 | position; the bottom of the valley is at -0.52 | -1.2 to 0.6 |
    | 1 | velocity, only with `velocities` | -0.07 to 0.07 |

    Actions: Box(-1, 1, (1,), float32), a force. It is clipped to the bounds.

    Rewards: -0.1 action² for every step, of the action before it is clipped; +100 at the goal.

    Ends: terminated at position 0.45 (success). Truncated after 999 steps.

    Horizons Ξ: {2}, two positions tell which way the car rolls; {1} with `velocities`. Chance level: 0.7, the best
    player without memory that was found: to the right of -0.4 it pushes to the right, elsewhere to any side. The noise
    rocks the car, slowly: its mean return is about 0, that of the expert 95. 1 with `velocities`.

    Args:
        velocities: show the velocity too: the fully observed twin.
        render_mode: "rgb_array", "ansi" or None.

    Source: gymnasium's MountainCarContinuous-v0 (Moore 1990), whose physics is held equal step by step.
    Versions: v0, the first.
    """

    kernel = kernel

    def __init__(self, velocities: bool = False, render_mode: str | None = None) -> None:
        seen = 2 if check_flag("velocities", velocities) else 1
        low, high = np.array([LEFTMOST, -MOST_SPEED])[:seen], np.array([RIGHTMOST, MOST_SPEED])[:seen]
        force = spaces.Box(-1, 1, (1,), np.float32)
        super().__init__(Rules(999, velocities), spaces.Box(low, high, dtype=np.float32), force, render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        return State(np.zeros(rows, np.uint64), np.zeros(rows, np.int64), np.zeros(rows), np.zeros(rows))

    def expert(self) -> np.ndarray:
        """Push the way the car rolls, with 0.6 of the force: less would be slower, more would cost more."""
        return np.where(self.state.velocity >= 0, 0.6, -0.6).astype(np.float32)[:, None]

    def memory_horizons(self) -> tuple[int, ...]:
        """Two positions tell which way the car rolls. The player who sees all needs the last observation alone."""
        return (1,) if self.rules.velocities else (2,)

    def chance_level(self) -> float:
        """Pushes to any side rock the car slowly; 1 with velocities."""
        return 1.0 if self.rules.velocities else 0.7

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every observation matters at the next step."""
        return np.ones(obs.shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The valley, the car in it, the goal at the right."""
        canvas = Canvas(5, 10)
        for x in np.linspace(LEFTMOST, RIGHTMOST, 80):
            canvas.disc(*on_the_hill(x), FLOOR, radius=0.15)
        canvas.disc(*on_the_hill(float(GOAL_AT)), GOAL, radius=0.3)
        canvas.disc(*on_the_hill(float(self.state.position[0])), AGENT, radius=0.3)
        canvas.label(0, 0, f"STEP {self.state.steps[0]}")
        return canvas.pixels

    def text(self) -> str:
        """Position and velocity."""
        state = self.state
        return f"step {state.steps[0]}: position {state.position[0]:+.4f}, velocity {state.velocity[0]:+.5f}, goal 0.45"


def on_the_hill(x: float) -> tuple[float, float]:
    """Row and column of a point of the hill, in cells of a picture of 5 × 10."""
    return 3.2 - 2.4 * (math.sin(3 * x) * 0.45 + 0.45), 5.0 * (x + 1.2)

"""CartPole: balance a pole on a cart. `Pole` is the world; the classes on it differ in what the player sees.

The physics is gymnasium's CartPole-v1, in its order of operations. POPGym's versions are in `envs.popgym.control`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, chance, compiled, gaussians, run_rows
from palimpsest.envs.raster import AGENT, FLOOR, GOAL, Canvas, Colour, faded
from palimpsest.refusals import check_flag

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
"""m/s², kg, kg, m, N, s for a step."""
TOTAL, POLE_TIMES_LENGTH = POLE + CART, POLE * HALF_LENGTH
X_LIMIT, ANGLE_LIMIT = 2.4, 12 * 2 * math.pi / 360
"""An episode ends beyond them: metres from the middle, radians from upright."""
X_BOUND, ANGLE_BOUND = np.float32(2 * X_LIMIT), np.float32(2 * ANGLE_LIMIT)
"""Bounds of the observations, twice the limits."""

ALL, POSITIONS, VELOCITIES = range(3)
"""What the player sees."""

BALANCE = np.array([0.5, 1.0, 10.0, 2.0])
"""The expert pushes to the side where position, velocity, angle and angular velocity, with these weights, sum up."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    reward: float
    """for every step"""
    shown: int
    """ALL, POSITIONS or VELOCITIES"""
    sigma: float
    """standard deviation of the noise on the observation; 0 for none"""


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    motion: np.ndarray
    """[B, 4] float64: position (m), velocity (m/s), angle (rad, 0 is upright), angular velocity (rad/s)"""
    noise: np.ndarray
    """[B, 2] float32, what the observation adds to the two numbers that it shows"""


@compiled
def advance(motion: np.ndarray, i: int, force: float) -> bool:
    """Push the cart of row i with `force` newtons for one step (Euler); whether the episode has failed."""
    x, velocity, angle, turning = motion[i, 0], motion[i, 1], motion[i, 2], motion[i, 3]
    cos, sin = np.cos(angle), np.sin(angle)
    push = (force + POLE_TIMES_LENGTH * (turning * turning) * sin) / TOTAL
    tilt = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * (cos * cos) / TOTAL))
    x = x + SECONDS * velocity
    motion[i, 1] = velocity + SECONDS * (push - POLE_TIMES_LENGTH * tilt * cos / TOTAL)
    angle = angle + SECONDS * turning
    motion[i, 3] = turning + SECONDS * tilt
    motion[i, 0], motion[i, 2] = x, angle
    return (x < -X_LIMIT) | (x > X_LIMIT) | (angle < -ANGLE_LIMIT) | (angle > ANGLE_LIMIT)


@compiled
def disturb(rules: Rules, state: State, i: int) -> None:
    """Draw the noise of the next observation."""
    if rules.sigma > 0:
        a, b = gaussians(state.rng, i)
        state.noise[i, 0], state.noise[i, 1] = np.float32(a * rules.sigma), np.float32(b * rules.sigma)


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Almost at rest, almost upright."""
    for k in range(4):
        state.motion[i, k] = -0.05 + 0.1 * chance(state.rng, i)
    disturb(rules, state, i)


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Action 0 pushes to the left, 1 to the right."""
    failed = advance(state.motion, i, FORCE if action == 1 else -FORCE)
    disturb(rules, state, i)
    return rules.reward, failed, (not failed) & (state.steps[i] + 1 >= rules.limit)


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """All four numbers, or two of them with their noise."""
    if rules.shown == ALL:
        for k in range(4):
            obs[j, k] = state.motion[i, k]
    elif (rules.shown == VELOCITIES) & (state.steps[i] > 0):
        obs[j, 0] = np.float32(state.motion[i, 1]) + state.noise[i, 0]
        obs[j, 1] = np.float32(state.motion[i, 3]) + state.noise[i, 1]
    else:
        obs[j, 0] = min(max(np.float32(state.motion[i, 0]) + state.noise[i, 0], -X_BOUND), X_BOUND)
        obs[j, 1] = min(max(np.float32(state.motion[i, 2]) + state.noise[i, 1], -ANGLE_BOUND), ANGLE_BOUND)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class Pole(World):
    """The world of every CartPole: state, expert and pictures.

    Args:
        rules: what the player sees, the rewards and the step limit.
        render_mode: "rgb_array", "ansi" or None.
    """

    kernel = kernel
    action_names = ("push left", "push right")

    def __init__(self, rules: Rules, render_mode: str | None) -> None:
        high = {
            ALL: [X_BOUND, np.inf, ANGLE_BOUND, np.inf],
            POSITIONS: [X_BOUND, ANGLE_BOUND],
            VELOCITIES: [np.inf, np.inf],
        }[rules.shown]
        bounds = np.array(high, np.float32)
        super().__init__(rules, spaces.Box(-bounds, bounds, dtype=np.float32), spaces.Discrete(2), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        return State(
            np.zeros(rows, np.uint64), np.zeros(rows, np.int64), np.zeros((rows, 4)), np.zeros((rows, 2), np.float32)
        )

    def expert(self) -> np.ndarray:
        """A linear controller that knows positions and velocities."""
        return (self.state.motion @ BALANCE > 0).astype(np.int64)

    def memory_horizons(self) -> tuple[int, ...]:
        """Two positions tell a velocity. A position is the first one and the sum of all velocities since."""
        return ({ALL: 1, POSITIONS: 2, VELOCITIES: self.rules.limit}[self.rules.shown],)

    def chance_level(self) -> float | None:
        """With positions alone no player without memory was found that survives; with velocities alone, for a while.

        How many survive fewer than 200 steps with positions alone was not measured.
        """
        if self.rules.shown == VELOCITIES:
            return float(np.interp(self.rules.limit, [250, 400, 600, 1000], [1, 0.99, 0.3, 0]))
        if self.rules.shown == POSITIONS and self.rules.limit < 200:
            return None
        return float(self.rules.shown == ALL)

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every observation matters at the next step."""
        return np.ones(obs.shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The cart on its track and the pole; what moves is drawn where it is."""
        x, _, angle, _ = self.state.motion[0]
        seen = self.rules.shown != VELOCITIES
        canvas = Canvas(6, 12)
        canvas.box(5, 0, FLOOR, width=12)
        middle, ground = 5.5 + 2 * x, 4.2
        canvas.box(ground, middle - 0.4, shade(GOAL, seen), height=0.8, width=1.8)
        rod(canvas, ground - 0.3, middle, angle, 3.5, shade(AGENT, seen))
        canvas.label(0, 0, f"STEP {self.state.steps[0]}")
        return canvas.pixels

    def text(self) -> str:
        """The four numbers of the state."""
        x, velocity, angle, turning = self.state.motion[0]
        return (
            f"step {self.state.steps[0]}: cart at {x:+.3f} m, {velocity:+.3f} m/s; pole at {math.degrees(angle):+.2f} "
            f"degrees, {math.degrees(turning):+.1f} degrees/s"
        )


class CartPoleNoVel(Pole):
    """CartPole-v1 without velocities: the player sees where cart and pole are and must remember where they were.

    The masked task of the RL Zoo and of sb3-contrib's RecurrentPPO.

    Observation: Box of float32, (2,), or (4,) with `velocities`.

    | index | meaning | range |
    |---|---|---|
    | 0 | position of the cart in metres | -4.8 to 4.8 |
    | 1 | angle of the pole in radians, 0 is upright | -0.418 to 0.418 |

    With `velocities` the four numbers of CartPole-v1: position, velocity, angle, angular velocity.

    Actions: 0 pushes the cart to the left, 1 to the right, with 10 N.

    Rewards: +1 for every step, the last one included.

    Ends: terminated when the cart is more than 2.4 m from the middle or the pole more than 12 degrees from upright.
    Truncated after 500 steps. Success: the pole still stands then; the return is 500.

    Horizons Ξ: {2}, two positions tell a velocity; {1} with `velocities`. Chance level: 0, no player without memory was
    found that survives (the best of random linear ones, noisy ones among them, falls after 50 steps on average); 1 with
    `velocities`.

    Args:
        velocities: show the velocities too: the fully observed twin.
        render_mode: "rgb_array", "ansi" or None.

    Source: gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983), whose physics is held equal step by step.
    Versions: v0, the first.
    """

    def __init__(self, velocities: bool = False, render_mode: str | None = None) -> None:
        shown = ALL if check_flag("velocities", velocities) else POSITIONS
        super().__init__(Rules(500, 1.0, shown, 0.0), render_mode)


def shade(colour: Colour, seen: bool) -> Colour:
    """`colour`, faded where the player cannot see it."""
    return colour if seen else faded(colour)


def rod(canvas: Any, row: float, column: float, angle: float, length: float, colour: Colour) -> None:
    """Draw a rod from the middle of a cell, `angle` radians clockwise from upright; `length` in cells."""
    for part in np.linspace(0, length, 24):
        canvas.disc(row - part * math.cos(angle), column + part * math.sin(angle), colour, radius=0.12)

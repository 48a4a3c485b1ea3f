"""Pendulum: swing a rod up and hold it. `Rod` is the world; the classes on it differ in what the player sees.

The physics is gymnasium's Pendulum-v1, in its order of operations. POPGym's versions are in `envs.popgym.control`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.cart_pole import rod
from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, chance, compiled, gaussians, run_rows
from palimpsest.envs.raster import AGENT, GOAL, INK, Canvas, faded
from palimpsest.refusals import check_flag

MOST_SPEED, MOST_TORQUE, SECONDS = 8.0, 2.0, 0.05
"""rad/s, N m, s for a step. The rod is 1 m and 1 kg, gravity 10 m/s²."""
UPRIGHT, HOLD = 0.2, 20
"""A success ends with this many steps (1 s) no further than this many radians from upright."""


class Rules(NamedTuple):
    """Constants of all episodes. The reward of a step is (offset - cost) / scale / per."""

    limit: int
    velocities: bool
    sigma: float
    """standard deviation of the noise on the observation; 0 for none"""
    offset: float
    scale: float
    per: float


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    angle: np.ndarray
    """float64, radians, 0 is upright; it is not brought back to one turn"""
    turning: np.ndarray
    """float64, rad/s"""
    held: np.ndarray
    """int64, for how many steps the rod has been upright without a break"""
    noise: np.ndarray
    """[B, 2] float32, what the observation adds to the cosine and the sine"""


@compiled
def from_upright(angle: float) -> float:
    """The angle from upright, -π to π."""
    return ((angle + np.pi) % (2 * np.pi)) - np.pi


@compiled
def advance(state: State, i: int, action: float) -> float:
    """Turn the rod of row i with the clipped torque `action` (float32) for one step; the cost of it."""
    angle, turning = state.angle[i], state.turning[i]
    torque = np.float32(max(min(action, MOST_TORQUE), -MOST_TORQUE))
    away = from_upright(angle)
    cost = away * away + 0.1 * (turning * turning) + np.float32(0.001) * (torque * torque)
    turning = turning + (15.0 * np.sin(angle) + np.float32(3.0) * torque) * SECONDS
    turning = min(max(turning, -MOST_SPEED), MOST_SPEED)
    state.turning[i] = turning
    state.angle[i] = angle + turning * SECONDS
    return cost


@compiled
def disturb(rules: Rules, state: State, i: int) -> None:
    """Draw the noise of the next observation."""
    if rules.sigma > 0:
        a, b = gaussians(state.rng, i)
        state.noise[i, 0], state.noise[i, 1] = np.float32(a * rules.sigma), np.float32(b * rules.sigma)


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Any angle, a small speed."""
    state.angle[i] = (2 * chance(state.rng, i) - 1) * np.pi
    state.turning[i] = 2 * chance(state.rng, i) - 1
    state.held[i] = 0
    disturb(rules, state, i)


@compiled
def move(rules: Rules, state: State, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
    """The action is a torque; no episode is terminated."""
    cost = advance(state, i, action[0])
    disturb(rules, state, i)
    held = state.held[i] + 1 if abs(from_upright(state.angle[i])) <= UPRIGHT else 0
    state.held[i] = held
    return (rules.offset - cost) / rules.scale / rules.per, False, held >= HOLD


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Cosine and sine of the angle, with their noise."""
    one = np.float32(1)
    obs[j, 0] = min(max(np.float32(np.cos(state.angle[i])) + state.noise[i, 0], -one), one)
    obs[j, 1] = min(max(np.float32(np.sin(state.angle[i])) + state.noise[i, 1], -one), one)
    if rules.velocities:
        obs[j, 2] = state.turning[i]


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class Rod(World):
    """The world of every Pendulum: state, expert and pictures.

    Args:
        rules: what the player sees, the rewards and the step limit.
        render_mode: "rgb_array", "ansi" or None.
    """

    kernel = kernel

    def __init__(self, rules: Rules, render_mode: str | None) -> None:
        high = np.array([1, 1, MOST_SPEED] if rules.velocities else [1, 1], np.float32)
        torque = spaces.Box(-MOST_TORQUE, MOST_TORQUE, (1,), np.float32)
        super().__init__(rules, spaces.Box(-high, high, dtype=np.float32), torque, render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        steps, held = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        angle, turning = np.zeros(rows), np.zeros(rows)
        return State(np.zeros(rows, np.uint64), steps, angle, turning, held, np.zeros((rows, 2), np.float32))

    def expert(self) -> np.ndarray:
        """Far from upright: bring the energy to that of a rod at rest upright. Near it: a spring with damping."""
        turning = self.state.turning
        away = np.mod(self.state.angle + np.pi, 2 * np.pi) - np.pi
        energy = turning**2 / 30 + np.cos(away) - 1  # 0 at rest upright, in units of 15 rad²/s²
        torque = np.where(np.abs(away) < 0.4, -10 * away - 2 * turning, -20 * energy * turning)
        return np.clip(torque, -MOST_TORQUE, MOST_TORQUE).astype(np.float32)[:, None]

    def memory_horizons(self) -> tuple[int, ...]:
        """Two positions tell a velocity. The player who sees all needs the last observation alone."""
        return (1,) if self.rules.velocities else (2,)

    def chance_level(self) -> float | None:
        """The best spring without damping, which holds what begins upright; 1 with velocities.

        With noise it was measured in 200 steps and more, of noise of 0.1 and more.
        """
        rules = self.rules
        if rules.velocities:
            return 1.0
        if rules.sigma == 0:
            return 0.055
        return 0.01 if rules.sigma >= 0.1 and rules.limit >= 200 else None

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every observation matters at the next step."""
        return np.ones(obs.shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The rod on its axle. Two marks at the top bound what counts as upright."""
        canvas = Canvas(6, 6)
        for bound in (-UPRIGHT, UPRIGHT):
            canvas.disc(2.5 - 2.4 * math.cos(bound), 2.5 + 2.4 * math.sin(bound), faded(GOAL), radius=0.12)
        upright = abs(float(np.mod(self.state.angle[0] + np.pi, 2 * np.pi) - np.pi)) <= UPRIGHT
        rod(canvas, 2.5, 2.5, float(self.state.angle[0]), 2.0, GOAL if upright else AGENT)
        canvas.disc(2.5, 2.5, INK, radius=0.15)
        canvas.label(5, 0, f"HELD {self.state.held[0]}")
        return canvas.pixels

    def text(self) -> str:
        """Angle, speed, and for how long the rod has been upright."""
        state = self.state
        away = math.degrees(float(np.mod(state.angle[0] + np.pi, 2 * np.pi) - np.pi))
        return (
            f"step {state.steps[0]}: {away:+.1f} degrees from upright, {state.turning[0]:+.2f} rad/s, "
            f"upright for {state.held[0]} steps"
        )


class PendulumNoVel(Rod):
    """Pendulum-v1 without the angular velocity: the player sees where the rod is and must remember where it was.

    The masked task of the RL Zoo and of sb3-contrib's RecurrentPPO.

    Observation: Box of float32, (2,), or (3,) with `velocities`.

    | index | meaning | range |
    |---|---|---|
    | 0 | cosine of the angle, 1 is upright | -1 to 1 |
    | 1 | sine of the angle | -1 to 1 |
    | 2 | angular velocity in rad/s, only with `velocities` | -8 to 8 |

    Actions: Box(-2, 2, (1,), float32), a torque in N m. It is clipped to the bounds.

    Rewards: -(angle² + 0.1 velocity² + 0.001 torque²), before the step; the angle is that from upright, -π to π.

    Ends: truncated after 200 steps; nothing terminates. Success, which gymnasium does not define: in each of the last
    20 steps (1 s) the rod was within 0.2 rad (11.5 degrees) of upright.

    Horizons Ξ: {2}, two positions tell a velocity; {1} with `velocities`. Chance level: 0.055, the best player without
    memory that was found, a spring without damping: it holds a rod that begins upright and slow. 1 with `velocities`.

    Args:
        velocities: show the angular velocity too: the fully observed twin.
        render_mode: "rgb_array", "ansi" or None.

    Source: gymnasium's Pendulum-v1, whose physics is held equal step by step. Versions: v0, the first.
    """

    def __init__(self, velocities: bool = False, render_mode: str | None = None) -> None:
        super().__init__(Rules(200, check_flag("velocities", velocities), 0.0, 0.0, 1.0, 1.0), render_mode)

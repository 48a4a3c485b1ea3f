"""POPGym's CartPoles and Pendulums: `envs.cart_pole` and `envs.pendulum`, seen in part or through noise."""

from __future__ import annotations

from typing import Any

from palimpsest.envs.cart_pole import POSITIONS, VELOCITIES, Pole
from palimpsest.envs.cart_pole import Rules as PoleRules
from palimpsest.envs.pendulum import Rod
from palimpsest.envs.pendulum import Rules as RodRules
from palimpsest.refusals import check_choice, check_integer, check_number

MOST_STEPS, MOST_NOISE = 1_000_000, 10.0
HALF = 16.2736044 / 2
"""POPGym's middle between the largest and the smallest cost of a pendulum's step."""


class POPGymCartPole(Pole):
    """Balance a pole on a cart, seeing positions alone, velocities alone, or positions through noise.

    Observation: Box((2,), float32).

    | index | meaning with `seen="position"` | with `seen="velocity"` |
    |---|---|---|
    | 0 | position of the cart in metres, -4.8 to 4.8 | velocity of the cart in m/s |
    | 1 | angle of the pole in radians, 0 is upright, -0.418 to 0.418 | angular velocity in rad/s |

    The first observation of an episode shows positions in both cases, as the package's does. Noise is normal, drawn for
    each number of each observation, and the sum is clipped to the bounds.

    Actions: 0 pushes the cart to the left, 1 to the right, with 10 N.

    Rewards: 1 / limit for every step, the last one included, so that returns lie in 0 to 1.

    Ends: terminated when the cart is more than 2.4 m from the middle or the pole more than 12 degrees from upright.
    Truncated after `limit` steps. Success: the pole still stands then.

    Horizons Ξ: {2} with positions, two of them tell a velocity, and more average the noise. {limit} with velocities:
    where the cart is, is the sum of all. Chance level: 0 with positions, no player without memory was found that
    survives 200 steps; not known for fewer. With velocities 1, 0.99 and 0.3 for 200, 400 and 600 steps, the best linear
    player without memory that was found, who pushes by 0.1 velocity + angular velocity; the cart drifts away slowly.

    Args:
        seen: "position" or "velocity".
        limit: steps of an episode, 1 to 1,000,000.
        noise: standard deviation of the noise on positions, in metres and radians, 0 to 10.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7. Without noise, Easy, Medium and Hard have 200, 400 and 600
    steps; with noise they have 200 steps and 0.1, 0.2 and 0.3. Versions: v0, the first.
    """

    def __init__(
        self, seen: str = "position", limit: int = 200, noise: float = 0.0, render_mode: str | None = None
    ) -> None:
        shown = {"position": POSITIONS, "velocity": VELOCITIES}[check_choice("seen", seen, ("position", "velocity"))]
        limit = check_integer("limit", limit, 1, MOST_STEPS)
        noise = check_number("noise", noise, 0.0, MOST_NOISE if shown == POSITIONS else 0.0)
        super().__init__(PoleRules(limit, 1.0 / limit, shown, noise), render_mode)


class POPGymPendulum(Rod):
    """Swing a rod up and hold it, seeing where it is and not how fast it turns, perhaps through noise.

    Observation: Box(-1, 1, (2,), float32).

    | index | meaning | range |
    |---|---|---|
    | 0 | cosine of the angle, 1 is upright | -1 to 1 |
    | 1 | sine of the angle | -1 to 1 |

    Noise is normal, drawn for each number of each observation, and the sum is clipped to the bounds.

    Actions: Box(-2, 2, (1,), float32), a torque in N m. It is clipped to the bounds.

    Rewards: (8.1368 - cost) / 8.1368 / limit with the cost of Pendulum-v1, angle² + 0.1 velocity² + 0.001 torque², so
    that returns lie in -1 to 1.

    Ends: truncated after `limit` steps; nothing terminates. Success, which the package does not define: in each of the
    last 20 steps (1 s) the rod was within 0.2 rad (11.5 degrees) of upright.

    Horizons Ξ: {2}, two positions tell a velocity; more of them average the noise. Chance level: 0.055, a spring
    without damping, which holds a rod that begins upright and slow; 0.01 with noise, by the same player. It is not
    known for noise below 0.1, nor with noise in fewer than 200 steps. The expert swings the rod up in 100 steps.

    Args:
        limit: steps of an episode, 20 to 1,000,000.
        noise: standard deviation of the noise, 0 to 10.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7. Without noise, Easy, Medium and Hard have 200, 150 and 100
    steps; with noise they have 200 steps and 0.1, 0.2 and 0.3. Versions: v0, the first.
    """

    def __init__(self, limit: int = 200, noise: float = 0.0, render_mode: str | None = None) -> None:
        limit = check_integer("limit", limit, 20, MOST_STEPS)
        noise = check_number("noise", noise, 0.0, MOST_NOISE)
        rules: Any = RodRules(limit, False, noise, HALF, HALF, float(limit))
        super().__init__(rules, render_mode)
        self.expert_success = 0.98 if limit >= 100 else None  # to swing up takes time

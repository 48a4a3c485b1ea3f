"""POPGym's MultiarmedBandit: a Bernoulli bandit whose player sees only whether the last pull paid."""

from __future__ import annotations

import functools

import numpy as np
from gymnasium import spaces

from palimpsest.envs.bandit import MOST_ARMS, Arms, Rules, State, begin, move
from palimpsest.envs.bandit_index import MOST_PULLS
from palimpsest.envs.kernels import IO, compiled, run_rows
from palimpsest.refusals import check_flag, check_integer


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Whether the last pull paid, one-hot or as a number. numba drops the branch that does not fit the type."""
    if obs.ndim == 1:
        obs[j] = state.paid[i]
    else:
        obs[j, 0] = not state.paid[i]
        obs[j, 1] = state.paid[i]


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class MultiarmedBandit(Arms):
    """A Bernoulli bandit whose player sees only whether the last pull paid; it must remember what it pulled.

    Means are drawn anew for every episode, uniformly between 0 and 1. The package advises to show the previous action
    too: `PreviousActionReward` does, and `train.py --previous-action-reward`.

    Observation: Box(0, 1, (2,), float32), or Discrete(2) with `flat=False`.

    | index | meaning |
    |---|---|
    | 0 | the last pull did not pay, or there was none |
    | 1 | it paid |

    Actions: Discrete(num_bandits), the arm to pull.

    Rewards: 1 / episode_length if the arm pays, else -1 / episode_length, so that returns lie in -1 to 1.

    Ends: truncated after `episode_length` steps. Success, which the package does not define: the last pull is that of
    the best arm. The last info of an episode also holds its `regret`, as in `Palimpsest/Bandit-v0`.

    Horizons Ξ: {1, ..., episode_length - 1}, every pull tells something for all later ones. Chance level: the last pull
    of a player who pulls one arm after a pull that paid and another one after one that did not, 0.12 for 10 arms.

    Args:
        num_bandits: arms, 2 to 100.
        episode_length: pulls in an episode, 1 to 600.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 10 arms and 200 pulls, Medium 20 and 400, Hard 30
    and 600. Versions: v0, the first.
    """

    kernel = kernel
    expert_success = 0.5

    def __init__(
        self, num_bandits: int = 10, episode_length: int = 200, flat: bool = True, render_mode: str | None = None
    ) -> None:
        arms = check_integer("num_bandits", num_bandits, 2, MOST_ARMS)
        pulls = check_integer("episode_length", episode_length, 1, MOST_PULLS)
        flat = check_flag("flat", flat)
        space: spaces.Space = spaces.Box(0, 1, (2,), np.float32) if flat else spaces.Discrete(2)
        super().__init__(Rules(pulls, arms, 1 / pulls, -1 / pulls), space, spaces.Discrete(arms), render_mode)

    def chance_level(self) -> float:
        """The last pull of a player of two arms, whose choice depends on whether the last pull paid."""
        return two_arms(self.rules.arms, min(self.rules.limit, 100))

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every pull."""
        return np.ones(np.shape(obs)[: -1 if isinstance(self.observation_space, spaces.Box) else None], bool)


@functools.cache
def two_arms(arms: int, pulls: int, bandits: int = 20_000) -> float:
    """How often the last of `pulls` pulls is the best arm where arm 0 follows a paid pull, arm 1 any other."""
    mean = np.random.default_rng(0).random((bandits, arms))
    first = np.zeros(bandits)
    for _ in range(pulls - 1):
        first = first * mean[:, 0] + (1 - first) * mean[:, 1]
    best = mean.argmax(1)
    return float(np.where(best == 0, first, np.where(best == 1, 1 - first, 0)).mean())

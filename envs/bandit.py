"""Bernoulli bandits: find the arm that pays most often, and pull it. `Arms` is the world of every bandit."""

from __future__ import annotations

import functools
from typing import ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.bandit_index import MOST_PULLS, indices
from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, chance, compiled, run_rows
from palimpsest.envs.raster import AGENT, FLOOR, GOAL, Canvas, faded
from palimpsest.refusals import check_integer

MOST_ARMS = 100
MOST_SHOWN = 16
"""The most arms that a picture shows."""
NONE = -1


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    arms: int
    paid: float
    unpaid: float
    """rewards"""


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    mean: np.ndarray
    """[B, arms] float32, the probability that an arm pays"""
    wins: np.ndarray
    """[B, arms] int16, how often each arm has paid"""
    pulled: np.ndarray
    """[B, arms] int16, how often each arm was pulled"""
    last: np.ndarray
    """int64, the arm of the last pull, -1 before the first"""
    paid: np.ndarray
    """bool, whether the last pull was paid"""
    regret: np.ndarray
    """float64, the sum over all pulls of the best arm's mean minus the mean of the arm that was pulled"""
    last_regret: np.ndarray
    """float64, the regret of the row's last episode that has ended"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """New means, uniform in 0 to 1."""
    for arm in range(rules.arms):
        state.mean[i, arm] = chance(state.rng, i)
        state.wins[i, arm] = state.pulled[i, arm] = 0
    state.last[i] = NONE
    state.paid[i] = False
    state.regret[i] = 0.0


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Pull an arm."""
    best = state.mean[i, 0]
    for arm in range(1, rules.arms):
        best = max(best, state.mean[i, arm])
    paid = np.float32(chance(state.rng, i)) < state.mean[i, action]
    state.wins[i, action] += paid
    state.pulled[i, action] += 1
    state.last[i] = action
    state.paid[i] = paid
    state.regret[i] += np.float64(best) - np.float64(state.mean[i, action])
    if state.steps[i] + 1 >= rules.limit:
        state.last_regret[i] = state.regret[i]
    return (rules.paid if paid else rules.unpaid), False, state.mean[i, action] == best


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The last pull and whether it was paid."""
    for arm in range(rules.arms):
        obs[j, arm] = state.last[i] == arm
    obs[j, rules.arms] = state.paid[i]


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class Arms(World):
    """The world of every bandit: state, expert and pictures."""

    reported: ClassVar[dict[str, str]] = {"regret": "last_regret"}

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        arms = rows, self.rules.arms
        return State(
            rng=np.zeros(rows, np.uint64),
            steps=np.zeros(rows, np.int64),
            mean=np.zeros(arms, np.float32),
            wins=np.zeros(arms, np.int16),
            pulled=np.zeros(arms, np.int16),
            last=np.full(rows, NONE, np.int64),
            paid=np.zeros(rows, bool),
            regret=np.zeros(rows),
            last_regret=np.zeros(rows),
        )

    def expert(self) -> np.ndarray:
        """An arm of the largest finite-horizon Gittins index. It knows what was paid, and not the means."""
        left = self.rules.limit - self.state.steps
        return indices(self.rules.limit)(self.state.wins, self.state.pulled, left[:, None]).argmax(1)

    def memory_horizons(self) -> tuple[int, ...]:
        """Every pull tells something for all later ones."""
        return tuple(range(1, max(self.rules.limit, 2)))

    def picture(self) -> np.ndarray:
        """The arms with their means, faded, as the player cannot see them; in colour the shares of paid pulls."""
        state, arms = self.state, min(self.rules.arms, MOST_SHOWN)
        canvas = Canvas(6, max(arms, 6))
        for arm in range(arms):
            mean, pulled = float(state.mean[0, arm]), int(state.pulled[0, arm])
            canvas.box(5 - 4 * mean, arm, faded(GOAL), height=4 * mean)
            share = state.wins[0, arm] / pulled if pulled else 0.0
            canvas.box(5 - 4 * share, arm + 0.3, GOAL if state.last[0] == arm else FLOOR, height=4 * share, width=0.4)
            canvas.label(5, arm, str(pulled % 100))
        if 0 <= state.last[0] < arms:
            canvas.disc(0, int(state.last[0]), GOAL if state.paid[0] else AGENT)
        return canvas.pixels

    def text(self) -> str:
        """The same in numbers."""
        state = self.state
        arms = " ".join(
            f"{mean:.2f}:{won}/{pulled}" for mean, won, pulled in zip(state.mean[0], state.wins[0], state.pulled[0])
        )
        last = f"arm {state.last[0]} {'paid' if state.paid[0] else 'did not pay'}" if state.steps[0] else "no pull"
        return f"step {state.steps[0]}/{self.rules.limit}, {last}, regret {state.regret[0]:.2f}; mean:paid/pulls {arms}"


class Bandit(Arms):
    """A Bernoulli bandit: pull one of several arms, again and again; each pays with a probability that must be found.

    The player sees its last pull and what it got. To know which arm pays best it must remember all pulls: how often
    each arm was pulled and how often it paid. Means are drawn anew for every episode, uniformly between 0 and 1.

    Observation: Box(0, 1, (num_arms + 1,), float32); zeros at the first.

    | index | meaning |
    |---|---|
    | 0 to num_arms - 1 | the arm of the last pull, one-hot |
    | num_arms | 1 if it paid |

    Actions: Discrete(num_arms), the arm to pull.

    Rewards: 1 if the arm pays, else 0.

    Ends: truncated after `pulls` steps. Success: the last pull is that of the best arm. The last info of an
    episode also holds its `regret`: the sum over all pulls of the best mean minus the mean that was pulled.

    Horizons Ξ: {1, ..., pulls - 1}, every pull tells something for all later ones. Chance level: the last pull of a
    player who repeats what paid and else takes any other arm, about 0.5 for 5 arms.

    The expert pulls the arm of the largest finite-horizon Gittins index, which is close to Bayes-optimal: for two arms
    its mean return is below the exact optimum by less than one part in a thousand. Its success is the share of
    episodes in which what was paid tells the best arm.

    Args:
        num_arms: 2 to 100.
        pulls: in an episode, 1 to 600.
        render_mode: "rgb_array", "ansi" or None.

    Source: the bandits of RL² (arXiv 1611.02779): 5, 10 or 50 arms and 10, 100 or 500 pulls. Versions: v0, the first.
    """

    kernel = kernel
    expert_success = 0.7

    def __init__(self, num_arms: int = 5, pulls: int = 100, render_mode: str | None = None) -> None:
        num_arms = check_integer("num_arms", num_arms, 2, MOST_ARMS)
        pulls = check_integer("pulls", pulls, 1, MOST_PULLS)
        space = spaces.Box(0, 1, (num_arms + 1,), np.float32)
        super().__init__(Rules(pulls, num_arms, 1.0, 0.0), space, spaces.Discrete(num_arms), render_mode)

    def chance_level(self) -> float:
        """The last pull of a player who repeats what paid and else takes any other arm."""
        return win_stay(self.rules.arms, min(self.rules.limit, 100))

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every pull."""
        return np.any(obs[..., :-1] > 0, axis=-1, keepdims=True)[..., 0]


@functools.cache
def win_stay(arms: int, pulls: int, bandits: int = 20_000) -> float:
    """How often the last of `pulls` pulls is that of the best arm where paid pulls are repeated and others moved on."""
    mean = np.random.default_rng(0).random((bandits, arms))
    at = np.full((bandits, arms), 1 / arms)
    for _ in range(pulls - 1):
        left = at * (1 - mean)
        at = at * mean + (left.sum(1, keepdims=True) - left) / (arms - 1)
    return float(at[np.arange(bandits), mean.argmax(1)].mean())

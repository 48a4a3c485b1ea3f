"""Generalised advantage estimation, and the choice of its λ by what a rollout shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from palimpsest.machine_code import njit

CHOICES = 5
"""Number of λ below the largest that are tried, at equal distances."""
TRUSTED = 0.9
"""Slope, in units of `slope_of_noise`, up to which shorter advantages are trusted, found by trial
(docs/notebook/defaults.md, "A λ that rollouts choose")."""

LATEST = 0.2
"""Weight of the latest rollout in the averages of slopes."""


@njit(cache=True)
def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    episode_start: np.ndarray,
    last_values: np.ndarray,
    last_done: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """GAE(λ): A_t = δ_t + γ λ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t, both cut where step t + 1 opens an episode.

    Args:
        rewards: [T, B] float32, with a truncated episode's γ V(final observation) already added.
        values: [T, B] float32.
        episode_start: [T, B] bool.
        last_values: [B] float32, of the observation after the last step.
        last_done: [B] bool, whether that observation opens an episode.
        gamma: discount per step.
        gae_lambda: λ.

    Returns:
        Advantages [T, B] float32.

    Source: eq. 16 of "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    arXiv 1506.02438.
    """
    T, B = rewards.shape
    advantages = np.empty_like(rewards)
    for b in range(B):
        advantage = 0.0
        next_value = last_values[b]
        next_start = last_done[b]
        for t in range(T - 1, -1, -1):
            if next_start:
                advantage = rewards[t, b] - values[t, b]
            else:
                delta = rewards[t, b] + gamma * next_value - values[t, b]
                advantage = delta + gamma * gae_lambda * advantage
            advantages[t, b] = advantage
            next_value = values[t, b]
            next_start = episode_start[t, b]
    return advantages


def choices(smallest: float, largest: float) -> list[float]:
    """The λ below `largest` that are tried; none unless `smallest` is below it."""
    return np.linspace(smallest, largest, CHOICES, endpoint=False).tolist() if smallest < largest else []


def chosen_lambda(smallest: float, largest: float, slopes: Sequence[float]) -> float:
    """The smallest λ that is trusted: that misses nothing which goes on for longer.

    Advantages of a smaller λ hold less of the noise of what follows an action. But where values follow slowly what an
    action changed, the TD errors after it go on in one direction, and a small λ misses most of it. Then the longest
    advantages rise with the shorter ones more steeply than for TD errors that are mere noise. So rollouts themselves
    tell: λ is the smallest of `choices` for which the slope of this regression is at most `TRUSTED` times that of
    noise.

    Args:
        smallest: the smallest λ that may be chosen.
        largest: the largest, which is chosen where no other is trusted and before the first rollout.
        slopes: for each of `choices`, averaged over rollouts; empty before the first.

    Returns:
        One of `choices`, or `largest`.

    Source: ours.
    """
    trusted = (each for each, slope in zip(choices(smallest, largest), slopes) if slope <= TRUSTED)
    return next(trusted, largest)


def slopes_of(
    estimate: Callable[[float], np.ndarray],
    smallest: float,
    largest: float,
    gamma: float,
    whole: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> list[float]:
    """Slope of the regression of the longest advantages on those of each of `choices`, in units of `slope_of_noise`.

    Args:
        estimate: gives the advantages [T, B] float32 of a λ.
        smallest: the smallest λ.
        largest: the largest.
        gamma: discount per step.
        whole: adds up five float64 sums over all workers, where each has rows of its own.

    Returns:
        One for each of `choices`; NaN where advantages do not vary.
    """
    tried = choices(smallest, largest)
    if not tried:
        return []
    longest = estimate(largest)
    return [_slope(longest, estimate(each), whole) / slope_of_noise(each, largest, gamma) for each in tried]


def averaged(slopes: list[float], found: list[float]) -> list[float]:
    """Slopes so far with those of a rollout in them; without where the rollout's are not finite."""
    if not np.isfinite(found).all():
        return slopes
    return [old + LATEST * (new - old) for old, new in zip(slopes or found, found)]


def slope_of_noise(shorter: float, longer: float, gamma: float) -> float:
    """Slope of the regression of GAE(longer) on GAE(shorter) for uncorrelated TD errors of one variance.

    With a = Σ (γ λ)^k δ_k for either λ it is Σ (γ² λ λ')^k / Σ (γ λ)^2k = (1 - γ² λ²) / (1 - γ² λ λ'), λ the shorter.
    The sums have no end. Where episodes end after a few steps the slope is smaller, and a small λ is trusted sooner.
    """
    return (1 - (gamma * shorter) ** 2) / (1 - gamma**2 * shorter * longer)


def _slope(y: np.ndarray, x: np.ndarray, whole: Callable[[np.ndarray], np.ndarray]) -> float:
    """Slope of the regression of y on x, NaN where x does not vary."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n, x_sum, y_sum, products, squares = whole(np.array([x.size, x.sum(), y.sum(), (x * y).sum(), (x * x).sum()]))
    variance = squares - x_sum * x_sum / n
    return float((products - x_sum * y_sum / n) / variance) if variance > 0 else np.nan

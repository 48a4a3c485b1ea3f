"""Statistics over runs and tasks that are honest with few seeds (Agarwal et al. 2021, arXiv 2108.13264).

Scores are given by task: a dict of task -> the scores of its runs, one number per run. Tasks may have different numbers
of runs. All functions refuse NaN and infinity with the name of the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from palimpsest.refusals import check_integer, check_number, refuse

Scores = Mapping[str, Sequence[float] | np.ndarray]
"""Task -> [runs] scores."""

REPEATS = 2000
"""Bootstrap samples behind an interval."""

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """The mean over runs and its standard error, None where there is only one run."""
    array = _checked({"values": values})[0]
    error = None if len(array) == 1 else float(array.std(ddof=1) / np.sqrt(len(array)))
    return float(array.mean()), error


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all scores: `floor(n / 4)` of them are left out at each end."""
    return float(_trimmed(np.concatenate(_checked(scores))))


def optimality_gap(scores: Scores, target: float = 1.0) -> float:
    """How far scores stay below `target` on average. A score above it counts as the target."""
    target = check_number("target", target, -math.inf, math.inf)
    return float(target - np.minimum(np.concatenate(_checked(scores)), target).mean())


def performance_profile(scores: Scores, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The fraction of all runs whose score is above each threshold, [thresholds]."""
    pooled = np.concatenate(_checked(scores))
    return np.asarray((pooled > _thresholds(thresholds)[:, None]).mean(axis=1))


def probability_of_improvement(first: Scores, second: Scores) -> float:
    """The probability that a run of `first` beats a run of `second`, averaged over tasks. Equal scores count half.

    Raises:
        ValueError: the two have different tasks.
    """
    return float(np.mean([_wins(x[None], y[None]) for x, y in _paired(first, second)]))


def interval(
    statistic: Callable[[np.ndarray], np.ndarray], scores: Scores, repeats: int = REPEATS, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a statistic by stratified bootstrap: runs are drawn anew within each task.

    Args:
        statistic: scores of all runs and tasks [repeats, N] -> [repeats].
        scores: those of the runs.
        repeats: bootstrap samples.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    samples = [_drawn(task, check_integer("repeats", repeats, 1), rng) for task in _checked(scores)]
    return _middle(statistic(np.concatenate(samples, axis=1)))


def estimate_mean(scores: Scores) -> Estimate:
    """The mean over all runs and its interval."""
    return Estimate(float(np.concatenate(_checked(scores)).mean()), *interval(lambda drawn: drawn.mean(axis=1), scores))


def estimate_iqm(scores: Scores) -> Estimate:
    """The interquartile mean and its interval."""
    return Estimate(interquartile_mean(scores), *interval(_trimmed, scores))


def estimate_gap(scores: Scores, target: float = 1.0) -> Estimate:
    """The optimality gap and its interval."""

    def gap(drawn: np.ndarray) -> np.ndarray:
        return np.asarray(target - np.minimum(drawn, target).mean(axis=1))

    return Estimate(optimality_gap(scores, target), *interval(gap, scores))


def estimate_improvement(first: Scores, second: Scores, repeats: int = REPEATS, seed: int = 0) -> Estimate:
    """The probability of improvement and its interval."""
    repeats = check_integer("repeats", repeats, 1)
    rng = np.random.default_rng(seed)
    drawn = [_wins(_drawn(x, repeats, rng), _drawn(y, repeats, rng)) for x, y in _paired(first, second)]
    return Estimate(probability_of_improvement(first, second), *_middle(np.mean(drawn, axis=0)))


def profile_band(
    scores: Scores, thresholds: Sequence[float] | np.ndarray, repeats: int = REPEATS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper end of the 95 % interval of a performance profile, [thresholds] each."""
    thresholds = _thresholds(thresholds)
    ends = [
        interval(lambda drawn, over=threshold: (drawn > over).mean(axis=1), scores, repeats, seed)  # type: ignore[misc]
        for threshold in thresholds
    ]
    low, high = np.transpose(ends)
    return low, high


def _checked(scores: Scores) -> list[np.ndarray]:
    """The scores of each task as float64 [runs]."""
    if not scores:
        raise ValueError("scores must hold one task or more; got none")
    arrays = []
    for task, values in scores.items():
        array = np.asarray(values, float)
        if array.ndim != 1 or not len(array):
            refuse(f"scores of {task!r}", "one number per run, of one run or more", values)
        if not np.isfinite(array).all():
            refuse(f"scores of {task!r}", "finite numbers", array.tolist(), "; leave out runs that have no score")
        arrays.append(array)
    return arrays


def _thresholds(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Thresholds of a profile as float64 [thresholds]."""
    array = np.asarray(values, float)
    if array.ndim != 1 or not len(array) or np.isnan(array).any():
        refuse("thresholds", "one number or more", values)
    return array


def _paired(first: Scores, second: Scores) -> list[tuple[np.ndarray, np.ndarray]]:
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise ValueError(f"both sides must have the same tasks; only one of them has {', '.join(only)}")
    ours = {task: second[task] for task in first}
    return list(zip(_checked(first), _checked(ours), strict=True))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The fraction of pairs in which x wins, equal ones counted half: [R, n] and [R, m] -> [R]."""
    x, y = x[:, :, None], y[:, None, :]
    return np.asarray(((x > y) + 0.5 * (x == y)).mean(axis=(1, 2)))


def _trimmed(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis, without the floor(n / 4) lowest and highest."""
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def _drawn(values: np.ndarray, repeats: int, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(values[rng.integers(len(values), size=(repeats, len(values)))])


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)

"""Statistics over runs and tasks: against slow obvious twins, and against figures computed by hand."""

from __future__ import annotations

import itertools
import math
import statistics as plain

import numpy as np
import pytest

from palimpsest.agents.evaluation.statistics import (
    Estimate,
    estimate_gap,
    estimate_improvement,
    estimate_iqm,
    estimate_mean,
    interquartile_mean,
    interval,
    mean_and_error,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_band,
)

HAND = {"a": [0.1, 0.2, 0.9, 0.4], "b": [1.0, 0.5, 0.5, 0.0]}
"""Sorted: 0, .1, .2, .4, .5, .5, .9, 1."""


def random_scores(seed: int, runs: tuple[int, ...] = (3, 5, 4)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"task {i}": rng.integers(-3, 12, n) / 10 for i, n in enumerate(runs)}


def pooled(scores) -> list[float]:
    return [float(value) for values in scores.values() for value in values]


def test_by_hand():
    assert interquartile_mean(HAND) == pytest.approx((0.2 + 0.4 + 0.5 + 0.5) / 4)
    assert optimality_gap(HAND) == pytest.approx(1 - 3.6 / 8)
    assert optimality_gap({"a": [0.5, 3.0]}) == pytest.approx(0.25)  # a score above the target counts as the target
    assert optimality_gap({"a": [0.5, 3.0]}, target=2.0) == pytest.approx(0.75)
    assert performance_profile(HAND, [-1, 0, 0.45, 0.5, 1]).tolist() == [1, 7 / 8, 4 / 8, 2 / 8, 0]
    assert mean_and_error([1, 2, 3]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    # a beats b in 3 of 4 pairs of "x" and in 1.5 of "y", where two are equal
    first, second = {"x": [2.0, 0.0], "y": [1.0, 1.0]}, {"x": [1.0, -1.0], "y": [1.0, 2.0]}
    assert probability_of_improvement(first, second) == pytest.approx((3 / 4 + 1 / 4) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_slow_twins_agree(seed):
    scores, others = random_scores(seed), random_scores(seed + 100, (5, 2, 4))
    values = sorted(pooled(scores))
    cut = len(values) // 4
    assert interquartile_mean(scores) == pytest.approx(plain.mean(values[cut : len(values) - cut]))
    assert optimality_gap(scores) == pytest.approx(plain.mean(max(1 - value, 0) for value in values))
    for threshold in (0.0, 0.3, 0.55):
        above = sum(value > threshold for value in values) / len(values)
        assert performance_profile(scores, [threshold]) == pytest.approx([above])
    by_task = []
    for task in scores:
        pairs = list(itertools.product(scores[task], others[task]))
        by_task.append(sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in pairs) / len(pairs))
    assert probability_of_improvement(scores, others) == pytest.approx(plain.mean(by_task))
    assert probability_of_improvement(others, scores) == pytest.approx(1 - plain.mean(by_task))


@pytest.mark.parametrize("seed", range(3))
def test_the_formulas_that_rliable_uses_agree(seed):
    """It calls scipy's trimmed mean, and Mann and Whitney's U divided by the number of pairs."""
    stats = pytest.importorskip("scipy.stats")
    scores, others = random_scores(seed), random_scores(seed + 50)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(pooled(scores), proportiontocut=0.25))
    wins = [
        stats.mannwhitneyu(scores[task], others[task], alternative="greater").statistic
        / (len(scores[task]) * len(others[task]))
        for task in scores
    ]
    assert probability_of_improvement(scores, others) == pytest.approx(np.mean(wins))
    one = {"only": scores["task 1"]}
    found = stats.bootstrap(
        (one["only"],), np.mean, n_resamples=20_000, method="percentile", vectorized=True, rng=np.random.default_rng(0)
    ).confidence_interval
    assert interval(lambda drawn: drawn.mean(axis=1), one, repeats=20_000) == pytest.approx(tuple(found), abs=0.02)


def test_the_bootstrap_draws_within_tasks():
    """With one run in each task nothing can change; pooled draws would."""
    for estimate in (estimate_mean, estimate_iqm, estimate_gap):
        value, low, high = estimate({"a": [0.0], "b": [0.5], "c": [1.0]})
        assert value == pytest.approx(low) == pytest.approx(high) == pytest.approx(0.5)
    seen = []
    interval(lambda drawn: seen.append(drawn) or drawn.mean(axis=1), {"a": [1, 2, 3], "b": [10, 20]}, repeats=500)
    (drawn,) = seen
    assert drawn.shape == (500, 5)
    assert set(drawn[:, :3].ravel()) == {1, 2, 3}
    assert set(drawn[:, 3:].ravel()) == {10, 20}
    assert np.abs(np.mean(drawn == 1) - 3 / 5 / 3) < 0.03


def test_intervals_hold_the_value_and_shrink_with_runs():
    rng = np.random.default_rng(0)
    few, many = ({"a": rng.random(n)} for n in (5, 500))
    for estimate in (estimate_mean, estimate_iqm, estimate_gap):
        wide, narrow = estimate(few), estimate(many)
        assert wide.low <= wide.value <= wide.high
        assert 0 < narrow.high - narrow.low < (wide.high - wide.low) / 4
    better = {"a": [value + 2 for value in few["a"]]}
    assert estimate_improvement(better, few) == Estimate(1.0, 1.0, 1.0)
    near = estimate_improvement({"a": rng.random(8)}, {"a": rng.random(8)})
    assert 0 <= near.low < near.value < near.high <= 1
    assert estimate_iqm(few) == estimate_iqm(few)  # the draws are seeded
    low, high = profile_band(few, [0.2, 0.5])
    assert (low <= performance_profile(few, [0.2, 0.5])).all()
    assert (high >= performance_profile(few, [0.2, 0.5])).all()


def test_wrong_arguments_are_refused():
    scores = {"a": [0.1, 0.2]}
    for repeats in (0, 1.5):
        with pytest.raises(ValueError, match="repeats must be an integer, 1 to"):
            estimate_improvement(scores, scores, repeats=repeats)
    for thresholds in ([], 0.5, [np.nan]):
        for profile in (performance_profile, profile_band):
            with pytest.raises(ValueError, match="thresholds must be one number or more"):
                profile(scores, thresholds)
    with pytest.raises(ValueError, match="target must be a number"):
        estimate_gap(scores, np.nan)


def test_few_runs_and_equal_scores():
    assert mean_and_error([0.3]) == (0.3, None)
    assert mean_and_error([0.3, 0.3]) == (0.3, 0.0)
    assert interquartile_mean({"a": [0.3]}) == 0.3
    equal = {"a": [0.5, 0.5], "b": [0.5, 0.5]}
    assert estimate_iqm(equal) == Estimate(0.5, 0.5, 0.5)
    assert estimate_improvement(equal, equal) == Estimate(0.5, 0.5, 0.5)
    assert performance_profile(equal, [0.5]).tolist() == [0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_score_is_refused_by_its_task(wrong):
    scores = {"good": [0.1, 0.2], "the maze": [0.5, wrong]}
    for call in (
        lambda: interquartile_mean(scores),
        lambda: optimality_gap(scores),
        lambda: performance_profile(scores, [0.5]),
        lambda: estimate_mean(scores),
        lambda: probability_of_improvement(scores, {"good": [1], "the maze": [1]}),
        lambda: probability_of_improvement({"good": [1], "the maze": [1]}, scores),
        lambda: estimate_improvement(scores, scores),
    ):
        with pytest.raises(ValueError, match=r"scores of 'the maze' must be finite numbers; got \[0.5, -?(nan|inf)\]"):
            call()
    with pytest.raises(ValueError, match="scores of 'values' must be finite"):
        mean_and_error([wrong])


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="scores must hold one task or more; got none"):
        interquartile_mean({})
    for wrong in ([], [[0.1, 0.2]], 0.3):
        with pytest.raises(ValueError, match="scores of 'a' must be one number per run, of one run or more; got"):
            optimality_gap({"a": wrong})
    with pytest.raises(ValueError, match="both sides must have the same tasks; only one of them has b, c"):
        probability_of_improvement({"a": [1], "b": [1]}, {"a": [1], "c": [1]})
    with pytest.raises(ValueError, match="repeats must be an integer, 1 to"):
        interval(lambda drawn: drawn.mean(axis=1), HAND, repeats=0)

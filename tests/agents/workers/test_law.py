"""N workers give what one gives: parameters, rollouts, logs."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from divided import CASES, all_trained, deserted, refused, together, trained

from palimpsest.agents.policy.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from palimpsest.agents.workers.draws import part_of

pytestmark = pytest.mark.learning

EVERY = sorted(CASES)
FOUR = ("memory-rewrite", "gsde", "adaptive", "one-column")
"""Cases for four workers, of one row each."""

NO_MEANS = {"memory/strategy_mean", "memory/read_age", "memory/read_entropy", "memory/memory_rms"}
"""What memories log of a scan that is no mean over its rows: workers log the mean of their parts'."""


@functools.cache
def alone(case: str) -> dict:
    """What one worker gives."""
    return trained(case)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    return together(all_trained, 2, tmp_path_factory.mktemp("two"), EVERY)[0]


@pytest.fixture(scope="module")
def by_four(tmp_path_factory):
    return together(all_trained, 4, tmp_path_factory.mktemp("four"), list(FOUR))[0]


def assert_alike(whole: dict, divided: dict) -> None:
    assert whole["numbers"].keys() == divided["numbers"].keys()
    for name, value in whole["numbers"].items():
        # one scale for a tensor: a sum of ten that is almost 0 has the rounding of its terms
        scale = 1e-10 * np.abs(value).max() if value.dtype == np.float64 and value.size else 0
        atol = 1e-6 if value.dtype == np.float32 else scale
        np.testing.assert_allclose(divided["numbers"][name], value, rtol=1e-10, atol=atol, err_msg=name)
    assert divided["episodes"] == whole["episodes"]
    assert len(whole["episodes"]) == 10
    assert len(whole["logs"]) == len(divided["logs"]) == 3
    for mine, its in zip(whole["logs"], divided["logs"]):
        assert mine.keys() == its.keys()
        names = [name for name in mine if name not in NO_MEANS]
        # the mean of advantages of size 1, which are float32, has their rounding though it is almost 0
        atol = np.finfo(np.float32).eps
        np.testing.assert_allclose([its[name] for name in names], [mine[name] for name in names], 1e-6, atol)


@pytest.mark.parametrize("case", EVERY)
def test_two_workers_give_what_one_gives(case, by_two):
    assert_alike(alone(case), by_two[case])


@pytest.mark.parametrize("case", FOUR)
def test_four_workers_of_one_row_give_what_one_gives(case, by_four):
    assert_alike(alone(case), by_four[case])


def test_the_law_is_about_undone_steps_and_passes_that_end_early():
    logs = alone("undone")["logs"]
    assert logs[-1]["train/rejected_steps"] == 1
    assert logs[-1]["train/n_updates"] == 2 == len(logs) - 1


def test_vec_normalize_is_refused(tmp_path):
    assert all("VecNormalize has statistics of its own" in answer for answer in together(refused, 2, tmp_path))


def test_the_loss_of_a_worker_is_told(tmp_path):
    assert together(deserted, 2, tmp_path)[0].startswith("a worker is gone: ")


MADE = {
    "categorical": lambda x: Categorical(4).proba_distribution(x),
    "multi-categorical": lambda x: MultiCategorical([1, 3]).proba_distribution(x),
    "bernoulli": lambda x: Bernoulli(4).proba_distribution(x),
    "normal": lambda x: DiagGaussian(4).proba_distribution(x, torch.tensor([0.0, -1.0, 0.5, 1.0])),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_row_gets_the_draws_that_it_gets_in_the_whole(made):
    x = torch.randn(9, 4)
    torch.manual_seed(1)
    whole, after = made(x).sample(), torch.rand(3)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 9)):
        torch.manual_seed(1)
        with part_of(rows, 9):
            part = made(x[rows]).sample()
        torch.testing.assert_close(part, whole[rows])
        assert torch.equal(torch.rand(3), after)

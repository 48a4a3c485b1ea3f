"""Which kind of memory a test tests: the four cases of arXiv 2412.06531, and what evaluation says of real pairs."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from palimpsest import envs
from palimpsest.agents import MemoryPPO, evaluate
from palimpsest.agents.evaluation.horizons import LONG_TERM, MIXTURE, OUT_OF_REACH, SHORT_TERM, kind_of_test
from palimpsest.memory import Context

MAZE = "Palimpsest/EndlessTMaze-v0"


@pytest.mark.parametrize(
    ("K", "K_eff", "horizons", "kind"),
    [
        (11, 11, (11,), SHORT_TERM),
        (10, math.inf, (11,), LONG_TERM),
        (1, 11, (11,), LONG_TERM),
        (1, 10, (11,), OUT_OF_REACH),
        (1, 1, (2,), OUT_OF_REACH),
        (5, math.inf, (2, 11), MIXTURE),
        (2, math.inf, (2, 11), MIXTURE),
        (1, math.inf, (2, 11), LONG_TERM),
        (5, 8, (2, 11), OUT_OF_REACH),
        (64, 129, (2, 3), SHORT_TERM),
    ],
)
def test_kinds(K, K_eff, horizons, kind):
    assert kind_of_test(Context(K, K_eff), horizons) == kind


def test_every_pair_has_the_kind_of_the_inequalities():
    """As the paper has them, with its bound min Ξ - 1, one condition at a time."""
    for K, beyond, low, span in itertools.product(range(1, 9), range(4), range(1, 9), range(4)):
        K_eff, high = K + beyond, low + span
        kinds = {
            SHORT_TERM: high <= K,
            LONG_TERM: low - 1 >= K and K < high <= K_eff,
            MIXTURE: low - 1 < K < high <= K_eff,
            OUT_OF_REACH: high > K_eff,
        }
        assert sum(kinds.values()) == 1
        assert kinds[kind_of_test(Context(K, K_eff), range(low, high + 1))]


@pytest.mark.parametrize(
    ("memory", "kwargs", "kind"),
    [
        ("none", {}, OUT_OF_REACH),
        ("gru", {}, LONG_TERM),
        ("gtrxl", {"memory_length": 10, "num_layers": 2, "output_size": 8}, SHORT_TERM),
        ("gtrxl", {"memory_length": 5, "num_layers": 2, "output_size": 8}, LONG_TERM),
        ("gtrxl", {"memory_length": 4, "num_layers": 2, "output_size": 8}, OUT_OF_REACH),
    ],
)
def test_evaluation_says_it(memory, kwargs, kind):
    venv = envs.make_vec(MAZE, 2, seed=0, corridors=1, length=10)
    model = MemoryPPO(
        "MlpMemoryPolicy", venv, n_steps=16, batch_size=32, policy_kwargs=dict(memory=memory, memory_kwargs=kwargs)
    )
    told = evaluate(model, MAZE, episodes=2, env_args=dict(corridors=1, length=10), max_steps=3)["memory"]
    assert told["tests"] == kind
    assert (told["horizon_min"], told["horizon_max"]) == (11, 11)
    assert (told["K"], told["K_eff"]) == tuple(None if math.isinf(k) else k for k in model.policy.memory.context())
    json.dumps(told, allow_nan=False)


def test_environments_without_horizons_and_agents_without_memory_are_left_open():
    venv = envs.make_vec("CartPole-v1", 2, seed=0)
    model = MemoryPPO("MlpMemoryPolicy", venv, n_steps=16, batch_size=32, policy_kwargs=dict(memory="gru"))
    assert evaluate(model, "CartPole-v1", episodes=2)["memory"] is None

"""A step that is taken back leaves nothing of itself but how large gradients were."""

import copy

import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.testing import assert_close
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.divergence import DivergenceLimit, LastStep
from palimpsest.agents.learn.loss import evaluated

OPTIMISERS = {
    "adam": (torch.optim.Adam, {}, "exp_avg"),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, "momentum_buffer"),
    "rmsprop": (torch.optim.RMSprop, {}, None),
}


def take(optimizer, layer, scale):
    optimizer.zero_grad()
    (scale * layer(torch.ones(1, 3))).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_parameters_and_means_of_gradients_go_back(name, steps_before):
    kind, options, mean = OPTIMISERS[name]
    layer = nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1, **options)
    for step in range(steps_before):
        take(optimizer, layer, 1.0 + step)
    last = LastStep(optimizer)
    last.keep()
    weights, state = copy.deepcopy(layer.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    take(optimizer, layer, 100.0)
    assert not torch.equal(layer.weight, weights["weight"])
    last.undo()
    assert_close(layer.state_dict(), weights, rtol=0, atol=0)
    for number, values in optimizer.state_dict()["state"].items():
        if mean is not None:
            before = state[number][mean] if steps_before else torch.zeros_like(values[mean])
            assert_close(values[mean], before, rtol=0, atol=0)
    if name == "adam":
        assert float(optimizer.state[layer.weight]["exp_avg_sq"].min()) > 1


def test_undoing_without_anything_kept_does_nothing():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    take(optimizer, layer, 1.0)
    weight = layer.weight.detach().clone()
    assert not LastStep(optimizer).undo()
    assert torch.equal(layer.weight, weight)
    limit = DivergenceLimit(optimizer, 0.01)
    assert limit.check(1.0)
    assert not limit.rejected


def test_a_parameter_that_has_its_first_gradient_later():
    """Its mean comes into being between those of others."""
    late, early = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([late, early], lr=0.1)
    early.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    last = LastStep(optimizer)
    last.keep()
    mean, value = optimizer.state[early]["exp_avg"].clone(), early.detach().clone()
    (late.sum() + early.sum()).backward()
    optimizer.step()
    assert last.undo()
    assert_close((late.detach(), early.detach()), (torch.ones(2), value), rtol=0, atol=0)
    assert_close(optimizer.state[early]["exp_avg"], mean, rtol=0, atol=0)
    assert_close(optimizer.state[late]["exp_avg"], torch.zeros(2), rtol=0, atol=0)


def divergences(target_kl, monkeypatch, updates=5):
    """Updates with far too long steps: the divergence from the policy that acted after each, and what was undone."""
    envs = 2
    model = MemoryPPO(
        "MlpMemoryPolicy",
        DummyVecEnv([Counter] * envs),
        n_steps=16,
        batch_size=16 * envs,
        n_epochs=6,
        learning_rate=0.03,
        target_kl=target_kl,
        normalize_returns=False,
        seed=1,
    )
    train, found, rejected = model.train, [], []

    def then_measure():
        train()
        batch = next(iter(model.rollout_buffer.get(envs * model.n_steps, model.rng)))
        with torch.no_grad():
            now = evaluated(model.policy, batch).log_prob
        log_ratio = now - batch.old_log_prob
        found.append(float((log_ratio.exp() - 1 - log_ratio).mean()))
        rejected.append(model.logger.name_to_value.get("train/rejected_steps"))

    monkeypatch.setattr(model, "train", then_measure)
    model.learn(16 * envs * updates)
    return found, rejected


def test_updates_do_not_leap_beyond_the_limit(monkeypatch):
    """A minibatch is the whole rollout here, so what the update measures is the whole divergence."""
    without, nothing = divergences(None, monkeypatch)
    assert max(without) > 0.015
    assert nothing == [None] * 5
    within, rejected = divergences(0.01, monkeypatch)
    assert max(within) <= 0.015 + 0.01 + 1e-6
    assert sum(rejected) > 0


def test_steps_that_are_always_too_long_shorten_themselves(monkeypatch):
    """Adam's mean of squares keeps what it saw, so that not every update is refused for ever."""
    within, rejected = divergences(1e-3, monkeypatch, updates=10)
    assert rejected[0] == 1
    assert max(within) > 1e-4


@pytest.mark.parametrize(
    ("measured", "passed", "rejected"),
    [
        ([0.0, 0.004, 0.014], False, False),
        ([0.0, 0.009, 0.016], True, False),
        ([0.0, 0.004, 0.016], True, True),
        ([0.0, 0.5], True, True),
        ([0.0, float("nan")], False, False),
    ],
)
def test_only_a_leap_is_taken_back(measured, passed, rejected):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    limit = DivergenceLimit(optimizer, 0.01)
    for kl in measured:
        assert not limit.passed
        before = layer.weight.detach().clone()
        if not limit.check(kl):
            kept = layer.weight.detach().clone()
            take(optimizer, layer, 1.0)
    assert (limit.passed, limit.rejected) == (passed, rejected)
    if passed:
        assert torch.equal(layer.weight, kept if rejected else before)

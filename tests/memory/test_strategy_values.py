"""Strategies of an adaptive allocator: when one is read, and the values by which it is chosen and which are saved."""

import io

import numpy as np
import pytest
import torch
from test_sat import EXACT, make, sequence
from torch import nn
from torch.testing import assert_close

from palimpsest.memory.sat import STRATEGIES, StrategyValues


def test_values_learn_the_best_strategy_in_each_of_four_tasks():
    rng = np.random.default_rng(0)
    values = StrategyValues(num_tasks=4, learning_rate=0.01)
    best = np.array([2, 0, 3, 1])
    for _ in range(600):
        task = rng.integers(4, size=8)
        strategy = values.choose(task, 0.5, rng)
        reward = (strategy.numpy() == best[task]) + rng.normal(scale=0.5, size=8)
        values.update(task, strategy, reward)
    assert values.choose(np.arange(4), 0.0, rng).tolist() == best.tolist()
    expected = nn.functional.one_hot(torch.from_numpy(best), 6).float()
    assert (values(torch.arange(4)) - expected).abs().max() < 0.25


def test_update_is_adam_on_the_chosen_value():
    rng = np.random.default_rng(0)
    values = StrategyValues(num_tasks=3, hidden_size=6, learning_rate=0.02).double()
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    with torch.no_grad():
        for parameter, weight in zip(network.parameters(), (values.W1, values.b1, values.W2, values.b2)):
            parameter.copy_(weight)
    adam = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(20):
        task, strategy = torch.from_numpy(rng.integers(3, size=5)), torch.from_numpy(rng.integers(6, size=5))
        value = torch.from_numpy(rng.normal(size=5))
        loss = (network(torch.eye(3).double()[task])[torch.arange(5), strategy] - value).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            assert_close(values.update(task, strategy, value), loss.detach(), **EXACT)
    assert_close(values(torch.arange(3)), network(torch.eye(3).double()).detach(), **EXACT)


def test_choose_explores_evenly_and_breaks_ties_low():
    values = StrategyValues(num_tasks=2)
    for weight in (values.W2, values.b2):
        weight.zero_()
    rng = np.random.default_rng(0)
    assert values.choose([0, 1, 1], 0.0, rng).tolist() == [0, 0, 0]
    values.b2[2:] = 1.0
    task = np.zeros(8000, dtype=np.int64)
    assert set(values.choose(task, 0.0, rng).tolist()) == {2}
    shares = torch.bincount(values.choose(task, 0.6, rng), minlength=6) / 8000
    assert_close(shares, torch.tensor([0.1, 0.1, 0.5, 0.1, 0.1, 0.1]), rtol=0, atol=0.02)


def test_values_are_saved_with_their_optimiser_and_are_no_parameters():
    module = make(allocator="adaptive", num_tasks=2)
    assert not any(name.startswith("strategy_values") for name, _ in module.named_parameters())
    assert make().strategy_values is None
    rng = np.random.default_rng(0)
    teach = [(rng.integers(2, size=4), rng.integers(4, size=4), rng.normal(size=4)) for _ in range(6)]
    for lesson in teach[:3]:
        module.strategy_values.update(*lesson)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = make(allocator="adaptive", num_tasks=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    for lesson in teach[3:]:
        assert torch.equal(module.strategy_values.update(*lesson), other.strategy_values.update(*lesson))
    assert torch.equal(module.strategy_values(torch.arange(2)), other.strategy_values(torch.arange(2)))
    before = module.strategy_values(torch.arange(2))
    module.strategy_values.update([], [], [])
    assert torch.equal(module.strategy_values(torch.arange(2)), before)


@pytest.mark.parametrize("s", range(6))
def test_adaptive_with_a_constant_strategy_is_the_fixed_allocator(s):
    adaptive, fixed = make(allocator="adaptive"), make(allocator=STRATEGIES[s])
    fixed.load_state_dict({k: v for k, v in adaptive.state_dict().items() if not k.startswith("strategy_values")})
    x, start, place, _ = sequence(adaptive, 40, 3)
    y, last = adaptive.scan(x, start, adaptive.initial_state(3), place, torch.full((40, 3), s))
    expected, expected_last = fixed.scan(x, start, fixed.initial_state(3), place)
    assert torch.equal(y, expected)
    assert_close(tuple(last), tuple(expected_last), rtol=0, atol=0)


def test_strategy_is_read_where_an_episode_begins_and_then_held():
    module = make(allocator="adaptive")
    x, _, place, strategy = sequence(module, 30, 2)
    start = torch.zeros(30, 2) > 0
    start[12, 0] = True
    y, last = module.scan(x, start, module.initial_state(2), place, strategy)
    assert last.strategy.tolist() == [strategy[12, 0].item(), strategy[0, 1].item()]
    other = (strategy + 1) % 4
    other[0], other[12, 0] = strategy[0], strategy[12, 0]
    assert torch.equal(module.scan(x, start, module.initial_state(2), place, other)[0], y)
    more, _ = module.scan(x, start & False, last, place, None)
    assert torch.equal(module.scan(x, start & False, last, place, other)[0], more)

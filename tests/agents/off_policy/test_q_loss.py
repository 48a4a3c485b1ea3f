"""What `MemoryDQN` learns from: the loss against a plain loop, stored states, the target network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_dqn import B, make
from stable_baselines3.common.torch_layers import FlattenExtractor

from palimpsest import memory
from palimpsest.agents.learn.numerics import NotFinite
from palimpsest.agents.off_policy.dqn import Learning, q_loss
from palimpsest.agents.off_policy.replay import Sequences
from palimpsest.agents.off_policy.targets import rescale, unscale
from palimpsest.agents.run.runs import give_weights
from palimpsest.agents.tree import halves, tree_map


class Double(FlattenExtractor):
    """Features in float64."""

    def forward(self, observations):
        return super().forward(observations).double()


@pytest.mark.parametrize("name", memory.names())
def test_stored_states_are_those_that_the_memory_has(name):
    model = make(name, learning_starts=1000, burn_in=0)
    model.learn(120)
    batch = model.replay_buffer.sample(20, np.random.default_rng(0))
    obs, _ = halves(batch.observations, 4)
    start, _ = halves(batch.memory_start, 4)
    assert start.any()
    assert not batch.acted.all()
    # what begins anew at the next entry need not be remembered
    kept = ~batch.memory_start[4]
    assert kept.any()
    with torch.no_grad():
        after = model.policy.state_after(obs, batch.state, start)
    cuts, rows = batch.items // B, batch.items % B

    def check(mine, stored):
        its = torch.as_tensor(stored[(cuts + 1) % len(stored), rows])
        torch.testing.assert_close(mine[kept], its[kept], rtol=1e-4, atol=1e-5)

    tree_map(check, after, model.replay_buffer.states)


def batch_for(policy, T, b, seed=0):
    """Fresh states, random numbers, resets, terminations and final observations inside sequences."""
    rng = np.random.default_rng(seed)
    acted = rng.random((T, b)) > 0.2
    terminated = acted & (rng.random((T, b)) < 0.2)
    start = np.zeros((T, b), bool)
    start[1:] = terminated[:-1] | ~acted[:-1]
    tensors = rng.normal(size=(T, b, 2)).astype(np.float32), rng.integers(3, size=(T, b)), rng.normal(size=(T, b))
    obs, actions, rewards = map(torch.from_numpy, tensors)
    flags = map(torch.from_numpy, (terminated, acted, start))
    weights = torch.from_numpy(rng.random(b) + 0.5)
    return Sequences(obs, actions, 5 * rewards, *flags, policy.initial_state(b), weights, None, None, None)


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def plain_loss(policy, target, batch, learning):
    """The loss by loops over rows and steps, with batches of one."""
    T, b = batch.acted.shape
    L, total, count = T - learning.n_steps, 0.0, 0
    for row in range(b):
        q, bootstrap, greedy = [], [], []
        state = target_state = policy.initial_state(1)
        for t in range(T):
            if batch.memory_start[t, row]:
                state = target_state = policy.initial_state(1)
            obs = batch.observations[t, row : row + 1]
            mine, state = policy.q_step(obs, state)
            its, target_state = target.q_step(obs, target_state)
            q.append(mine[0])
            best = int((mine if learning.double_q else its)[0].argmax())
            value = its[0, best].detach()
            greedy.append(best == int(batch.actions[t, row]))
            bootstrap.append(unscale(value) if learning.value_rescaling else value)
        for t in range(L):
            if not batch.acted[t, row]:
                continue
            goal, discount, end = 0.0, 1.0, t
            for _ in range(learning.n_steps):
                if not batch.acted[end, row] or (end > t and not greedy[end]):
                    break
                goal = goal + discount * batch.rewards[end, row]
                discount *= 0.0 if batch.terminated[end, row] else learning.gamma
                end += 1
                if discount == 0.0:
                    break
            goal = goal + discount * bootstrap[min(end, T - 1)]
            goal = rescale(goal) if learning.value_rescaling else goal
            total = total + batch.weights[row] * huber(q[t][batch.actions[t, row]] - goal)
            count += 1
    return total / count


@pytest.mark.parametrize("dueling", [True, False])
def test_a_call_of_the_policy_takes_the_best_action_and_tells_its_value(dueling):
    model = make(dueling=dueling, normalize_returns=True)
    policy, state = model.policy, model.policy.initial_state(20)
    policy.return_scale.std.fill_(3.0)
    obs = torch.randn(20, 2)
    with torch.no_grad():
        q, after = policy.q_step(obs, state)
        values = policy.predict_values(obs, state)
        for deterministic in (True, False):
            actions, told, log_prob, next_state = policy(obs, state, deterministic=deterministic)
            np.testing.assert_array_equal(actions, q.argmax(-1))
            torch.testing.assert_close(told, 3 * q.amax(-1))
            torch.testing.assert_close(next_state, after)
            assert not log_prob.any()
        masks = torch.ones(20, 3, dtype=torch.bool).scatter(1, q.argmax(-1, keepdim=True), False)
        second = policy(obs, state, action_masks=masks)[0]
        np.testing.assert_array_equal(second, q.argsort(-1)[:, 1])
    torch.testing.assert_close(values, 3 * q.amax(-1))
    with pytest.raises(ValueError, match="MemoryPPO's"):
        policy.evaluate_actions(obs[None], torch.zeros(1, 20), state, torch.zeros(1, 20, dtype=torch.bool))


@pytest.mark.parametrize("name", ["lstm", "rewrite"])
@pytest.mark.parametrize(
    ("n_steps", "double_q", "dueling", "value_rescaling", "share_memory"),
    [(1, False, False, False, True), (1, True, True, False, False), (3, True, True, True, True)],
)
def test_the_loss_is_that_of_a_plain_loop(name, n_steps, double_q, dueling, value_rescaling, share_memory):
    policy = dict(features_extractor_class=Double, share_memory=share_memory)
    model = make(name, policy=policy, dueling=dueling)
    network, target = model.policy.double(), model.q_net_target.double()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    learning = Learning(0, n_steps, 0.9, double_q, value_rescaling)
    batch = batch_for(network, 9, 4)
    loss, seen = q_loss(network, target, batch, learning)
    assert loss.dtype == torch.float64
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    slow = plain_loss(network, target, batch, learning)
    slow.backward()
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(gradients, [p.grad for p in network.parameters() if p.grad is not None])
    assert all(parameter.grad is None for parameter in target.parameters())
    assert seen.counted.sum() == batch.acted[: 9 - n_steps].sum()


def test_burn_in_refreshes_the_state_without_gradients():
    model = make(policy=dict(features_extractor_class=Double))
    network, target = model.policy.double(), model.q_net_target.double()
    batch = batch_for(network, 9, 4)
    loss, _ = q_loss(network, target, batch, Learning(3, 1, 0.9, True, False))
    # the same from the state that three steps lead to, given as a stored one
    state = network.state_after(batch.observations[:3], batch.state, batch.memory_start[:3])
    later = Sequences(*(each[3:] for each in batch[:6]), tree_map(torch.detach, state), batch.weights, *batch[8:])
    expected, _ = q_loss(network, target, later, Learning(0, 1, 0.9, True, False))
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, list(network.encoder.parameters()))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(network.encoder.parameters())))


def test_an_update_stores_the_states_that_it_finds():
    model = make(refresh_states=True, learning_starts=1000)
    model.learn(120)
    stale = [leaf.copy() for leaf in model.replay.states]
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = model.replay.sample(4, np.random.default_rng(0))
    assert len(set(batch.items)) > 1
    model._n_updates = 7
    found = q_loss(model.policy, model.q_net_target, batch, Learning(2, 1, 0.9, True, False))[1].state
    with torch.no_grad():
        expected = model.policy.state_after(batch.observations[:4], batch.state, batch.memory_start[:4])
    torch.testing.assert_close(found, expected)
    model._refresh(batch, found)
    for stored, before, its in zip(model.replay.states, stale, expected):
        for item, row in zip(batch.items, its):  # the next sequence of its row, in a ring
            place = (item // B + 1) % len(stored), item % B
            np.testing.assert_allclose(stored[place], row.detach(), rtol=1e-5, atol=1e-6)
            assert not np.array_equal(stored[place], before[place])
            assert model.replay.state_updates[place] == 7
    assert (model.replay.state_updates == 7).sum() == len(set(batch.items))


def test_the_target_network_only_follows():
    model = make(target_update_interval=10**6, learning_rate=1e-2)
    before = [each.clone() for each in model.q_net_target.parameters()]
    model.learn(60)
    assert model._n_updates > 0
    for mine, its in zip(before, model.q_net_target.parameters()):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
    assert all(p.grad is None and not p.requires_grad for p in model.q_net_target.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, model.policy.parameters())]
    assert any(moved)
    model.target_update_interval, model.tau = 30, 0.25
    expected = [(1 - 0.25) * a + 0.25 * b for a, b in zip(before, model.policy.parameters())]
    model._n_calls = 9
    model._on_step()
    torch.testing.assert_close(list(model.q_net_target.parameters()), expected)


def test_weights_that_are_given_reach_the_target_network(tmp_path):
    source = make(learning_rate=1e-2, target_update_interval=10**6)
    source.learn(60)
    source.save(tmp_path / "model.zip")
    weights = source.policy.state_dict()

    def given(put):
        model = make(seed=1)
        put(model)
        torch.testing.assert_close(list(model.policy.parameters()), list(source.policy.parameters()), rtol=0, atol=0)
        return list(model.q_net_target.parameters())

    for put in (
        lambda model: model.policy.load_state_dict(weights),
        lambda model: model.set_parameters({"policy": weights}, exact_match=False),
        lambda model: give_weights(model, tmp_path / "model.zip"),
    ):
        torch.testing.assert_close(given(put), list(source.policy.parameters()), rtol=0, atol=0)
    # where the target network is given too, it is that one, in whatever order
    all_of_it = dict(reversed(source.get_parameters().items()))
    theirs = list(source.q_net_target.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(theirs, source.policy.parameters()))
    torch.testing.assert_close(given(lambda model: model.set_parameters(all_of_it)), theirs, rtol=0, atol=0)
    # a copy of the model has targets of its own
    twin = copy.deepcopy(source)
    twin.policy.load_state_dict(make(seed=2).policy.state_dict())
    torch.testing.assert_close(list(twin.q_net_target.parameters()), list(twin.policy.parameters()), rtol=0, atol=0)
    torch.testing.assert_close(list(source.q_net_target.parameters()), theirs, rtol=0, atol=0)


def test_an_update_that_is_not_finite_changes_nothing():
    model = make()
    model.learn(30)
    model.replay_buffer.rewards[:] = np.inf
    before = [each.clone() for each in model.policy.parameters()]
    with pytest.raises(NotFinite, match="loss is"):
        model.train(1, 2)
    torch.testing.assert_close(before, list(model.policy.parameters()), rtol=0, atol=0)

"""Segments: a rollout cut into pieces trains as the whole columns would, and makes as many updates as RecurrentPPO."""

import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter

from palimpsest import memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.buffers import MemoryRolloutBuffer
from palimpsest.agents.learn.loss import evaluated, state_after
from palimpsest.agents.tree import tree_map

T, B = 24, 3


class Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


def model_for(name: str = "gru", rows: int = B, share_memory: bool = True, **kwargs) -> MemoryPPO:
    env = DummyVecEnv([lambda row=row: Counter(row, True) for row in range(rows)])
    kwargs = dict(n_steps=T, batch_size=T, n_epochs=1, memory_carry_over=0.5, seed=0, device="cpu") | kwargs
    policy_kwargs = small_policy(name) | {"share_memory": share_memory}
    return MemoryPPO("MlpMemoryPolicy", env, policy_kwargs=policy_kwargs, **kwargs)


def collected(model: MemoryPPO, rollouts: int = 2) -> MemoryRolloutBuffer:
    _, callback = model._setup_learn(10_000, Nothing())
    for _ in range(rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


def stepped(model: MemoryPPO, state, t: int):
    """The state after step t of the rollout."""
    columns = model.rollout_buffer.columns
    opens = columns.episode_start[t]
    return model.policy.next_state(columns.observations[t], state, columns.memory_start[t], episode_start=opens)


def leaves(tree) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map(found.append, tree)
    return found


@pytest.mark.parametrize("length", [6, 7, 24])
@pytest.mark.parametrize("name", memory.names())
def test_every_ratio_is_one_before_the_first_gradient_step(name, length):
    model = model_for(name, sequence_length=length)
    batches = list(collected(model).get(2 * length, np.random.default_rng(0)))
    assert sum(batch.actions.numel() for batch in batches) == T * B
    for batch in batches:
        ratio = (evaluated(model.policy, batch).log_prob - batch.old_log_prob).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [1, 5, 8])
@pytest.mark.parametrize("name", memory.names())
def test_a_cut_gives_the_values_of_the_uncut_scan(name, length):
    model = model_for(name, sequence_length=length)
    buffer = collected(model)
    whole = evaluated(model.policy, buffer.columns).values
    found = torch.full_like(whole, math.nan)
    place = torch.arange(T * B).view(T, B)
    # where a sample came from is read from its stored return, which is made unique here
    buffer.columns.returns.copy_(place)
    for batch in buffer.get(length, np.random.default_rng(1)):
        found.view(-1)[batch.returns.long().view(-1)] = evaluated(model.policy, batch).values.reshape(-1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_columns_as_segments_are_the_update_of_whole_columns_bit_for_bit():
    # torch's generator is seeded when a model is made: each trains right after that
    default = model_for(n_epochs=3).learn(3 * T * B)
    given = model_for(n_epochs=3, sequence_length=T).learn(3 * T * B)
    for name, one in default.policy.state_dict().items():
        assert torch.equal(one, given.policy.state_dict()[name]), name


@pytest.mark.parametrize(
    ("rows", "n_steps", "batch_size"),
    [
        (1, 2048, 64),
        (4, 1024, 128),
        (8, 512, 256),
        (8, 128, 128),
        (8, 32, 256),
        (64, 128, 2048),
        (2, 96, 64),
    ],
)
def test_as_many_updates_as_recurrent_ppo_makes(rows, n_steps, batch_size):
    buffer = MemoryRolloutBuffer(
        n_steps,
        spaces.Box(-1, 1, (1,), np.float32),
        spaces.Discrete(2),
        n_envs=rows,
        sequence_length=min(batch_size, n_steps),
    )
    state = (torch.zeros(rows, 1),)
    for _ in range(n_steps):
        if buffer.at_segment:
            buffer.begin_segment(state)
        zeros, flags = np.zeros(rows, np.float32), np.zeros(rows, bool)
        buffer.add(torch.zeros(rows, 1), torch.zeros(rows), zeros, flags, flags, torch.zeros(rows), torch.zeros(rows))
    batches = list(buffer.get(batch_size, np.random.default_rng(0)))
    assert len(batches) == math.ceil(rows * n_steps / batch_size)
    assert sum(batch.actions.numel() for batch in batches) == rows * n_steps


def test_a_segment_begins_with_the_state_that_acting_had():
    model = model_for("rewrite", sequence_length=8)
    buffer = collected(model, rollouts=1)
    state = buffer.states[0]
    for t in range(T):
        if t % 8 == 0:
            torch.testing.assert_close(tuple(buffer.states[t // 8]), tuple(state), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            state = stepped(model, state, t)
    assert len(buffer.states) == 3


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("length", [7, 8])
@pytest.mark.parametrize("name", ["lstm", "hcam"])
def test_refreshed_states_are_those_of_a_walk_with_the_new_parameters(name, length, share):
    model = model_for(name, sequence_length=length, share_memory=share)
    buffer = collected(model)
    kept = [[leaf.clone() for leaf in leaves(state)] for state in buffer.states]
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(1.5)
    buffer.refresh_states(functools.partial(state_after, model.policy))
    state = buffer.states[0]
    for t in range(T):
        if t % length == 0:
            found, moved = leaves(buffer.states[t // length]), kept[t // length]
            torch.testing.assert_close(found, leaves(state), rtol=1e-4, atol=1e-5)
            same = all(torch.equal(a, b) for a, b in zip(found, moved))
            assert same == (t == 0), "only the state before the first step stays"
        with torch.no_grad():
            state = stepped(model, state, t)


def test_passes_refresh_the_states_only_where_it_is_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(MemoryRolloutBuffer, "refresh_states", lambda self, state_after: calls.append(1))
    model_for(n_epochs=3, sequence_length=8).learn(T * B)
    assert calls == []
    model_for(n_epochs=3, sequence_length=8, refresh_states=True).learn(T * B)
    assert len(calls) == 2


def test_refreshing_changes_nothing_where_nothing_is_cut():
    plain = model_for(n_epochs=3).learn(3 * T * B)
    fresh = model_for(n_epochs=3, refresh_states=True).learn(3 * T * B)
    for name, one in plain.policy.state_dict().items():
        assert torch.equal(one, fresh.policy.state_dict()[name]), name


def test_the_buffer_has_the_arrays_of_sb3():
    buffer = collected(model_for(sequence_length=8))
    assert (buffer.size(), buffer.full, buffer.pos) == (T, True, T)
    names = (
        "observations",
        "actions",
        "values",
        "log_probs",
        "advantages",
        "returns",
        "rewards",
        "episode_starts",
    )
    for name in names:
        assert isinstance(getattr(buffer, name), np.ndarray), name
        assert getattr(buffer, name).shape[:2] == (T, B), name
    buffer.returns[:] = 7
    assert (buffer.columns.returns == 7).all(), "arrays share the tensors' memory"


def test_callbacks_find_the_names_of_recurrent_ppo():
    class Look(Nothing):
        def _on_step(self) -> bool:
            self.seen = dict(self.locals)
            return True

    look = Look()
    model_for().learn(T * B, callback=look)
    seen = look.seen
    assert seen["n_steps"] == T - 1
    assert seen["obs_tensor"].shape == (B, 2)
    assert isinstance(seen["actions"], np.ndarray)
    np.testing.assert_array_equal(seen["actions"], seen["clipped_actions"])
    assert seen["values"].shape == seen["log_probs"].shape == seen["episode_starts"].shape == (B,)
    assert {"new_obs", "rewards", "dones", "infos", "lstm_states", "rollout_buffer"} <= seen.keys()


def test_a_truncation_without_its_observation_is_a_termination():
    class Silent(DummyVecEnv):
        """Says that it truncates, and nothing else (SuperSuit, envpool)."""

        def step_wait(self):
            obs, rewards, dones, _ = super().step_wait()
            return obs, rewards, dones, [{"TimeLimit.truncated": bool(done)} for done in dones]

    env = Silent([lambda: Counter(0, True)])
    model = MemoryPPO("MlpMemoryPolicy", env, n_steps=8, batch_size=8, policy_kwargs=small_policy("gru"), seed=0)
    buffer = collected(model, rollouts=1)
    assert (buffer.rewards == 1.0).all()

"""The mark of an episode's first step: what a memory that is carried over an episode's end knows of the next one."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.policy.memory_pair import Both
from palimpsest.agents.policy.policies import MlpMemoryPolicy

SPACE = spaces.Box(-1, 1, (4,), np.float32)
ROWS = 3


def policy_for(share_memory: bool = True, mark_starts: bool = True) -> MlpMemoryPolicy:
    torch.manual_seed(0)
    arguments = small_policy("gru", share_memory=share_memory)
    return MlpMemoryPolicy(SPACE, spaces.Discrete(2), lambda _: 1e-3, mark_starts=mark_starts, **arguments)


def model_for(**kwargs) -> MemoryPPO:
    env = DummyVecEnv([lambda row=row: Counter(row, True) for row in range(ROWS)])
    arguments = dict(n_steps=8, batch_size=8, seed=0, device="cpu", policy_kwargs=small_policy("gru"))
    return MemoryPPO("MlpMemoryPolicy", env, **arguments | kwargs)


@pytest.mark.parametrize("share", [True, False])
def test_each_memory_has_a_mark_of_its_own(share):
    assert policy_for(share).start_mark.shape[0] == len(policy_for(share).memories())


@pytest.mark.parametrize("share", [True, False])
def test_the_mark_is_added_to_the_input_that_opens_an_episode(share):
    policy = policy_for(share)
    obs, opens = torch.randn(ROWS, 4), torch.tensor([False, True, False])
    nowhere = torch.zeros(ROWS, dtype=torch.bool)
    state = policy.next_state(torch.randn(ROWS, 4), policy.initial_state(ROWS))
    pi, vf = policy._encode(obs)
    actor, critic = (opens.unsqueeze(1) * policy.start_mark[each] for each in (0, -1))
    plain = policy.memory_pair._replace(mark=None)
    latent, _ = plain.step(Both(pi + actor, vf + critic), state)
    torch.testing.assert_close(
        policy.predict_values(obs, state, nowhere, episode_start=opens), policy._critic(latent.critic)
    )
    unmarked = policy.predict_values(obs, state, nowhere, episode_start=nowhere)
    marked = policy.predict_values(obs, state, nowhere, episode_start=opens)
    assert torch.equal(unmarked == marked, ~opens)


def test_where_nothing_else_is_said_an_episode_opens_where_the_memory_begins():
    policy = policy_for()
    obs, start = torch.randn(ROWS, 4), torch.tensor([True, False, True])
    state = policy.next_state(torch.randn(ROWS, 4), policy.initial_state(ROWS))
    torch.testing.assert_close(
        policy.predict_values(obs, state, start), policy.predict_values(obs, state, start, episode_start=start)
    )


def test_a_sequence_is_marked_as_its_steps_are():
    policy, T = policy_for(), 6
    obs, state = torch.randn(T, ROWS, 4), policy.initial_state(ROWS)
    opens = torch.rand(T, ROWS) < 0.5
    start = opens & (torch.rand(T, ROWS) < 0.5)
    actions = torch.zeros(T, ROWS, dtype=torch.int64)
    values = policy.evaluate_actions(obs, actions, state, start, episode_start=opens).values
    after = policy.state_after(obs, state, start, episode_start=opens)
    for t in range(T):
        torch.testing.assert_close(
            policy.predict_values(obs[t], state, start[t], episode_start=opens[t]), values[t], rtol=1e-5, atol=1e-5
        )
        state = policy.next_state(obs[t], state, start[t], episode_start=opens[t])
    torch.testing.assert_close(state, after, rtol=1e-5, atol=1e-5)


def test_the_first_call_of_predict_opens_an_episode():
    policy, obs = policy_for(), np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    states = [
        policy.predict(obs, state, start)[1]
        for state, start in ((None, None), (None, np.ones(ROWS, bool)), (None, np.zeros(ROWS, bool)))
    ]
    np.testing.assert_array_equal(states[0][0], states[1][0])
    assert not np.array_equal(states[0][0], states[2][0])


def test_a_model_marks_starts_where_memories_are_carried_over(tmp_path):
    assert model_for().policy.start_mark is None
    model = model_for(memory_carry_over=0.5)
    at_first = model.policy.start_mark.detach().clone()
    model.learn(3 * 8 * ROWS)
    assert not torch.equal(model.policy.start_mark, at_first), "the mark is learned"
    columns = model.rollout_buffer.columns
    assert torch.equal(columns.episode_start, torch.from_numpy(model.rollout_buffer.episode_starts))
    assert (columns.memory_start <= columns.episode_start).all()
    assert not torch.equal(columns.memory_start, columns.episode_start)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model")
    assert torch.equal(loaded.policy.start_mark, model.policy.start_mark)


def test_a_policy_of_a_users_own_need_not_know_where_episodes_begin():
    class Own(MlpMemoryPolicy):
        def forward(self, obs, state, start=None, strategy=None, deterministic=False):
            return super().forward(obs, state, start, strategy, deterministic)

    env = DummyVecEnv([lambda: Counter(0, True)])
    arguments = dict(n_steps=8, batch_size=8, seed=0, device="cpu", policy_kwargs=small_policy("gru"))
    model = MemoryPPO(Own, env, memory_carry_over=0.5, **arguments).learn(16)
    assert model.policy.start_mark is None


def test_a_policy_is_not_told_to_mark_starts_by_hand():
    with pytest.raises(ValueError, match="'mark_starts': it follows from MemoryPPO's memory_carry_over"):
        model_for(policy_kwargs=dict(mark_starts=True))

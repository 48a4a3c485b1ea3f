"""Laws of the recurrent agent: what acting saw is what the update sees, and values stop where episodes end."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from worlds import Counter, Spaces

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.advantages import generalized_advantages
from palimpsest.agents.learn.loss import evaluated
from palimpsest.agents.tree import tree_map


def counters(n: int = 3, truncate: bool = False) -> DummyVecEnv:
    return DummyVecEnv([lambda row=row: Counter(row, truncate) for row in range(n)])


def model_for(name: str = "gru", env=None, n_steps: int = 16, **kwargs) -> MemoryPPO:
    policy = small_policy(name, **kwargs.pop("policy", {}))
    return MemoryPPO(
        "MlpMemoryPolicy",
        counters() if env is None else env,
        n_steps=n_steps,
        batch_size=kwargs.pop("batch_size", n_steps),
        n_epochs=kwargs.pop("n_epochs", 1),
        policy_kwargs=policy,
        seed=kwargs.pop("seed", 0),
        device="cpu",
        **kwargs,
    )


class Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


def collect(model: MemoryPPO, rollouts: int = 1) -> None:
    """Fill the rollout `rollouts` times without an update between."""
    _, callback = model._setup_learn(10_000, Nothing())
    for _ in range(rollouts):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


@pytest.mark.parametrize("carry_over", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", memory.names())
def test_every_ratio_is_one_before_the_first_gradient_step(name, carry_over):
    model = model_for(name, memory_carry_over=carry_over)
    collect(model, rollouts=3)
    for batch in model.rollout_buffer.get(1 * model.n_steps, np.random.default_rng(0)):
        with torch.no_grad():
            values, log_prob, *_ = evaluated(model.policy, batch)
        torch.testing.assert_close((log_prob - batch.old_log_prob).exp(), torch.ones_like(log_prob), rtol=0, atol=1e-4)
        torch.testing.assert_close(values, batch.old_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gru", "rewrite", "none"])
def test_separate_memories_keep_the_ratio_law(name):
    model = model_for(name, policy={"share_memory": False}, memory_carry_over=0.5)
    collect(model, rollouts=2)
    batch = next(model.rollout_buffer.get(3 * model.n_steps, np.random.default_rng(0)))
    values, log_prob, *_ = evaluated(model.policy, batch)
    torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-4)
    torch.testing.assert_close(values, batch.old_values, rtol=0, atol=1e-4)
    actor, critic = (dict(m.named_parameters()) for m in model.policy.memories())
    (values.sum()).backward()
    assert all(parameter.grad is None for parameter in actor.values())
    assert any(parameter.grad is not None for parameter in critic.values())


def test_rollout_holds_hand_made_data():
    model = model_for(n_steps=8)
    collect(model)
    buffer = model.rollout_buffer
    # Row r shows steps 0 .. 2 + r, then begins again: the end step's observation is the next episode's first.
    for row in range(3):
        want = [t % (3 + row) for t in range(8)]
        assert buffer.observations[:, row, 1].tolist() == want
        assert buffer.episode_starts[:, row].tolist() == [step == 0 for step in want]
    assert (buffer.rewards == 1.0).all()


def test_carry_over_withholds_the_memory_start_and_nothing_else():
    episode_starts, memory_starts = {}, {}
    for p in (0.0, 0.5, 1.0):
        model = model_for(n_steps=64, memory_carry_over=p)
        collect(model)
        buffer = model.rollout_buffer
        episode_starts[p] = buffer.episode_starts.copy()
        memory_starts[p] = buffer.columns.memory_start.numpy().copy()
        advantages = generalized_advantages(
            buffer.rewards,
            buffer.values,
            episode_starts[p],
            np.zeros(3, np.float32),
            np.zeros(3, bool),
            model.gamma,
            model.gae_lambda,
        )
        np.testing.assert_allclose(buffer.advantages[:50], advantages[:50], rtol=0.2, atol=0.2)
    for p in (0.5, 1.0):
        np.testing.assert_array_equal(episode_starts[p], episode_starts[0.0])
        assert (memory_starts[p] <= episode_starts[p]).all()
    np.testing.assert_array_equal(memory_starts[0.0], episode_starts[0.0])
    assert memory_starts[1.0][0].all()
    assert not memory_starts[1.0][1:].any()
    kept = 1 - memory_starts[0.5][1:].sum() / episode_starts[0.5][1:].sum()
    assert 0.25 < kept < 0.75


def test_truncation_bootstraps_from_one_step_on_the_final_observation():
    model = model_for(env=counters(2, truncate=True), n_steps=4)
    collect(model)
    buffer, policy = model.rollout_buffer, model.policy
    # Row 0 is truncated by step index 2, row 1 by step index 3.
    for row, t in ((0, 2), (1, 3)):
        with torch.no_grad():
            state = tree_map(lambda leaf, row=row: leaf[row : row + 1], buffer.columns.state)
            for step in range(t + 1):
                _, _, _, state = policy(buffer.columns.observations[step, row : row + 1], state)
            final = torch.tensor([[row, t + 1]], dtype=torch.float32)
            value = policy.predict_values(final, state).item()
        assert buffer.rewards[t, row] == pytest.approx(1 + model.gamma * value, abs=1e-5)
    assert buffer.rewards[0, 0] == 1.0


def test_a_state_that_a_step_does_not_change_is_not_wrapped_anew_by_predict(monkeypatch):
    """A tensor of an array of a tensor ... grew with every step of an episode."""
    model, obs = model_for("gru"), np.zeros((3, 2), np.float32)
    memory, step = model.policy.memory, model.policy.memory.step
    monkeypatch.setattr(memory, "step", lambda x, state, *others: (step(x, state, *others)[0], state))
    _, state = model.predict(obs)
    for _ in range(3):
        before, (_, state) = state, model.predict(obs, state, np.zeros(3, bool))
        assert state.h is before.h


def test_predict_begins_with_a_state_that_is_learned(monkeypatch):
    model, obs = model_for("gru"), np.zeros((3, 2), np.float32)
    want, _ = model.predict(obs, deterministic=True)
    memory, fresh = model.policy.memory, model.policy.memory.initial_state

    def learned(rows):
        state = fresh(rows)
        return type(state)(*(leaf.requires_grad_() for leaf in state))

    monkeypatch.setattr(memory, "initial_state", learned)
    found, state = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(found, want)
    assert all(isinstance(leaf, np.ndarray) for leaf in state)


def test_predict_carries_the_state_as_sb3_expects():
    model = model_for("lstm")
    venv = counters()
    rewards, lengths = evaluate_policy(model, venv, n_eval_episodes=6, return_episode_rewards=True, warn=False)
    assert sorted(lengths) == [3, 3, 4, 4, 5, 5]
    assert rewards == [float(length) for length in lengths]

    obs = np.random.default_rng(0).random((6, 3, 2)).astype(np.float32)
    state = None
    for t in range(6):
        batch, state = model.predict(obs[t], state, np.array([t == 0] * 3), deterministic=True)
    single = None
    for t in range(6):
        action, single = model.predict(obs[t, 1], single, deterministic=True)
        assert action.shape == ()
    assert action == batch[1]
    for got, want in zip(single, state):
        np.testing.assert_allclose(got[0], want[1], atol=1e-6)

    _, fresh = model.predict(obs[0], None)
    _, mixed = model.predict(obs[0], state, np.array([True, False, True]))
    for got, want, other in zip(mixed, fresh, state):
        np.testing.assert_allclose(got[[0, 2]], want[[0, 2]], atol=1e-6)
        assert not np.allclose(got[1], want[1], atol=1e-6), other


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(2),
        spaces.Box(-2, 2, (2,), np.float32),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize(
    ("policy", "observation_space"),
    [
        ("MlpMemoryPolicy", spaces.Box(-1, 1, (3,), np.float64)),
        ("MlpMemoryPolicy", spaces.Discrete(4)),
        ("MlpMemoryPolicy", spaces.MultiDiscrete([2, 5])),
        ("CnnMemoryPolicy", spaces.Box(0, 255, (7, 7, 3), np.uint8)),
        ("CnnMemoryPolicy", spaces.Box(0, 255, (40, 36, 3), np.uint8)),
        (
            "MultiInputMemoryPolicy",
            spaces.Dict(
                image=spaces.Box(0, 255, (7, 7, 3), np.uint8),
                direction=spaces.Discrete(4),
                mission=spaces.Text(5),
                vector=spaces.Box(-1, 1, (2,), np.float32),
            ),
        ),
    ],
    ids=["box", "discrete", "multidiscrete", "grid", "image", "dict"],
)
def test_spaces_train_and_predict(policy, observation_space, action_space):
    env = Spaces(observation_space, action_space)
    if "mission" not in getattr(observation_space, "spaces", {}):  # SB3's own DummyVecEnv refuses text
        env = DummyVecEnv([lambda: Spaces(observation_space, action_space)] * 2)
    model = MemoryPPO(policy, env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=small_policy("gru"), seed=0)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(32)
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters()))
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("observation_space", [spaces.Box(-1, 1, (3,)), spaces.Dict(a=spaces.Discrete(3))])
def test_reconstruction_reaches_the_encoder_and_is_learned(observation_space):
    env = DummyVecEnv([lambda: Spaces(observation_space, spaces.Discrete(2))] * 4)
    policy = "MultiInputMemoryPolicy" if isinstance(observation_space, spaces.Dict) else "MlpMemoryPolicy"
    model = MemoryPPO(
        policy,
        env,
        learning_rate=3e-3,
        n_steps=32,
        n_epochs=10,
        vf_coef=0.0,
        memory_aux_coef=1.0,
        policy_kwargs=small_policy("gru") | {"encoder_arch": [16], "memory_kwargs": {"output_size": 16}},
        seed=0,
    )
    losses = []
    for _ in range(12):
        model.learn(128, reset_num_timesteps=False)
        losses.append(model.logger.name_to_value["train/reconstruction_loss"])
    assert losses[-1] < 0.5 * losses[0]
    assert model.policy.encoder[0].weight.grad.abs().sum() > 0
    plain = MemoryPPO(policy, env, policy_kwargs=small_policy("gru"))
    assert not hasattr(plain.policy, "decoder")


def test_generalized_state_dependent_exploration():
    venv = DummyVecEnv([lambda: Spaces(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))] * 2)
    model = MemoryPPO(
        "MlpMemoryPolicy",
        venv,
        n_steps=8,
        batch_size=16,
        n_epochs=2,
        use_sde=True,
        sde_sample_freq=4,
        policy_kwargs=small_policy("gru"),
        seed=0,
    )
    model.learn(32)
    assert model.num_timesteps == 32


def test_vec_normalize_and_monitor_wrap_as_in_sb3():
    venv = VecNormalize(VecMonitor(counters()))
    model = model_for(env=venv)
    model.learn(96)
    assert model.ep_info_buffer
    assert {episode["l"] for episode in model.ep_info_buffer} <= {3, 4, 5}


def test_same_seed_same_parameters():
    def parameters(seed):
        model = model_for("rewrite", seed=seed, memory_carry_over=0.5)
        model.learn(144)
        return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])

    torch.testing.assert_close(parameters(3), parameters(3), rtol=0, atol=0)
    assert (parameters(3) != parameters(4)).any()


def test_learning_twice_goes_on_from_where_it_was():
    model = model_for()
    model.learn(48)
    obs = model._last_obs.copy()
    model.learn(48, reset_num_timesteps=False)
    assert model.num_timesteps == 96
    assert model.rollout_buffer.observations[0].tolist() == obs.tolist()


def test_a_rollout_stopped_by_a_callback_leaves_a_working_model():
    class Stop(Nothing):
        def _on_step(self) -> bool:
            return self.n_calls < 5

    model = model_for()
    model.learn(480, callback=Stop())
    assert model.num_timesteps == 15
    model.learn(48, reset_num_timesteps=False)


def test_a_callback_that_stops_where_an_episode_ends_joins_no_two_episodes():
    """The step that ended it is settled first: what is learned later begins with the next episode, and its memory."""
    arguments = dict(n_steps=6, batch_size=12, policy_kwargs={"memory": "gru", "memory_kwargs": {"output_size": 4}})
    model = MemoryPPO("MlpMemoryPolicy", DummyVecEnv([Counter]), **arguments, device="cpu")
    model.learn(100, callback=StopTrainingOnMaxEpisodes(1))
    assert model.num_timesteps == 3
    model.learn(6, reset_num_timesteps=False)
    columns = model.rollout_buffer.columns
    assert columns.observations[:, 0, 1].tolist() == [0, 1, 2, 0, 1, 2]
    assert columns.memory_start[:, 0].tolist() == [True, False, False, True, False, False]


def test_entropy_weight_follows_its_schedule():
    """A constant function is its number, and one that reaches 0 ends in what 0 gives."""

    def trained(ent_coef):
        model = model_for("gru", ent_coef=ent_coef)
        model.learn(2 * 3 * 16)
        return torch.nn.utils.parameters_to_vector(model.policy.parameters())

    number, never = trained(0.5), trained(0.0)
    assert (trained(lambda progress: 0.5) == number).all()
    assert (trained(np.float32(0.5)) == number).all()
    assert (trained(lambda progress: 0.0) == never).all()
    falling = trained(LinearSchedule(0.5, 0.0, 1.0))
    assert (falling != number).any()
    assert (falling != never).any()


@pytest.mark.learning
@pytest.mark.parametrize(("name", "rate"), [("rewrite", LinearSchedule(1e-3, 0.0, 1.0)), ("lstm", 2e-3)])
def test_a_short_training_learns_what_no_memoryless_agent_can(name, rate):
    venv = envs.make_vec("Palimpsest/EndlessTMaze-v0", 32, seed=0, corridors=1, length=5)
    model = MemoryPPO(
        "MlpMemoryPolicy",
        venv,
        learning_rate=rate,
        n_steps=64,
        batch_size=512,
        n_epochs=4,
        ent_coef=0.02,
        policy_kwargs={"memory": name, "memory_kwargs": {"output_size": 32}},
        seed=0,
        device="cpu",
    )
    model.learn(120_000)
    fresh = envs.make_vec("Palimpsest/EndlessTMaze-v0", 100, seed=1000, corridors=1, length=5)
    rewards, _ = evaluate_policy(model, fresh, n_eval_episodes=100, return_episode_rewards=True)
    assert np.mean(np.array(rewards) > 0) >= 0.95


@pytest.mark.parametrize("env", ["CartPole-v1", gym.make("CartPole-v1")], ids=["id", "environment"])
def test_gymnasium_ids_and_single_environments_are_accepted(env):
    model = MemoryPPO("MlpMemoryPolicy", env, n_steps=8, policy_kwargs=small_policy("gru"))
    before = model.policy.encoder[0].weight.clone()
    model.learn(8)
    assert model.num_timesteps == 8
    assert (model.policy.encoder[0].weight != before).any()

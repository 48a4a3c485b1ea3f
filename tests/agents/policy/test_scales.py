"""Running scales of observations and of returns."""

import functools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.loss import LossWeights, evaluated, ppo_loss
from palimpsest.agents.policy.scales import (
    CLIP,
    SMALLEST_RETURN,
    ObservationScales,
    ReturnScale,
    RewardScale,
    RunningMoments,
)

WIDE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def model_for(memory="gru", share=True, unit=1.0, **kwargs):
    rewards = functools.partial(TransformReward, func=lambda reward: reward * unit)
    env = DummyVecEnv([lambda row=row: rewards(Counter(row, True)) for row in range(3)])
    chosen = dict(normalize_observations=True, normalize_returns=True) | kwargs
    policy = small_policy(memory) | dict(share_memory=share)
    return MemoryPPO("MlpMemoryPolicy", env, n_steps=16, batch_size=16, n_epochs=2, device="cpu",
                     policy_kwargs=policy, **(dict(seed=0) | chosen))  # fmt: skip


def test_moments_are_those_of_all_vectors_at_once():
    moments, rng = RunningMoments(3), np.random.default_rng(0)
    parts = [rng.normal(50, [1e-2, 1, 100], (n, 3)) for n in (1, 7, 0, 200)]
    for part in parts:
        moments.update(torch.from_numpy(part))
    whole = np.concatenate(parts)
    assert int(moments.count) == len(whole)
    np.testing.assert_allclose(moments.mean.numpy(), whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.var.numpy(), whole.var(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("space", "scaled"),
    [
        (WIDE, True),
        (spaces.Box(np.float32([-1, -1]), np.float32([1, 4.8])), True),
        (spaces.Box(-1, 1, (3,), np.float32), False),
        (spaces.Box(0, 1, (3, 4), np.float64), False),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), False),
        (spaces.Box(0, 9, (3,), np.int64), False),
        (spaces.Discrete(5), False),
        (spaces.MultiBinary(5), False),
    ],
)
def test_what_is_scaled(space, scaled):
    assert bool(ObservationScales(space).keys) == scaled


def test_an_affine_change_of_the_observations_changes_nothing_once_the_moments_know_it():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, 3, generator=rng)
    one, other = ObservationScales(WIDE), ObservationScales(WIDE)
    one.update(x)
    other.update(1000 * x - 7)
    torch.testing.assert_close(one(x[0]), other(1000 * x[0] - 7), rtol=1e-4, atol=1e-4)
    assert one(torch.full((1, 3), 1e9)).eq(CLIP).all()


def test_keys_of_a_dict_are_scaled_each_by_its_own_moments():
    space = spaces.Dict({"a.b": WIDE, "forward": spaces.Discrete(3), "flags": spaces.Box(0, 1, (2,), np.float32)})
    scales = ObservationScales(space)
    assert scales.keys == ["a.b"]
    x = {"a.b": torch.randn(5, 2, 3) * 9 + 4, "forward": torch.zeros(5, 2), "flags": torch.ones(5, 2, 2)}
    scales.update(x)
    out = scales({key: leaf.flatten(0, 1) for key, leaf in x.items()})
    torch.testing.assert_close(out["a.b"].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out["a.b"].var(0, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    assert out["flags"].eq(1).all()


def test_values_follow_the_mean_of_the_latest_returns():
    scale, predicted = ReturnScale(), torch.tensor([-1.0, 0.0, 2.0])
    for returns in (torch.randn(8, 4) * 0.02 - 0.5, torch.randn(8, 4) * 2 - 90, torch.randn(8, 4) * 300 + 500):
        scale.update(returns)
        std, mean = returns.std(correction=0), returns.mean()
        torch.testing.assert_close(scale(predicted), torch.stack([mean - std, mean, mean + 2 * std]))


def test_the_spread_of_returns_never_falls():
    scale, wide, narrow = ReturnScale(), torch.randn(8, 4) * 30 + 60, torch.full((8, 4), 99.0)
    scale.update(wide)
    scale.update(narrow)
    torch.testing.assert_close(scale.std, wide.std(correction=0))
    torch.testing.assert_close(scale.mean, torch.tensor(99.0))


def test_returns_are_as_they_are_before_a_training_begins():
    scale, predicted = ReturnScale(), torch.tensor([-5.0, 0.0, 5.0])
    assert torch.equal(scale(predicted), predicted)
    scale.begin()
    assert torch.equal(scale(predicted), torch.zeros(3))


def test_a_training_that_goes_on_keeps_the_scale():
    model = model_for().learn(48)
    before = model.policy.return_scale.std.clone()
    assert before > 0
    model.policy.return_scale.begin()
    assert torch.equal(model.policy.return_scale.std, before)


def test_weights_without_a_scale_give_the_values_that_they_gave():
    """So an agent of RecurrentPPO's can be converted into a policy that scales."""
    without, scaling = model_for(normalize_returns=False).policy, model_for(seed=1).policy
    scaling.return_scale.update(torch.randn(8, 4) * 30)
    scaling.load_state_dict(without.state_dict())
    obs, start = torch.zeros(3, 2), torch.ones(3)
    state = without.initial_state(3)
    assert torch.equal(without.predict_values(obs, state, start), scaling.predict_values(obs, state, start))


def test_a_critic_without_a_scale_is_not_trained_on_with_one():
    """What it predicts would be taken for standard deviations."""
    model, without = model_for(), model_for(normalize_returns=False).learn(48)
    model.policy.load_state_dict(without.policy.state_dict())
    with pytest.raises(ValueError, match=r"trained without a scale of returns.*normalize_returns=False"):
        model.learn(48)


def test_a_part_of_the_weights_leaves_the_scale():
    model = model_for().learn(48)
    before = {name: tensor.clone() for name, tensor in model.policy.return_scale.state_dict().items()}
    part = {name: tensor for name, tensor in model.policy.state_dict().items() if "action_net" in name}
    model.set_parameters({"policy": part}, exact_match=False)
    assert before["std"] > 0
    for name, tensor in model.policy.return_scale.state_dict().items():
        assert torch.equal(tensor, before[name])
    model.learn(48)


@pytest.mark.parametrize("reward", [0.0, 0.1, -3000.0])
def test_equal_returns_have_no_spread(reward):
    """Their rounding is none."""
    scale = ReturnScale()
    scale.begin()
    assert (scale(torch.ones(3)) == 0).all()
    scale.update(torch.full((100, 7), reward) * (1 + 1e-7 * torch.randn(100, 7)))
    torch.testing.assert_close(scale(torch.tensor([-5.0, 5.0])), torch.full((2,), reward))


@pytest.mark.parametrize("share", [True, False])
def test_the_size_of_rewards_does_not_matter(share):
    """With rewards 2^-8 and 2^8 times as large, three updates give the same policy."""

    def learned(unit):
        model = model_for("gru", share, unit, min_advantage_std=0.5)
        model.learn(3 * 48)
        return model.policy

    as_they_are = learned(1.0)
    for unit in (2.0**-8, 2.0**8):
        other = learned(unit)
        torch.testing.assert_close(other.return_scale.std, as_they_are.return_scale.std * unit, rtol=1e-4, atol=0)
        for found, expected in zip(other.parameters(), as_they_are.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_rewards_are_scaled_by_all_returns_so_far_and_values_are_not_shifted():
    scale, predicted = RewardScale(), torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(scale(predicted), predicted)
    returns = torch.randn(30, 4, dtype=torch.float64) * 300 - 900
    for row in returns:
        scale.update(row, torch.ones(4))
    std = returns.std(correction=0).float()
    torch.testing.assert_close(scale.std, std)
    torch.testing.assert_close(scale(predicted), predicted * std)
    still = RewardScale()
    still.update(torch.zeros(4), torch.zeros(4))
    assert still.std == pytest.approx(SMALLEST_RETURN)


@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_small_costs_do_not_scale_up_what_an_episodes_end_brings(unit):
    scale = RewardScale()
    for step in range(60):  # the sums so far, while each step costs 0.01
        scale.update(-0.01 * unit * torch.full((2,), float(step)), torch.full((2,), -0.01 * unit))
    assert scale.std < 0.2 * unit
    scale.update(torch.zeros(2), torch.tensor([0.0, -unit]))
    assert scale.std == pytest.approx(unit)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("memory", ["none", "gru", "rewrite"])
def test_every_ratio_is_one_before_the_first_gradient_step(memory, share):
    model = model_for(memory, share).learn(2 * 48)
    _, callback = model._setup_learn(48, None, reset_num_timesteps=False)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    buffer = model.rollout_buffer
    for batch in buffer.get(16, np.random.default_rng(0)):
        with torch.no_grad():
            found = evaluated(model.policy, batch)
        torch.testing.assert_close(found.log_prob, batch.old_log_prob, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.values, batch.old_values, rtol=1e-4, atol=1e-4)


def test_the_value_loss_is_that_of_scaled_returns():
    model = model_for().learn(48)
    policy = model.policy
    policy.return_scale.std.fill_(40.0)
    policy.return_scale.mean.fill_(7.0)
    batch = next(model.rollout_buffer.get(16, np.random.default_rng(0)))
    weights = LossWeights(0.2, None, True, 0.0, 0.0, 0.5, 0.0)
    loss, record = ppo_loss(policy, batch, weights)
    predicted = (evaluated(policy, batch).values - 7) / 40
    expected = record["policy_gradient_loss"] + 0.5 * (predicted - (batch.returns - 7) / 40).square().mean()
    torch.testing.assert_close(loss, expected)


def test_files_hold_the_scales(tmp_path):
    model = model_for().learn(48)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model")
    assert torch.equal(model.policy.return_scale.std, loaded.policy.return_scale.std)
    moments = model.policy.observation_scales.moments[0], loaded.policy.observation_scales.moments[0]
    assert int(moments[0].count) == 48
    assert torch.equal(moments[0].mean, moments[1].mean)
    seen = model.env.reset()
    np.testing.assert_array_equal(
        model.predict(seen, deterministic=True)[0], loaded.predict(seen, deterministic=True)[0]
    )


def test_without_them_the_policy_has_no_buffers():
    model = model_for(normalize_observations=False, normalize_returns=False)
    assert not [name for name in model.policy.state_dict() if "scale" in name]

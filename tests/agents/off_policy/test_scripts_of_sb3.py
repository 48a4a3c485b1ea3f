"""What scripts of SB3's DQN and SAC count on: seeds, numbers of NumPy's, spaces, names, log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Spaces

from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.agents.off_policy.sac_loss import sac_losses
from palimpsest.agents.policy.distributions import draw, log_prob_of

OBSERVATIONS = spaces.Box(-5, 5, (2,), np.float32)
ACTIONS = {MemoryDQN: spaces.Discrete(5), MemorySAC: spaces.Box(-1, 1, (2,), np.float32), MemoryPPO: spaces.Discrete(5)}
SETTINGS = dict(sequence_length=4, burn_in=2, buffer_size=400, learning_starts=20, batch_size=3)


def make(algorithm, actions=None, **kwargs):
    space = ACTIONS[algorithm] if actions is None else actions
    settings = dict(n_steps=8, batch_size=8) if algorithm is MemoryPPO else SETTINGS
    return algorithm(
        "MlpMemoryPolicy",
        DummyVecEnv([lambda: Spaces(OBSERVATIONS, space) for _ in range(2)]),
        policy_kwargs=small_policy("gru"),
        device="cpu",
        **settings | dict(seed=0) | kwargs,
    )


@pytest.mark.parametrize(("mean", "log_std"), [(0.3, -1.0), (8.0, -5.0), (10.0, -3.0), (-12.0, -3.0)])
def test_the_log_probability_of_a_saturated_action_is_that_of_the_number_before_tanh(mean, log_std):
    def parameters():
        return torch.full((4, 2), mean).requires_grad_(), torch.full((4, 2), log_std).requires_grad_()

    torch.manual_seed(0)
    means, log_stds = parameters()
    distribution = SquashedDiagGaussianDistribution(2).proba_distribution(means, log_stds)
    ours = draw(distribution, deterministic=False)[1]
    torch.manual_seed(0)
    its_means, its_log_stds = parameters()
    _, its = SquashedDiagGaussianDistribution(2).log_prob_from_params(its_means, its_log_stds)
    torch.testing.assert_close(ours, its)
    found = torch.autograd.grad(ours.sum(), (means, log_stds))
    torch.testing.assert_close(found, torch.autograd.grad(its.sum(), (its_means, its_log_stds)))
    likeliest = distribution.get_actions(deterministic=True)
    at_mode = torch.distributions.Normal(means, log_stds.exp()).log_prob(means) - torch.log(1 - likeliest**2 + 1e-6)
    torch.testing.assert_close(log_prob_of(distribution, likeliest), at_mode.sum(-1))


def test_an_actor_that_saturates_has_finite_losses():
    model = make(MemorySAC, batch_size=8)
    model.learn(60)
    with torch.no_grad():
        for part, bias in ((model.policy.action_net, 12.0), (model.policy.log_std, -3.0)):
            part.weight.zero_()
            part.bias.fill_(bias)
    batch = model.replay.sample(8, np.random.default_rng(0))
    losses = sac_losses(model.policy, model.critic_target, batch, torch.ones(1), 2, 1, 0.99)
    # the numbers before tanh have a standard deviation of e^-3; log(1 - tanh²) is at its floor, log 1e-6
    one = 0.5 * np.log(2 * np.pi * np.e) - 3 + np.log(1e-6)
    assert float(losses.entropy) == pytest.approx(2 * one, abs=0.5)
    assert losses.critic.item() < 1000


class Actions(BaseCallback):
    """Keeps what is played."""

    def _on_training_start(self):
        self.played = []

    def _on_step(self):
        self.played.append(np.array(self.locals["actions"]))
        return True


@pytest.mark.parametrize("algorithm", [MemoryDQN, MemorySAC])
def test_set_random_seed_decides_what_is_played(algorithm, tmp_path):
    model = make(algorithm, learning_starts=1000, seed=3)

    def played(model, seed):
        model.set_random_seed(seed)
        callback = Actions()
        model.learn(16, callback=callback)
        return np.stack(callback.played)

    first = played(model, 1)
    np.testing.assert_array_equal(played(model, 1), first)
    assert (played(model, 2) != first).any()
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.env)
    np.testing.assert_array_equal(played(loaded, 1), first)


def test_set_random_seed_decides_the_minibatches_of_ppo():
    model = make(MemoryPPO)
    model.set_random_seed(5)
    first = model.rng.permutation(100)
    model.set_random_seed(5)
    np.testing.assert_array_equal(model.rng.permutation(100), first)


@pytest.mark.parametrize("algorithm", [MemoryDQN, MemorySAC])
def test_integers_of_numpys_are_integers(algorithm):
    kwargs = dict(buffer_size=400, sequence_length=4, burn_in=2, train_freq=4, stats_window_size=5, gradient_steps=1)
    model = make(algorithm, **{name: np.int64(value) for name, value in kwargs.items()})
    model.learn(60)
    assert model._n_updates > 0
    other = make(algorithm, train_freq=(np.int64(3), "step"))
    other.learn(30)
    assert other.train_freq.frequency == 3


@pytest.mark.filterwarnings("ignore:.*Casting input x")  # a row of actions [B] is a number, not an array
def test_an_action_without_dimensions_is_learned():
    model = make(MemorySAC, actions=spaces.Box(-1, 1, (), np.float32))
    model.learn(80)
    actions, _ = model.predict(model.env.reset())
    assert actions.shape == (2,)
    assert model._n_updates > 0


def test_a_weight_of_the_entropy_that_load_is_given_begins_unless_one_was_learned(tmp_path):
    make(MemorySAC, ent_coef=0.2).learn(60).save(tmp_path / "fixed")
    model = MemorySAC.load(tmp_path / "fixed", ent_coef="auto_0.1")
    assert model.policy.log_ent_coef.exp().item() == pytest.approx(0.1, rel=1e-5)
    learned = make(MemorySAC, ent_coef="auto_0.3").learn(60)
    learned.save(tmp_path / "learned")
    model = MemorySAC.load(tmp_path / "learned", ent_coef="auto_0.1")
    assert torch.equal(model.policy.log_ent_coef, learned.policy.log_ent_coef)


def test_a_replay_is_sampled_as_sb3s_is():
    model = make(MemoryDQN)
    model.learn(100)
    model.set_random_seed(1)
    first = model.replay_buffer.sample(4, env=None).actions
    model.set_random_seed(1)
    assert torch.equal(model.replay_buffer.sample(4).actions, first)

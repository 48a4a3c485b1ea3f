"""PPO's loss against its equations, sample by sample in Python."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from palimpsest import envs
from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.buffers import Minibatch
from palimpsest.agents.learn.loss import LossWeights, ppo_loss
from palimpsest.agents.policy.policies import Evaluation


def first_minibatch(spread: float, scaled: bool):
    """A policy one update away from the one that acted, and a minibatch whose advantages differ by `spread`."""
    env = envs.make_vec("Palimpsest/EndlessTMaze-v0", 3, seed=0, corridors=1, length=2)
    model = MemoryPPO("MlpMemoryPolicy", env, n_steps=16, batch_size=48, n_epochs=1, seed=0, device="cpu",
                      normalize_returns=scaled)  # fmt: skip
    model.learn(48)
    batch = next(iter(model.rollout_buffer.get(3 * model.n_steps, np.random.default_rng(0))))
    advantages = batch.advantages.clone()
    advantages = spread * (advantages - advantages.mean()) / advantages.std() + spread
    return model.policy, batch._replace(advantages=advantages)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("clip_range_vf", [None, 0.01])
@pytest.mark.parametrize(
    ("normalise", "least", "spread", "divisor"),
    [(True, 0.0, 2, 2), (True, 0.1, 2, 2), (True, 0.0, 1e-3, 1e-3), (True, 0.1, 1e-3, 0.1), (False, 0.1, 2, None)],
)
def test_the_loss_is_ppos(normalise, least, spread, divisor, clip_range_vf, scaled):
    """Where returns are scaled, the error of values is in standard deviations of returns."""
    policy, batch = first_minibatch(spread, scaled)
    unit = float(policy.return_scale.std) if scaled else 1.0
    weights = LossWeights(0.001, clip_range_vf, normalise, least, 0.03, 0.7, 0.0)
    loss, record = ppo_loss(policy, batch, weights)
    found = policy.evaluate_actions(batch.observations, batch.actions, batch.state, batch.memory_start)
    sequences = (found.values, found.log_prob, found.entropy, batch.advantages, batch.old_log_prob, batch.returns)
    samples = list(zip(*(each.double().flatten().tolist() for each in (*sequences, batch.old_values))))
    surrogate = value_loss = entropy_sum = 0.0
    for value, log_prob, entropy, advantage, old_log_prob, target, old_value in samples:
        if divisor is not None:
            advantage = (advantage - spread) / divisor
        ratio = math.exp(log_prob - old_log_prob)
        surrogate += min(advantage * ratio, advantage * min(max(ratio, 0.999), 1.001))
        if clip_range_vf is not None:
            value = old_value + min(max(value - old_value, -clip_range_vf), clip_range_vf)
        value_loss += ((value - target) / unit) ** 2
        entropy_sum += entropy
    expected = (-surrogate - 0.03 * entropy_sum + 0.7 * value_loss) / len(samples)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert record["policy_gradient_loss"].item() == pytest.approx(-surrogate / len(samples), rel=1e-3, abs=1e-5)
    assert 0 < record["clip_fraction"] < 1


@dataclass
class Told:
    """A policy that evaluates any minibatch as it was told to."""

    evaluation: Evaluation
    return_scale = None
    autocast = False

    def evaluate_actions(self, *_):
        return self.evaluation


def minibatch(shape=(6, 3)):
    """What a policy says of a minibatch from another one, and the minibatch."""
    old_values, old_log_prob, advantages, returns = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    values, log_prob, entropy = (x + 0.3 * torch.randn_like(x) for x in (old_values, old_log_prob, returns))
    seen = Evaluation(*(x.requires_grad_() for x in (values, log_prob, entropy)))
    none = torch.empty(0)
    return seen, Minibatch(none, none, old_values, old_log_prob, advantages, returns, none, None, None)


def loss_of(seen, batch, **weights):
    default = dict(clip_range=0.2, clip_range_vf=None, normalize_advantage=True, min_advantage_std=0.0, ent_coef=0.1)
    return ppo_loss(Told(seen), batch, LossWeights(**(default | dict(vf_coef=0.5, memory_aux_coef=0.0) | weights)))


def test_one_number_is_not_normalised():
    seen, batch = minibatch((1, 1))
    loss, _ = loss_of(seen, batch)
    torch.testing.assert_close(loss, loss_of(seen, batch, normalize_advantage=False)[0])


@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
@pytest.mark.parametrize(
    "place", ["values", "log_prob", "entropy", "old_values", "old_log_prob", "advantages", "returns"]
)
def test_what_is_not_a_number_is_not_hidden(place, clip_range_vf):
    if place == "old_values" and clip_range_vf is None:
        return
    seen, batch = minibatch()
    getattr(seen if place in seen._fields else batch, place).data[3, 2] = math.nan
    assert loss_of(seen, batch, clip_range_vf=clip_range_vf)[0].isnan()


def test_a_ratio_within_its_bounds_has_a_gradient_and_one_beyond_them_has_none():
    seen, batch = minibatch((3, 1))
    batch = batch._replace(advantages=torch.ones(3, 1, dtype=torch.float64))
    seen.log_prob.data = batch.old_log_prob + torch.tensor([[1.2], [1.3], [0.5]], dtype=torch.float64).log()
    loss, _ = loss_of(seen, batch, clip_range=0.25, normalize_advantage=False, ent_coef=0.0, vf_coef=0.0)
    (gradient,) = torch.autograd.grad(loss, [seen.log_prob])
    torch.testing.assert_close(gradient, torch.tensor([[-0.4], [0.0], [-0.5 / 3]], dtype=torch.float64))


def test_without_an_entropy_the_mean_log_probability_estimates_it():
    seen, batch = minibatch()
    _, record = loss_of(seen._replace(entropy=None), batch)
    torch.testing.assert_close(record["entropy_loss"], seen.log_prob.detach().mean())
    assert not any(value.requires_grad for value in record.values())

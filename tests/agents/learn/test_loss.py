"""PPO's loss against its equations, sample by sample in Python."""

import math

import numpy as np
import pytest

from palimpsest import envs
from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.loss import LossWeights, ppo_loss


def first_minibatch(spread: float):
    """A policy one update away from the one that acted, and a minibatch whose advantages differ by `spread`."""
    env = envs.make_vec("Palimpsest/EndlessTMaze-v0", 3, seed=0, corridors=1, length=2)
    model = MemoryPPO("MlpMemoryPolicy", env, n_steps=16, batch_size=48, n_epochs=1, seed=0, device="cpu")
    model.learn(48)
    batch = next(iter(model.rollout_buffer.get(3 * model.n_steps, np.random.default_rng(0))))
    advantages = batch.advantages.clone()
    advantages = spread * (advantages - advantages.mean()) / advantages.std() + spread
    return model.policy, batch._replace(advantages=advantages)


@pytest.mark.parametrize("clip_range_vf", [None, 0.01])
@pytest.mark.parametrize(
    ("normalise", "least", "spread", "divisor"),
    [(True, 0.0, 2, 2), (True, 0.1, 2, 2), (True, 0.0, 1e-3, 1e-3), (True, 0.1, 1e-3, 0.1), (False, 0.1, 2, None)],
)
def test_the_loss_is_ppos(normalise, least, spread, divisor, clip_range_vf):
    policy, batch = first_minibatch(spread)
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
        value_loss += (value - target) ** 2
        entropy_sum += entropy
    expected = (-surrogate - 0.03 * entropy_sum + 0.7 * value_loss) / len(samples)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert record["policy_gradient_loss"].item() == pytest.approx(-surrogate / len(samples), rel=1e-3, abs=1e-5)
    assert 0 < record["clip_fraction"] < 1

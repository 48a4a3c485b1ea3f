"""Heads compiled for acting equal torch's operations, and stand aside where they are not theirs to compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from palimpsest.agents.policy import policies
from palimpsest.agents.policy.distributions import Categorical
from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.memory.kernels import torch_only


def policy_for(net_arch, action_space=None, cls=MlpMemoryPolicy, **kwargs) -> MlpMemoryPolicy:
    torch.manual_seed(0)
    policy = cls(
        spaces.Box(-1, 1, (3,)),
        spaces.Discrete(4) if action_space is None else action_space,
        lambda _: 1e-3,
        memory="gru",
        memory_kwargs={"output_size": 6},
        net_arch=net_arch,
        **kwargs,
    )
    for parameter in policy.parameters():
        nn.init.normal_(parameter)
    return policy


def acted(policy: MlpMemoryPolicy, deterministic: bool = False, **kwargs):
    """Actions, values and log-probabilities of 40 rows, one of which begins anew."""
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(40, 3, generator=generator)
    state = type(policy.initial_state(40))(torch.randn(40, 1, 6, generator=generator, dtype=policy.memory.dtype))
    torch.manual_seed(2)
    with torch.no_grad():
        actions, values, log_prob, _ = policy(obs, state, torch.arange(40) == 7, deterministic=deterministic, **kwargs)
    return actions, values, log_prob


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """One for each time that the compiled form acts."""
    seen, act = [], policies.act
    monkeypatch.setattr(policies, "act", lambda *given: seen.append(1) or act(*given))
    return seen


@pytest.mark.parametrize("activation_fn", [None, nn.Tanh])
@pytest.mark.parametrize("net_arch", [[7], {"pi": [8, 5], "vf": [70]}, [], {"pi": [4], "vf": []}])
def test_compiled_heads_equal_torchs_operations(net_arch, activation_fn, calls):
    kwargs = {} if activation_fn is None else {"activation_fn": activation_fn}
    policy = policy_for(net_arch, **kwargs)
    fast = acted(policy)
    assert calls == [1]
    with torch_only():
        slow = acted(policy)
    assert calls == [1]
    assert torch.equal(fast[0], slow[0])
    assert len(set(fast[0].tolist())) > 1
    for got, want in zip(fast[1:], slow[1:]):
        assert got.shape == (40,)
        torch.testing.assert_close(got, want, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_compiled_heads_draw_what_is_allowed(order, calls):
    policy, masks = policy_for([7]), torch.rand(40, 4) < 0.5
    masks[torch.arange(40), torch.randint(4, (40,))] = True
    if order == "columns":
        masks = masks.T.contiguous().T
    fast = acted(policy, action_masks=masks)
    assert calls == [1]
    with torch_only():
        slow = acted(policy, action_masks=masks)
    assert torch.equal(fast[0], slow[0])
    assert masks[torch.arange(40), fast[0]].all()
    assert not masks[torch.arange(40), acted(policy)[0]].all()
    torch.testing.assert_close(fast[1:], slow[1:], rtol=2e-6, atol=5e-6)


def test_compiled_heads_read_no_mask_beyond_its_end():
    policy = policy_for([7])
    assert set(acted(policy, action_masks=torch.tensor([0, 0, 1, 0]))[0].tolist()) == {2}
    for wrong in ((3,), (39, 4), (40, 3)):
        with pytest.raises(RuntimeError, match="size"):
            acted(policy, action_masks=torch.ones(wrong, dtype=torch.bool))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_no_rounding_leads_beyond_the_actions(uniform, monkeypatch):
    """Sums of the same numbers may differ in their last bits between loops, which are compiled apart."""
    policy = policy_for([7])
    monkeypatch.setattr(torch, "rand", lambda B, dtype, device: torch.full((B,), uniform, dtype=dtype))
    with torch.no_grad():
        for _ in range(50):
            actions = policy(torch.randn(64, 3), policy.initial_state(64))[0]
            assert set(actions.tolist()) == {3 if uniform else 0}


def test_modes_and_gradients_are_left_to_torch(calls):
    policy = policy_for([7])
    acted(policy, deterministic=True)
    _, values, log_prob, _ = policy(torch.zeros(2, 3), policy.initial_state(2))
    assert calls == []
    assert values.requires_grad
    assert log_prob.requires_grad


class Masked(MlpMemoryPolicy):
    """A policy that never takes the first action, as users write it."""

    def _get_action_dist_from_latent(self, latent_pi):
        logits = self.action_net(latent_pi)
        return self.action_dist.proba_distribution(logits.index_fill(1, torch.tensor([0]), -torch.inf))


class OwnActionNet(MlpMemoryPolicy):
    """A policy whose last layer is replaced once the others are built: the third action is all but certain."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.action_net = nn.Sequential(self.action_net, Favour())


class Favour(nn.Module):
    def forward(self, logits):
        return logits + torch.tensor([0.0, 0.0, 1e3, 0.0])


class OwnCritic(MlpMemoryPolicy):
    """A policy whose values are bounded."""

    def _critic(self, latent):
        return super()._critic(latent).tanh()


class OwnFeatures(MlpMemoryPolicy):
    """A policy that sees its observations doubled."""

    def extract_features(self, obs, features_extractor=None):
        return 2 * super().extract_features(obs, features_extractor)


@pytest.mark.parametrize(
    "made",
    [
        lambda: policy_for([4], activation_fn=nn.ReLU),
        lambda: policy_for([4], spaces.MultiDiscrete([2, 3])),
        lambda: policy_for([4], spaces.Box(-1, 1, (2,))),
        lambda: policy_for([4], cls=Masked),
        lambda: policy_for([4], cls=OwnActionNet),
        lambda: policy_for([4], cls=OwnCritic),
    ],
    ids=["relu", "multidiscrete", "box", "overridden", "replaced", "own critic"],
)
def test_other_heads_are_left_to_torch(made, calls):
    """Without a warning: such a policy is as it was built."""
    policy = made()
    actions, values, log_prob = acted(policy)
    assert calls == []
    assert torch.isfinite(log_prob).all()
    if isinstance(policy, Masked):
        assert (actions > 0).all()
    if isinstance(policy, OwnActionNet):
        assert (actions == 2).all()
    if isinstance(policy, OwnCritic):
        assert (values.abs() <= 1).all()


def test_features_that_a_subclass_computes_are_the_ones_that_are_read():
    own, plain = policy_for([4], cls=OwnFeatures), policy_for([4])
    obs, state = torch.randn(5, 3), plain.initial_state(5)
    torch.testing.assert_close(own.predict_values(obs, state), plain.predict_values(2 * obs, state))
    assert not torch.allclose(own.predict_values(obs, state), plain.predict_values(obs, state))


class Cold(Categorical):
    """A distribution as users derive one: logits are tripled."""

    def proba_distribution(self, action_logits):
        return super().proba_distribution(3 * action_logits)


def test_a_distribution_of_ones_own_acts_and_is_evaluated():
    policy, obs = policy_for([7]), torch.randn(40, 3)
    state, start = policy.initial_state(40), torch.zeros(1, 40, dtype=torch.bool)
    with torch.no_grad():
        policy(obs, state)
        policy.action_dist = Cold(4)
        actions, _, log_prob, _ = policy(obs, state)
    evaluated = policy.evaluate_actions(obs[None], actions[None], state, start)
    torch.testing.assert_close(evaluated.log_prob[0], log_prob)


def test_evaluation_is_by_the_same_heads_as_acting():
    """Log-probabilities and values of the actions that were drawn, with their entropies and gradients."""
    policy = policy_for([7])
    actions, values, log_prob = acted(policy)
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(1, 40, 3, generator=generator)
    state = type(policy.initial_state(40))(torch.randn(40, 1, 6, generator=generator))
    found = policy.evaluate_actions(obs, actions[None], state, (torch.arange(40) == 7)[None])
    torch.testing.assert_close(found.values[0], values)
    torch.testing.assert_close(found.log_prob[0], log_prob)
    distribution, _ = policy.get_distribution(obs[0], state, torch.arange(40) == 7)
    torch.testing.assert_close(found.entropy[0], distribution.distribution.entropy())
    found.log_prob.sum().backward()
    assert policy.action_net.weight.grad.any()
    assert policy.value_net.weight.grad is None


def test_a_head_of_another_width_is_refused():
    """By torch, before a kernel reads beyond the latents' end."""
    policy = policy_for([4])
    policy.action_net = nn.Linear(500, 4)
    changed = pytest.warns(UserWarning, match=r"module 'action_net' has parameters weight \[4, 500\]")
    with changed, pytest.raises(RuntimeError, match="shapes"):
        acted(policy)


@pytest.mark.parametrize(("name", "size"), [("weight", (60, 6)), ("bias", (60,)), ("bias", (1,))])
def test_a_head_whose_weight_and_bias_differ_is_refused(name, size):
    """By torch, before a kernel writes beyond the end of what it computes; or computed as torch does."""
    policy = policy_for([4])
    acted(policy)
    layer = policy.mlp_extractor.policy_net[0]
    setattr(layer, name, nn.Parameter(torch.zeros(size)))
    changed = pytest.warns(UserWarning, match=r"module 'mlp_extractor.policy_net.0' has parameters")
    if size == (1,):
        with changed:
            found = acted(policy)
        assert torch.isfinite(found[2]).all()
        return
    with changed, pytest.raises(RuntimeError):
        acted(policy)


def test_parameters_that_are_not_finite_are_refused():
    policy = policy_for([4])
    policy.action_net.bias.data[1] = np.nan
    with pytest.raises(ValueError, match=r"the logits of row 0: that of action 1 is nan"):
        acted(policy)

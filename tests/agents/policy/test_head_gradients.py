"""Heads compiled for the update equal torch's operations, values and gradients, and stand aside where they must."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from test_heads import Masked, OwnActionNet, OwnCritic, policy_for
from torch import Tensor, nn

from palimpsest.agents.policy.distributions import Categorical
from palimpsest.agents.policy.head_gradients import _Heads, _may_compile, judge
from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.memory.kernels.arithmetic.dispatch import torch_only

T, B = 30, 20
CLOSE = {torch.float32: dict(rtol=2e-6, atol=2e-6), torch.float64: dict(rtol=1e-11, atol=1e-12)}


def by_modules(policy: MlpMemoryPolicy, latent_pi: Tensor, latent_vf: Tensor, actions: Tensor) -> list[Tensor]:
    with torch_only():
        logits = policy.action_net(policy.mlp_extractor.forward_actor(latent_pi))
        found = torch.distributions.Categorical(logits=logits)
        values = policy.value_net(policy.mlp_extractor.forward_critic(latent_vf)).squeeze(-1)
        return [values, found.log_prob(actions), found.entropy()]


def gradients(results, leaves: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    with torch_only():
        loss = sum((weight * result).sum() for weight, result in zip(weights, results))
        return list(torch.autograd.grad(loss / len(weights[0]), leaves))


def heads(policy: MlpMemoryPolicy) -> list[nn.Parameter]:
    return [p for net in (policy.mlp_extractor, policy.action_net, policy.value_net) for p in net.parameters()]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", CLOSE, ids=["float32", "float64"])
@pytest.mark.parametrize("net_arch", [[7], {"pi": [8, 70], "vf": [5]}, [], {"pi": [4], "vf": []}])
def test_compiled_heads_equal_torchs_operations(net_arch, dtype, threads, monkeypatch):
    N = 2000
    policy = policy_for(net_arch).to(dtype)
    for parameter in policy.parameters():
        parameter.data *= 0.3
    x = torch.randn(N, 6, dtype=dtype, requires_grad=True)
    actions, weights = torch.randint(4, (N,)), [torch.randn(N, dtype=dtype) for _ in range(3)]
    assert _may_compile(policy, x, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    fast, slow = (form(policy, x, x, actions) for form in (judge, by_modules))
    for got, want in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, want, **CLOSE[dtype])
    found, wanted = (gradients(results, [x, *heads(policy)], weights) for results in (fast, slow))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, **CLOSE[dtype])


def test_the_latent_need_not_have_a_gradient():
    policy, actions = policy_for([7]), torch.randint(4, (300,))
    x, weights = torch.randn(300, 6), [torch.randn(300) for _ in range(3)]
    found, wanted = (gradients(form(policy, x, x, actions), heads(policy), weights) for form in (judge, by_modules))
    torch.testing.assert_close(found, wanted, **CLOSE[torch.float32])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_head_whose_results_are_not_used_has_no_gradient(number):
    policy, actions = policy_for([7]), torch.randint(4, (300,))
    x = torch.randn(300, 6, requires_grad=True)
    found, wanted = (
        torch.autograd.grad(form(policy, x, x, actions)[number].sum(), [x, *heads(policy)], allow_unused=True)
        for form in (judge, by_modules)
    )
    assert [each is None for each in found] == [each is None for each in wanted]
    for got, want in zip(found, wanted):
        if want is not None:
            torch.testing.assert_close(got / 300, want / 300, **CLOSE[torch.float32])


def test_what_cannot_be_chosen_and_what_is_not_a_number():
    policy, x = policy_for([]), torch.zeros(3, 6)
    policy.action_net.bias.data = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf])
    _, log_prob, entropy = judge(policy, x, x, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(entropy, torch.full((3,), 2.0).log())
    torch.testing.assert_close(log_prob, torch.tensor([0.5, 0.0, 0.5]).log())
    (gradient,) = torch.autograd.grad(log_prob[0] + entropy.sum(), [policy.action_net.bias])
    torch.testing.assert_close(gradient, torch.tensor([0.5, 0.0, -0.5, 0.0]))
    for bad in (torch.nan, torch.inf):
        policy.action_net.bias.data[1] = bad
        _, log_prob, entropy = judge(policy, x, x, torch.tensor([0, 1, 2]))
        assert log_prob.isnan().all()
        assert entropy.isnan().all()


@pytest.mark.parametrize("action", [-1, 4])
def test_an_action_that_there_is_not_is_refused(action):
    policy, x = policy_for([7]), torch.zeros(2, 6)
    with pytest.raises(IndexError, match=f"actions must be in 0 to 3; got .*{action}"):
        judge(policy, x, x, torch.tensor([0, action]))


def evaluated(policy: MlpMemoryPolicy):
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(T, B, 3, generator=generator, dtype=policy.memory.dtype)
    policy.action_space.seed(0)
    actions = torch.as_tensor(policy.action_space.sample())
    actions = actions.expand(T, B, *actions.shape)
    found = policy.evaluate_actions(obs, actions, policy.initial_state(B), torch.zeros(T, B, dtype=torch.bool))
    return found[:3]


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """One for each time that the compiled form computes."""
    seen: list[int] = []
    apply = _Heads.apply
    monkeypatch.setattr(_Heads, "apply", lambda *args: seen.append(1) or apply(*args))
    return seen


def test_a_policy_is_evaluated_by_the_compiled_form_and_by_torch_alike(calls):
    policy = policy_for([7])
    found = evaluated(policy)
    assert calls == [1]
    with torch_only():
        wanted = evaluated(policy)
    assert calls == [1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)
    assert found[0].shape == (T, B)


def hooked() -> MlpMemoryPolicy:
    policy = policy_for([4])
    policy.mlp_extractor.policy_net[0].register_forward_hook(lambda *_: None)
    return policy


class Sure(Categorical):
    """A distribution of one's own."""

    def entropy(self):
        return torch.zeros_like(super().entropy())


def with_own_distribution() -> MlpMemoryPolicy:
    policy = policy_for([4])
    policy.action_dist = Sure(4)
    return policy


@pytest.mark.parametrize(
    "made",
    [
        lambda: policy_for([4], activation_fn=nn.ReLU),
        lambda: policy_for([4], spaces.MultiDiscrete([2, 3])),
        lambda: policy_for([4], spaces.Box(-1, 1, (2,))),
        lambda: policy_for([4], cls=Masked),
        lambda: policy_for([4], cls=OwnActionNet),
        lambda: policy_for([4], cls=OwnCritic),
        hooked,
        with_own_distribution,
    ],
    ids=["relu", "multidiscrete", "box", "overridden", "replaced", "own critic", "hooked", "own distribution"],
)
def test_other_heads_are_left_to_torch(made, calls):
    policy = made()
    values, _, entropy = evaluated(policy)
    assert calls == []
    if isinstance(policy, OwnCritic):
        assert (values.abs() <= 1).all()
    if isinstance(policy.action_dist, Sure):
        assert (entropy == 0).all()


def test_autocast_is_left_to_torch(calls):
    policy = policy_for([4])
    with torch.autocast("cpu"):
        evaluated(policy)
    assert calls == []


@pytest.mark.parametrize(
    "layer", ["action_net", "value_net", "mlp_extractor.policy_net.0", "mlp_extractor.value_net.0"]
)
def test_gradients_of_weights_in_another_layout(layer):
    policy, actions = policy_for([7]), torch.randint(4, (300,))
    weight = policy.get_submodule(layer).weight
    weight.data = weight.data.t().contiguous().t()
    x, weights = torch.randn(300, 6), [torch.randn(300) for _ in range(3)]
    found, wanted = (gradients(form(policy, x, x, actions), heads(policy), weights) for form in (judge, by_modules))
    torch.testing.assert_close(found, wanted, **CLOSE[torch.float32])


@pytest.mark.parametrize("width", [5, 9])
def test_latents_of_another_width_are_refused(width):
    policy, actions = policy_for([7]), torch.randint(4, (300,))
    judge(policy, *[torch.randn(300, 6)] * 2, actions)
    with pytest.raises(RuntimeError, match="shapes"):
        judge(policy, *[torch.randn(300, width)] * 2, actions)


def test_as_many_actions_as_latents():
    policy, x = policy_for([7]), torch.randn(300, 6)
    with pytest.raises(ValueError, match=r"\[N\] = \[300\].*\[200\]"):
        judge(policy, x, x, torch.randint(4, (400,))[:200])


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

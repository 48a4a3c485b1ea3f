"""A policy is compiled as it was built: whatever else happens to its modules is noticed, told and computed by torch."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.memory import names
from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.cells import gated

CLOSE = dict(rtol=1e-4, atol=2e-5)
ROWS, STEPS = 3, 8


def agent(name="gru", **kwargs) -> MemoryPPO:
    env = DummyVecEnv([Counter] * ROWS)
    arguments = dict(n_steps=STEPS, batch_size=STEPS, n_epochs=1, seed=0, device="cpu")
    return MemoryPPO("MlpMemoryPolicy", env, policy_kwargs=small_policy(name, **kwargs), **arguments)


def played(model):
    """What a policy makes of two steps and of a sequence, and gradients of the sequence."""
    policy = model.policy
    dtype = policy.memory.dtype
    obs = torch.linspace(0, 1, 4 * ROWS * 2, dtype=dtype).view(4, ROWS, 2)
    state, start = policy.initial_state(ROWS), torch.arange(4 * ROWS).view(4, ROWS) % 5 == 0
    found, drawn = [], []
    torch.manual_seed(0)
    with torch.no_grad():
        for t in range(4):
            actions, values, log_prob, state = policy(obs[t], state, start[t])
            drawn.append(actions)
            found += [values, log_prob]
        found += [policy.predict_values(obs[0], state), policy.get_distribution(obs[0], state)[0].log_prob(actions)]
    evaluated = policy.evaluate_actions(obs, torch.stack(drawn), policy.initial_state(ROWS), start)
    loss = evaluated.values.square().mean() + evaluated.log_prob.mean() + evaluated.entropy.mean()
    gradients = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    return drawn, [each.detach() for each in (*found, *evaluated[:3])], [g for g in gradients if g is not None]


def by_torch(model):
    with torch_only():
        return played(model)


def quietly(call, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args)


# What may change: values and places of parameters. Kernels go on.


def trained(model):
    model.learn(ROWS * STEPS)
    return model


def loaded(model):
    other = {key: value + 0.1 for key, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(other)
    return model


def loaded_by_assignment(model):
    other = {key: value + 0.1 for key, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(other, assign=True)
    return model


def with_new_weights(model):
    model.policy.action_net.weight = nn.Parameter(2 * model.policy.action_net.weight.detach())
    model.policy.memory.weight_ih_l0 = nn.Parameter(2 * model.policy.memory.weight_ih_l0.detach())
    return model


def with_moved_weights(model):
    model.policy.value_net.weight.data = 2 * model.policy.value_net.weight.data
    return model


def with_a_new_layer_of_the_same_kind(model):
    model.policy.action_net = nn.Linear(4, 3)
    model.policy.encoder[0] = nn.Linear(2, 5)
    return model


def copied(model):
    model.policy = copy.deepcopy(model.policy)
    return loaded(model)


def pickled(model):
    built = model.policy._built
    model.policy = pickle.loads(pickle.dumps(model.policy, pickle.HIGHEST_PROTOCOL))
    assert model.policy._built is not built
    return with_moved_weights(model)


MOVES = [
    trained,
    loaded,
    loaded_by_assignment,
    with_new_weights,
    with_moved_weights,
    with_a_new_layer_of_the_same_kind,
    copied,
    pickled,
]


@pytest.mark.parametrize("share_memory", [True, False], ids=["shared", "pair"])
@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_a_policy_acts_by_the_parameters_that_it_has_now(move, share_memory, monkeypatch):
    model = agent(share_memory=share_memory)
    before = played(model)
    model = move(model)
    assert_close(played(model), by_torch(model), **CLOSE)
    assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(played(model)[1], before[1]))
    # and it is kernels that compute
    monkeypatch.setattr(gated, "step_layers", None)
    with pytest.raises(TypeError, match="NoneType"):
        played(model)


# What may not: torch's operations compute, everything is called.


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def hooked(policy, name):
    policy.get_submodule(name).register_forward_hook(lambda module, given, y: 2 * y)


def pruned(policy, name):
    prune.l1_unstructured(policy.get_submodule(name), "weight", amount=0.9)


def parametrized(policy, name):
    parametrize.register_parametrization(policy.get_submodule(name), "weight", Twice())


def replaced(policy, name):
    policy.set_submodule(name, nn.Sequential(policy.get_submodule(name), nn.Hardtanh(-0.1, 0.1)))


def frozen_forward(policy, name):
    layer = policy.get_submodule(name)
    layer.forward = lambda x: nn.functional.linear(x, 2 * layer.weight, layer.bias)


CHANGES = {
    hooked: "has a forward hook",
    pruned: "has a forward pre-hook",
    parametrized: "is a ParametrizedLinear, built as a Linear",
    replaced: "is a Sequential, built as a Linear",
    frozen_forward: "has a forward of its own",
}


@pytest.mark.parametrize("name", ["encoder.0", "mlp_extractor.policy_net.0", "mlp_extractor.value_net.0", "value_net"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_module_is_told_of_once_and_called(change, name):
    model = agent("rewrite")
    before = played(model)
    change(model.policy, name)
    model.policy.look_for_changes()
    with pytest.warns(UserWarning, match=f"module '{name}' {CHANGES[change]}") as told:
        found = played(model)
    assert len(told) == 1
    assert "policy.compiled = False" in str(told[0].message)
    assert any(not torch.allclose(one, other, atol=1e-4) for one, other in zip(found[1], before[1]))
    assert_close(found, by_torch(model), **CLOSE)


def test_a_module_within_the_memory_is_called_too():
    model, calls = agent("rewrite"), []
    model.policy.memory.layers[1].project.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match=r"module 'memory.layers.1.project' has a forward hook") as told:
        played(model)
    assert len(told) == 1
    assert len(calls) == 4 + 2 + 1


MODULES = ("features_extractor", "encoder", "memory", "mlp_extractor.policy_net", "action_net", "value_net")


@pytest.mark.parametrize("share_memory", [True, False], ids=["shared", "pair"])
@pytest.mark.parametrize("name", names())
def test_hooks_fire_in_predict_and_in_learn(name, share_memory):
    """As often as modules are called: once a step, once a minibatch, once for the value after the last step."""
    model = agent(name, share_memory=share_memory)
    watched = [*MODULES, *([] if share_memory else ["memory_critic"])]
    calls = dict.fromkeys(watched, 0)
    for each in calls:

        def count(module, given, result, each=each):
            calls[each] += 1

        model.policy.get_submodule(each).register_forward_hook(count)
    obs = np.zeros((ROWS, 2), np.float32)
    with pytest.warns(UserWarning, match="has a forward hook"):
        _, state = model.predict(obs)
    model.predict(obs, state)
    predicted = dict.fromkeys(watched, 2) | {"value_net": 0}
    assert {each: calls[each] for each in calls} == predicted
    model.learn(ROWS * STEPS)
    minibatches, bootstraps = ROWS, calls["memory"] - 2 - STEPS - ROWS - 1
    assert bootstraps >= 0
    learned = {each: calls[each] - predicted[each] for each in calls}
    assert learned.pop("action_net") == learned.pop("mlp_extractor.policy_net") == STEPS + minibatches
    assert set(learned.values()) == {STEPS + minibatches + 1 + bootstraps}


def test_a_hook_that_comes_between_two_predictions_is_not_missed():
    model, calls, obs = agent(), [], np.zeros((ROWS, 2), np.float32)
    _, state = model.predict(obs)
    handle = model.policy.action_net.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="module 'action_net' has a forward hook"):
        _, state = model.predict(obs, state)
    assert calls == [1]
    handle.remove()
    model.predict(obs, state)
    assert calls == [1]


def test_a_hook_for_all_modules_is_not_missed():
    model, calls = agent(), []
    played(model)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        with pytest.warns(UserWarning, match="a hook is registered for all modules"):
            model.predict(np.zeros((ROWS, 2), np.float32))
    finally:
        handle.remove()
    assert {model.policy.memory, model.policy.encoder, model.policy.action_net} <= set(calls)


@pytest.mark.parametrize("name", ["gru", "rewrite", "ffm", "hcam"])
def test_a_policy_that_is_not_compiled_computes_by_torch_and_says_nothing(name, monkeypatch):
    model = agent(name)
    expected = by_torch(model)
    model.policy.compiled = False
    model.policy.action_net.register_forward_hook(lambda *_: None)
    assert_close(played(model), expected, rtol=0, atol=0)
    model.learn(ROWS * STEPS)
    model.policy.compiled = True
    with pytest.warns(UserWarning, match="module 'action_net' has a forward hook"):
        played(model)


def test_training_goes_on_alike_by_torchs_operations():
    """The same rollouts and updates as with kernels, but for rounding, after a hook came in between."""
    models = [agent(optimizer_class=torch.optim.SGD, optimizer_kwargs={}) for _ in range(2)]
    for model in models:
        model.set_random_seed(0)
        model.learn(ROWS * STEPS)
        if model is models[1]:
            model.policy.memory.register_forward_hook(lambda *_: None)
        quietly(model.learn, ROWS * STEPS, None, 1, "x", False)
    one, other = (dict(model.policy.named_parameters()) for model in models)
    assert_close(one, other, **CLOSE)

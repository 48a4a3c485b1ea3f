"""What SB3 tests of a policy's own layers and optimisers."""

from __future__ import annotations

import pytest
import torch
from situations import MEMORIES, agent, assert_finite
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

ARCHES = {
    "none": ([], [], []),
    "one": ([4], [4], [4]),
    "two": ([4, 5], [4, 5], [4, 5]),
    "apart": (dict(vf=[6], pi=[3]), [3], [6]),
    "longer critic": (dict(vf=[8, 4], pi=[8]), [8], [8, 4]),
    "longer actor": (dict(vf=[8], pi=[8, 4]), [8, 4], [8]),
    "actor alone": (dict(pi=[8]), [8], []),
}


def widths(net: nn.Module) -> list[int]:
    return [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("arch", ARCHES)
def test_layers_after_the_memory(arch, memory):
    net_arch, actor, critic = ARCHES[arch]
    model = agent("Mlp", "CartPole-v1", memory, {"net_arch": net_arch}).learn(32)
    assert widths(model.policy.mlp_extractor.policy_net) == actor
    assert widths(model.policy.mlp_extractor.value_net) == critic
    assert_finite(model)


@pytest.mark.parametrize("net_arch", [[dict(vf=[8])], [dict(vf=[8], pi=[4])]])
def test_the_old_form_of_layers_is_refused(net_arch):
    """SB3 still takes it, with a warning."""
    with pytest.raises(ValueError, match=r"net_arch must be a list of layers' widths.*'pi' and 'vf'"):
        agent("Mlp", "CartPole-v1", policy_kwargs={"net_arch": net_arch})


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("optimizer_kwargs", [None, dict(weight_decay=0.1)])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, RMSpropTFLike])
def test_optimisers_of_torch_and_of_others(optimizer, optimizer_kwargs, memory):
    arguments = dict(optimizer_class=optimizer, optimizer_kwargs=optimizer_kwargs)
    model = agent("Mlp", "Pendulum-v1", memory, arguments, learning_rate=0.01)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(32)
    assert type(model.policy.optimizer) is optimizer
    assert_finite(model)
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters()))


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("activation_fn", [nn.ReLU, nn.ELU, nn.Tanh])
def test_activations(activation_fn, memory):
    model = agent("Mlp", "CartPole-v1", memory, {"activation_fn": activation_fn}).learn(32)
    assert type(model.policy.mlp_extractor.policy_net[1]) is activation_fn
    assert_finite(model)


def test_weights_are_orthogonal_or_torchs():
    orthogonal, plain = (agent("Mlp", "CartPole-v1", policy_kwargs={"ortho_init": on}).policy for on in (True, False))
    weight = orthogonal.action_net.weight / 0.01
    torch.testing.assert_close(weight @ weight.T, torch.eye(2), rtol=0, atol=1e-5)
    assert plain.action_net.weight.abs().max() > 0.05

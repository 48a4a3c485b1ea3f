"""Layers that compute several modules in one call equal `nn.Sequential`, and leave alone what is not theirs."""

import pytest
import torch
from conftest import tolerance
from torch import nn

from palimpsest.agents.policy.layers import Layers, Tanh
from palimpsest.memory.kernels.arithmetic.linear import linear, tanh_linear

STACKS = {
    "one": lambda: [nn.Linear(3, 5)],
    "tangent": lambda: [nn.Linear(3, 5), Tanh()],
    "two": lambda: [nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2), Tanh()],
    "without bias": lambda: [nn.Linear(3, 5, bias=False), Tanh(), nn.Linear(5, 1)],
    "others between": lambda: [Tanh(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.LayerNorm(4), Tanh()],
    "nothing": lambda: [],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(300,), (7,), (9, 40)], ids=str)
@pytest.mark.parametrize("name", STACKS)
def test_layers_equal_a_sequential(name, shape, dtype):
    modules = [module.to(dtype) for module in STACKS[name]()]
    x = torch.randn(*shape, 3, dtype=dtype, requires_grad=True)
    leaves = [x, *nn.Sequential(*modules).parameters()]
    found, expected = Layers(*modules)(x), nn.Sequential(*modules)(x)
    torch.testing.assert_close(found, expected, **tolerance(dtype))
    outside = torch.randn_like(expected)
    for got, want in zip(*(torch.autograd.grad(y, leaves, outside) for y in (found, expected))):
        torch.testing.assert_close(got, want, **tolerance(dtype))


@pytest.mark.parametrize("watched", [0, 1])
def test_a_layer_with_a_hook_is_called(watched):
    layers = Layers(nn.Linear(3, 5), Tanh(), nn.Linear(5, 2))
    x, seen = torch.randn(300, 3), []
    plain = layers(x)
    layers[watched].register_forward_hook(lambda module, given, result: seen.append(result))
    torch.testing.assert_close(layers(x), plain)
    assert len(seen) == 1
    torch.testing.assert_close(layers[2](seen[0] if watched else seen[0].tanh()), plain)


def test_hooks_before_a_backward_pass_and_on_all_modules_are_called():
    layers = Layers(nn.Linear(3, 5), Tanh())
    x, seen = torch.randn(300, 3, requires_grad=True), []
    layers[0].register_full_backward_pre_hook(lambda module, gradients: seen.append(module))
    layers(x).sum().backward()
    assert seen == [layers[0]]
    layers[0]._backward_pre_hooks.clear()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, result: seen.append(module))
    try:
        layers(x)
    finally:
        handle.remove()
    assert seen[1:] == [layers[0], layers[1], layers]


def test_a_layer_of_another_class_is_called():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    doubled = Doubled(3, 5)
    x = torch.randn(300, 3)
    torch.testing.assert_close(Layers(doubled, Tanh())(x), doubled(x).tanh())


def test_inputs_of_another_width_are_refused_by_torch():
    """Before a kernel reads beyond their end, or the weight's."""
    for width in (3, 5):
        for form in (linear, tanh_linear):
            with pytest.raises(RuntimeError, match="shapes"):
                form(torch.randn(300, width), torch.randn(2, 4), torch.zeros(2))

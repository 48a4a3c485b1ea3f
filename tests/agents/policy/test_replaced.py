"""Memories whose parameters or maps are not as they were built compute as torch's operations do."""

import pytest
import torch
from conftest import tolerance
from torch import nn
from torch.testing import assert_close

from palimpsest.memory import make
from palimpsest.memory.kernels import torch_only

SIZES = {
    "rewrite": dict(num_layers=2, num_heads=2, key_size=3, value_size=3),
    "ffm": dict(memory_size=5, context_size=3),
    "lstm": {},
    "gru": {},
    "rnn": {},
}
F = 32
"""Features in and out: beyond a vector of any machine, whose edge would hide what is laid out otherwise."""


def made(name):
    return make(name, F, output_size=F, **SIZES[name]).double()


def scanned(module):
    torch.manual_seed(1)
    x, start = torch.randn(20, 3, F, dtype=torch.float64), torch.rand(20, 3) < 0.1
    y, _ = module.scan(x, start, module.initial_state(3))
    with torch.no_grad():
        acted, _ = module.step(x[0], module.initial_state(3))
    return y, acted, torch.autograd.grad(y.square().sum(), list(module.parameters()))


def agree(module):
    fast = scanned(module)
    with torch_only():
        assert_close(fast, scanned(module), **tolerance(torch.float64))


@pytest.mark.parametrize("name", SIZES)
def test_weights_in_another_layout(name):
    module = made(name)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.t().contiguous().t()
    assert any(not parameter.is_contiguous() for parameter in module.parameters())
    agree(module)


@pytest.mark.parametrize("name", SIZES)
def test_numbers_that_do_not_lie_side_by_side(name):
    """Biases and rates, each a column of a wider tensor."""
    module = made(name)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data = torch.stack([parameter.data, torch.zeros_like(parameter)], 1)[:, 0]
    assert any(not parameter.is_contiguous() for parameter in module.parameters())
    agree(module)


def with_a_bias_more(layer, _):
    layer.leave = nn.Linear(6, F)


def with_a_bias_less(layer, features):
    layer.project = nn.Linear(features, layer.project.out_features, bias=False)


def with_a_sequence(layer, _):
    layer.project = nn.Sequential(layer.project, nn.Identity())


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("replaced", [with_a_bias_more, with_a_bias_less, with_a_sequence])
def test_maps_of_other_kinds(replaced, number):
    module = made("rewrite")
    replaced(module.layers[number], F if number else F + 1)
    agree(module.double())


def test_a_map_that_is_taken_out_and_put_back():
    module = made("rewrite")
    layer = module.layers[0]
    project = layer.project
    del layer.project
    layer.project = project
    agree(module)


def test_a_map_of_another_size_is_refused():
    """By torch, before a kernel reads beyond its end."""
    module = made("rewrite")
    module.layers[1].leave = nn.Linear(500, F, bias=False).double()
    with pytest.raises(RuntimeError, match="shapes"):
        scanned(module)

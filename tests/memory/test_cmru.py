"""Bistable units against their equations: they keep exactly, have hysteresis, and let gradients pass."""

import numpy as np
import pytest
import torch
from small import make_small
from stacks import assert_follows
from torch.testing import assert_close

from palimpsest.memory.cmru import CMRU


def layer(p, x, state):
    a, beta = p.linear("candidate", x), abs(p.linear("threshold", x))
    h = np.where(abs(a) > beta, p["alpha"] * np.sign(a), state[0])
    return p.linear("leave", h), [h]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("cmru", dtype), layer, form)


def unit(size=1):
    """A layer whose candidate is its input, with a threshold of 1."""
    (each,) = CMRU(2, output_size=size, num_layers=1).layers
    with torch.no_grad():
        each.candidate.weight.copy_(torch.eye(size))
        each.threshold.weight.zero_()
        each.candidate.bias.zero_()
        each.threshold.bias.fill_(1)
        each.leave.weight.copy_(torch.eye(size))
        each.leave.bias.zero_()
    return each


def test_hysteresis_by_hand():
    x = torch.tensor([0.5, 1.5, 0.2, -0.9, -1.1, 0.9, 0, 1.01, -3]).view(-1, 1, 1)
    h = torch.tensor([0.0, 1, 1, 1, -1, -1, -1, 1, -1]).view(-1, 1, 1)
    each = unit()
    with torch.no_grad():
        found, (last,) = each.scan(x, torch.zeros(9, 1, dtype=torch.bool), each.initial_state(1))
    assert_close(found, h, rtol=0, atol=0)
    assert_close(last, h[-1], rtol=0, atol=0)


def test_a_value_is_kept_to_the_bit():
    each = unit()
    with torch.no_grad():
        each.alpha.fill_(0.1)
        x, start = 2 * torch.rand(5000, 3, 1) - 1, torch.zeros(5000, 3, dtype=torch.bool)
        x[0] = 2
        found, _ = each.scan(x, start, each.initial_state(3))
    assert torch.equal(found, torch.full_like(found, 0.1))
    with_gradients, _ = each.scan(x, start, each.initial_state(3))
    assert torch.equal(with_gradients.detach(), found)


def test_the_gradient_passes_where_units_change():
    """From the last h to the state, to alpha through every change, and to candidates as written down here."""
    each = unit().double()
    x = torch.tensor([1.5, -0.5, -2.0]).double().view(-1, 1, 1).requires_grad_()
    state = torch.full((1, 1), 0.3).double().requires_grad_()
    _, (last,) = each.scan(x, torch.zeros(3, 1, dtype=torch.bool), (state,))
    dx, d_state, d_alpha = torch.autograd.grad(last.sum(), [x, state, each.alpha])
    assert d_state.item() == 1
    assert d_alpha.item() == 0  # the sum of the signs of the two changes
    change, before = np.array([1.0, -1, -1]), np.array([0.3, 1, 1])
    a, over, z = np.array([1.5, -0.5, -2]), np.array([0.5, -0.5, 1]), np.array([1, 0, 1])
    soft = 1 / (1 + np.exp(-4 * over))
    expected = 4 * soft * (1 - soft) * np.sign(a) * (change - before) + z * (1 - np.tanh(a) ** 2)
    assert_close(dx.flatten(), torch.from_numpy(expected))

"""Minimal GRU against its equations."""

import math

import pytest
import torch
from small import make_small
from stacks import assert_follows, sigmoid

from palimpsest.memory.mingru import MinGRU


def layer(p, x, state):
    z = sigmoid(p.linear("gate", x))
    h = (1 - z) * state[0] + z * p.linear("candidate", x)
    return h, [h]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("mingru", dtype), layer, form)


def test_initial_time_constants():
    """Half of the units keep for 2 to `horizon` steps, the others for 2."""
    for each in MinGRU(5, output_size=400, horizon=50).layers:
        steps = 1 / torch.sigmoid(each.gate.bias.detach())
        slow, fast = steps.split(200)
        assert torch.equal(fast, torch.full_like(fast, 2))
        assert 2 <= slow.min() < 3
        assert 40 < slow.max() <= 50
        assert slow.log().mean().item() == pytest.approx(math.log(10), abs=0.15)


def test_a_closed_gate_keeps_and_an_open_one_overwrites():
    module = MinGRU(3, output_size=4, num_layers=1).double()
    (each,) = module.layers
    with torch.no_grad():
        each.gate.weight.zero_()
        each.gate.bias.copy_(torch.tensor([-60.0, 60, -60, 60]))
        x, start = torch.randn(50, 2, 3).double(), torch.zeros(50, 2, dtype=torch.bool)
        before = type(module.initial_state(1))(torch.randn(2, 1, 4).double())
        _, last = module.scan(x, start, before)
        read = torch.nn.functional.layer_norm(module.enter(x[-1]), (4,))
    torch.testing.assert_close(last.h[:, 0, ::2], before.h[:, 0, ::2])
    torch.testing.assert_close(last.h[:, 0, 1::2], each.candidate(read)[:, 1::2])
    assert module.diagnostics()["update_gate"].shape == (50, 2, 4)

"""ALER against its equations, and its noise."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import FEATURES, SMALL, make_small
from stacks import assert_follows, sigmoid
from test_shm import splitmix64
from torch.testing import assert_close

from palimpsest import memory
from palimpsest.memory import Memory
from palimpsest.memory.parts.steps import gumbel

N, W, TAU = (SMALL["aler"][name] for name in ("num_slots", "slot_size", "temperature"))


def noise(salt, t, count):
    bits = [splitmix64(int(salt), int(t) * count + n) >> 11 for n in range(count)]
    return np.array([-math.log(-math.log((b + 0.5) / 2**52)) for b in bits])


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def layer(p, x, state):
    h, c, M, t = state
    gates = p["lstm.weight_ih_l0"] @ x + p["lstm.bias_ih_l0"] + p["lstm.weight_hh_l0"] @ h + p["lstm.bias_hh_l0"]
    i, f, g, o = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    a, b, v, gate = np.split(p.linear("interface", h), [N, 2 * N, 2 * N + W])
    G = noise(p["salt"], t, 2 * N)
    w = sigmoid(gate) * softmax((a + G[:N]) / TAU)
    M = (1 - w)[:, None] * M + np.outer(w, v)
    return p.linear("leave", np.concatenate([h, M.T @ softmax((b + G[N:]) / TAU)])), [h, c, M, t + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    module = make_small("aler", dtype)
    for number, each in enumerate(module.layers):
        each.salt.fill_(1000 + number)
    assert_follows(module, layer, form)


def test_noise_is_gumbels():
    """Its mean is Euler's constant and its variance pi^2 / 6; other salts and steps have other noise."""
    drawn = gumbel(torch.tensor(5), torch.arange(20_000), 10)
    assert_close(drawn.mean().item(), 0.5772, rtol=0, atol=0.02)
    assert_close(drawn.var().item(), math.pi**2 / 6, rtol=0, atol=0.04)
    assert len(drawn.unique()) == drawn.numel()
    assert not torch.isin(gumbel(torch.tensor(6), torch.arange(20), 10), drawn).any()


def test_redraw_changes_every_layers_salt_and_the_draws():
    module = make_small("aler")
    x, start = torch.randn(6, 2, FEATURES).double(), torch.zeros(6, 2, dtype=torch.bool)
    before, _ = module.scan(x, start, module.initial_state(2))
    module.redraw(np.random.default_rng(3))
    salts = [int(each.salt) for each in module.layers]
    assert len({0, *salts}) == 3
    assert not torch.equal(module.scan(x, start, module.initial_state(2))[0], before)
    module.redraw(np.random.default_rng(3))
    assert [int(each.salt) for each in module.layers] == salts


def test_a_cold_address_is_one_slot_and_an_open_gate_overwrites_it():
    module = memory.make("aler", FEATURES, **SMALL["aler"] | dict(temperature=1e-3)).double()
    each = module.layers[0]
    with torch.no_grad():
        each.interface.bias[-1] = 50
        state = tuple(part + 1 if part.is_floating_point() else part for part in each.initial_state(1))
        _, (_, _, M, _) = each.step(torch.randn(1, 6).double(), state)
    kept = (M[0] - 1).abs().amax(1) < 1e-9
    assert kept.sum() == N - 1


def test_gates_are_shown():
    module = make_small("aler")
    module.scan(torch.randn(9, 2, 5).double(), torch.zeros(9, 2, dtype=torch.bool), module.initial_state(2))
    shown = module.diagnostics()
    assert shown["write"].shape == shown["read_sharpness"].shape == (9, 2, 2)
    assert ((shown["write"] > 0) & (shown["write"] < 1)).all()
    assert (shown["read_sharpness"] > 1 / N).all()


def test_a_hook_on_the_lstm_counts_in_scans_and_steps():
    module = make_small("aler")
    x, start = torch.randn(6, 3, module.input_size, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.bool)
    unchanged, _ = module.scan(x, start, module.initial_state(3))
    module.layers[1].lstm.register_forward_hook(lambda each, given, out: (2 * out[0], out[1]))
    y, _ = module.scan(x, start, module.initial_state(3))
    assert_close(y, Memory.scan(module, x, start, module.initial_state(3))[0], **tolerance(torch.float64))
    assert not torch.allclose(y, unchanged)

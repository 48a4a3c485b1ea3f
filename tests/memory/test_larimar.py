"""Larimar against its equations with covariances, and its writes against a least-squares problem."""

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import SMALL, make_small
from stacks import assert_follows, normal, sigmoid, silu
from torch.testing import assert_close

from palimpsest.memory.larimar import NOISE, LarimarLayer

N, W = SMALL["larimar"]["num_slots"], SMALL["larimar"]["slot_size"]


def unit(x):
    return x / np.sqrt(x @ x + 1e-6)


def layer(p, x, state):
    U, M = np.eye(N) - state[0][:, :N], p["prior"] + state[0][:, N:]
    w, r = (unit(each) for each in np.split(p.linear("address", x), 2))
    z, (b, f) = p.linear("encode", x), sigmoid(p.linear("rates", x))
    P = np.eye(N) - f * np.outer(w, w)
    M = p["prior"] + P @ (M - p["prior"])
    U = np.eye(N) - P @ (np.eye(N) - U) @ P
    gain = U @ w / (w @ U @ w + (1 - b + NOISE) / b)
    M = M + np.outer(gain, z - M.T @ w)
    U = U - np.outer(gain, U @ w)
    added = p.linear("leave", normal(M.T @ r, 1e-2) * silu(p.linear("gate", x)))
    return added, [np.concatenate([np.eye(N) - U, M - p["prior"]], 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("larimar", dtype), layer, form)


def tables(each, T, b, f):
    """Addresses, encodings and the tables M after T random inputs, with these logits of the rates."""
    x, start = torch.randn(T, 1, 6).to(each.prior.dtype), torch.zeros(T, 1, dtype=torch.bool)
    with torch.no_grad():
        each.rates.weight.zero_()
        each.rates.bias.copy_(torch.tensor([b, f]))
        w, _, z, *_ = each.tokens(x)
        _, (S,) = each.scan(x, start, each.initial_state(1))
        return w[:, 0], z[:, 0] + w[:, 0] @ each.prior, each.prior + S[0, :, each.prior.shape[0] :], S[0]


def test_what_is_written_solves_a_least_squares_problem():
    """The sum of a |z - M^T w|^2 over all inputs, and |M - M_0|^2; nothing is forgotten."""
    each = LarimarLayer(6, 4, 3).double()
    w, z, M, _ = tables(each, 30, b=0.7, f=-50)
    a = (0.5 + 0.5 * np.tanh(0.35)) / (1 - (0.5 + 0.5 * np.tanh(0.35)) + NOISE)
    expected = torch.linalg.solve(torch.eye(4) + a * w.T @ w, each.prior.detach() + a * w.T @ z)
    assert_close(M, expected, rtol=1e-5, atol=1e-6)


def test_one_shot_is_enough_and_what_is_forgotten_is_gone():
    """A sharp write is read at once; forgotten, the address answers with the prior and others with what they had."""
    each = LarimarLayer(4, 4, 3).double()
    with torch.no_grad():
        each.address.weight.copy_(torch.eye(4).repeat(2, 1))
        each.rates.weight.zero_()
        each.rates.bias.copy_(torch.tensor([50.0, -50]))
        (S,), x = each.initial_state(1), torch.eye(4).double()
        for t in range(3):
            _, (S,) = each.step(x[t : t + 1], (S,))
        M = each.prior + S[0, :, 4:]
        assert_close(M[:3], each.encode(x[:3]), rtol=2e-3, atol=2e-3)
        each.rates.bias.copy_(torch.tensor([-50.0, 50]))
        _, (S,) = each.step(x[1:2], (S,))
        forgotten = each.prior + S[0, :, 4:]
        assert_close(forgotten[1], each.prior[1], rtol=0, atol=1e-5)
        assert_close(forgotten[[0, 2]], M[[0, 2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("b", "f"), [(20, 20), (20, -20), (-1, 0)])
def test_covariances_stay_between_nothing_and_the_prior(b, f):
    """In float32, over many steps of any kind."""
    *_, S = tables(LarimarLayer(6, 4, 3), 1000, b, f)
    U = torch.eye(4) - S[:, :4]
    eigenvalues = torch.linalg.eigvalsh((U + U.T) / 2)
    assert_close(U, U.T, rtol=0, atol=1e-4)
    assert eigenvalues.min() > -1e-4
    assert eigenvalues.max() < 1 + 1e-4


def test_rates_are_shown():
    module = make_small("larimar")
    module.scan(torch.randn(9, 2, 5).double(), torch.zeros(9, 2, dtype=torch.bool), module.initial_state(2))
    shown = module.diagnostics()
    for name in ("known", "write", "forget"):
        assert shown[name].shape == (9, 2, 2)
        assert ((shown[name] >= 0) & (shown[name] < 1)).all()
    assert_close(shown["known"][0], torch.zeros(2, 2).double(), **tolerance(torch.float64))

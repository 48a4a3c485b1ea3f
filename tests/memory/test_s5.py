"""S5 against its equations, and its start against HiPPO."""

import math

import numpy as np
import pytest
import torch
from small import make_small
from stacks import assert_follows, sigmoid

from palimpsest.memory.s5 import S5, hippo


def halves(x, axis):
    real, imaginary = np.split(x, 2, axis)
    return real + 1j * imaginary


def gelu(x):
    return x * np.array([1 + math.erf(v / math.sqrt(2)) for v in x]) / 2


def layer(p, x, state):
    rates, step = -np.exp(p["log_decay"]) + 1j * p["frequency"], np.exp(p["log_step"])
    A = np.exp(rates * step)
    B = ((A - 1) / rates)[:, None] * halves(p["into"], 0)
    h = A * halves(state[0], 0) + B @ x
    C = halves(p["out_of"], 1).conj()
    u = gelu(2 * (C @ h).real + p["direct"] * x)
    return u * sigmoid(p.linear("gate", u)), [np.concatenate([h.real, h.imag])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("s5", dtype), layer, form)


def test_initial_eigenvalues_are_those_of_hippo():
    """Of HiPPO-LegS plus the rank-1 matrix that makes it normal; the vectors turn it into a diagonal."""
    n = np.arange(8)
    root = np.sqrt(2 * n + 1)
    legs = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)
    normal = legs + np.outer(root, root) / 2
    values, vectors = hippo(8)
    np.testing.assert_allclose(normal @ vectors, vectors * values, atol=1e-12)
    np.testing.assert_allclose(vectors.conj().T @ vectors, np.eye(4), atol=1e-12)
    assert (values.imag < 0).all()
    everything = np.linalg.eigvals(normal)
    np.testing.assert_allclose(sorted(values.imag), sorted(everything.imag)[:4], atol=1e-12)


def test_initial_half_lives_and_no_growth():
    module = S5(5, output_size=8, num_layers=1, state_size=50)
    (each,) = module.layers
    steps = torch.exp(-each.log_step.detach()) * 2
    assert 20 <= steps.min() < 40
    assert 1000 < steps.max() <= 2000
    with torch.no_grad():
        each.log_decay.sub_(20)
        A, _ = each.discrete()
        real, imaginary = A.chunk(2)
        assert (real.square() + imaginary.square()).max() <= 1 + 1e-6

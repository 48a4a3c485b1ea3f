"""Gated linear attention against its equations, learned and fixed decays."""

import numpy as np
import pytest
import torch
from small import make_small
from stacks import assert_follows, normal, sigmoid, silu
from torch.testing import assert_close

from palimpsest.memory.gla import GLA

H, K = 2, 3


def layer(p, x, state):
    q, k, v = (p.linear(name, x).reshape(H, -1) for name in ("query", "key", "value"))
    if "decay.1.bias" in p:
        alpha = (sigmoid(p.linear("decay.1", p.linear("decay.0", x))) ** (1 / 16)).reshape(H, K)
    else:
        alpha = np.repeat([[31 / 32], [63 / 64]], K, 1)
    S = alpha[..., None] * state[0] + np.einsum("hk,hv->hkv", k, v)
    found = np.einsum("hkv,hk->hv", S, q) / np.sqrt(K)
    return p.linear("leave", normal(found, 1e-2).ravel() * silu(p.linear("gate", x))), [S]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
@pytest.mark.parametrize("case", ["gla", "gla-fixed"])
def test_the_equations(case, dtype, form):
    assert_follows(make_small(case, dtype), layer, form)


def test_initial_time_constants():
    """Of each head's keys, whatever the input: 2 to 500 steps, each a fixed multiple of the one before."""
    (each,) = GLA(5, output_size=8, num_heads=2, key_size=16).double().layers
    bias = each.decay[1].bias.detach().view(2, 16)
    times = -16 / torch.nn.functional.logsigmoid(bias)
    assert_close(times[:, [0, -1]], torch.tensor([[2.0, 500], [2, 500]]).double(), rtol=1e-4, atol=0)
    assert_close(times[:, 1:] / times[:, :-1], torch.full((2, 15), 250 ** (1 / 15)).double(), rtol=1e-4, atol=0)

"""Linear attention against its equations."""

import numpy as np
import pytest
import torch
from small import make_small
from stacks import assert_follows
from torch.testing import assert_close

from palimpsest.memory.linear import LinearAttention

H = 2


def features(x):
    return np.where(x > 0, x + 1, np.exp(x))


def layer(p, x, state):
    q, k, v = (p.linear(name, x).reshape(H, -1) for name in ("query", "key", "value"))
    q, k = features(q), features(k)
    S, z = state[0] + np.einsum("hk,hv->hkv", k, v), state[1] + k
    read = np.einsum("hkv,hk->hv", S, q) / ((z * q).sum(1, keepdims=True) + 1e-6)
    return p.linear("leave", read.ravel()), [S, z]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("linear", dtype), layer, form)


def test_what_is_read_is_a_mean_of_values_with_weights_of_the_kernel():
    """As attention: weights phi(q) . phi(k) of all inputs so far, which sum to 1."""
    module = LinearAttention(3, output_size=4, num_heads=1, key_size=3, value_size=4).double()
    (each,) = module.layers
    x, start = torch.randn(9, 1, 4).double(), torch.zeros(9, 1, dtype=torch.bool)
    with torch.no_grad():
        added, _ = each.scan(x, start, each.initial_state(1))
        q, k, v = (y[:, 0, 0] for y in each.tokens(x))
        weights = (q @ k.T).tril()
        weights = weights / weights.sum(1, keepdim=True)
        assert_close(added[:, 0], each.leave(weights @ v), rtol=1e-4, atol=1e-5)
        assert_close(each.watched["weight_of_now"][:, 0, 0], weights.diagonal(), rtol=1e-4, atol=1e-5)

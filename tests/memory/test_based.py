"""Based against its equations, and its features against the series that they are of."""

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import SMALL, make_small
from stacks import assert_follows
from torch.testing import assert_close

from palimpsest.memory.based import taylor

H, M = SMALL["based"]["num_heads"], SMALL["based"]["window_size"] - 1


def features(a):
    """Of one number per head: the series is 1 + s + s^2 / 2."""
    return np.concatenate([np.ones_like(a), a, a * a / np.sqrt(2)], 1)


def layer(p, x, state):
    S, z, keys, values, filled = state
    q, k, v = (p.linear(name, x).reshape(H, -1) for name in ("query", "key", "value"))
    q, k = features(q), features(k)
    S, z = S + np.einsum("hk,hv->hkv", k, v), z + k
    far = np.einsum("hkv,hk->hv", S, q) / ((z * q).sum(1, keepdims=True) + 1e-6)
    keys, values = np.vstack([keys, p.linear("near_key", x)]), np.vstack([values, p.linear("near_value", x)])
    query, near = p.linear("near_query", x).reshape(H, -1), []
    first = M - int(filled)
    for h in range(H):
        key, value = (each.reshape(M + 1, H, -1)[first:, h] for each in (keys, values))
        weights = np.exp(key @ query[h] / np.sqrt(len(query[h])) + p["by_distance"][h, first:])
        near.append(weights / weights.sum() @ value)
    after = [S, z, keys[1:], values[1:], min(int(filled) + 1, M)]
    return p.linear("leave", np.concatenate([far.ravel(), *near])), after


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert SMALL["based"]["feature_size"] == 1
    assert_follows(make_small("based", dtype), layer, form)


@pytest.mark.parametrize("E", [1, 2, 5])
def test_products_of_features_are_the_series(E):
    a, b = torch.randn(2, 7, 3, E).double()
    s = (a * b).sum(-1) / np.sqrt(E)
    found = taylor(a)
    assert found.shape == (7, 3, 1 + E + E * (E + 1) // 2)
    assert_close((found * taylor(b)).sum(-1), 1 + s + s**2 / 2, **tolerance(torch.float64))


def test_attention_is_shown_by_distance():
    module = make_small("based")
    assert module.context().K == M + 1
    start = torch.zeros(9, 2, dtype=torch.bool)
    start[0] = True
    module.scan(torch.randn(9, 2, 5).double(), start, module.initial_state(2))
    shown = module.diagnostics()["attention"]
    assert shown.shape == (2 * (M + 1),)
    assert_close(shown.view(2, -1).sum(1), torch.ones(2).double())

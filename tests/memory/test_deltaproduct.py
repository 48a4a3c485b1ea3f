"""DeltaProduct against its equations, and the rotation that needs two reflections."""

import numpy as np
import pytest
import torch
from small import make_small
from stacks import assert_follows, normal, sigmoid, silu
from torch.testing import assert_close

from palimpsest.memory.deltaproduct import DeltaProductLayer

N, H, K = 3, 2, 3


def layer(p, x, state):
    unit = [
        each / np.sqrt((each**2).sum(-1, keepdims=True) + 1e-6)
        for each in (silu(p.linear("query", x)).reshape(H, K), silu(p.linear("key", x)).reshape(N, H, K))
    ]
    q, k = unit
    v, beta = silu(p.linear("value", x)).reshape(N, H, -1), 2 * sigmoid(p.linear("beta", x)).reshape(N, H)
    (S,) = state
    S, read = sigmoid(p.linear("decay", x))[:, None, None] * S, []
    for h in range(H):
        for j in range(N):
            reflect = np.eye(K) - beta[j, h] * np.outer(k[j, h], k[j, h])
            S[h] = reflect @ S[h] + beta[j, h] * np.outer(k[j, h], v[j, h])
        read.append(S[h].T @ q[h])
    return p.linear("leave", normal(np.stack(read), 1e-2).ravel() * silu(p.linear("gate", x))), [S]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("deltaproduct", dtype), layer, form)


@pytest.mark.parametrize(("householder", "determinant"), [(1, -1.0), (2, 1.0)])
def test_two_reflections_make_a_rotation(householder, determinant):
    """With beta of 2 and nothing written, one step mirrors what is held, and two turn it by twice the keys' angle."""
    each = DeltaProductLayer(1, householder, 1, 2, 2).double()
    keys = torch.tensor([[3.0, 1], [1, 2]]).double()[:householder]
    with torch.no_grad():
        each.key.weight.copy_(keys.reshape(-1, 1))
        each.value.weight.zero_()
        each.beta.bias.fill_(50)
        each.decay.bias.fill_(50)
        _, (after,) = each.step(torch.ones(1, 1).double(), (torch.eye(2).double().view(1, 1, 2, 2),))
    after = after[0, 0]
    assert_close(after @ after.T, torch.eye(2).double(), rtol=0, atol=1e-5)
    assert_close(after.det().item(), determinant, rtol=0, atol=1e-5)
    if householder == 2:
        first, second = torch.atan2(*torch.nn.functional.silu(keys).flip(1).T)
        assert_close(torch.atan2(after[1, 0], after[0, 0]), 2 * (second - first), rtol=0, atol=1e-5)

"""Mixture of memories against its equations."""

import numpy as np
import pytest
import torch
from small import SMALL, make_small
from stacks import assert_follows, normal, sigmoid, silu

from palimpsest.memory.mom import MoM

M, TOP, H = (SMALL["mom"][name] for name in ("num_memories", "top_k", "num_heads"))


def layer(p, x, state):
    (S,) = state
    scores = np.exp(p.linear("route", x))
    chosen = np.argsort(scores)[-TOP:]
    q = p.linear("query", x).reshape(H, -1)
    k, v = (p.linear(name, x).reshape(M + 1, H, -1) for name in ("key", "value"))
    alpha = sigmoid(p.linear("decay", x))
    shares = {0: 1.0} | {m + 1: scores[m] / scores[chosen].sum() for m in chosen}
    found = np.zeros_like(v[0])
    for m, share in shares.items():
        for h in range(H):
            S[m, h] = alpha[h] * S[m, h] + np.outer(k[m, h], v[m, h])
            found[h] += share * S[m, h].T @ q[h] / np.sqrt(q.shape[1])
    return p.linear("leave", normal(found, 1e-2).ravel() * silu(p.linear("gate", x))), [S]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("mom", dtype), layer, form)


def test_what_is_not_chosen_stays_as_it_is():
    module = make_small("mom")
    x, start = torch.randn(1, 40, 5).double(), torch.zeros(1, 40, dtype=torch.bool)
    before = type(module.initial_state(1))(torch.randn_like(module.initial_state(40).S))
    with torch.no_grad():
        _, last = module.scan(x, start, before)
    chosen = module.diagnostics()["chosen"][0].view(40, -1, M)
    assert (chosen.sum(2) == TOP).all()
    same = (last.S == before.S).flatten(3).all(3)
    assert not same[:, :, 0].any()
    assert torch.equal(same[:, :, 1:], chosen == 0)
    assert chosen.mean((0, 1)).min() > 0


def test_more_than_all_memories_cannot_be_chosen():
    with pytest.raises(ValueError, match="top_k must be an integer, 1 to 3; got 4"):
        MoM(5, num_memories=3, top_k=4)

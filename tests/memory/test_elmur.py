"""ELMUR against its equations with slots that stay in place, and what a blend keeps."""

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import SMALL, make_small
from stacks import assert_follows, normal
from torch.testing import assert_close

from palimpsest.memory.elmur import ELMURLayer

H, M, B = (SMALL["elmur"][name] for name in ("num_heads", "num_slots", "blend"))


def layer(p, x, state, blend=B):
    """The paper's rule: the first empty slot, else the one with the oldest anchor; slots are sorted only at the end."""
    slots, filled = list(state[0]), int(state[1])
    anchors = [-1] * (M - filled) + list(range(filled))
    chosen = int(np.argmin(anchors))
    m, empty = slots[chosen], anchors[chosen] == -1
    a = normal((0 if empty else m) + p.linear("write", x))
    u = normal(a + p.linear("mlp.2", np.maximum(p.linear("mlp.0", a), 0)))
    slots[chosen] = u if empty else (1 - blend) * m + blend * u
    anchors[chosen] = filled
    order = np.argsort(anchors, kind="stable")
    used = [j for j in order if anchors[j] >= 0]
    query, found = p.linear("query", x).reshape(H, -1), []
    for h in range(H):
        k, v = (np.array([p.linear(name, slots[j]).reshape(H, -1)[h] for j in used]) for name in ("key", "value"))
        weights = np.exp(k @ query[h] / np.sqrt(len(query[h])) + p["by_age"][h, M - len(used) :])
        found.append(weights / weights.sum() @ v)
    return p.linear("leave", np.concatenate(found)), [np.array([slots[j] for j in order]), len(used)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("elmur", dtype), layer, form)


@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
def test_what_a_blend_keeps(blend):
    """A slot is touched every M inputs; without an update of its own it would be what it was."""
    each = ELMURLayer(4, 3, 1, blend).double()
    slots = torch.randn(2, 3, 4).double()
    full, x = torch.full((2,), 3), torch.randn(7, 2, 4).double()
    with torch.no_grad():
        _, (after, filled) = each.scan(x, torch.zeros(7, 2, dtype=torch.bool), (slots, full))
        expected = list(slots.unbind(1))
        for t in range(7):
            m = expected.pop(0)
            a = torch.nn.functional.layer_norm(m + each.write(x[t]), (4,))
            expected.append((1 - blend) * m + blend * torch.nn.functional.layer_norm(a + each.mlp(a), (4,)))
    assert_close(after, torch.stack(expected, 1), **tolerance(torch.float64))
    assert filled.tolist() == [3, 3]
    if blend == 0:
        assert torch.equal(after, slots.roll(-(7 % 3), 1))


def test_attention_is_shown_by_age():
    module = make_small("elmur")
    start = torch.zeros(9, 2, dtype=torch.bool)
    start[0] = True
    module.scan(torch.randn(9, 2, 5).double(), start, module.initial_state(2))
    shown = module.diagnostics()["attention"].view(2, M)
    assert_close(shown.sum(1), torch.ones(2).double(), **tolerance(torch.float64))

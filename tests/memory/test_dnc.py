"""DNC against its equations, and its addressing against what it is for."""

import numpy as np
import pytest
import torch
from small import SMALL, make_small
from stacks import assert_follows, sigmoid, softplus
from torch.testing import assert_close

from palimpsest.memory.dnc import allocation

N, W, R = (SMALL["dnc"][name] for name in ("num_slots", "slot_size", "num_reads"))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def content(M, key, strength):
    key = key / np.sqrt(key @ key + 1e-3)
    return softmax((1 + softplus(strength)) * np.array([key @ m / np.sqrt(m @ m + 1e-3) for m in M]))


def allocated(u):
    a, left = np.zeros(N), 1.0
    for j in sorted(range(N), key=lambda j: (round(u[j] * 1024), j)):
        used = 1e-6 + (1 - 1e-6) * u[j]
        a[j] = (1 - used) * left
        left *= used
    return a


def layer(p, x, state):
    M, u, w, reads, precedence, link = state
    r = np.concatenate([M.T @ each for each in reads])
    h = np.tanh(p.linear("enter", x) + p.linear("back", r))
    sizes = [R * W, R, W, 1, W, W, R, 1, 1, 3 * R]
    keys, s, k, s_w, e, v, f, g_a, g_w, modes = np.split(p.linear("interface", h), np.cumsum(sizes)[:-1])
    psi = np.ones(N)
    for i in range(R):
        psi = psi * (1 - sigmoid(f[i]) * reads[i])
    u = (u + w - u * w) * psi
    w = sigmoid(g_w) * (sigmoid(g_a) * allocated(u) + (1 - sigmoid(g_a)) * content(M, k, s_w))
    M = M * (1 - np.outer(w, sigmoid(e))) + np.outer(w, v)
    for i, j in np.ndindex(N, N):
        link[i, j] = 0 if i == j else (1 - w[i] - w[j]) * link[i, j] + w[i] * precedence[j]
    precedence = (1 - w.sum()) * precedence + w
    after = []
    for i in range(R):
        m = softmax(modes[3 * i : 3 * i + 3])
        same = content(M, keys[W * i : W * i + W], s[i])
        after.append(m[0] * link.T @ reads[i] + m[1] * same + m[2] * link @ reads[i])
    r = np.concatenate([M.T @ each for each in after])
    return p.linear("leave", np.concatenate([h, r])), [M, u, w, np.stack(after), precedence, link]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("dnc", dtype), layer, form)


def test_allocation_takes_the_least_used_first():
    """Alike but for rounding errors: by number. What is full gets nothing, and no more than 1 is given away."""
    usage = torch.tensor([[0.5, 1.0, 0.0, 0.25], [0.3, 0.3 - 1e-7, 1.0, 1.0]])
    expected = torch.tensor([[0, 0, 1, 0], [0.7, 0.7 * 0.3, 0, 0]])
    assert_close(allocation(usage), expected, rtol=0, atol=1e-5)


def test_links_lead_through_what_was_written_in_order():
    """Four sharp writes to free slots; a head that goes forward meets them in order, one that goes backward in turn."""
    module = make_small("dnc")
    (each, _) = module.layers
    biases = each.interface.bias.detach().split(each.parts)
    with torch.no_grad():
        each.interface.weight.zero_()
        biases[6].fill_(-60)  # nothing is freed
        biases[7].fill_(60)  # all goes to free slots
        biases[8].copy_(torch.tensor([0.0, 0, 60]).repeat(R))  # forward
        x, state = torch.zeros(1, 6).double(), each.initial_state(1)
        written = []
        for _ in range(N):
            _, state = each.step(x, state)
            written.append(int(state[2].argmax()))
        assert written == list(range(N))
        # from the first slot on, with nothing more written
        biases[7][1] = -60
        state = (*state[:3], torch.eye(N).double()[:1].expand(1, R, N), *state[4:])
        met = []
        for _ in range(N - 1):
            _, state = each.step(x, state)
            met.append(state[3][0, 0])
        assert_close(torch.stack(met), torch.eye(N).double()[1:], rtol=0, atol=1e-4)
        biases[8].copy_(torch.tensor([60.0, 0, 0]).repeat(R))
        _, state = each.step(x, state)
        assert_close(state[3][0, 0], torch.eye(N).double()[N - 2], rtol=0, atol=1e-4)


def test_gates_are_shown():
    module = make_small("dnc")
    start = torch.zeros(9, 2, dtype=torch.bool)
    module.scan(torch.randn(9, 2, 5).double(), start, module.initial_state(2))
    shown = module.diagnostics()
    for name in ("allocation_gate", "write_gate"):
        assert shown[name].shape == (9, 2, 2)
        assert ((shown[name] > 0) & (shown[name] < 1)).all()
    assert not torch.equal(shown["allocation_gate"], shown["write_gate"])

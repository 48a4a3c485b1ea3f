"""The matrix LSTM against its unstable equations, and the recurrence that makes it stable."""

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import make_small
from stacks import assert_follows, normal, sigmoid
from torch.testing import assert_close

from palimpsest.memory.kernels.diagonal.torch_diagonal import max_plus_scan
from palimpsest.memory.mlstm import MLSTM, MLSTMState

H, K = 2, 3


def layer(p, x, state):
    """The equations as the paper has them, without m; the state is only translated from and to it."""
    C, n, m = state
    C, n = C * np.exp(m)[:, None, None], n * np.exp(m)[:, None]
    q, k, v = (p.linear(name, x).reshape(H, -1) for name in ("query", "key", "value"))
    log_i, f = np.split(p.linear("gates", x), 2)
    i, f = np.exp(log_i), sigmoid(f)
    C = f[:, None, None] * C + i[:, None, None] * np.einsum("hk,hv->hkv", k, v) / np.sqrt(K)
    n = f[:, None] * n + i[:, None] * k / np.sqrt(K)
    found = np.einsum("hkv,hk->hv", C, q) / np.maximum(abs((n * q).sum(1)), 1)[:, None]
    m = np.maximum(np.log(f) + m, log_i)
    after = [C * np.exp(-m)[:, None, None], n * np.exp(-m)[:, None], m]
    return p.linear("leave", normal(found, 1e-2).ravel() * sigmoid(p.linear("output_gate", x))), after


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("mlstm", dtype), layer, form)


@pytest.mark.parametrize("T", [1, 2, 20])
def test_the_largest_of_sums_equals_a_plain_loop(T):
    """A start hides NaN in what came before; gradients go to the largest alone."""
    a, b, state = (torch.randn(size).double().requires_grad_() for size in [(T, 3, 4), (T, 3, 4), (3, 4)])
    start = torch.rand(T, 3) < 0.2
    h, steps = state, []
    for t in range(T):
        h = torch.maximum(a[t] + torch.where(start[t, :, None], 0, h), b[t])
        steps.append(h)
    expected, found, weigh = torch.stack(steps), max_plus_scan(a, b, start, state), torch.randn(T, 3, 4)
    assert_close(found, expected, **tolerance(torch.float64))
    gradients = [torch.autograd.grad((each * weigh).sum(), [a, b, state]) for each in (found, expected)]
    assert_close(gradients[0], gradients[1], **tolerance(torch.float64))
    start[T // 2] = True
    poisoned = max_plus_scan(a, b, start, torch.full_like(state, torch.nan))
    assert_close(poisoned[T // 2 :], max_plus_scan(a, b, start, state)[T // 2 :], rtol=0, atol=0)


def test_large_gates_do_not_overflow():
    """Input gates of exp(+-500) in float32: what is given out and all gradients are finite."""
    module = MLSTM(3, output_size=4, num_heads=2, key_size=3, value_size=4)
    (each,) = module.layers
    x, start = torch.randn(60, 2, 3), torch.zeros(60, 2, dtype=torch.bool)
    for bias in (500.0, -500.0):
        with torch.no_grad():
            each.gates.bias.fill_(bias)
        y, last = module.scan(x, start, module.initial_state(2))
        gradients = torch.autograd.grad(y.square().sum() + sum(part.sum() for part in last), list(module.parameters()))
        assert all(each.isfinite().all() for each in (y, *last, *gradients))


def test_what_m_is_changes_nothing():
    module = make_small("mlstm")
    x, start = torch.randn(20, 2, 5).double(), torch.zeros(20, 2, dtype=torch.bool)
    C, n, m = torch.randn(2, 2, 2, 3, 4).double(), torch.randn(2, 2, 2, 3).double(), torch.randn(2, 2, 2).double()
    with torch.no_grad():
        y, _ = module.scan(x, start, MLSTMState(C, n, m))
        shift = torch.tensor(1.5).double()
        other, _ = module.scan(x, start, MLSTMState(C * shift.exp(), n * shift.exp(), m - shift))
    assert_close(y, other, **tolerance(torch.float64))

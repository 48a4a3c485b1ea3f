"""Mamba against its equations, and its kernels: resets inside the scan, and torch's forms."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from small import make_small
from stacks import assert_follows, silu, softplus
from torch.testing import assert_close

from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.arithmetic.threads import STEPS_PER_THREAD
from palimpsest.memory.kernels.diagonal.convolution import short_convolution
from palimpsest.memory.kernels.diagonal.selective import SEGMENT, selective_scan
from palimpsest.memory.kernels.outer.naive import outer_naive
from palimpsest.memory.mamba import Mamba

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def layer(p, x, state):
    u, z = np.split(p.linear("enter", x), 2)
    seen = [*state[1], u]
    u = silu(sum(weight * each for weight, each in zip(p["conv_weight"], reversed(seen))) + p["conv_bias"])
    N = len(p["log_rate"])
    selected = p.linear("select", u)
    d, b, c = selected[: -2 * N], selected[-2 * N : -N], selected[-N:]
    delta = softplus(p.linear("to_delta", d))
    S = np.exp(-np.exp(p["log_rate"]) * delta) * state[0] + np.outer(b, delta * u)
    return p.linear("leave", (S.T @ c + p["direct"] * u) * silu(z)), [S, np.stack(seen[1:])]


@each_dtype
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    assert_follows(make_small("mamba", dtype), layer, form)


def test_initial_steps_and_rates():
    (each,) = Mamba(5, output_size=300).layers
    delta = torch.nn.functional.softplus(each.to_delta.bias.detach())
    assert 1e-3 <= delta.min() < 2e-3
    assert 5e-2 < delta.max() <= 0.1001
    assert_close(each.log_rate.exp(), torch.arange(1.0, 17).unsqueeze(1).expand(16, 300))


def with_gradients(run, start, *leaves):
    """What is computed, and the gradients of a loss that weighs all numbers differently."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    found = run(start, *leaves)
    weigh = torch.Generator().manual_seed(1)
    loss = sum((v * torch.randn(v.shape, generator=weigh, dtype=torch.float64).to(v.dtype)).sum() for v in found)
    return [v.detach() for v in found], torch.autograd.grad(loss, leaves)


def naive(start, delta, A, value, key, query, state):
    decay = torch.exp(A * delta.unsqueeze(2))
    given = (x.unsqueeze(2) for x in (key, value, decay, query))
    read, last = outer_naive(*given, start, state.unsqueeze(1))
    return read.squeeze(2), last.squeeze(1)


def selective(start, delta, A, value, key, query, state):
    return selective_scan(delta, A, value, key, query, start, state)


def tokens(T, B, N, D, dtype=torch.float64):
    """Delta, A, value, key, query and state."""
    sizes = [(T, B, D), (N, D), (T, B, D), (T, B, N), (T, B, N), (B, N, D)]
    delta, A, *others = (torch.randn(size, dtype=dtype) for size in sizes)
    return delta.abs(), -A.abs(), *others


@each_dtype
@pytest.mark.parametrize("form", [selective, torch_only()(selective)], ids=["compiled", "torch"])
@pytest.mark.parametrize("T", [1, SEGMENT, 2 * SEGMENT + 5])
def test_the_scan_equals_a_plain_loop(form, dtype, T):
    given = (torch.rand(T, 3) < 0.1, *tokens(T, 3, 4, 5, dtype))
    assert_close(with_gradients(form, *given), with_gradients(naive, *given), **tolerance(dtype))


@pytest.mark.parametrize("scan", [selective, lambda start, x, w, state: short_convolution(x, w, start, state)])
def test_threads_change_nothing(scan):
    T, B = STEPS_PER_THREAD, 3
    sizes = [(T, B, 5), (4, 5), (B, 3, 5)]
    leaves = tokens(T, B, 2, 5) if scan is selective else [torch.randn(size).double() for size in sizes]
    start, threads, results = torch.rand(T, B) < 0.05, torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(with_gradients(scan, start, *leaves))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], **tolerance(torch.float64))


def plain_convolution(start, x, weight, state):
    """Input by input: what the episode holds so far, newest first."""
    W, ys, lasts = len(weight), [], []
    for b in range(x.shape[1]):
        held = list(state[b].flip(0))
        for t in range(len(x)):
            held = [x[t, b], *([] if start[t, b] else held)]
            ys.append(sum(weight[lag] * each for lag, each in enumerate(held[:W])))
        padded = [*held, *[torch.zeros_like(x[0, b])] * W][: W - 1]
        lasts.append(torch.stack(padded[::-1]) if padded else state[b])
    return torch.stack(ys).unflatten(0, (x.shape[1], -1)).transpose(0, 1), torch.stack(lasts)


@each_dtype
@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize(("T", "W"), [(1, 4), (2, 4), (20, 4), (5, 1)])
def test_the_convolution_equals_a_plain_loop(dtype, kernels, T, W):
    def run(start, x, weight, state):
        return short_convolution(x, weight, start, state)

    leaves = [torch.randn(size, dtype=dtype) for size in [(T, 3, 5), (W, 5), (3, W - 1, 5)]]
    start = torch.rand(T, 3) < 0.2
    expected = with_gradients(plain_convolution, start, *leaves) if W > 1 else None
    found = with_gradients(run if kernels else torch_only()(run), start, *leaves) if W > 1 else None
    if expected is None:
        y, last = run(start, *leaves)
        assert_close(y, leaves[0] * leaves[1][0], **tolerance(dtype))
        assert last.shape == (3, 0, 5)
        return
    assert_close(found, expected, **tolerance(dtype))


def test_what_does_not_fit_is_refused():
    """Kernels would read beyond the end."""
    start, given = torch.zeros(7, 3, dtype=torch.bool), tokens(7, 3, 4, 5)
    with pytest.raises(ValueError, match=r"state must be .*\(3, 4, 5\)\]; got .*\(2, 4, 5\)\]"):
        selective(start, *given[:-1], given[-1][:2])
    with pytest.raises(ValueError, match=r"must be \[\(4, 5\), \(7, 3\), \(3, 3, 5\)\] for x \[7, 3, 5\]; got"):
        short_convolution(given[0], torch.randn(4, 5), start, torch.randn(3, 2, 5))


@pytest.mark.parametrize("conv_size", [1, 4])
def test_the_convolution_reads_directly(conv_size):
    """Tables whose A is next to minus infinity are empty at once: what is read is what the convolution reads."""
    module = Mamba(3, 5, conv_size=conv_size).double()
    assert module.context() == (conv_size, math.inf)
    with torch.no_grad():
        module.layers[0].log_rate.fill_(50)
    x = torch.randn(8, 1, 3, dtype=torch.float64, requires_grad=True)
    y, _ = module.scan(x, torch.zeros(8, 1, dtype=torch.bool), module.initial_state(1))
    (gradient,) = torch.autograd.grad(y[-1].square().sum(), x)
    assert gradient.abs().amax((1, 2)).gt(1e-12).tolist() == [False] * (8 - conv_size) + [True] * conv_size

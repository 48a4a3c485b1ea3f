"""The decaying, rotating traces: both forms against a plain loop, values and gradients."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.kernels import decay_scan, torch_only
from palimpsest.memory.kernels.diagonal.naive import decay_naive

torch_decay_scan = torch_only()(decay_scan)
each_form = pytest.mark.parametrize("scan", [decay_scan, torch_decay_scan], ids=["compiled", "torch"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

# around the chunks of the parallel form (16) and of chunks of chunks (256)
LENGTHS = [1, 2, 15, 16, 17, 32, 33, 255, 257, 300]


def arguments(T, B=3, M=5, C=4, dtype=torch.float64, density=0.1):
    """x, alpha of both signs, omega over several turns, start and state."""
    return (
        torch.randn(T, B, M, dtype=dtype),
        torch.randn(M, dtype=dtype) * 0.3,
        torch.randn(C, dtype=dtype) * 3,
        torch.rand(T, B) < density,
        torch.randn(B, M, C, 2, dtype=dtype),
    )


def with_gradients(scan, x, alpha, omega, start, state):
    """States, last, and the gradients to x, alpha, omega and state of a loss that weighs all numbers differently."""
    leaves = [v.detach().clone().requires_grad_() for v in (x, alpha, omega, state)]
    states, last = scan(leaves[0], leaves[1], leaves[2], start, leaves[3])
    weigh = torch.Generator().manual_seed(1)
    loss = sum((v * torch.randn(v.shape, generator=weigh, dtype=torch.float64).to(v)).sum() for v in (states, last))
    return [states.detach(), last.detach(), *torch.autograd.grad(loss, leaves)]


@each_form
@each_dtype
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_values_equal_a_plain_loop(scan, dtype, density):
    given = arguments(40, dtype=dtype, density=density)
    states, last = scan(*given)
    expected, _ = decay_naive(*(v.double() if v.is_floating_point() else v for v in given))
    assert states.dtype == last.dtype == dtype
    assert_close(states, expected.to(dtype), **tolerance(dtype))
    assert_close(last, states[-1], rtol=0, atol=0)


@each_form
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4])
def test_gradients_equal_autograd_of_a_loop(scan, T, density):
    given = arguments(T, density=density)
    assert_close(with_gradients(scan, *given), with_gradients(decay_naive, *given), **tolerance(torch.float64))


@each_form
def test_float32_gradients_are_those_of_float64(scan):
    given = arguments(300, dtype=torch.float32)
    exact = with_gradients(decay_naive, *(v.double() if v.is_floating_point() else v for v in given))
    for found, expected in zip(with_gradients(scan, *given), exact):
        assert found.dtype == torch.float32
        scale = expected.abs().amax()
        assert (found - expected).abs().amax() < 1e-5 * scale


@pytest.mark.parametrize(("M", "C"), [(1, 1), (32, 4), (3, 7)])
@each_dtype
def test_both_forms_are_equal(dtype, M, C):
    x, alpha, omega, start, state = arguments(100, 4, M, C, dtype)
    given = (x, 0.3 + alpha.abs(), omega, start, state)
    compiled, in_torch = with_gradients(decay_scan, *given), with_gradients(torch_decay_scan, *given)
    for one, other in zip(compiled, in_torch):
        assert_close(one, other, rtol=tolerance(dtype)["rtol"], atol=tolerance(dtype)["atol"] * other.abs().amax())


@each_form
def test_gradcheck(scan):
    x, alpha, omega, start, state = arguments(18, 2, 2, 2, density=0.15)
    leaves = [v.requires_grad_() for v in (x, alpha, omega, state)]
    assert torch.autograd.gradcheck(lambda x, alpha, omega, state: scan(x, alpha, omega, start, state), leaves)


@each_form
def test_a_hundred_thousand_steps_in_float32(scan):
    """The published initial rates and a trace that hardly decays: finite, and where a float64 recurrence is."""
    T = 100_000
    alpha = torch.tensor([0.673, 0.05, 0.0045, 1e-4])
    omega = 2 * math.pi / torch.tensor([1.0, 342.0, 1024.0])
    x = torch.randn(T, 1, 4)
    state = torch.randn(1, 4, 3, 2)
    start = torch.zeros(T, 1, dtype=torch.bool)
    states, last = scan(x, alpha, omega, start, state)
    gamma = np.exp(-alpha.double().numpy())[:, None] * np.exp(-1j * omega.double().numpy())
    s = state[0, ..., 0].double().numpy() + 1j * state[0, ..., 1].double().numpy()
    inputs = x[:, 0].double().numpy()
    expected = np.empty((T, 4, 3), complex)
    for t in range(T):
        s = gamma * s + inputs[t][:, None]
        expected[t] = s
    assert states.isfinite().all()
    found = torch.complex(states[:, 0, ..., 0].double(), states[:, 0, ..., 1].double()).numpy()
    scale = np.maximum(1, np.abs(expected).max(0))
    assert (np.abs(found - expected) / scale).max() < 1e-3
    assert torch.equal(last, states[-1])


@each_form
@each_dtype
def test_extreme_rates_are_finite(scan, dtype):
    """No decay at all, decays that leave nothing, and very fast rotations: values and gradients are finite."""
    alpha = torch.tensor([0.0, -0.0, 1e-30, 90.0, -800.0, 1e30], dtype=dtype)
    omega = torch.tensor([0.0, 1e4, -1e-20], dtype=dtype)
    x, _, _, start, state = arguments(70, 2, 6, 3, dtype)
    results = with_gradients(scan, x, alpha, omega, start, state)
    assert all(r.isfinite().all() for r in results)
    assert_close(results[0][:, :, 4:, :, 0], x[:, :, 4:, None].expand(-1, -1, -1, 3), **tolerance(dtype))
    assert not results[0][:, :, 4:, :, 1].any()
    d_alpha = results[3]
    assert torch.equal(d_alpha[[0, 1, 4, 5]], torch.zeros(4, dtype=dtype))
    assert d_alpha[2] != 0


@each_form
def test_the_sign_of_alpha_only_turns_its_gradient(scan):
    x, alpha, omega, start, state = arguments(30)
    plus, minus = (
        with_gradients(scan, x, alpha, omega, start, state),
        with_gradients(scan, x, -alpha, omega, start, state),
    )
    plus[3] = -plus[3]
    assert_close(plus, minus, rtol=0, atol=0)


@each_form
@each_dtype
@pytest.mark.parametrize("first", [0, 3, 16, 20])
def test_what_stood_before_a_start_is_gone(scan, dtype, first):
    """NaN in the state and in earlier inputs reaches neither values nor gradients after a start."""
    x, alpha, omega, start, state = arguments(40, dtype=dtype)
    start[first] = True
    x[:first] = math.nan
    state[:] = math.nan
    x, state = x.requires_grad_(), state.requires_grad_()
    alpha, omega = alpha.requires_grad_(), omega.requires_grad_()
    states, last = scan(x, alpha, omega, start, state)
    expected, expected_last = scan(x[first:], alpha, omega, start[first:], torch.zeros_like(state))
    assert_close(states[first:], expected, **tolerance(dtype))
    assert_close(last, expected_last, **tolerance(dtype))
    dx, d_state = torch.autograd.grad(states[first:].square().sum(), [x, state], retain_graph=True)
    wanted = torch.autograd.grad(expected.square().sum(), [x, alpha, omega])
    assert_close(dx, wanted[0], **tolerance(dtype))
    assert not d_state.any()
    if first == 0:
        found = torch.autograd.grad(states.square().sum(), [alpha, omega])
        assert_close(found, wanted[1:], **tolerance(dtype))


@each_form
def test_nan_stays_in_its_row(scan):
    x, alpha, omega, start, state = arguments(40)
    clean = with_gradients(scan, x, alpha, omega, start, state)
    x[5, 1], state[1] = math.nan, math.nan
    poisoned = with_gradients(scan, x, alpha, omega, start, state)
    for b in (0, 2):
        assert_close(poisoned[0][:, b], clean[0][:, b], rtol=0, atol=0)
        assert_close(poisoned[2][:, b], clean[2][:, b], rtol=0, atol=0)


@each_form
def test_an_empty_sequence_leaves_the_state(scan):
    x, alpha, omega, start, state = arguments(0)
    state.requires_grad_()
    states, last = scan(x, alpha, omega, start, state)
    assert states.shape == (0, 3, 5, 4, 2)
    assert torch.equal(last, state)
    (gradient,) = torch.autograd.grad(last.sum(), state)
    assert torch.equal(gradient, torch.ones_like(state))


@each_form
def test_no_rows(scan):
    states, last = scan(*arguments(4, B=0))
    assert states.shape == (4, 0, 5, 4, 2)
    assert last.shape == (0, 5, 4, 2)


@each_form
def test_memory_layout_does_not_matter(scan):
    """Views of every second column, a transposed x, and a gradient that is an expanded scalar."""
    x, alpha, omega, start, state = arguments(20, 6)
    views = (x.transpose(0, 1).contiguous().transpose(0, 1)[:, ::2], alpha, omega, start[:, ::2], state[::2])
    assert not views[0].is_contiguous()
    copies = tuple(v.clone(memory_format=torch.contiguous_format) for v in views)
    assert_close(with_gradients(scan, *views), with_gradients(scan, *copies), **tolerance(torch.float64))
    leaf = views[0].detach().requires_grad_()
    (summed,) = torch.autograd.grad(scan(leaf, *views[1:])[0].sum(), leaf)
    ones = torch.ones(20, 3, 5, 4, 2, dtype=x.dtype)
    (weighed,) = torch.autograd.grad((scan(leaf, *views[1:])[0] * ones).sum(), leaf)
    assert_close(summed, weighed, **tolerance(torch.float64))


@each_form
def test_arguments_are_left_alone(scan):
    given = arguments(20)
    before = [v.clone() for v in given]
    states, last = scan(*given)
    last.zero_()
    assert all(torch.equal(v, w) for v, w in zip(given, before))
    assert states[-1].any()


@each_form
def test_arguments_that_do_not_fit_are_refused(scan):
    x, alpha, omega, start, state = arguments(6)
    with pytest.raises(ValueError, match=r"x must be \[T, B, M\] float32 or float64; got \[6, 3\] float64"):
        scan(x[..., 0], alpha, omega, start, state)
    with pytest.raises(ValueError, match=r"x must be .*got \[6, 3, 5\] int64"):
        scan(x.long(), alpha, omega, start, state)
    with pytest.raises(ValueError, match=r"alpha must be \[M\] = \[5\] and omega \[C\]; got \[4\] and \[4\]"):
        scan(x, alpha[:4], omega, start, state)
    with pytest.raises(ValueError, match=r"start must be \[T, B\] = \[6, 3\] bool; got \[5, 3\] bool"):
        scan(x, alpha, omega, start[1:], state)
    with pytest.raises(ValueError, match=r"start must be .*got \[6, 3\] int64"):
        scan(x, alpha, omega, start.long(), state)
    with pytest.raises(ValueError, match=r"state must be \[B, M, C, 2\] = \[3, 5, 4, 2\].*got \[3, 5, 4\]"):
        scan(x, alpha, omega, start, state[..., 0])
    with pytest.raises(ValueError, match="must have one type; got float64, float32, float64, float64"):
        scan(x, alpha.float(), omega, start, state)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the torch form runs there untested")
def test_cuda_equals_the_cpu():
    given = arguments(300)
    there = with_gradients(decay_scan, *(v.cuda() for v in given))
    assert_close([v.cpu() for v in there], with_gradients(decay_scan, *given), **tolerance(torch.float64))

"""The diagonal recurrence h = a h + b: both forms against a plain loop; see also test_kernel_cases."""

import math

import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.kernels import diagonal_scan, torch_only
from palimpsest.memory.kernels.arithmetic.threads import STEPS_PER_THREAD
from palimpsest.memory.kernels.diagonal.naive import diagonal_naive

each_form = pytest.mark.parametrize("scan", [diagonal_scan, torch_only()(diagonal_scan)], ids=["compiled", "torch"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
varying_or_not = pytest.mark.parametrize("fixed", [False, True], ids=["varying", "fixed"])


def arguments(T, B=3, N=5, dtype=torch.float64, fixed=False):
    """A of both signs, b, start and state."""
    a = torch.rand(N, dtype=dtype) * 2 - 1 if fixed else torch.rand(T, B, N, dtype=dtype) * 2 - 1
    b, state = torch.randn(T, B, N, dtype=dtype), torch.randn(B, N, dtype=dtype)
    return a, b, torch.rand(T, B) < 0.1, state


def with_gradients(scan, a, b, start, state):
    """h, last, and the gradients to a, b and state of a loss that weighs all numbers differently."""
    leaves = [v.detach().clone().requires_grad_() for v in (a, b, state)]
    h, last = scan(*leaves[:2], start, leaves[2])
    weigh = torch.Generator().manual_seed(1)
    loss = sum((v * torch.randn(v.shape, generator=weigh, dtype=torch.float64).to(v.dtype)).sum() for v in (h, last))
    return [h.detach(), last.detach(), *torch.autograd.grad(loss, leaves)]


@each_form
@each_dtype
@varying_or_not
@pytest.mark.parametrize("T", [1, 2, 17, 64, 100])
def test_equals_a_plain_loop(scan, dtype, fixed, T):
    given = arguments(T, dtype=dtype, fixed=fixed)
    assert_close(with_gradients(scan, *given), with_gradients(diagonal_naive, *given), **tolerance(dtype))


@each_form
@each_dtype
@varying_or_not
@pytest.mark.parametrize("T", [1, 17])
def test_complex_numbers_as_pairs_equal_a_plain_loop(scan, dtype, fixed, T):
    def paired(scan):
        return lambda *given: scan(*given, paired=True)

    given = arguments(T, N=6, dtype=dtype, fixed=fixed)
    expected = with_gradients(paired(diagonal_naive), *given)
    assert_close(with_gradients(paired(scan), *given), expected, **tolerance(dtype))
    with pytest.raises(ValueError, match=r"an even N where numbers are paired; got \[17, 3, 5\]"):
        scan(*arguments(17), paired=True)


@each_form
@varying_or_not
def test_gradcheck(scan, fixed):
    a, b, start, state = arguments(7, 2, 2, fixed=fixed)
    leaves = [v.requires_grad_() for v in (a, b, state)]
    assert torch.autograd.gradcheck(lambda a, b, state: scan(a, b, start, state), leaves)


def test_torch_differentiates_twice_and_the_compiled_form_refuses():
    a, b, start, state = arguments(7, 2, 2)
    leaves = [v.requires_grad_() for v in (a, b, state)]
    with torch_only():
        assert torch.autograd.gradgradcheck(lambda a, b, state: diagonal_scan(a, b, start, state), leaves)
    (first,) = torch.autograd.grad(diagonal_scan(a, b, start, state)[0].square().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="written by hand"):
        first.sum().backward()


@each_form
@varying_or_not
def test_a_long_sequence_in_float32(scan, fixed):
    """Factors near 1, so that rounding errors stay for a thousand steps: values and gradients are those of float64."""
    a, b, start, state = arguments(5000, 1, 3, torch.float32, fixed)
    a = 1 - 0.001 * a.abs()
    start[:] = False
    exact = with_gradients(diagonal_naive, a.double(), b.double(), start, state.double())
    for found, expected in zip(with_gradients(scan, a, b, start, state), exact):
        assert (found - expected).abs().amax() < 1e-4 * expected.abs().amax()


@each_form
@pytest.mark.parametrize("first", [0, 1, 9])
def test_what_stood_before_a_start_is_gone(scan, first):
    """NaN in the state, in earlier inputs and in the factor at a start reaches nothing after it."""
    a, b, start, state = arguments(20)
    start[first] = True
    b[:first], a[first], state[:] = math.nan, math.nan, math.nan
    leaves = [v.requires_grad_() for v in (a, b, state)]
    h, last = scan(a, b, start, state)
    clean = [v[first:].detach().nan_to_num(0).requires_grad_() for v in (a, b)]
    expected, expected_last = scan(*clean, start[first:], torch.zeros_like(state))
    assert_close(h[first:], expected, **tolerance(torch.float64))
    assert_close(last, expected_last, **tolerance(torch.float64))
    da, db, d_state = torch.autograd.grad(h[first:].square().sum(), leaves)
    wanted = torch.autograd.grad(expected.square().sum(), clean)
    assert_close([da[first:], db[first:]], [*wanted], **tolerance(torch.float64))
    assert not d_state.any()


@each_form
def test_rows_know_nothing_of_each_other(scan):
    a, b, start, state = arguments(20)
    clean = with_gradients(scan, a, b, start, state)
    b[5, 1], state[1] = math.nan, math.nan
    poisoned = with_gradients(scan, a, b, start, state)
    for one, other in zip(poisoned, clean):
        assert_close(one[..., [0, 2], :], other[..., [0, 2], :], rtol=0, atol=0)


@each_form
@varying_or_not
@pytest.mark.parametrize("sizes", [(0, 3, 5), (4, 0, 5), (4, 3, 0)])
def test_nothing_to_scan(scan, fixed, sizes):
    a, b, start, state = arguments(*sizes, fixed=fixed)
    h, last = scan(a, b, start, state)
    assert h.shape == sizes
    assert torch.equal(last, state)


@varying_or_not
def test_threads_change_nothing(fixed):
    given = arguments(STEPS_PER_THREAD, 7, fixed=fixed)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(with_gradients(diagonal_scan, *given))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], **tolerance(torch.float64))


@each_form
def test_memory_layout_does_not_matter(scan):
    """Views of every second row, and a gradient that is an expanded scalar."""
    a, b, start, state = arguments(20, 6)
    views = a[:, ::2], b.transpose(0, 1).contiguous().transpose(0, 1)[:, ::2], start[:, ::2], state[::2]
    copies = [v.clone(memory_format=torch.contiguous_format) for v in views]
    assert_close(with_gradients(scan, *views), with_gradients(scan, *copies), **tolerance(torch.float64))
    leaf = views[1].detach().requires_grad_()
    (summed,) = torch.autograd.grad(scan(views[0], leaf, *views[2:])[0].sum(), leaf)
    (weighed,) = torch.autograd.grad((scan(views[0], leaf, *views[2:])[0] * torch.ones(20, 3, 5)).sum(), leaf)
    assert_close(summed, weighed, **tolerance(torch.float64))


@each_form
def test_arguments_are_left_alone(scan):
    given = arguments(20)
    before = [v.clone() for v in given]
    h, last = scan(*given)
    last.zero_()
    assert all(torch.equal(v, w) for v, w in zip(given, before))
    assert h[-1].any()


@each_form
def test_arguments_that_do_not_fit_are_refused(scan):
    a, b, start, state = arguments(6)
    with pytest.raises(ValueError, match=r"b must be \[T, B, N\] float32 or float64; got \[6, 3\]"):
        scan(a, b[..., 0], start, state)
    with pytest.raises(ValueError, match=r"a must be \[T, B, N\] = \[6, 3, 5\] or \[N\]; got \[3, 5\]"):
        scan(a[0], b, start, state)
    with pytest.raises(ValueError, match=r"start must be \[T, B\] = \[6, 3\] bool; got \[5, 3\]"):
        scan(a, b, start[1:], state)
    with pytest.raises(ValueError, match=r"state must be \[B, N\] = \[3, 5\]; got \[3, 4\]"):
        scan(a, b, start, state[:, 1:])
    with pytest.raises(ValueError, match=r"must have one type; got torch\.float32, torch\.float64"):
        scan(a.float(), b, start, state)

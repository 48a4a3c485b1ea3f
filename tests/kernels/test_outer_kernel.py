"""Outer-product recurrences: the compiled and the chunked form equal the naive one, which equals cases done by hand."""

import functools
import math

import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.kernels import outer_scan, torch_only
from palimpsest.memory.kernels.arithmetic.decay_products import decay_products
from palimpsest.memory.kernels.arithmetic.threads import STEPS_PER_THREAD
from palimpsest.memory.kernels.outer.chunked import outer_chunked
from palimpsest.memory.kernels.outer.loops import MOST_COLUMNS, SEGMENT, columns_at_a_time
from palimpsest.memory.kernels.outer.naive import outer_naive

short_chunks = functools.partial(outer_chunked, chunk_size=8)

each_form = pytest.mark.parametrize("form", [outer_scan, short_chunks], ids=["compiled", "chunked"])
each_decay = pytest.mark.parametrize("per_key", [False, True], ids=["a decay per head", "a decay per key"])


def inputs(T, B, H, K, V, per_key, dtype=torch.float64, starts=0.1):
    """k, v, decay, q, start, state; decays are negative, zero and above one too."""
    k, q = torch.randn(2, T, B, H, K, dtype=dtype)
    v, state = torch.randn(T, B, H, V, dtype=dtype), torch.randn(B, H, K, V, dtype=dtype)
    decay = (1.4 * torch.rand(T, B, H, *[K] * per_key, dtype=dtype) - 0.3).round(decimals=1)
    return k, v, decay, q, torch.rand(T, B) < starts, state


def values_and_gradients(form, args):
    """What is read, the last tables, and all gradients of a loss that weighs every number differently."""
    args = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in args]
    read, last = form(*args)
    weigh = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=weigh)).sum() for x in (read, last))
    return [read.detach(), last.detach(), *torch.autograd.grad(loss, [x for x in args if x.is_floating_point()])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("decay", "tables"),
    [
        ([0.5, 2, 9], [[[2.5, 0], [1.5, 4]], [[7, 2], [-1, 4]]]),
        ([[0.5, 2], [0, 1], [9, 9]], [[[2.5, 0], [6, 16]], [[2, 2], [2, 12]]]),
        ([[[1, 2], [0, -1]], [[0, 1], [1, 0]], [[9, 9], [9, 9]]], [[[3, 3], [0, -8]], [[2, 5], [-4, -4]]]),
    ],
    ids=["per head", "per key", "per element"],
)
def test_the_naive_form_by_hand(decay, tables, dtype):
    """Two steps, then a start that forgets them whatever the decay."""
    k, v, q = [[2, 0], [1, -2], [0, 1]], [[1, -0.5], [2, 2], [5, 7]], [[1, 0], [1, 1], [3, 2]]
    k, v, q, decay = (torch.tensor(x, dtype=dtype).unsqueeze(1).unsqueeze(1) for x in (k, v, q, decay))
    state = torch.tensor([[[[1, 2], [3, 8]]]], dtype=dtype)
    start = torch.tensor([[False], [False], [True]])
    found = outer_naive(k, v, decay, q, start, state)
    # k v^T: step 0 [2 -1; 0 0], step 1 [2 2; -4 -4], step 2 [0 0; 5 7]
    first, second = torch.tensor(tables, dtype=dtype)
    last = torch.tensor([[0, 0], [5, 7]], dtype=dtype)
    assert_close(found[0][:, 0, 0], torch.stack((first[0], second.sum(0), 2 * last[1])))
    assert_close(found[1][0, 0], last)


# compiled anew for each size and type; so each size and type is here, but not all with all
F32, F64 = torch.float32, torch.float64
TABLES = [
    (3, 4, F32),
    (3, 4, F64),
    (16, 32, F32),
    (5, 1, F64),
    (4, 2 * MOST_COLUMNS, F32),
    (3, MOST_COLUMNS + 3, F64),
]


@each_form
@each_decay
@pytest.mark.parametrize(("K", "V", "dtype"), TABLES)
def test_forms_equal_the_naive_one(form, dtype, per_key, K, V):
    args = inputs(2 * SEGMENT + 5, 3, 2, K, V, per_key, dtype)
    assert_close(values_and_gradients(form, args), values_and_gradients(outer_naive, args), **tolerance(dtype))


def test_wide_tables_are_cut_evenly():
    assert [columns_at_a_time(V) for V in (1, 32, 64, 67, 70, 128)] == [1, 32, 64, 1, 35, 64]


@each_decay
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 16, 100])
def test_chunk_size_changes_nothing(chunk_size, per_key):
    args = inputs(40, 3, 2, 3, 4, per_key)
    chunked = functools.partial(outer_chunked, chunk_size=chunk_size)
    found, expected = values_and_gradients(chunked, args), values_and_gradients(outer_naive, args)
    assert_close(found, expected, **tolerance(torch.float64))


@each_form
@each_decay
def test_gradients_are_the_derivatives(form, per_key):
    T = SEGMENT + 2 if form is outer_scan else 10  # beyond the end of a segment, or of a chunk
    *floats, start, state = inputs(T, 1, 1, 3, 4, per_key, starts=0.2)
    floats = [x.requires_grad_() for x in (*floats, state)]
    assert torch.autograd.gradcheck(lambda *given: form(*given[:4], start, given[4]), floats)


def test_the_chunked_form_is_differentiable_twice():
    *floats, start, state = inputs(5, 2, 1, 2, 2, True, starts=0.2)
    floats = [x.requires_grad_() for x in (*floats, state)]
    chunked = functools.partial(outer_chunked, chunk_size=2)
    assert torch.autograd.gradgradcheck(lambda *given: chunked(*given[:4], start, given[4]), floats)


def test_torch_computes_where_kernels_may_not():
    args = inputs(20, 3, 2, 3, 4, True)
    with torch_only():
        found = outer_scan(*args)
    assert_close(found, outer_chunked(*args), rtol=0, atol=0)
    assert_close(outer_scan(*args), found, **tolerance(torch.float64))


@each_form
@each_decay
@pytest.mark.parametrize("opens", [0, 5])
def test_nan_in_the_state_ends_at_a_start(form, per_key, opens):
    *floats, start, state = inputs(12, 3, 2, 3, 4, per_key, starts=0)
    start[opens, 1] = True
    state[1] = math.nan
    floats = [x.requires_grad_() for x in (*floats, state)]
    read, last = form(*floats[:4], start, floats[4])
    clean = outer_naive(*(x[opens:, 1:2].detach() for x in (*floats[:4], start)), torch.zeros(1, 2, 3, 4).double())
    assert_close((read[opens:, 1:2], last[1:2]), clean)
    assert read[:opens, 1].isnan().all()
    gradients = torch.autograd.grad(read[opens:, 1].sum() + last[1].sum(), floats)
    assert all(g[opens:].isfinite().all() for g in gradients[:4])
    assert not gradients[4].any()


@each_decay
def test_memory_layout_does_not_matter(per_key):
    args = inputs(20, 3, 2, 3, 4, per_key)
    strided = [torch.stack((x, x), -1)[..., 0] for x in args]
    assert not any(x.is_contiguous() for x in strided)
    expected = values_and_gradients(outer_naive, args)
    found = values_and_gradients(lambda *given: outer_scan(*(torch.stack((x, x), -1)[..., 0] for x in given)), args)
    assert_close(found, expected, **tolerance(torch.float64))
    assert_close(list(outer_scan(*strided)), expected[:2], **tolerance(torch.float64))


def test_threads_change_nothing():
    args = inputs(STEPS_PER_THREAD, 7, 2, 3, 4, True)
    expected = values_and_gradients(outer_scan, args)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = values_and_gradients(outer_scan, args)
    finally:
        torch.set_num_threads(threads)
    assert_close(found, expected, rtol=0, atol=0)


@each_form
@pytest.mark.parametrize("sizes", [(0, 2, 2, 3, 4), (3, 0, 2, 3, 4), (3, 2, 2, 3, 0)])
def test_nothing_to_scan(form, sizes):
    args = inputs(*sizes, True)
    read, last = form(*args)
    assert read.shape == args[1].shape
    assert_close(last, outer_naive(*args)[1])


def test_what_does_not_fit_is_refused():
    k, v, decay, q, start, state = inputs(4, 2, 2, 3, 5, True)
    with pytest.raises(ValueError, match=r"v \[T, B, H, V\]; got \[4, 2, 2, 3\], \[4, 2, 2, 2\], \[4, 2, 2, 5\]"):
        outer_scan(k, v, decay, q[..., :2], start, state)
    with pytest.raises(ValueError, match=r"decay must be .* = \[4, 2, 2\] or \[4, 2, 2, 3\]; got \[4, 2\]"):
        outer_scan(k, v, decay[..., 0, 0], q, start, state)
    with pytest.raises(ValueError, match=r"start must be \[T, B\] = \[4, 2\] bool; got \[4, 2\] torch.int64"):
        outer_scan(k, v, decay, q, start.long(), state)
    with pytest.raises(ValueError, match=r"state must be \[B, H, K, V\] = \[2, 2, 3, 5\]; got \[2, 2, 5, 3\]"):
        outer_scan(k, v, decay, q, start, state.mT)
    with pytest.raises(ValueError, match=r"one dtype; got .*float32"):
        outer_scan(k, v, decay.float(), q, start, state)


def test_decay_products():
    """[2, 3, 0, 5]: D[t, s] multiplies what comes after s, up to t."""
    found = decay_products(torch.tensor([2.0, 3, 0, 5]))
    assert found.tolist() == [[1, 0, 0, 0], [3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 5, 1]]
    decay = torch.tensor([2.0, 3, 0, 5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decay_products, decay)
    assert torch.autograd.gradgradcheck(decay_products, decay)

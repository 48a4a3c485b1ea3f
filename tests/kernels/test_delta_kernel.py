"""The gated delta rule: the compiled and the chunked form equal the naive one, which equals a case done by hand."""

import math

import pytest
import torch
from conftest import tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from palimpsest.memory.kernels import gated_delta_scan, torch_only
from palimpsest.memory.kernels.arithmetic.threads import STEPS_PER_THREAD
from palimpsest.memory.kernels.delta.chunked import gated_delta_chunked
from palimpsest.memory.kernels.delta.layer import DeltaSizes, delta_layer, delta_layer_torch
from palimpsest.memory.kernels.delta.layer_loops import BLOCK_ROWS
from palimpsest.memory.kernels.delta.loops import SEGMENT
from palimpsest.memory.kernels.delta.naive import gated_delta_naive
from palimpsest.memory.kernels.delta.turning import turns
from palimpsest.memory.parts.steps import episode_steps


def chunked(*args, **kwargs):
    return gated_delta_chunked(*args, **kwargs, chunk_size=8)


each_form = pytest.mark.parametrize("form", [gated_delta_scan, chunked])
each_order = pytest.mark.parametrize("read_first", [False, True], ids=["read last", "read first"])


def inputs(T, B, H, K, V, dtype=torch.float64, starts=0.1, unit=True):
    """A sequence whose alphas are sometimes exactly 0 or 1 and whose betas are sometimes exactly 0 or 2."""
    q, k, v = (torch.randn(T, B, H, n, dtype=dtype) for n in (K, K, V))
    if unit:
        q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    alpha, beta = ((torch.rand(T, B, H, dtype=dtype) * 1.4 - 0.2).clamp(0, 1) * top for top in (1, 2))
    return q, k, v, alpha, beta, torch.rand(T, B) < starts, torch.randn(B, H, K, V, dtype=dtype)


def values_and_gradients(run, args, **kwargs):
    """Read, last table, and gradients of all floats under a loss that weighs every number differently."""
    args = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in args]
    read, last = run(*args, **kwargs)
    weigh = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, dtype=x.dtype, generator=weigh)).sum() for x in (read, last))
    floats = [x for x in args if x.is_floating_point()]
    gradients = torch.autograd.grad(loss, floats, allow_unused=True)
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(floats, gradients)]
    return [read.detach(), last.detach(), *found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_naive_form_by_hand(dtype):
    """A partial rewrite, a flipped sign, and a start with a key that is not of unit length; in both orders."""
    q, k, v = [[1, 2], [1, 0], [3, 1]], [[0.6, 0.8], [1, 0], [0, 2]], [[2.5, 0.2], [0, 0], [1, -1]]
    alpha, beta, state = [0.5, 1, 0.25], [0.5, 2, 1], [[1, 2], [3, 4]]
    q, k, v, alpha, beta = (torch.tensor(x, dtype=dtype).unsqueeze(1).unsqueeze(1) for x in (q, k, v, alpha, beta))
    start = torch.tensor([[False], [False], [True]])
    args = (q, k, v, alpha, beta, start, torch.tensor(state, dtype=dtype).view(1, 1, 2, 2))
    read, last = gated_delta_naive(*args)
    # step 0: A = S / 2 = [.5 1; 1.5 2], A^T k = (1.5, 2.2), error (1, -2), S = A + k (.5, -1)^T = [.8 .4; 1.9 1.2]
    # step 1: S^T k = (.8, .4), error (-.8, -.4), S = [-.8 -.4; 1.9 1.2]
    # step 2: S = 0, error (1, -1), S = [0 0; 2 -2]
    assert_close(read[:, 0, 0], torch.tensor([[4.6, 2.8], [-0.8, -0.4], [2, -2]], dtype=dtype))
    assert_close(last[0, 0], torch.tensor([[0, 0], [2, -2]], dtype=dtype))
    # read first: [1 2; 3 4] at step 0, [.8 .4; 1.9 1.2] at step 1, nothing at the start
    read, last = gated_delta_naive(*args, read_first=True)
    assert_close(read[:, 0, 0], torch.tensor([[7, 10], [0.8, 0.4], [0, 0]], dtype=dtype))
    assert_close(last[0, 0], torch.tensor([[0, 0], [2, -2]], dtype=dtype))


def test_the_naive_form_normalises():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    q, k, v = 3 * one.unsqueeze(-1), 2 * one.unsqueeze(-1), one.unsqueeze(-1)
    read, _ = gated_delta_naive(q, k, v, one, one, one[0] > 1, 0 * one.unsqueeze(-1), normalise=True)
    assert read.item() == pytest.approx(3 / math.sqrt(9.000001) * 2 / math.sqrt(4.000001), abs=1e-14)


# compiled anew for each size, type and order; so each size, type and order is here, but not all with all
F32, F64 = torch.float32, torch.float64
TABLES = [
    (3, 4, F32, False),
    (3, 4, F64, False),
    (3, 4, F64, True),
    (16, 32, F32, True),
    (4, 32, F64, False),
    (20, 3, F32, False),
    (20, 3, F64, True),
]


@each_form
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("K", "V", "dtype", "read_first"), TABLES)
def test_equals_the_definition(form, normalise, read_first, K, V, dtype):
    args = inputs(2 * SEGMENT + 5, 5, 2, K, V, dtype, unit=not normalise)
    order = dict(normalise=normalise, read_first=read_first)
    found = values_and_gradients(form, args, **order)
    assert_close(found, values_and_gradients(gated_delta_naive, args, **order), **tolerance(dtype))


@settings(max_examples=40, deadline=None)
@given(T=st.integers(0, 3 * SEGMENT), B=st.integers(1, 6), starts=st.floats(0, 1), seed=st.integers(0, 99))
@each_order
def test_equals_the_definition_for_any_length_and_starts(T, B, starts, seed, read_first):
    torch.manual_seed(seed)
    args = inputs(T, B, 2, 3, 4, starts=starts)
    expected = values_and_gradients(gated_delta_naive, args, read_first=read_first)
    for form in (gated_delta_scan, chunked):
        assert_close(values_and_gradients(form, args, read_first=read_first), expected, **tolerance(torch.float64))


@each_order
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 32, 100])
def test_chunk_size_changes_nothing(chunk_size, read_first):
    args = inputs(40, 3, 2, 3, 4)

    def run(*args):
        return gated_delta_chunked(*args, read_first=read_first, chunk_size=chunk_size)

    expected = values_and_gradients(gated_delta_naive, args, read_first=read_first)
    assert_close(values_and_gradients(run, args), expected, **tolerance(torch.float64))


@each_form
@each_order
@pytest.mark.parametrize("normalise", [False, True])
def test_gradcheck(form, normalise, read_first):
    # beyond the end of a segment, or of a chunk; a row, as rows are tested above
    T = SEGMENT + 2 if form is gated_delta_scan else 10
    *floats, start, state = inputs(T, 1, 1, 3, 4, starts=0.2)
    # inside (0, 1): at its ends finite differences would step outside
    floats[3] = floats[3] * 0.8 + 0.1
    floats = [x.requires_grad_() for x in (*floats, state)]

    def run(q, k, v, alpha, beta, state):
        return form(q, k, v, alpha, beta, start, state, normalise=normalise, read_first=read_first)

    assert torch.autograd.gradcheck(run, floats)


@each_form
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_overwrite_is_exact(form, dtype, atol):
    """With alpha = beta = 1 the table returns the new value under k; what stands under an orthogonal key stays."""
    H, K, V = 2, 3, 4
    basis = torch.linalg.qr(torch.randn(K, K, dtype=torch.float64)).Q.to(dtype)
    first, second, new = 2 * torch.rand(3, H, V, dtype=dtype) - 1
    k = torch.stack((basis[0], basis[1], basis[0], basis[1], basis[0])).view(5, 1, 1, K).expand(5, 1, H, K)
    v = torch.stack((first, second, new, torch.zeros_like(new), torch.zeros_like(new))).unsqueeze(1)
    beta = torch.tensor([1, 1, 1, 0, 0], dtype=dtype).view(5, 1, 1).expand(5, 1, H)
    no_start, empty = torch.zeros(5, 1) > 0, torch.zeros(1, H, K, V, dtype=dtype)
    read, _ = form(k, k, v, torch.ones_like(beta), beta, no_start, empty)
    for t, expected in ((2, new), (3, second), (4, new)):
        assert_close(read[t, 0], expected, rtol=0, atol=atol)


@each_form
def test_beta_of_two_flips_the_sign(form):
    k = torch.nn.functional.normalize(torch.randn(1, 1, 1, 3, dtype=torch.float64), dim=-1)
    state = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    read, _ = form(k, k, zero, one, 2 * one, torch.zeros(1, 1) > 0, state)
    assert_close(read[0, 0, 0], -(k[0, 0, 0] @ state[0, 0]))


@each_form
def test_reading_first_is_reading_after_the_step_before(form):
    """The query of the next step reads what this step left."""
    q, *others, state = inputs(2 * SEGMENT + 3, 3, 2, 3, 4, starts=0)
    first, _ = form(q, *others, state, read_first=True)
    last, _ = form(q.roll(-1, 0), *others, state)
    assert_close(first[1:], last[:-1], **tolerance(torch.float64))
    assert_close(first[0], torch.einsum("bhkv,bhk->bhv", state, q[0]), **tolerance(torch.float64))


@each_form
@each_order
@pytest.mark.parametrize("opens", [0, 5])
def test_nan_in_the_state_ends_at_a_start(form, opens, read_first):
    """Neither what is read from the start on nor its gradients see it."""
    *floats, start, state = inputs(12, 3, 2, 3, 4, starts=0)
    start[opens, 1] = True
    state[1] = math.nan
    floats = [x.requires_grad_() for x in (*floats, state)]
    read, last = form(*floats[:5], start, floats[5], read_first=read_first)
    rest = (*(x[opens:, 1:2].detach() for x in floats[:5]), start[opens:, 1:2])
    clean = gated_delta_naive(*rest, torch.zeros(1, 2, 3, 4).double(), read_first=read_first)
    assert_close((read[opens:, 1:2], last[1:2]), clean)
    gradients = torch.autograd.grad(read[opens:, 1].sum() + last[1].sum(), floats)
    assert all(g[opens:].isfinite().all() for g in gradients[:5])
    assert not gradients[5].any()


@each_form
def test_memory_layout_does_not_matter(form):
    args = inputs(20, 3, 2, 3, 4)
    expected = values_and_gradients(gated_delta_naive, args)
    args = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in args]
    args[:3] = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in args[:3])
    assert not args[0].is_contiguous()

    def run(*leaves):
        q, k, v, alpha, beta, start, state = leaves
        views = (x.expand(2, *x.shape)[1] for x in (q, k, v, alpha, beta, start, state))
        return form(*views)

    assert_close(values_and_gradients(run, args), expected, **tolerance(torch.float64))
    base = [torch.stack((x, x), -1) for x in args]
    strided = [x[..., 0] for x in base]
    assert strided[0].stride(-1) == 2
    found = form(*strided)
    assert_close(list(found), expected[:2], **tolerance(torch.float64))


def test_threads_change_nothing():
    """Rows are spread over threads; each is computed as alone."""
    args = inputs(STEPS_PER_THREAD, 7, 2, 3, 4)
    expected = values_and_gradients(gated_delta_scan, args)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = values_and_gradients(gated_delta_scan, args)
    finally:
        torch.set_num_threads(threads)
    assert_close(found, expected, rtol=0, atol=0)


@each_form
@each_order
def test_no_steps(form, read_first):
    args = inputs(0, 2, 2, 3, 4)
    read, last = form(*args, read_first=read_first)
    assert read.shape == (0, 2, 2, 4)
    assert_close(last, args[-1])


# of 3 components none turn; of 5 two, and the last has no other; of 16 eight
SIZES = {"small": DeltaSizes(2, 3, 4), "odd": DeltaSizes(2, 5, 4), "wide": DeltaSizes(2, 16, 32)}


def maps_of(sizes, F, D, dtype=torch.float32):
    """A layer's three maps, for F features and a stream of width D."""
    heads = sizes.heads * sizes.value_size
    return tuple(torch.nn.Linear(*shape).to(dtype) for shape in ((F, D), (F, sizes.width), (heads, D, False)))


def turned(start, sizes, dtype=torch.float32):
    """Times of all tokens, from near the end of the longest period on, and the table of turns."""
    before = torch.randint(200, 300, (start.shape[1],))
    return episode_steps(start, before)[0], torch.from_numpy(turns(sizes.key_size)).to(dtype)


# compiled anew for each; of the widest in float64 torch's operations alone are tested, in test_rewrite.py
@pytest.mark.parametrize(("name", "dtype"), [("small", F64), ("odd", F32), ("odd", F64), ("wide", F32)])
@pytest.mark.parametrize("B", [5, BLOCK_ROWS + 3])
@pytest.mark.parametrize("adds", [False, True])
def test_compiled_layer_equals_its_operations(name, B, adds, dtype):
    sizes, T, F, D = SIZES[name], SEGMENT + 9, 7, 6
    maps = maps_of(sizes, F, D, dtype)
    x, start = 3 * torch.randn(T, B, F, dtype=dtype), torch.rand(T, B) < 0.1
    time = turned(start, sizes, dtype)
    floats = [x, torch.randn(B, sizes.heads, sizes.key_size, sizes.value_size, dtype=dtype)]
    floats += [torch.randn(T, B, D, dtype=dtype)] * adds
    parameters = [p for each in maps[adds:] for p in each.parameters()]

    def run(layer):
        def gradients_of_maps_too(x, state, stream=None):
            y, last = layer(x, stream, maps, start, state, sizes, *time)[:2]
            found.extend(torch.autograd.grad(y.square().sum() + last.sum(), parameters, retain_graph=True))
            return y, last

        found = []
        return values_and_gradients(gradients_of_maps_too, floats) + found

    operations = torch_only()(delta_layer_torch)
    assert_close(run(delta_layer), run(operations), **tolerance(dtype))
    with torch.no_grad():
        acted, learned = (layer(x, None, maps, start, floats[1], sizes, *time) for layer in (delta_layer, operations))
    assert_close(acted, learned, **tolerance(dtype))


def test_layer_on_threads():
    """Columns are spread over threads, as many as at the forward pass; gradients of the maps are sums over them."""
    sizes, B = SIZES["odd"], 7
    maps = maps_of(sizes, 5, 4, torch.float64)
    x, start = torch.randn(STEPS_PER_THREAD, B, 5).double(), torch.rand(STEPS_PER_THREAD, B) < 0.1
    state = torch.randn(B, sizes.heads, sizes.key_size, sizes.value_size).double()
    time = turned(start, sizes, torch.float64)

    def run(forward, backward):
        torch.set_num_threads(forward)
        y, last, *gates = delta_layer(x, None, maps, start, state, sizes, *time)
        torch.set_num_threads(backward)
        return [y, last, *gates, *torch.autograd.grad(y.square().sum(), [p for m in maps for p in m.parameters()])]

    threads = torch.get_num_threads()
    try:
        expected = run(1, 1)
        for forward, backward in ((3, 3), (1, 3), (3, 1)):
            assert_close(run(forward, backward), expected, **tolerance(torch.float64))
    finally:
        torch.set_num_threads(threads)


def test_a_layer_is_differentiated_again_after_a_backward_pass():
    """What forward kept is not written over."""
    sizes, start = SIZES["odd"], torch.zeros(20, 3) > 0
    maps, x = maps_of(sizes, 5, 4), torch.randn(20, 3, 5, requires_grad=True)
    y, *_ = delta_layer(x, None, maps, start, torch.zeros(3, 2, 5, 4), sizes, *turned(start, sizes))
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


def test_maps_that_do_not_fit_are_refused():
    """Before a kernel reads beyond their end."""
    sizes = SIZES["small"]
    x, start, state = torch.randn(20, 3, 5), torch.zeros(20, 3) > 0, torch.zeros(3, 2, 3, 4)
    for number, odd in ((0, (5, 7)), (1, (6, sizes.width)), (2, (8, 7, False)), (2, (8, 4)), (1, (5, 9, False))):
        maps = list(maps_of(sizes, 5, 4))
        maps[number] = torch.nn.Linear(*odd)
        with pytest.raises(ValueError, match="maps must be"):
            delta_layer(x, None, tuple(maps), start, state, sizes, *turned(start, sizes))
    with pytest.raises(ValueError, match=r"turns must be the table for K = 3; got one of shape \[4, 2\]"):
        delta_layer(x, None, maps_of(sizes, 5, 4), start, state, sizes, *turned(start, SIZES["odd"]))

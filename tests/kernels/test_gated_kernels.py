"""The gated recurrences: kernels against torch's modules, against their torch twins, and on their own."""

import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest import memory
from palimpsest.memory.kernels.arithmetic.threads import STEPS_PER_THREAD
from palimpsest.memory.kernels.cells import gated
from palimpsest.memory.kernels.cells.loops import BLOCK_ROWS
from palimpsest.memory.kernels.cells.pieces import cut
from palimpsest.memory.kernels.cells.torch_gated import torch_scan

TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
CELLS = {"lstm": gated.LSTM, "gru": gated.GRU, "rnn": gated.RNN}
each_name = pytest.mark.parametrize("name", sorted(TORCH))
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def arguments(name, T, B, dtype=torch.float64, F=5, H=7):
    """x, state and weights as leaves, and flags of starts."""
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[name]
    sizes = [(T, B, F), *[(B, H)] * (2 if name == "lstm" else 1), (gates * H, F), (gates * H, H), *[(gates * H,)] * 2]
    x, *state_and_weights = (torch.randn(size, dtype=dtype).mul_(0.5).requires_grad_() for size in sizes)
    return x, torch.rand(T, B) < 0.2, tuple(state_and_weights[:-4]), tuple(state_and_weights[-4:])


def gradients(y, last, leaves):
    weigh = torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, dtype=out.dtype, generator=weigh)).sum() for out in (y, *last))
    return torch.autograd.grad(loss, leaves)


@each_name
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-10)], ids=["f32", "f64"])
def test_equals_torch_with_copied_weights(name, num_layers, dtype, close):
    ours = memory.make(name, 5, output_size=16, num_layers=num_layers).to(dtype)
    theirs = TORCH[name](5, 16, num_layers).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(30, 4, 5, dtype=dtype)
    state = tuple(torch.randn(4, num_layers, 16, dtype=dtype) * 0.5 for _ in ours.initial_state(4))
    hx = tuple(s.transpose(0, 1).contiguous() for s in state)
    y, last = ours.scan(x, torch.zeros(30, 4).bool(), type(ours.initial_state(4))(*state))
    y_torch, last_torch = theirs(x, hx if name == "lstm" else hx[0])
    last_torch = last_torch if name == "lstm" else (last_torch,)
    assert_close(y, y_torch, rtol=0, atol=close)
    for mine, its in zip(last, last_torch):
        # cells are not bounded by 1
        assert_close(mine, its.transpose(0, 1), rtol=close, atol=close)
    y.square().sum().backward()
    y_torch.square().sum().backward()
    for mine, its in zip(ours.parameters(), theirs.parameters()):
        assert_close(mine.grad, its.grad, rtol=100 * close, atol=100 * close)


@each_name
@each_dtype
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 5), (17, 1), (40, 6)])
def test_kernel_equals_torch_twin(name, dtype, T, B):
    """What other devices run, run here."""
    x, start, state, weights = arguments(name, T, B, dtype)
    leaves = (x, *state, *weights)
    y, last = gated.scan(CELLS[name], x, start, state, weights)
    y_torch, last_torch = torch_scan(CELLS[name].kind, x, start, state, weights)
    assert_close(y, y_torch, **tolerance(dtype))
    assert_close(last, last_torch, **tolerance(dtype))
    assert_close(gradients(y, last, leaves), gradients(y_torch, last_torch, leaves), **tolerance(dtype))


@each_name
def test_gradients_by_finite_differences(name):
    x, start, state, weights = arguments(name, 5, 3, F=2, H=3)
    start[2, 0] = start[0, 1] = True

    def scan(x, *rest):
        y, last = gated.scan(CELLS[name], x, start, rest[:-4], rest[-4:])
        return y, *last

    assert torch.autograd.gradcheck(scan, (x, *state, *weights))


@each_name
@pytest.mark.parametrize("B", [1, 6, BLOCK_ROWS + 1])
def test_blocks_do_not_show(name, B):
    """Steps are grouped for the cache only: a sequence of several blocks is its halves one after the other."""
    T = 2 * BLOCK_ROWS // min(B, 100) + 3
    x, start, state, weights = arguments(name, T, B)
    leaves = (x, *state, *weights)

    def halves():
        first, between = gated.scan(CELLS[name], x[: T // 2], start[: T // 2], state, weights)
        second, last = gated.scan(CELLS[name], x[T // 2 :], start[T // 2 :], between, weights)
        return torch.cat((first, second)), last

    one, two = gated.scan(CELLS[name], x, start, state, weights), halves()
    assert_close(one, two, **tolerance(torch.float64))
    assert_close(gradients(*one, leaves), gradients(*two, leaves), **tolerance(torch.float64))


@each_name
def test_threads_change_nothing(name):
    x, start, state, weights = arguments(name, STEPS_PER_THREAD, 7)
    leaves = (x, *state, *weights)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            y, last = gated.scan(CELLS[name], x, start, state, weights)
            results.append((y, last, gradients(y, last, leaves)))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], **tolerance(torch.float64))


@each_name
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_threads_may_change_between_forward_and_backward(name, before, after):
    x, start, state, weights = arguments(name, STEPS_PER_THREAD, 7)
    leaves = (x, *state, *weights)
    threads = torch.get_num_threads()
    expected = gradients(*gated.scan(CELLS[name], x, start, state, weights), leaves)
    try:
        torch.set_num_threads(before)
        y, last = gated.scan(CELLS[name], x, start, state, weights)
        torch.set_num_threads(after)
        found = gradients(y, last, leaves)
    finally:
        torch.set_num_threads(threads)
    assert_close(found, expected, **tolerance(torch.float64))


def test_nothing_is_kept_where_no_gradient_is_recorded(monkeypatch):
    """Gates of a block of steps, not of all, even where parameters would want a gradient."""
    kept, forward = [], gated.loops.forward
    monkeypatch.setattr(gated.loops, "forward", lambda *args: (kept.append(len(args[8])), forward(*args)))
    x, start, state, weights = arguments("lstm", 2 * BLOCK_ROWS, 2)
    gated.scan(gated.LSTM, x, start, state, weights)
    with torch.no_grad():
        gated.scan(gated.LSTM, x, start, state, weights)
    assert kept == [2 * BLOCK_ROWS, BLOCK_ROWS // 2]


@each_name
def test_shapes_that_do_not_fit_are_refused(name):
    x, start, state, weights = arguments(name, 6, 4)
    for odd in (1, 3, 9):
        with pytest.raises(ValueError, match=r"state \[B, H\] = \[4, 7\].*; got \[6, 4, 5\]"):
            gated.scan(CELLS[name], x, start, tuple(s.new_zeros(odd, 7) for s in state), weights)
    for number, weight in enumerate(weights):
        odd_weights = [*weights]
        odd_weights[number] = torch.cat((weight, weight[:1]))
        with pytest.raises(ValueError, match="weights must be"):
            gated.scan(CELLS[name], x, start, state, tuple(odd_weights))
    with pytest.raises(ValueError, match=r"\[T, B, F\] = \[6, 4, 5\]"):
        gated.scan(CELLS[name], x[..., :4], start, state, weights)


@each_name
def test_float32_stays_near_float64_over_a_thousand_steps(name):
    ours = memory.make(name, 16, output_size=32)
    x, start = torch.randn(1000, 2, 16), torch.rand(1000, 2) < 1 / 200
    y, _ = ours.scan(x, start, ours.initial_state(2))
    exact = ours.double()
    y_exact, _ = exact.scan(x.double(), start, exact.initial_state(2))
    assert_close(y.double(), y_exact, rtol=0, atol=1e-5)


@each_name
def test_extreme_inputs_saturate(name):
    """No overflow in the float32 exponential: gates of +-1e4 are 0 or 1, and NaN stays NaN."""
    x, start, state, weights = arguments(name, 6, 2, torch.float32)
    with torch.no_grad():
        y, _ = gated.scan(CELLS[name], 1e4 * x, start, state, weights)
        expected, _ = torch_scan(CELLS[name].kind, 1e4 * x, start, state, weights)
        assert_close(y, expected, rtol=0, atol=1e-6)
        x[0, 0] = torch.nan
        start[0, 0] = True
        assert gated.scan(CELLS[name], x, start, state, weights)[0][0, 0].isnan().all()


@each_name
def test_no_columns(name):
    x, start, state, weights = arguments(name, 4, 0)
    y, last = gated.scan(CELLS[name], x, start, state, weights)
    assert y.shape == (4, 0, 7)
    assert last[0].shape == (0, 7)


def test_backward_twice_through_one_scan():
    """Backward leaves what forward saved alone."""
    x, start, state, weights = arguments("lstm", 9, 3)
    y, _ = gated.lstm_scan(x, start, *state, weights)
    first = torch.autograd.grad(y.square().sum(), (x, *weights), retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), (x, *weights))
    assert_close(first, again, rtol=0, atol=0)


def test_cut_by_hand():
    """The example in the docstring of `pieces`."""
    start = torch.zeros(5, 2).bool()
    start[3, 0] = start[1, 1] = True
    pieces = cut(start)
    # x[t, b] is input 2 t + b; pieces c (row 1 from 1), a (row 0 from 0), b (row 0 from 3), d
    assert pieces.active.tolist() == [4, 3, 2, 1]
    assert pieces.order.tolist() == [3, 0, 6, 1, 5, 2, 8, 7, 4, 9]
    assert [each.tolist() for each in pieces.continuing] == [[1, 3], [0, 1]]
    assert pieces.last.tolist() == [2, 0]


@pytest.mark.parametrize(("T", "B", "density"), [(1, 1, 0.5), (30, 4, 0.0), (30, 4, 1.0), (50, 3, 0.1), (7, 20, 0.5)])
def test_cut_covers_every_input_once(T, B, density):
    start = torch.rand(T, B) < density
    pieces = cut(start)
    assert sorted(pieces.order.tolist()) == list(range(T * B))
    assert int(pieces.active[0]) == B + int(start[1:].sum())
    assert (pieces.active.diff() <= 0).all()
    steps = (pieces.active[:, None] > pieces.last).sum(0)
    ends = (pieces.active.cumsum(0) - pieces.active)[steps - 1] + pieces.last
    assert torch.equal(pieces.order[ends], (T - 1) * B + torch.arange(B))


def test_input_weights_start_as_torch_has_them():
    """Uniform in +-1 / sqrt(D); what the others start at is the memories' own."""
    for name, module in TORCH.items():
        ours, theirs = memory.make(name, 20, output_size=64, num_layers=2), module(20, 64, 2)
        assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
        for p in (ours.weight_ih_l0, ours.weight_ih_l1):
            assert p.abs().max() <= 1 / 8
            assert p.detach().std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.2)

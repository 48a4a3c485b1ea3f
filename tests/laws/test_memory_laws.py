"""What every memory obeys, one function per law, over the registry.

`Memory.scan`, the loop over steps, is the oracle.
"""

import copy
import math

import pytest
import torch
from conftest import tolerance
from small import FEATURES, GRADIENT_REACH, VARIANTS, cases, make_small
from torch.testing import assert_close

from palimpsest.memory import Memory

each_case = pytest.mark.parametrize("case", cases())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def sequence(module, T, B, start="sparse"):
    """x, start, place and strategy of a sequence; every memory gets all, and ignores what it does not use."""
    x = torch.randn(T, B, FEATURES, dtype=module.dtype)
    flags = {"sparse": torch.rand(T, B) < 0.15, "everywhere": torch.ones(T, B) > 0, "nowhere": torch.zeros(T, B) > 0}
    place = torch.randint(module.num_places, (T, B))
    return x, flags[start], place, torch.randint(6, (T, B))


def used_state(module, B, steps=7):
    """A state as a rollout leaves it: some episodes old, one of them young."""
    x, start, place, strategy = sequence(module, steps, B)
    start[steps - 2, :1] = True
    with torch.no_grad():
        return Memory.scan(module, x, start, module.initial_state(B), place, strategy)[1]


def with_floats(state, change):
    """The state with `change` applied to its floating-point tensors."""
    return type(state)(*(change(s) if s.is_floating_point() else s for s in state))


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def row(state, b):
    return type(state)(*(s[b : b + 1] for s in state))


def values_and_gradients(module, run, x, state):
    """y, the last state, and the gradients with respect to x, the state's floats and the parameters.

    The loss weighs every number of y and of the last state differently, so that no gradient cancels.
    """
    x, state = leaf(x), with_floats(state, leaf)
    y, last = run(x, state)
    weigh = torch.Generator().manual_seed(1)
    floats = [out for out in (y, *last) if out.is_floating_point()]
    loss = sum((out * torch.randn(out.shape, dtype=out.dtype, generator=weigh)).sum() for out in floats)
    to = [x, *(s for s in state if s.is_floating_point()), *module.parameters()]
    gradients = [torch.zeros_like(p) for p in to]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, to, allow_unused=True)
        gradients = [zero if g is None else g for g, zero in zip(found, gradients)]
    return y.detach(), with_floats(last, torch.detach), gradients


def assert_same(fast, slow, dtype):
    """Equal y, states and gradients; messages count: 0 is x, then the state's floats, then the parameters."""
    assert type(fast[1]) is type(slow[1])
    assert_close(fast[0], slow[0], **tolerance(dtype))
    assert_close(tuple(fast[1]), tuple(slow[1]), **tolerance(dtype))
    assert_close(fast[2], slow[2], **tolerance(dtype))


@each_case
@each_dtype
@pytest.mark.parametrize(
    ("T", "B", "start"),
    [
        (20, 3, "sparse"),
        (20, 3, "everywhere"),
        (20, 3, "nowhere"),
        (23, 1, "sparse"),
        (1, 3, "sparse"),
        (0, 3, "nowhere"),
        (20, 0, "nowhere"),
        (0, 0, "nowhere"),
    ],
)
def test_scan_equals_steps(case, dtype, T, B, start):
    module = make_small(case, dtype)
    x, flags, place, strategy = sequence(module, T, B, start)
    state = used_state(module, B)
    fast = values_and_gradients(module, lambda x, s: module.scan(x, flags, s, place, strategy), x, state)
    slow = values_and_gradients(module, lambda x, s: Memory.scan(module, x, flags, s, place, strategy), x, state)
    assert fast[0].shape == (T, B, module.output_size)
    assert_same(fast, slow, dtype)


@each_case
@torch.no_grad()
def test_scan_equals_steps_over_many_lengths_and_starts(case):
    """Borders of chunks, windows and blocks lie somewhere: every T up to 40 and several densities of starts.

    The steps are taken once for each density. A scan begins at the state after any of the first nine.
    """
    module = make_small(case)
    for number, density in enumerate((0.0, 0.05, 0.3)):
        x, _, place, strategy = sequence(module, 49, 2)
        start = torch.rand(49, 2) < density
        ys, states = [], [module.initial_state(2)]
        for t in range(49):
            step = slice(t, t + 1)
            y, state = Memory.scan(module, x[step], start[step], states[t], place[step], strategy[step])
            ys.append(y)
            states.append(state)
        for T in range(2 + number, 41, 3):
            first = 1 + T % 9
            part = slice(first, first + T)
            y, last = module.scan(x[part], start[part], states[first], place[part], strategy[part])
            assert_close(y, torch.cat(ys[part]), **tolerance(torch.float64))
            assert_close(tuple(last), tuple(states[first + T]), **tolerance(torch.float64))


@each_case
@each_dtype
@pytest.mark.parametrize("cuts", [(8,), (5, 14), (0, 20)], ids=["two", "three", "empty ends"])
def test_any_segmentation_equals_one_pass(case, dtype, cuts):
    module = make_small(case, dtype)
    x, start, place, strategy = sequence(module, 20, 3)

    def in_chunks(x, state):
        ys = []
        for first, end in zip((0, *cuts), (*cuts, 20)):
            part = slice(first, end)
            y, state = module.scan(x[part], start[part], state, place[part], strategy[part])
            ys.append(y)
        return torch.cat(ys), state

    state = used_state(module, 3)
    one = values_and_gradients(module, lambda x, s: module.scan(x, start, s, place, strategy), x, state)
    assert_same(values_and_gradients(module, in_chunks, x, state), one, dtype)


@each_case
def test_no_grad_changes_no_value(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    state = used_state(module, 3)
    y, last = module.scan(x, start, state, place, strategy)
    with torch.no_grad():
        acted, acted_last = module.scan(x, start, state, place, strategy)
    assert y.requires_grad
    assert not acted.requires_grad
    assert_close(acted, y.detach(), **tolerance(torch.float64))
    assert_close(tuple(acted_last), tuple(with_floats(last, torch.detach)), **tolerance(torch.float64))


@each_case
@torch.no_grad()
def test_acting_without_rows(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 1, 0)
    y, state = module.scan(x, start, module.initial_state(0), place, strategy)
    for act in (module.step, module.advance):
        acted, state = act(x[0], state, place[0], strategy[0])
        assert acted.shape == (0, module.output_size)
    assert y.shape == (1, 0, module.output_size)
    assert all(len(s) == 0 for s in state)


@each_case
@each_dtype
def test_nan_state_vanishes_at_start(case, dtype):
    module = make_small(case, dtype)
    x, start, place, strategy = sequence(module, 12, 3)
    start[0] = True
    nan = with_floats(used_state(module, 3), lambda s: torch.full_like(s, math.nan))
    after_nan = values_and_gradients(module, lambda x, s: module.scan(x, start, s, place, strategy), x, nan)
    fresh = module.initial_state(3)
    expected = values_and_gradients(module, lambda x, s: module.scan(x, start, s, place, strategy), x, fresh)
    assert all(g.isfinite().all() for g in after_nan[2])
    assert_same(after_nan, expected, dtype)


@each_case
def test_nan_state_vanishes_at_start_inside_the_sequence(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 12, 3, "nowhere")
    start[4] = True
    nan = with_floats(used_state(module, 3), lambda s: torch.full_like(s, math.nan))
    y, last = module.scan(x, start, nan, place, strategy)
    expected, expected_last = module.scan(x[4:], start[4:], module.initial_state(3), place[4:], strategy[4:])
    assert_close(y[4:], expected, **tolerance(torch.float64))
    assert_close(tuple(last), tuple(expected_last), **tolerance(torch.float64))


@each_case
def test_nan_stays_in_its_row(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 12, 3)
    state = used_state(module, 3)
    clean, clean_last = module.scan(x, start, state, place, strategy)
    poisoned = with_floats(state, torch.clone)
    for s in poisoned:
        if s.is_floating_point():
            s[1] = math.nan
    x = x.clone()
    x[3, 1] = math.nan
    x.requires_grad_()
    y, last = module.scan(x, start, poisoned, place, strategy)
    for b in (0, 2):
        assert_close(y[:, b], clean[:, b], **tolerance(torch.float64))
        assert_close(tuple(row(last, b)), tuple(row(clean_last, b)), **tolerance(torch.float64))
    (gradient,) = torch.autograd.grad(y[:, [0, 2]].sum(), x)
    assert gradient[:, [0, 2]].isfinite().all()


@each_case
def test_rows_are_independent(case):
    """A row alone is the same row in a batch, whatever its neighbours hold."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 4)
    state = used_state(module, 4)
    y, last = module.scan(x, start, state, place, strategy)
    for b in range(4):
        one = slice(b, b + 1)
        alone, alone_last = module.scan(x[:, one], start[:, one], row(state, b), place[:, one], strategy[:, one])
        assert_close(y[:, one], alone, **tolerance(torch.float64))
        assert_close(tuple(row(last, b)), tuple(alone_last), **tolerance(torch.float64))


@each_case
@pytest.mark.parametrize("t", [0, 7, 18])
def test_causality(case, t):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    state = used_state(module, 3)
    y, _ = module.scan(x, start, state, place, strategy)
    other_x, other_start, other_place, other_strategy = sequence(module, 20, 3)
    x[t + 1 :], start[t + 1 :], place[t + 1 :] = other_x[t + 1 :], other_start[t + 1 :], other_place[t + 1 :]
    strategy[t + 1 :] = other_strategy[t + 1 :]
    changed, _ = module.scan(x, start, state, place, strategy)
    assert_close(changed[: t + 1], y[: t + 1], **tolerance(torch.float64))
    assert not torch.equal(changed[t + 1], y[t + 1])


def distance_influence(module, T):
    """|dy[T-1] / dx[0]| as a finite change, and the gradient of y[T-1] with respect to x[0]."""
    # many rows: rectified keys and queries may miss each other in some
    x, start, place, strategy = sequence(module, T, 8, "nowhere")
    start[0] = True
    state = module.initial_state(8)
    x.requires_grad_()
    y, _ = module.scan(x, start, state, place, strategy)
    (gradient,) = torch.autograd.grad(y[-1].square().sum(), x)
    moved = x.detach().clone()
    moved[0] += torch.randn_like(moved[0])
    other, _ = module.scan(moved, start, state, place, strategy)
    return (other[-1] - y[-1]).abs().amax().item(), gradient[0].abs().amax().item()


@each_case
def test_gradients_cross_time(case):
    """y[T-1] answers to x[0] within the memory's reach; without memory not at all."""
    module = make_small(case)
    name, _ = VARIANTS.get(case, (case, {}))
    if module.context().K_eff == 1:
        assert distance_influence(module, 2) == (0.0, 0.0)
        return
    K = module.context().K
    T = min(K if K > 1 else 10, GRADIENT_REACH.get(name, 10), 10)
    assert T > 1
    change, gradient = distance_influence(module, T)
    assert change > 1e-9
    assert gradient > 1e-9


@each_case
def test_context_is_a_bound(case):
    """Nothing beyond K_eff inputs reaches y, and K is not more than K_eff."""
    module = make_small(case)
    K, K_eff = module.context()
    assert 1 <= K <= K_eff
    if math.isfinite(K_eff):
        assert distance_influence(module, int(K_eff) + 1)[0] < 1e-12


@each_case
@each_dtype
def test_initial_state(case, dtype):
    """A flat NamedTuple, batch first, floats in the module's dtype and integers int64, the same for every row."""
    module = make_small(case, dtype)
    state = module.initial_state(3)
    assert isinstance(state, tuple)
    assert len(state._fields) == len(state)
    for s in state:
        assert isinstance(s, torch.Tensor)
        assert s.shape[0] == 3
        assert s.dtype == (dtype if s.is_floating_point() else torch.int64)
        assert s.device == module.device
        assert not s.requires_grad
        assert torch.equal(s[0], s[2])
    x, start, place, strategy = sequence(module, 9, 3)
    for T in (0, 1, 9):
        _, last = module.scan(x[:T], start[:T], state, place[:T], strategy[:T])
        assert [(s.shape, s.dtype) for s in last] == [(s.shape, s.dtype) for s in state]


@each_case
def test_state_survives_numpy(case):
    """SB3's `predict` carries states as numpy arrays."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 9, 3)
    state = used_state(module, 3)
    travelled = type(state)(*(torch.from_numpy(s.numpy().copy()) for s in state))
    y, _ = module.scan(x, start, state, place, strategy)
    assert torch.equal(module.scan(x, start, travelled, place, strategy)[0], y)


@each_case
def test_nothing_is_random(case):
    """Two scans are bitwise equal, in training mode as in evaluation, and draw no random number."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    state = used_state(module, 3)
    before = torch.get_rng_state()
    y, last = module.train().scan(x, start, state, place, strategy)
    again, again_last = module.eval().scan(x, start, state, place, strategy)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(last, again_last))
    assert torch.equal(torch.get_rng_state(), before)


@each_case
def test_inputs_and_results_are_left_alone(case):
    """A scan or a step writes neither into what it was given nor into what an earlier one returned."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    state = used_state(module, 3)
    given = copy.deepcopy((x, start, place, strategy, state))
    with torch.no_grad():
        first = module.scan(x, start, state, place, strategy)
        kept = copy.deepcopy(first)
        stepped = module.step(x[0], first[1], place[0], strategy[0])
        kept_step = copy.deepcopy(stepped)
        module.step(x[1], stepped[1], place[1], strategy[1])
        module.scan(-x, start, first[1], place, strategy)
    assert_close(given, (x, start, place, strategy, state), rtol=0, atol=0)
    assert_close(first, kept, rtol=0, atol=0)
    assert_close(stepped, kept_step, rtol=0, atol=0)


@each_case
def test_memory_layout_does_not_matter(case):
    """Columns picked from a rollout are views, and so may be the gradient that comes back."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 6)
    state = used_state(module, 6)
    half = slice(None, None, 2)
    views = (start[:, half], type(state)(*(s[half] for s in state)), place[:, half], strategy[:, half])
    copies = tuple(copy.deepcopy(v) for v in views)
    gradients = []
    for x_, (start_, state_, place_, strategy_) in (
        (x[:, half], views),
        (x[:, half].clone(memory_format=torch.contiguous_format), tuple(map(_contiguous, copies))),
    ):
        x_ = x_.detach().requires_grad_()
        y, _ = module.scan(x_, start_, state_, place_, strategy_)
        gradients.append((y.detach(), torch.autograd.grad(y.transpose(0, 2).sum(0).sum(), x_)[0]))
    assert_close(gradients[0], gradients[1], **tolerance(torch.float64))


def _contiguous(value):
    if isinstance(value, torch.Tensor):
        return value.contiguous()
    return type(value)(*(s.contiguous() for s in value))

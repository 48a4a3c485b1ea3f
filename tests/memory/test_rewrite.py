"""Laws of the rewrite-aware memory's own; those of every memory are in `test_memory_laws.py`."""

import functools
import math

import pytest
import torch
import torch.nn.utils.prune
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory import Memory, make

SMALL = dict(output_size=6, num_layers=2, num_heads=2, key_size=3, value_size=4)

with_and_without_clock = pytest.mark.parametrize("clock", [True, False], ids=["clock", "no clock"])


def made(clock=True):
    module = make("rewrite", 5, **SMALL, clock=clock).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def gradients(module, run, x):
    x = x.clone().requires_grad_()
    y, last = run(x)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() + sum(s.sum() for s in last)
    return [y.detach(), *(s.detach() for s in last), *torch.autograd.grad(loss, [x, *module.parameters()])]


@with_and_without_clock
def test_scan_equals_steps(clock):
    module = made(clock)
    x, start = torch.randn(25, 3, 5, dtype=torch.float64), torch.rand(25, 3) < 0.2
    _, state = Memory.scan(module, x[:6], start[:6], module.initial_state(3))
    state = type(state)(*(s.detach() for s in state))
    fast = gradients(module, lambda x: module.scan(x, start, state), x)
    slow = gradients(module, lambda x: Memory.scan(module, x, start, state), x)
    assert_close(fast, slow, **tolerance(torch.float64))

    def in_parts(x, first=None):
        ys, last = [], state
        for part in (slice(0, 2), slice(2, 3), slice(3, 25)):
            y, last = module.scan(x[part], start[part], last)
            ys.append(y)
        return torch.cat(ys), last

    assert_close(gradients(module, in_parts, x), fast, **tolerance(torch.float64))
    with torch.no_grad():
        acted = Memory.scan(module, x, start, state)
    assert_close([acted[0], *acted[1]], fast[: 1 + len(state)], **tolerance(torch.float64))


def test_gates_stay_in_range_and_are_shown():
    module = made()
    assert module.diagnostics() == {}
    x = 30 * torch.randn(20, 3, 5, dtype=torch.float64)
    module.scan(x, torch.rand(20, 3) < 0.1, module.initial_state(3))
    shown = module.diagnostics()
    assert set(shown) == {"keep", "rewrite"}
    for values, top in ((shown["keep"], 1), (shown["rewrite"], 2)):
        assert values.shape == (20, 3, module.table_shape[0] * module.table_shape[1])
        assert not values.requires_grad
        assert 0 <= values.amin() < values.amax() <= top


def test_tables_start_out_keeping_and_overwriting():
    """With no input alpha is that of 20, 100 and 500 steps over the heads and beta 1, in every layer."""
    module = make("rewrite", 5, num_heads=3)
    for layer in module.layers:
        layer.project.weight.data.zero_()
    module.scan(torch.randn(1, 1, 5), torch.ones(1, 1) > 0, module.initial_state(1))
    shown = module.diagnostics()
    assert_close(shown["keep"], torch.tensor([math.exp(-1 / steps) for steps in (20, 100, 500)] * 2).expand(1, 1, 6))
    assert_close(shown["rewrite"], torch.ones(1, 1, 6))


def test_output_is_bounded_by_its_gates():
    """Over a long episode the output neither fades nor grows: reads pass through tanh."""
    module = make("rewrite", 5)
    with torch.no_grad():
        y, state = module.scan(torch.randn(2000, 2, 5), torch.zeros(2000, 2) > 0, module.initial_state(2))
    assert all(s.isfinite().all() for s in state)
    early, late = y[50:250].square().mean(), y[-200:].square().mean()
    assert 0.5 < late / early < 2


def test_small_inputs_are_not_amplified():
    """The normalisation has a floor: a thousandth of the input gives at most about a thousandth of the output."""
    module = make("rewrite", 5, clock=False)
    for name, parameter in module.named_parameters():
        if name.endswith("bias") and "project" not in name:
            parameter.data.zero_()
    for layer in module.layers:
        layer.project.bias.data.zero_()
    x, start = torch.randn(30, 2, 5), torch.zeros(30, 2) > 0
    y, _ = module.scan(x, start, module.initial_state(2))
    tiny, _ = module.scan(x / 1000, start, module.initial_state(2))
    assert tiny.abs().max() < y.abs().max() / 500


def test_clock_alternates_since_the_start():
    """Compared with counting: 1 at a start, then alternating signs; the state carries the clock on."""
    module = made()
    start = torch.rand(20, 3) < 0.15
    x, beat = torch.randn(20, 3, 5, dtype=torch.float64), module.initial_state(3).beat
    assert beat.tolist() == [[1.0]] * 3
    beat[1] = -1
    seen, after = module._count(x, start, beat)
    assert_close(seen[..., :5], x)
    for b in range(3):
        now = float(beat[b])
        for t in range(20):
            now = 1.0 if start[t, b] else now
            assert seen[t, b, 5] == now
            now = -now
        assert after[b] == now


def test_clock_tells_equal_inputs_apart():
    """Under a constant input the output settles without the clock, and alternates with it."""
    for clock in (False, True):
        module = made(clock)
        x, start = torch.ones(400, 1, 5, dtype=torch.float64), torch.zeros(400, 1) > 0
        y, _ = module.scan(x, start, module.initial_state(1))
        assert (y[-1] - y[-2]).abs().max().item() > 1e-3 if clock else (y[-1] - y[-2]).abs().max().item() < 1e-6
        assert_close(y[-1], y[-3], atol=1e-6, rtol=0)


def test_context():
    assert made().context() == (1, math.inf)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(num_layers=0), "num_layers must be an integer, 1 to 1,048,576; got 0"),
        (dict(num_heads=1.5), "num_heads must be an integer, 1 to 1,048,576; got 1.5"),
        (dict(key_size=-1), "key_size must be an integer, 1 to 1,048,576; got -1"),
        (dict(value_size=0), "value_size must be an integer, 1 to 1,048,576; got 0"),
        (dict(gates="hard"), "has no argument 'gates'"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make("rewrite", 5, **wrong)


def test_a_pruned_map_acts_as_it_is_trained():
    """Pruning, like weight and spectral norms, computes the weight in a hook before each call."""
    made = make("rewrite", 5, output_size=8, num_layers=2, num_heads=2, key_size=4, value_size=3)
    state, x = made.initial_state(6), torch.randn(6, 5)
    torch.nn.utils.prune.l1_unstructured(made.layers[1].project, "weight", amount=0.5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
        with pytest.warns(UserWarning, match="module 'layers.1.project' has a forward pre-hook"):
            acted = made.step(x, state)[0]
    torch.testing.assert_close(acted, made.step(x, state)[0].detach())


def test_steps_of_no_rows():
    made = make("rewrite", 5, output_size=8)
    with torch.no_grad():
        y, after = made.step(torch.empty(0, 5), made.initial_state(0))
    assert y.shape == (0, 8)
    assert after.table.shape == made.initial_state(0).table.shape


@pytest.mark.parametrize("act", [False, True])
def test_maps_that_do_not_fit_are_torchs_to_refuse(act):
    """The kernels, which do not check bounds, never see them."""
    for name, odd in (("enter", torch.nn.Linear(60, 6)), ("enter", torch.nn.Linear(6, 60)), ("project", None)):
        module = make("rewrite", 5, **SMALL)
        x, state = torch.randn(4, 3, 5), module.initial_state(3)
        with torch.no_grad():
            module.step(x[0], state)
        if odd is None:
            module.layers[0].project.bias = torch.nn.Parameter(torch.zeros(7))
        else:
            setattr(module, name, odd)
        start = torch.zeros(4, 3, dtype=torch.bool)
        run = functools.partial(module.step, x[0]) if act else functools.partial(module.scan, x, start)
        changed = pytest.warns(UserWarning, match="has parameters .*, built with ")
        with torch.set_grad_enabled(not act), changed, pytest.raises(RuntimeError):
            run(state)

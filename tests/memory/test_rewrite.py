"""Laws of the rewrite-aware memory's own; those of every memory are in `test_memory_laws.py`."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.utils.prune
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory import Memory, make

SMALL = dict(output_size=6, num_layers=2, num_heads=2, key_size=3, value_size=4)
EVERYTHING = dict(
    controller="lstm", controller_size=3, gates="hard", read="norm", bound_values=True, conv_size=4, clock=False
)
ONE_BY_ONE = ("controller", "gates", "read", "bound_values", "clock")
OPTIONS = [{}, EVERYTHING, *({key: EVERYTHING[key]} for key in ONE_BY_ONE), dict(conv_size=1), dict(conv_size=3)]

each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "default")


def made(**options):
    module = make("rewrite", 5, **SMALL | options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def gradients(module, run, x):
    x = x.clone().requires_grad_()
    y, last = run(x)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() + sum(s.sum() for s in last)
    return [y.detach(), *(s.detach() for s in last), *torch.autograd.grad(loss, [x, *module.parameters()])]


@each_option
def test_scan_equals_steps(options):
    module = made(**options)
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


@each_option
def test_gates_stay_in_range_and_are_shown(options):
    module = made(**options)
    assert module.diagnostics() == {}
    x = 30 * torch.randn(20, 3, 5, dtype=torch.float64)
    module.scan(x, torch.rand(20, 3) < 0.1, module.initial_state(3))
    shown = module.diagnostics()
    assert set(shown) == {"keep", "rewrite"}
    for values, top in ((shown["keep"], 1), (shown["rewrite"], 2)):
        assert values.shape == (20, 3, module.table_shape[0] * module.table_shape[1])
        assert not values.requires_grad
        assert 0 <= values.amin() < values.amax() <= top
        if options == dict(gates="hard"):
            assert (values == 0).any()
            assert (values == top).any()


@pytest.mark.parametrize("gates", ["sigmoid", "hard"])
def test_tables_start_out_keeping_and_overwriting(gates):
    """With no input alpha is that of 20, 100 and 500 steps over the heads and beta 1, in every layer."""
    module = make("rewrite", 5, num_heads=3, gates=gates)
    for layer in module.layers:
        layer.project.weight.data.zero_()
    module.scan(torch.randn(1, 1, 5), torch.ones(1, 1) > 0, module.initial_state(1))
    shown = module.diagnostics()
    assert_close(shown["keep"], torch.tensor([math.exp(-1 / steps) for steps in (20, 100, 500)] * 2).expand(1, 1, 6))
    assert_close(shown["rewrite"], torch.ones(1, 1, 6))


def test_output_is_bounded_by_its_gates():
    """A long episode neither fades nor grows: the reads are normalised."""
    module = make("rewrite", 5)
    with torch.no_grad():
        y, state = module.scan(torch.randn(2000, 2, 5), torch.zeros(2000, 2) > 0, module.initial_state(2))
    assert all(s.isfinite().all() for s in state)
    early, late = y[50:250].square().mean(), y[-200:].square().mean()
    assert 0.5 < late / early < 2


def test_small_inputs_are_not_amplified():
    """Normalisation has a floor: what is a thousand times smaller gives at most about a thousandth."""
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


def test_convolution_stops_at_starts():
    """Against a plain loop over taps, and the tail's share in the first outputs of the next scan."""
    module = made(conv_size=3)
    x, start = torch.randn(12, 2, 5, dtype=torch.float64), torch.rand(12, 2) < 0.25
    tail = torch.randn(2, 2, 5, dtype=torch.float64)
    y, last = module._convolve(x, start, tail)
    for b in range(2):
        seen = list(tail[b])
        for t in range(12):
            seen = [torch.zeros(5).double()] * 2 if start[t, b] else seen
            seen.append(x[t, b])
            assert_close(y[t, b], sum(module.taps[j] * seen[-1 - j] for j in range(3)))
        assert_close(last[b], torch.stack(seen[-2:]))


def test_clock_alternates_since_the_start():
    """Against counting: 1 at a start, then -1 and 1 by turns; the state carries it on."""
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
    """The same input for ever: without the clock a step's effect is that of the one before, but for what fades."""
    for clock in (False, True):
        module = made(clock=clock)
        x, start = torch.ones(400, 1, 5, dtype=torch.float64), torch.zeros(400, 1) > 0
        y, _ = module.scan(x, start, module.initial_state(1))
        assert (y[-1] - y[-2]).abs().max().item() > 1e-3 if clock else (y[-1] - y[-2]).abs().max().item() < 1e-6
        assert_close(y[-1], y[-3], atol=1e-6, rtol=0)


@each_option
def test_context(options):
    module = made(**options)
    assert module.context() == (max(options.get("conv_size", 0), 1), math.inf)


def test_options_differ():
    """No option is ignored."""
    x, start = torch.randn(10, 2, 5, dtype=torch.float64), torch.zeros(10, 2) > 0
    outputs = []
    for options in OPTIONS:
        torch.manual_seed(0)
        module = made(**options)
        outputs.append(module.scan(x, start, module.initial_state(2))[0])
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(outputs, 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(num_layers=0), "num_layers must be an integer, 1 to 1,048,576; got 0"),
        (dict(num_heads=1.5), "num_heads must be an integer, 1 to 1,048,576; got 1.5"),
        (dict(key_size=-1), "key_size must be an integer, 1 to 1,048,576; got -1"),
        (dict(value_size=0), "value_size must be an integer, 1 to 1,048,576; got 0"),
        (dict(controller_size=0), "controller_size must be an integer, 1 to 1,048,576; got 0"),
        (dict(conv_size=-1), "conv_size must be an integer, 0 to 1,048,576; got -1"),
        (dict(controller="gru"), "controller must be one of 'lstm'; got 'gru'"),
        (dict(gates="soft"), "gates must be one of 'sigmoid', 'hard'; got 'soft'"),
        (dict(read="raw"), "read must be one of 'norm', 'tanh'; got 'raw'"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make("rewrite", 5, **wrong)


def test_a_map_that_is_watched_or_changed_on_the_way_acts_as_it_is_trained():
    """Pruning, as weight and spectral norms, makes a weight anew in a hook before each call."""
    made = make("rewrite", 5, output_size=8, num_layers=2, num_heads=2, key_size=4, value_size=3)
    state, x = made.initial_state(6), torch.randn(6, 5)
    torch.nn.utils.prune.l1_unstructured(made.layers[1].project, "weight", amount=0.5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
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
    """Before a kernel reads or writes beyond what there is."""
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
        with torch.set_grad_enabled(not act), pytest.raises(RuntimeError):
            run(state)

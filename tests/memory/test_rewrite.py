"""Laws of the rewrite-aware memory's own; those of every memory are in `test_memory_laws.py`."""

import functools
import math

import pytest
import torch
import torch.nn.utils.prune
from conftest import tolerance
from torch.nn import functional
from torch.testing import assert_close

from palimpsest.memory import Memory, make
from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.delta.turning import periods, turns

SMALL = dict(output_size=6, num_layers=2, num_heads=2, key_size=5, value_size=4, front_size=7)

with_and_without_clock = pytest.mark.parametrize("clock", [True, False], ids=["clock", "no clock"])


def made(clock=True, **sizes):
    module = make("rewrite", 5, **SMALL | sizes, clock=clock).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def gradients(module, run, x):
    x = x.clone().requires_grad_()
    y, last = run(x)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() + sum(s.sum() for s in last)
    return [y.detach(), *(s.detach() for s in last), *torch.autograd.grad(loss, [x, *module.parameters()])]


def written_out(module, x, start, state):
    """The equations of the module's docstring, a row, a step, a layer and a head at a time; x [T, B, 5]."""
    _, H, K, V = module.table_shape
    R, ys, lasts, hs = K // 4, torch.empty(*x.shape[:2], 6, dtype=x.dtype), torch.empty_like(state.table), []
    for b in range(x.shape[1]):
        tables, t, front = [list(of_layer) for of_layer in state.table[b]], state.time[b].item(), state.h[b]
        for step in range(len(x)):
            if start[step, b]:
                tables, t, front = [[torch.zeros(K, V, dtype=x.dtype)] * H for _ in tables], 0, torch.zeros_like(front)
            front = torch.gru_cell(x[step, b, None], front[None], *module.front.layer_weights(0))[0]
            read = torch.cat([x[step, b], front, torch.tensor([(-1.0) ** t] * module.clock, dtype=x.dtype)])
            stream = module.enter(read)
            turn = torch.tensor([2 * math.pi * t / each for each in periods(K)], dtype=x.dtype)
            for layer, of_layer in zip(module.layers, tables):
                z = layer.project(read)
                gates, outputs = z[H * (2 * K + 2 * V) :].sigmoid(), []
                for h in range(H):
                    q, k, v, g = z[h * (2 * K + 2 * V) :][: 2 * K + 2 * V].split((K, K, V, V))
                    q, k = (
                        torch.cat([*turned_pairs(each[:R], each[R : 2 * R], turn), each[2 * R :]])
                        / (each.square().sum() + 1e-6).sqrt()
                        for each in (q, k)
                    )
                    r, S = q @ of_layer[h], gates[h] * of_layer[h]
                    of_layer[h] = S + 2 * gates[H + h] * torch.outer(k, v - k @ S)
                    outputs.append(g.sigmoid() * r.tanh())
                stream = stream + layer.leave(torch.cat(outputs))
                read = functional.layer_norm(stream, stream.shape, eps=0.1)
            ys[step, b], t = read, t + 1
        lasts[b] = torch.stack([torch.stack(of_layer) for of_layer in tables])
        hs.append(front)
    return ys, lasts, torch.stack(hs)


def turned_pairs(one, other, angle):
    return one * angle.cos() - other * angle.sin(), one * angle.sin() + other * angle.cos()


@with_and_without_clock
@pytest.mark.parametrize(("K", "V"), [(3, 4), (5, 4), (16, 32)])
def test_the_equations_written_out(clock, K, V):
    """Values and gradients of a scan, of one by torch's operations, and of steps."""
    module, T, B = made(clock, key_size=K, value_size=V), 36, 3
    x, start = torch.randn(T, B, 5, dtype=torch.float64), torch.rand(T, B) < 0.05
    state = module.initial_state(B)._replace(time=torch.tensor([0, 1, 255]) % len(module.turns))
    state = state._replace(table=torch.randn_like(state.table), h=torch.randn_like(state.h).tanh())
    assert start.any()

    def by(form):
        def tables_too(x):
            y, last = form(x, start, state)
            return y, [last.table, last.h]

        return gradients(module, tables_too, x)

    expected = gradients(module, lambda x: (lambda y, *last: (y, last))(*written_out(module, x, start, state)), x)
    forms = [torch_only()(module.scan), functools.partial(Memory.scan, module)]
    # the compiled scan of the widest is compared with torch's operations, in float32, in test_delta_kernel.py
    for form in forms if K == 16 else [module.scan, *forms]:
        assert_close(by(form), expected, **tolerance(torch.float64))
    with torch.no_grad():
        acted, last = Memory.scan(module, x, start, state)
    assert_close([acted, last.table, last.h], expected[:3], **tolerance(torch.float64))


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
    """With no input alpha is that of 2, 32 and 500 steps over the heads and beta 1, in every layer."""
    module = make("rewrite", 5, num_heads=3)
    for layer in module.layers:
        layer.project.weight.data.zero_()
    module.scan(torch.randn(1, 1, 5), torch.ones(1, 1) > 0, module.initial_state(1))
    shown = module.diagnostics()
    expected = [math.exp(-1 / steps) for steps in (2, math.sqrt(1000), 500)]
    assert_close(shown["keep"], torch.tensor(expected * 2).expand(1, 1, 6))
    assert_close(shown["rewrite"], torch.ones(1, 1, 6))


def test_a_single_head_starts_out_slow():
    layer = make("rewrite", 5, num_heads=1).layers[0]
    assert layer.project.bias[-2].sigmoid().item() == pytest.approx(math.exp(-1 / 500))


def test_the_unit_in_front_starts_out_fast():
    """Its update gate is a half without input, so that what it holds fades with a time constant of 2 steps."""
    _, _, bias_ih, bias_hh = make("rewrite", 5, front_size=8).front.layer_weights(0)
    assert_close(bias_ih[8:16] + bias_hh[8:16], torch.zeros(8))


def test_keys_read_the_unit_alone_before_training():
    """Of the input only the stream, and every layer after the first, sees something at once."""
    first, second = make("rewrite", 5, front_size=8).layers
    assert not first.project.weight[:, :5].any()
    assert first.project.weight[:, 5:].all()
    assert second.project.weight.all()


def test_output_is_bounded_by_its_gates():
    """Over a long episode the output neither fades nor grows: reads pass through tanh."""
    module = make("rewrite", 5)
    with torch.no_grad():
        y, state = module.scan(torch.randn(2000, 2, 5), torch.zeros(2000, 2) > 0, module.initial_state(2))
    assert all(s.isfinite().all() for s in state)
    early, late = y[50:250].square().mean(), y[-200:].square().mean()
    assert 0.5 < late / early < 2


def test_small_inputs_are_not_amplified():
    """Normalisation has a floor: a thousandth of the input gives at most about sqrt(10) thousandths of the output."""
    module = make("rewrite", 5, clock=False)
    for name, parameter in module.named_parameters():
        if "bias" in name and "project" not in name:
            parameter.data.zero_()
    for layer in module.layers:
        layer.project.bias.data.zero_()
    x, start = torch.randn(30, 2, 5), torch.zeros(30, 2) > 0
    y, _ = module.scan(x, start, module.initial_state(2))
    tiny, _ = module.scan(x / 1000, start, module.initial_state(2))
    assert tiny.abs().max() < y.abs().max() / 300


def test_time_counts_since_the_start():
    """Modulo the longest period, with or without a clock; rows count by themselves."""
    for clock, K, V, P in ((True, 16, 32, 256), (False, 5, 4, 4), (True, 3, 4, 2)):
        module = made(clock, key_size=K, value_size=V)
        start, time = torch.rand(30, 3) < 0.05, torch.tensor([0, 1, P - 2])
        assert module.initial_state(3).time.tolist() == [0, 0, 0]
        state, steps = module.initial_state(3)._replace(time=time), time.tolist()
        for t in range(30):
            x = torch.randn(1, 3, 5, dtype=torch.float64)
            state = module.scan(x, start[t : t + 1], state)[1]
            steps = [1 if start[t, b] else steps[b] + 1 for b in range(3)]
            assert state.time.tolist() == [each % P for each in steps]


def test_nothing_changes_where_the_longest_period_ends():
    """A scan across it equals steps and any split; a state from beyond it is the one that it is equal to."""
    module = made(key_size=16, value_size=32)
    x, start = torch.randn(300, 2, 5, dtype=torch.float64), torch.zeros(300, 2) > 0
    start[40, 1] = True
    with torch.no_grad():
        y, last = module.scan(x, start, module.initial_state(2))
        stepped = Memory.scan(module, x, start, module.initial_state(2))
        for cut in (255, 256, 257):
            before, state = module.scan(x[:cut], start[:cut], module.initial_state(2))
            after, end = module.scan(x[cut:], start[cut:], state)
            assert_close((torch.cat([before, after]), *end), (y, *last), **tolerance(torch.float64))
        late = module.scan(x[:9], start[:9], module.initial_state(2)._replace(time=torch.tensor([7, 250])))
        later = module.scan(x[:9], start[:9], module.initial_state(2)._replace(time=torch.tensor([263, 506])))
    assert last.time.tolist() == [300 - 256, 260 - 256]
    assert_close((stepped[0], *stepped[1]), (y, *last), **tolerance(torch.float64))
    assert_close(late, later, rtol=0, atol=0)


def test_only_lags_count():
    """The same inputs at another time give the same outputs, with the clock at another time of the same phase."""
    for clock, shift in ((False, 77), (True, 78)):
        module = made(clock, key_size=16, value_size=32)
        x, start = torch.randn(60, 1, 5, dtype=torch.float64), torch.zeros(60, 1) > 0
        y, _ = module.scan(x, start, module.initial_state(1))
        later, _ = module.scan(x, start, module.initial_state(1)._replace(time=torch.tensor([shift])))
        assert_close(later, y, **tolerance(torch.float64))


def test_a_step_reads_what_was_written_before_it():
    """The first output is the map of the input and of what the unit gives out, whatever the tables' maps are."""
    module, x = made(), torch.randn(1, 3, 5, dtype=torch.float64)
    y, _ = module.scan(x, torch.ones(1, 3) > 0, module.initial_state(3))
    h = torch.gru_cell(x[0], torch.zeros(3, 7, dtype=torch.float64), *module.front.layer_weights(0))
    alone = module.enter(torch.cat([x[0], h, torch.ones(3, 1, dtype=torch.float64)], 1))
    assert_close(y[0], functional.layer_norm(alone, (6,), eps=0.1), **tolerance(torch.float64))


def test_turns_are_rounded_once():
    """A module of another type has the turns of one that was made with it."""
    module = make("rewrite", 5, key_size=16).double()
    assert torch.equal(module.turns, torch.from_numpy(turns(16)))
    assert torch.equal(module.float().turns, torch.from_numpy(turns(16)).float())


def test_parameters_learned_without_turns_are_refused():
    """Their names and shapes are the same, what they compute is not."""
    module = made()
    old = {name: each for name, each in module.state_dict().items() if name != "turns"}
    with pytest.raises(RuntimeError, match=r'Missing key.*"turns"'):
        module.load_state_dict(old)


def test_clock_tells_equal_inputs_apart():
    """Under a constant input the output settles without the clock, as only lags count, and alternates with it.

    Long after the longest time constant at the start, 500 steps.
    """
    for clock in (False, True):
        module = made(clock)
        x, start = torch.ones(5000, 1, 5, dtype=torch.float64), torch.zeros(5000, 1) > 0
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
        (dict(front_size=0), "front_size must be an integer, 1 to 1,048,576; got 0"),
        (dict(gates="hard"), "has no argument 'gates'"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make("rewrite", 5, **wrong)


def test_a_pruned_map_acts_as_it_is_trained():
    """Pruning, like weight and spectral norms, computes the weight in a hook before each call."""
    made = make("rewrite", 5, output_size=8, num_layers=2, num_heads=2, key_size=5, value_size=4)
    _, state = made.step(torch.randn(6, 5), made.initial_state(6))
    state, x = type(state)(*(each.detach() for each in state)), torch.randn(6, 5)
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

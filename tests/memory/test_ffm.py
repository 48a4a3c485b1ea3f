"""Fast and Forgetful Memory against its equations, and its two scans against each other."""

import math

import numpy as np
import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.base import Memory
from palimpsest.memory.ffm import FFM, FFMState
from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.arithmetic.threads import STEPS_PER_THREAD

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def small(dtype=torch.float64, **kwargs):
    """An FFM whose parameters are at no special value, decays of both signs."""
    module = FFM(5, **dict(output_size=6, memory_size=4, context_size=3, max_period=16) | kwargs).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        module.alpha[0] = -module.alpha[0].abs()
    return module


def sequence(T, B, dtype=torch.float64):
    return torch.randn(T, B, 5, dtype=dtype), torch.rand(T, B) < 0.15


def random_state(module, B):
    return FFMState(torch.randn_like(module.initial_state(B).S))


def equations(parameters, x, start, S):
    """The equations of the paper, one input after the other, in numpy; x [T, B, F], S [B, m, c] complex."""
    p = {name: value.double().numpy() for name, value in parameters.items()}

    def linear(name, v):
        return p[f"{name}.weight"] @ v + p[f"{name}.bias"]

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    gamma = np.outer(np.exp(-np.abs(p["alpha"])), np.exp(-1j * p["omega"]))
    S = S.copy()
    y = np.zeros((*x.shape[:2], len(p["mix.bias"])))
    for t, b in np.ndindex(*x.shape[:2]):
        if start[t, b]:
            S[b] = 0
        v = x[t, b]
        written = linear("value", v) * sigmoid(linear("input_gate", v))
        S[b] = gamma * S[b] + np.outer(written, np.ones(len(p["omega"])))
        z = linear("mix", np.concatenate([S[b].real.ravel(), S[b].imag.ravel()]))
        normal = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
        gate = sigmoid(linear("output_gate", v))
        y[t, b] = normal * gate + linear("skip", v) * (1 - gate)
    return y, S


def as_complex(S):
    return torch.complex(S[..., 0], S[..., 1]).numpy()


@each_dtype
@pytest.mark.parametrize("form", ["scan", "steps"])
def test_the_equations(dtype, form):
    module = small(dtype)
    x, start = sequence(40, 3, dtype)
    state = random_state(module, 3)
    expected, expected_S = equations(
        module.state_dict(), x.double().numpy(), start.numpy(), as_complex(state.S.double())
    )
    with torch.no_grad():
        y, last = module.scan(x, start, state) if form == "scan" else Memory.scan(module, x, start, state)
    assert_close(y, torch.from_numpy(expected).to(dtype), **tolerance(dtype))
    assert_close(torch.from_numpy(as_complex(last.S.double())), torch.from_numpy(expected_S), **tolerance(dtype))


def values_and_gradients(module, scan, x, state):
    x, S = x.clone().requires_grad_(), state.S.clone().requires_grad_()
    y, last = scan(x, FFMState(S))
    weigh = torch.Generator().manual_seed(1)
    loss = sum((v * torch.randn(v.shape, dtype=v.dtype, generator=weigh)).sum() for v in (y, last.S))
    return y.detach(), last.S.detach(), *torch.autograd.grad(loss, [x, S, *module.parameters()])


@each_dtype
@pytest.mark.parametrize(("T", "B"), [(1300, 1), (400, 3), (20, 100), (2, 700)])
@pytest.mark.parametrize("sizes", [dict(), dict(memory_size=1, context_size=1)], ids=["small", "one trace"])
def test_compiled_blocks_equal_the_torch_scan(dtype, T, B, sizes):
    """Several blocks of the compiled scan, the last one ragged, and rows beyond one block."""
    module = small(dtype, **sizes)
    x, start = sequence(T, B, dtype)
    state = random_state(module, B)
    compiled = values_and_gradients(module, lambda x, s: module.scan(x, start, s), x, state)
    with torch_only():
        by_torch = values_and_gradients(module, lambda x, s: module.scan(x, start, s), x, state)
    for found, wanted in zip(compiled, by_torch):
        scale = max(1.0, wanted.abs().amax().item())
        assert_close(found, wanted, rtol=tolerance(dtype)["rtol"], atol=tolerance(dtype)["atol"] * scale)


def test_backward_twice_and_without_a_gradient_to_x():
    """What the backward pass keeps is not used up, and x may be data."""
    module = small()
    x, start = sequence(30, 2)
    y, _ = module.scan(x, start, random_state(module, 2))
    once = torch.autograd.grad(y.square().sum(), list(module.parameters()), retain_graph=True)
    again = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    assert_close(once, again, rtol=0, atol=0)


def test_under_autocast_the_traces_stay_in_full_precision():
    module = small(torch.float32)
    x, start = sequence(30, 2, torch.float32)
    with torch.no_grad():
        exact, _ = module.scan(x, start, module.initial_state(2))
        with torch.autocast("cpu", torch.bfloat16):
            y, last = module.scan(x, start, module.initial_state(2))
    assert last.S.dtype == torch.float32
    assert_close(y.float(), exact, rtol=0, atol=0.05)


@each_dtype
def test_acting_equals_the_step_with_gradients(dtype):
    module = small(dtype)
    x, state = torch.randn(7, 5, dtype=dtype), random_state(module, 7)
    y, after = module.step(x, state)
    given = state.S.clone()
    with torch.no_grad():
        # a view whose pairs are not next to each other, as the last state of a scan is
        views = [state, FFMState(state.S.transpose(1, 3).contiguous().transpose(1, 3))]
        acted = [module.step(x, view) for view in views]
    assert y.requires_grad
    for y_acted, after_acted in acted:
        assert_close(y_acted, y.detach(), **tolerance(dtype))
        assert_close(after_acted.S, after.S.detach(), **tolerance(dtype))
    assert torch.equal(state.S, given)


def test_a_parameter_may_be_frozen():
    module = small()
    module.alpha.requires_grad_(False)
    x, start = sequence(30, 2)
    module.scan(x, start, module.initial_state(2))[0].sum().backward()
    assert module.alpha.grad is None
    assert module.omega.grad.any()


def test_a_hundred_thousand_steps_in_float32():
    """Finite, and within 1e-3 of float64, with the defaults' rates."""
    module = FFM(5, output_size=16)
    x = torch.randn(100_000, 1, 5)
    start = torch.zeros(100_000, 1, dtype=torch.bool)
    with torch.no_grad():
        y, last = module.scan(x, start, module.initial_state(1))
        exact, exact_last = module.double().scan(x.double(), start, module.initial_state(1))
    assert y.isfinite().all()
    assert (y - exact).abs().amax() < 1e-3
    assert (last.S - exact_last.S).abs().amax() < 1e-3 * exact_last.S.abs().amax()


def test_initial_rates():
    module = FFM(5, memory_size=8, context_size=3, max_period=100)
    alpha, omega = module.alpha.detach(), module.omega.detach()
    assert_close(alpha[[0, -1]], torch.tensor([0.673, -math.log(0.01) / 100]))
    assert (alpha.diff() < 0).all()
    assert_close(omega, 2 * math.pi / torch.tensor([1.0, 50.5, 100.0]))
    assert_close(torch.exp(-alpha[-1] * 100), torch.tensor(0.01))


def test_half_lives_and_periods():
    """A value written once is half as large after a half-life, and a trace is back in phase after a period."""
    module = FFM(5, memory_size=2, context_size=2)
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([math.log(2) / 10, -math.log(2) / 40]))
        module.omega.copy_(torch.tensor([2 * math.pi / 8, -2 * math.pi / 20]))
        module.value.weight.zero_()
        module.value.bias.zero_()
    shown = module.diagnostics()
    assert_close(shown["half_life_steps"], torch.tensor([10.0, 40.0]))
    assert_close(shown["period_steps"], torch.tensor([8.0, 20.0]))
    S = torch.zeros(1, 2, 2, 2)
    S[..., 0] = 1
    x = torch.zeros(40, 1, 5)
    with torch.no_grad():
        _, last = module.scan(x, torch.zeros(40, 1, dtype=torch.bool), FFMState(S))
    assert_close(last.S[0, :, :, 0], torch.tensor([[1 / 16, 1 / 16], [1 / 2, 1 / 2]]), rtol=1e-4, atol=1e-5)
    assert_close(last.S[0, :, :, 1], torch.zeros(2, 2), rtol=0, atol=1e-5)


def test_the_parts_carry_the_papers_names():
    module = FFM(5, output_size=6, memory_size=4, context_size=3)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {
        "value.weight": (4, 5),
        "value.bias": (4,),
        "input_gate.weight": (4, 5),
        "input_gate.bias": (4,),
        "output_gate.weight": (6, 5),
        "output_gate.bias": (6,),
        "mix.weight": (6, 24),
        "mix.bias": (6,),
        "skip.weight": (6, 5),
        "skip.bias": (6,),
        "alpha": (4,),
        "omega": (3,),
    }
    assert module.context() == (1, math.inf)


@pytest.mark.parametrize("argument", ["memory_size", "context_size"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_sizes_are_refused(argument, value):
    with pytest.raises(ValueError, match=rf"{argument} must be an integer, 1 to 1,048,576; got {value}"):
        FFM(5, **{argument: value})


@pytest.mark.parametrize("value", [1, 0, -5, math.inf, math.nan, "long", True])
def test_max_period_is_refused(value):
    with pytest.raises(ValueError, match=r"max_period must be a number above 1; got"):
        FFM(5, max_period=value)


def test_threads_change_nothing():
    """Columns may be shared among threads, each with sums of its own."""
    module = small(memory_size=5)
    x, start = torch.randn(STEPS_PER_THREAD, 7, 5).double(), torch.rand(STEPS_PER_THREAD, 7) < 0.02
    state = FFMState(torch.randn(7, 5, 3, 2).double().requires_grad_())
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            y, last = module.scan(x, start, state)
            loss = y.square().sum() + last.S.sum()
            results.append((y, last.S, torch.autograd.grad(loss, (state.S, *module.parameters()))))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], **tolerance(torch.float64))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_threads_may_change_between_forward_and_backward(before, after):
    module = small(memory_size=5)
    x, start = torch.randn(STEPS_PER_THREAD, 7, 5).double(), torch.rand(STEPS_PER_THREAD, 7) < 0.02
    state = FFMState(torch.randn(7, 5, 3, 2).double().requires_grad_())
    threads, results = torch.get_num_threads(), []
    try:
        for forward, backward in ((1, 1), (before, after)):
            torch.set_num_threads(forward)
            y, last = module.scan(x, start, state)
            torch.set_num_threads(backward)
            results.append(torch.autograd.grad(y.square().sum() + last.S.sum(), (state.S, *module.parameters())))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[1], results[0], **tolerance(torch.float64))


def test_a_changed_output_is_refused_not_differentiated_wrongly():
    """The gradient is made from y; what is changed in place is torch's to find out."""
    module = small()
    y, _ = module.scan(*sequence(4, 2), module.initial_state(2))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        y.sum().backward()

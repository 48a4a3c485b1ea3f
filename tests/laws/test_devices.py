"""What a memory computes on the CPU it computes on another device: values, gradients, steps, states.

The device is one that is not there (`elsewhere`), and CUDA where there is one. Both are held against torch's operations
on the CPU, which `test_forms` and the kernels' own tests hold against the compiled ones.
"""

import copy

import pytest
import torch
from conftest import tolerance
from small import FEATURES, cases, make_small
from torch.testing import assert_close

from palimpsest.memory import Memory
from palimpsest.memory.kernels import torch_only

each_case = pytest.mark.parametrize("case", cases())
T, B = 12, 3


def given(module):
    """x, start, place and strategy of a sequence, and a state as a rollout leaves it."""
    x = torch.randn(2 * T, B, FEATURES, dtype=module.dtype)
    start, place = torch.rand(2 * T, B) < 0.15, torch.randint(module.num_places, (2 * T, B))
    strategy = torch.randint(6, (2 * T, B))
    start[T + 1, 0] = True
    with torch.no_grad(), torch_only():
        state = module.initial_state(B)
        state = module.scan(x[:T], start[:T], state, place[:T], strategy[:T])[1]
    return x[T:], start[T:], place[T:], strategy[T:], state


def moved(tree, device):
    return type(tree)(*(each.to(device) for each in tree)) if isinstance(tree, tuple) else tree.to(device)


def values_and_gradients(module, x, start, place, strategy, state):
    """y, the last state, and the gradients with respect to x, the state's floats and the parameters."""
    x = x.detach().requires_grad_()
    state = type(state)(*(s.detach().requires_grad_() if s.is_floating_point() else s.detach() for s in state))
    y, last = module.scan(x, start, state, place, strategy)
    loss = (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view(y.shape).to(y.device)).sum()
    for each in last:
        if each.requires_grad:
            loss = loss + each.square().sum()
    leaves = [x, *(s for s in state if s.is_floating_point()), *module.parameters()]
    return y, last, torch.autograd.grad(loss, leaves, allow_unused=True)


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_scan_equals_that_on_the_cpu(device, case, dtype):
    if device.type != "cuda" and dtype == torch.float32:
        pytest.skip("the CPU's own float32 computes there")
    module = make_small(case, dtype)
    x, start, place, strategy, state = given(module)
    there = copy.deepcopy(module).to(device)
    assert there.device.type == device.type
    with torch_only():
        y, last, gradients = values_and_gradients(module, x, start, place, strategy, state)
    found = values_and_gradients(there, *(moved(each, device) for each in (x, start, place, strategy, state)))
    assert all(each.device.type == device.type for each in (found[0], *found[1]))
    assert_close(found[0].cpu(), y, **tolerance(dtype))
    assert_close(tuple(s.cpu() for s in found[1]), tuple(last), **tolerance(dtype))
    for mine, its in zip(gradients, found[2], strict=True):
        assert (mine is None) == (its is None)
        if mine is not None:
            # sums over time: relative to their size
            size = mine.abs().max().clamp(min=1)
            assert_close(its.cpu() / size, mine / size, **tolerance(dtype))
    shown, expected = there.diagnostics(), module.diagnostics()
    assert shown.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(shown[name].cpu(), value, **tolerance(dtype))


@each_case
def test_steps_equal_the_scan_there(device, case):
    module = make_small(case)
    x, start, place, strategy, state = given(module)
    sequence = [moved(each, device) for each in (x[:5], start[:5], state, place[:5], strategy[:5])]
    module = module.to(device)
    with torch.no_grad():
        y, last = module.scan(*sequence)
        stepped, after = Memory.scan(module, *sequence)
    for each, initial in zip(after, module.initial_state(B), strict=True):
        assert (each.device, each.dtype) == (initial.device, initial.dtype)
        assert each.device.type == device.type
    assert_close(stepped.cpu(), y.cpu(), **tolerance(torch.float64))
    assert_close([s.cpu() for s in after], [s.cpu() for s in last], **tolerance(torch.float64))


@each_case
def test_a_state_goes_through_arrays_and_a_memory_acts_in_place(device, case):
    module = make_small(case)
    x, _, place, strategy, state = (moved(each, device) for each in given(module))
    module = module.to(device)
    arrays = [each.numpy(force=True) for each in state]
    with torch.no_grad():
        y, after = module.step(x[0], state, place[0], strategy[0])
        again = type(state)(*(torch.as_tensor(each, device=device).clone() for each in arrays))
        its, advanced = module.advance(x[0], again, place[0], strategy[0])
    assert_close(its.cpu(), y.cpu(), rtol=0, atol=0)
    assert_close([s.cpu() for s in advanced], [s.cpu() for s in after], rtol=0, atol=0)

"""What every memory refuses, one function per law, over the registry: sequences, sizes, states and inputs."""

import functools

import pytest
import torch
from small import FEATURES, SMALL, make_small
from test_memory_laws import each_case, sequence

from palimpsest import memory
from palimpsest.memory import Memory


@each_case
def test_bad_sequences_are_refused(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 6, 3)
    state = module.initial_state(3)
    with pytest.raises(ValueError, match=r"start must be \[T, B\] = \[6, 3\] bool.*got \[6\] bool"):
        module.scan(x, start[:, 0], state, place, strategy)
    with pytest.raises(ValueError, match=r"start must be .*got \[5, 3\] bool"):
        module.scan(x, start[1:], state, place, strategy)
    with pytest.raises(ValueError, match=r"start must be .*got \[6, 3\] float32"):
        module.scan(x, start.float(), state, place, strategy)
    with pytest.raises(ValueError, match=rf"x must be \[T, B, F\] with F = {FEATURES}; got \[6, 3, 2\]"):
        module.scan(x[..., :2], start, state, place, strategy)
    with pytest.raises(ValueError, match="x must be"):
        module.scan(x[0], start, state, place, strategy)


@pytest.mark.parametrize("name", memory.names())
@pytest.mark.parametrize("argument", ["input_size", "output_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_sizes_are_refused(name, argument, value):
    arguments = {"input_size": FEATURES} | SMALL[name] | {argument: value}
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        memory.make(name, **arguments)


@each_case
def test_a_state_that_does_not_fit_is_refused(case):
    """A kernel would read and write beyond its end, or read its bytes as another type."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 5, 4)
    state = module.initial_state(4)
    wrong = [module.initial_state(1), module.initial_state(9), (*state, x), list(state), None] if state else [(x,)]
    if state:
        wrong.append(type(state)(*(s.unsqueeze(-1) for s in state)))
        wrong.append(type(state)(*(s.float() if s.is_floating_point() else s.int() for s in state)))
    for given in wrong:
        for gradient in (False, True):
            with torch.set_grad_enabled(gradient):
                with pytest.raises(ValueError, match=r"the state as initial_state\(4\), "):
                    module.step(x[0], given, place[0], strategy[0])
                for scan in (module.scan, functools.partial(Memory.scan, module)):
                    with pytest.raises(ValueError, match=r"the state as initial_state\(4\), "):
                        scan(x, start, given, place, strategy)


@each_case
def test_an_input_that_does_not_fit_is_refused(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 5, 4)
    state = module.initial_state(4)
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            for odd in (x[..., :-1], torch.cat([x, x], -1)):
                with pytest.raises(ValueError, match=rf"F = {FEATURES}; got"):
                    module.step(odd[0], state, place[0], strategy[0])
            with pytest.raises(ValueError, match=rf"F = {FEATURES}; got"):
                module.step(x, state, place[0], strategy[0])
            with pytest.raises(ValueError, match=r"x must be float64 .*; got float32"):
                module.step(x[0].float(), state, place[0], strategy[0])
            with pytest.raises(ValueError, match=r"x must be float64 .*; got float32"):
                module.scan(x.float(), start, state, place, strategy)

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
    order = r"scan takes \(x, start, state\), a call \(x, state, start\)"
    for scan in (module.scan, functools.partial(Memory.scan, module)):
        with pytest.raises(ValueError, match=rf"x must be \[T, B, F\] with F = {FEATURES}; got ndarray, which is not"):
            scan(x.numpy(), start, state, place, strategy)
        with pytest.raises(ValueError, match=rf"start must be .*got NoneType, which is not a tensor; {order}"):
            scan(x, None, state, place, strategy)
        with pytest.raises(ValueError, match=rf"start must be .*got {type(state).__name__}, .*; {order}"):
            scan(x, state, start, place, strategy)
    with pytest.raises(ValueError, match=rf"start must be .*got {type(state).__name__}, .*; {order}"):
        module(x, start, state, place, strategy)
    with pytest.raises(
        ValueError, match=rf"x must be \[B, F\] with F = {FEATURES}; got ndarray, which is not a tensor"
    ):
        module.step(x[0].numpy(), state, place[0], strategy[0])


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


@each_case
def test_a_state_that_lost_its_type_gets_it_back(case):
    """As one that was detached into a plain tuple, by position and by name."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 5, 4)
    state = module.initial_state(4)
    plain = tuple(s.detach() for s in state)
    ways = {
        "step": lambda s: module.step(x[0], s, place[0], strategy[0]),
        "step by name": lambda s: module.step(x[0], state=s, place=place[0], strategy=strategy[0]),
        "advance": lambda s: module.advance(
            x[0], type(s)(map(torch.clone, s)) if type(s) is tuple else s, place[0], strategy[0]
        ),
        "scan": lambda s: module.scan(x, start, s, place, strategy),
        "call": lambda s: module(x, s, start, place, strategy),
        "loop": lambda s: Memory.scan(module, x, start, s, place, strategy),
    }
    for way in ways.values():
        y, after = way(plain)
        its, expected = way(module.initial_state(4))
        assert type(after) is type(expected)
        torch.testing.assert_close((y, tuple(after)), (its, tuple(expected)), rtol=0, atol=0)


@each_case
def test_parameters_of_another_type_that_are_assigned(case):
    """What fits is what fits the parameters that there are now."""
    module, double = make_small(case, torch.float32), make_small(case, torch.float64)
    for like in (module, double):
        x, start, place, strategy = sequence(like, 5, 4)
        module.load_state_dict(like.state_dict(), assign=True)
        module.step(x[0], module.initial_state(4), place[0], strategy[0])
        y, _ = module.scan(x, start, module.initial_state(4), place, strategy)
        assert y.dtype == like.dtype


@pytest.mark.parametrize("case", ["sat", "sat-adaptive"])
def test_places_and_strategies_that_are_no_tensors_are_refused(case):
    module = make_small(case)
    x, start, place, strategy = sequence(module, 5, 4)
    state = module.initial_state(4)
    start[0] = True
    with pytest.raises(ValueError, match=r"place must be \[5, 4\] int64; got list, which is not a tensor"):
        module.scan(x, start, state, place.tolist(), strategy)
    with pytest.raises(ValueError, match=r"place must be \[4\] int64; got list, which is not a tensor"):
        module.step(x[0], state, place[0].tolist(), strategy[0])
    if case == "sat-adaptive":
        with pytest.raises(ValueError, match=r"strategy must have .*; got list, which is not a tensor"):
            module.scan(x, start, state, place, strategy.tolist())
        with pytest.raises(ValueError, match=r"strategy must have .*; got list, which is not a tensor"):
            module.step(x[0], state, place[0], strategy[0].tolist())

"""Kernels compute from parameters while modules are as they were built, and notice whatever happens to them."""

import copy
import pickle
import warnings

import pytest
import torch
from conftest import tolerance
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close

from palimpsest.memory import make, rewrite
from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.arithmetic.as_built import AsBuilt

SIZES = {
    "rewrite": dict(num_layers=2, num_heads=2, key_size=5, value_size=4, front_size=7),
    "ffm": dict(memory_size=5, context_size=3),
    "lstm": dict(num_layers=2),
    "gru": {},
    "rnn": {},
}
F = 32
"""Features in and out: more than a vector of any machine, whose edge would hide what is laid out otherwise."""

each_memory = pytest.mark.parametrize("name", SIZES)


def made(name):
    return make(name, F, output_size=F, **SIZES[name]).double()


def two_steps(module):
    x = torch.linspace(-1, 1, 5 * F, dtype=module.dtype).view(5, F)
    first, state = module.step(x, module.initial_state(5))
    return torch.stack([first, module.step(x, state)[0]]).detach()


def acted(module):
    with torch.no_grad():
        return two_steps(module)


def acted_by_torch(module):
    with torch_only():
        return acted(module)


def scanned(module):
    """Outputs of a scan and all gradients."""
    torch.manual_seed(1)
    x, start = torch.randn(20, 3, F, dtype=torch.float64), torch.rand(20, 3) < 0.1
    y, _ = module.scan(x.requires_grad_(), start, module.initial_state(3))
    return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])


def agree(module):
    with torch_only():
        acting, scanning = acted(module), scanned(module)
    assert_close(acted(module), acting, **tolerance(torch.float64))
    assert_close(scanned(module), scanning, **tolerance(torch.float64))


# Values and places of parameters may change.


def doubled_in_place(module):
    for parameter in module.parameters():
        parameter.data.mul_(2)


def given_new_memory(module):
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.1


def loaded(module):
    module.load_state_dict({name: value + 0.1 for name, value in module.state_dict().items()})


def loaded_by_assignment(module):
    module.load_state_dict({name: value + 0.1 for name, value in module.state_dict().items()}, assign=True)


def shared_with_other_processes(module):
    module.share_memory()
    doubled_in_place(module)


def made_float(module):
    module.float()
    doubled_in_place(module)


def replaced(module):
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(parameter.detach() + 0.1))


MOVES = [
    doubled_in_place,
    given_new_memory,
    loaded,
    loaded_by_assignment,
    shared_with_other_processes,
    made_float,
    replaced,
]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
@each_memory
def test_a_step_sees_what_happened_to_the_parameters(name, move):
    module = made(name)
    before = acted(module)
    move(module)
    after = acted(module)
    assert_close(after, acted_by_torch(module), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after.double(), before, atol=1e-4)
    doubled_in_place(module)
    assert_close(acted(module), acted_by_torch(module), rtol=1e-5, atol=1e-5)


@each_memory
def test_parameters_given_for_one_call(name):
    module = made(name)
    acted(module)
    other = {key: value + 0.1 for key, value in module.state_dict().items()}
    x, state = torch.ones(5, F, dtype=torch.float64), module.initial_state(5)
    with torch.no_grad():
        found, _ = torch.func.functional_call(module, other, (x, state))
        module.load_state_dict(other)
        assert_close(found, module.step(x, state)[0], **tolerance(torch.float64))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@each_memory
def test_a_copy_acts_by_its_own_parameters(name, duplicate):
    module = made(name)
    acted(module)
    other = duplicate(module)
    replaced(other)
    assert_close(acted(other), acted_by_torch(other), rtol=1e-5, atol=1e-5)
    assert_close(acted(module), acted_by_torch(module), rtol=1e-5, atol=1e-5)


# Modules may not: torch's operations compute then.


class Doubled(nn.Linear):
    """A map of one's own."""

    def forward(self, input):
        return 2 * super().forward(input)


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight / 2


MAP = {"rewrite": "layers.1.project", "ffm": "value"}
"""A module of these memories, by name; the others have none."""


def with_a_hook(module, name):
    module.get_submodule(name).register_forward_hook(lambda each, given, y: 2 * y)


def with_a_pre_hook(module, name):
    module.get_submodule(name).register_forward_pre_hook(lambda each, given: (2 * given[0],))


def with_a_gradient_hook(module, name):
    module.get_submodule(name).register_full_backward_hook(lambda each, given, out: (2 * given[0],))


def pruned(module, name):
    prune.l1_unstructured(module.get_submodule(name), "weight", amount=0.5)


def parametrized(module, name):
    parametrize.register_parametrization(module.get_submodule(name), "weight", Halved())


def of_another_class(module, name):
    old = module.get_submodule(name)
    module.set_submodule(name, Doubled(old.in_features, old.out_features).double())


def in_a_sequence(module, name):
    module.set_submodule(name, nn.Sequential(module.get_submodule(name), nn.Tanh()))


def without_a_bias(module, name):
    module.get_submodule(name).bias = None


def with_a_forward_of_its_own(module, name):
    old = module.get_submodule(name)
    old.forward = lambda x: 2 * nn.functional.linear(x, old.weight, old.bias)


def transposed_where_it_lies(module, name):
    weight = module.get_submodule(name).weight
    weight.data = weight.data.t().contiguous().t()


CHANGES = {
    with_a_hook: "has a forward hook",
    with_a_pre_hook: "has a forward pre-hook",
    with_a_gradient_hook: "has a backward hook",
    pruned: "has a forward pre-hook",
    parametrized: "is a ParametrizedLinear, built as a Linear",
    of_another_class: "is a Doubled, built as a Linear",
    in_a_sequence: "is a Sequential, built as a Linear",
    without_a_bias: r"has parameters weight \[.*\], built with weight \[.*\], bias \[",
    with_a_forward_of_its_own: "has a forward of its own",
    transposed_where_it_lies: "is not contiguous",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MAP)
def test_a_changed_module_is_told_of_once_and_computed_by_torch(name, change):
    module = made(name)
    unchanged = acted(module), scanned(module)[0]
    change(module, MAP[name])
    if change is with_a_forward_of_its_own:
        module._built.look(module)
    with pytest.warns(UserWarning, match=CHANGES[change]) as told:
        found = acted(module), scanned(module)[0]
    assert len(told) == 1
    if change not in (with_a_gradient_hook, transposed_where_it_lies):
        assert not torch.allclose(found[0], unchanged[0])
        assert not torch.allclose(found[1], unchanged[1])
    agree(module)


@each_memory
def test_hooks_on_the_memory_run_where_it_is_called(name):
    """As policies do; kernels go on inside."""
    module, calls = made(name), []
    module.register_forward_hook(lambda *_: calls.append(1))
    x, state = torch.ones(5, F, dtype=torch.float64), module.initial_state(5)
    with torch.no_grad():
        y, after = module(x, state)
        (stepped, after_step), (advanced, _) = module.step(x, state), module(x, state, keep_state=False)
        sequence, last = module(x[None], state, torch.zeros(1, 5, dtype=torch.bool))
    assert_close((y, after), (stepped, after_step), rtol=0, atol=0)
    assert_close((sequence[0], advanced), (y, y), **tolerance(torch.float64))
    assert_close(last, after, **tolerance(torch.float64))
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_memory_whose_own_weight_is_pruned(name):
    module = made(name)
    prune.random_unstructured(module, "weight_hh_l0", amount=0.5)
    doubled_in_place(module)
    x, state = torch.ones(5, F, dtype=torch.float64), module.initial_state(5)
    with torch.no_grad(), pytest.warns(UserWarning, match="has parameters .*weight_hh_l0_orig"):
        _, after = module(x, state)
    with torch.no_grad(), torch_only():
        expected, _ = module(x, after)
    with torch.no_grad():
        found, _ = module(x, after)
        sequence, _ = module(x[None], after, torch.zeros(1, 5, dtype=torch.bool))
    assert_close((found, sequence[0]), (expected, expected), **tolerance(torch.float64))


def test_a_hook_for_all_modules():
    module, calls = made("rewrite"), []
    acted(module)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda each, *_: calls.append(each))
    try:
        with pytest.warns(UserWarning, match="a hook is registered for all modules"):
            acted(module)
    finally:
        handle.remove()
    assert calls.count(module.layers[0].project) == 2
    acted(module)
    assert calls.count(module.layers[0].project) == 2


def test_kernels_come_back_when_a_hook_goes(monkeypatch):
    module, calls = made("rewrite"), []
    kernel = rewrite.step_layers
    monkeypatch.setattr(rewrite, "step_layers", lambda *given: calls.append(1) or kernel(*given))
    handle = module.enter.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="module 'enter' has a forward hook"):
        acted(module)
    assert calls == []
    handle.remove()
    acted(module)
    assert calls == [1, 1]


@each_memory
def test_numbers_that_do_not_lie_side_by_side(name):
    """Biases and rates, each a column of a wider tensor."""
    module = made(name)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data = torch.stack([parameter.data, torch.zeros_like(parameter)], 1)[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(module)


def tree():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def test_arrays_are_kept_while_nothing_moves_and_share_the_memory():
    root, calls = tree(), []
    built = AsBuilt(root)
    for _ in range(2):
        assert built.holds(root)
        arrays = built.arrays(root, lambda named: calls.append(sorted(named)) or named)
        root[0].weight.data.add_(1)
        assert (arrays["0.weight"] == root[0].weight.detach().numpy()).all()
    assert calls == [["0.bias", "0.weight", "2.bias", "2.weight"]]
    root[2].bias.data = torch.ones(1)
    assert built.holds(root)
    assert built.arrays(root, lambda named: named)["2.bias"] == 1


def test_tied_parameters_have_each_their_name():
    root = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    built = AsBuilt(root)
    root[1].weight = root[0].weight
    assert built.holds(root)
    named = built.arrays(root, lambda named: named)
    assert named["0.weight"].ctypes.data == named["1.weight"].ctypes.data


def test_modules_that_come_and_go():
    root = tree()
    built = AsBuilt(root)
    root.append(nn.Tanh())
    assert not built.holds(root)
    with pytest.warns(UserWarning, match="module '3' was added"):
        built.warn()
    del root[3], root[2]
    built = copy.deepcopy(built)
    assert not built.holds(root)
    assert built._difference == "module '2' is gone"


def test_only_the_parts_that_kernels_replace_are_looked_at_between_looks():
    root = tree()
    built = AsBuilt(root, ("2",))
    assert built.holds(root)
    root[0] = Doubled(2, 3)
    assert not built.holds(root), "a new module of the root is seen in any case"
    root[0] = nn.Linear(2, 3)
    assert built.holds(root)
    root[0].weight.data = torch.ones(3, 2)
    seen = built._seen
    assert built.holds(root)
    assert built._seen is seen
    root[2].weight.data = torch.ones(1, 3)
    assert built.holds(root)
    assert built._seen is not seen


def test_parameters_of_several_types_are_left_to_torch():
    root = tree()
    built = AsBuilt(root)
    root[0].double()
    assert not built.holds(root)
    assert "of several types, torch.float32, torch.float64" in built._difference
    root[2].double()
    assert built.holds(root)

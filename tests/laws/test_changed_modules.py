"""Every memory calls its modules, or computes what they would: hooks, pruned and replaced maps count in all forms.

A change is compared with the same change made by hand to plain parameters. Where kernels stand aside for it, `AsBuilt`
says so; here only the numbers matter.
"""

import copy

import pytest
import torch
from conftest import tolerance
from small import make_small
from test_memory_laws import each_case, sequence, used_state
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch's operations compute from now on")
T, B = 8, 3


def maps(module):
    """Names of the maps and norms of a memory; of the stacked layers the last one's."""
    kinds = nn.Linear, nn.LayerNorm
    return [name for name, each in module.named_modules() if isinstance(each, kinds) and "layers.0" not in name]


def outputs(module, given):
    """Of a scan and of its steps, with gradient and without, one after the other; each by a call, which runs hooks."""
    x, start, place, strategy, state = given
    found = []
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            found.append(module(x, state, start, place, strategy)[0])
            y, after = module(x[0], state, None, place[0], strategy[0])
            found += [y, module(x[1], after, None, place[1], strategy[1])[0]]
    return [each.detach() for each in found]


def inputs(module):
    x, start, place, strategy = sequence(module, T, B, "nowhere")
    return x, start, place, strategy, used_state(module, B)


def doubled(module, name):
    for parameter in module.get_submodule(name).parameters():
        parameter.data.mul_(2)


def with_a_hook(module, name):
    module.get_submodule(name).register_forward_hook(lambda each, given, y: 2 * y)


class Doubled(nn.Module):
    """A map in a map's place."""

    def __init__(self, map_):
        super().__init__()
        self.map = map_

    def forward(self, x):
        return 2 * self.map(x)


def replaced(module, name):
    module.set_submodule(name, Doubled(module.get_submodule(name)))


@each_case
@pytest.mark.parametrize("change", [with_a_hook, replaced])
def test_what_a_map_gives_out_can_be_changed(case, change):
    """Doubled by hooks and by modules of one's own, one map after the other."""
    module = make_small(case)
    given = inputs(module)
    for name in maps(module):
        changed, expected = copy.deepcopy(module), copy.deepcopy(module)
        change(changed, name)
        doubled(expected, name)
        found = outputs(changed, given), outputs(expected, given)
        assert_close(*found, **tolerance(torch.float64), msg=lambda text, name=name: f"{name}: {text}")


@each_case
def test_a_bias_that_a_map_was_built_without(case):
    """As that of a plain `nn.Linear` in its place."""
    module = make_small(case)
    given = inputs(module)
    without = [name for name in maps(module) if getattr(module.get_submodule(name), "bias", 0) is None]
    for name in without:
        changed, expected = copy.deepcopy(module), copy.deepcopy(module)
        bias = torch.randn(module.get_submodule(name).out_features, dtype=torch.float64)
        changed.get_submodule(name).bias = nn.Parameter(bias)
        expected.get_submodule(name).register_forward_hook(lambda each, given, y, bias=bias: y + bias)
        assert_close(outputs(changed, given), outputs(expected, given), **tolerance(torch.float64))


@each_case
def test_pruned_parameters_stay_pruned_while_they_are_trained(case):
    """Pruning makes a parameter anew where its module is called; here all of them, of layers and of the memory too."""
    module = make_small(case)
    given, expected = inputs(module), copy.deepcopy(module)
    for name in dict(module.named_parameters()):
        owner, _, own = name.rpartition(".")
        prune.l1_unstructured(module.get_submodule(owner), own, amount=0.3)
    state = module.initial_state(B)
    for _ in range(2):
        y, _ = module(*given[:1], state, *given[1:4])
        y.square().sum().backward()
        stepped, _ = module(given[0][0], state, None, given[2][0], given[3][0])
        stepped.square().sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.01)
    parts = module.state_dict()
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(parts[f"{name}_orig"] * parts[f"{name}_mask"])
    assert_close(outputs(module, given), outputs(expected, given), **tolerance(torch.float64))


@each_case
def test_a_checkpoint_changes_no_gradient(case):
    """What a scan keeps for its gradient is read once, as `torch.utils.checkpoint` asks."""
    module = make_small(case)
    x, start, place, strategy, state = inputs(module)
    x.requires_grad_()

    def run(x):
        return module.scan(x, start, state, place, strategy)[0]

    to = [x, *module.parameters()]
    expected = torch.autograd.grad(run(x).square().sum(), to, allow_unused=True)
    found = torch.autograd.grad(checkpoint(run, x, use_reentrant=False).square().sum(), to, allow_unused=True)
    assert_close(found, expected, **tolerance(torch.float64))

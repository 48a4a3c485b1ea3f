"""Under `torch.func` every memory gives the numbers of plain autograd, or refuses: scans go by steps there."""

import copy
import pickle
import warnings

import pytest
import torch
from conftest import tolerance
from small import make_small
from test_memory_laws import each_case, sequence
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*scans step by step under the transforms"),
    # torch's own, of forward mode and of vmap
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
T, B = 6, 3
BY_NUMBERS = ["hcam-surprise", "sat-adaptive", "sat-lru"]
"""What these compute depends on the numbers in the inputs."""


def problem(case):
    """A memory, a loss of its parameters and its input, and both."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, T, B)
    start[0] = True
    state = module.initial_state(B)

    def loss(parameters, x):
        y, _ = functional_call(module, parameters, (x, state, start, place, strategy))
        return (y * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view_as(y[0])).square().sum()

    return module, loss, {name: each.detach() for name, each in module.named_parameters()}, x


def gradients(loss, parameters, x):
    """By plain autograd, with the fast form."""
    to = {name: each.clone().requires_grad_() for name, each in parameters.items()}, x.clone().requires_grad_()
    found = torch.autograd.grad(loss(*to), [*to[0].values(), to[1]], materialize_grads=True)
    return dict(zip(parameters, found)), found[-1]


@each_case
def test_gradients_and_directional_derivatives(case):
    module, loss, parameters, x = problem(case)
    expected = gradients(loss, parameters, x)
    close = tolerance(torch.float64)
    assert_close(grad(loss, argnums=(0, 1))(parameters, x), expected, **close)
    way = torch.randn_like(x)
    along = (expected[1] * way).sum()
    assert_close(jvp(lambda x: loss(parameters, x), (x,), (way,))[1], along, **close)
    with forward_ad.dual_level():
        assert_close(forward_ad.unpack_dual(loss(parameters, forward_ad.make_dual(x, way))).tangent, along, **close)
    # nothing of what is transformed stays in the module
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_close(gradients(loss, dict(copied.named_parameters()), x), expected, **close)
    assert all(isinstance(each, torch.Tensor) and each.isfinite().all() for each in module.diagnostics().values())


@each_case
def test_many_sets_of_parameters_at_once(case):
    """Values and gradients of each, or words."""
    _, loss, parameters, x = problem(case)
    sets = [parameters, {name: each + 0.1 for name, each in parameters.items()}]
    stacked = {name: torch.stack([each[name] for each in sets]) for name in parameters}
    if case in BY_NUMBERS:
        with pytest.raises(RuntimeError, match=r"torch.func.vmap cannot run this memory: .* Call it once for each"):
            vmap(loss, (0, None))(stacked, x)
        return
    close = tolerance(torch.float64)
    assert_close(vmap(loss, (0, None))(stacked, x), torch.stack([loss(each, x) for each in sets]), **close)
    found = vmap(grad(loss), (0, None))(stacked, x)
    for number, each in enumerate(sets):
        assert_close({name: g[number] for name, g in found.items()}, gradients(loss, each, x)[0], **close)


def test_scans_by_steps_are_told_of_once():
    _, loss, parameters, x = problem("mingru")
    with pytest.warns(
        UserWarning, match=r"MinGRU scans step by step under the transforms of torch.func.*\(said once\)"
    ):
        grad(loss)(parameters, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grad(loss)(parameters, x)

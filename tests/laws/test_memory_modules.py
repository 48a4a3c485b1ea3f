"""What every memory is as a module of torch: parameters, saving, copies, types, diagnostics, defaults."""

import copy
import io
import pickle

import pytest
import torch
from small import FEATURES, make_small
from test_memory_laws import each_case, each_dtype, sequence, used_state
from torch.testing import assert_close

from palimpsest import memory
from palimpsest.memory import Memory


@each_case
def test_every_parameter_gets_a_gradient(case):
    """A parameter without one is dead weight. Attention ignores what shifts all its scores, so biases may get zeros."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    module.scan(x, start, used_state(module, 3), place, strategy)[0].square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        may_be_zero = parameter.ndim == 1 or (case in ONE_CHUNK and "score" in name)
        assert may_be_zero or parameter.grad.any(), name


ONE_CHUNK = {"hcam"}
"""The weight of the only chunk read is 1 whatever its score."""


@each_case
@each_dtype
def test_state_dict_preserves_outputs(case, dtype):
    module, other = make_small(case, dtype), make_small(case, dtype)
    x, start, place, strategy = sequence(module, 20, 3)
    y, _ = module.scan(x, start, module.initial_state(3), place, strategy)
    assert not torch.equal(other.scan(x, start, other.initial_state(3), place, strategy)[0], y)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.scan(x, start, other.initial_state(3), place, strategy)[0], y)


@each_case
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_used_module_can_be_copied(case, duplicate):
    """What diagnostics keep of the last scan must not stand in the way."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    y, _ = module.scan(x, start, module.initial_state(3), place, strategy)
    other = duplicate(module)
    assert not other.diagnostics() or case == "ffm", "what ffm shows are parameters"
    assert torch.equal(other.scan(x, start, other.initial_state(3), place, strategy)[0], y)


@each_case
def test_diagnostics(case):
    """Detached tensors that TensorBoard can show, before the first scan too; [T, B, N] is the last scan's."""
    module = make_small(case)
    x, start, place, strategy = sequence(module, 20, 3)
    assert isinstance(module.diagnostics(), dict)
    module.scan(x, start, module.initial_state(3), place, strategy)
    for name, value in module.diagnostics().items():
        assert isinstance(name, str)
        assert not value.requires_grad
        assert value.ndim <= 3, name
        assert value.isfinite().all(), name
        if value.ndim == 3:
            assert value.shape[:2] == (20, 3), name
        if value.ndim == 2:
            assert value.amin() >= 0, name
            assert value.amax() <= 1, name


@pytest.mark.parametrize("name", memory.names())
def test_defaults_build_a_memory_of_width_128(name):
    module = memory.make(name, FEATURES)
    assert (module.input_size, module.output_size) == (FEATURES, 128)
    x, start, place, strategy = sequence(module, 2, 2)
    y, _ = module.scan(x, start, module.initial_state(2), place, strategy)
    assert y.shape == (2, 2, 128)
    assert y.dtype == torch.float32


@each_case
def test_what_fits_follows_the_module_to_another_type(case):
    module = make_small(case)
    for dtype in (torch.float64, torch.float32, torch.float64):
        module.to(dtype)
        x, _, place, strategy = sequence(module, 1, 4)
        with torch.no_grad():
            assert module.step(x[0], module.initial_state(4), place[0], strategy[0])[0].dtype == dtype


def scanned(module):
    x, start, place, strategy = sequence(module, 9, 3)
    return module.scan(x, start, module.initial_state(3), place, strategy)[0]


@each_case
@pytest.mark.parametrize("rounded", [torch.bfloat16, torch.float32], ids=str)
def test_a_module_is_the_same_after_it_was_of_another_type(case, rounded):
    """What was rounded meanwhile comes back with the parameters."""
    module = make_small(case)
    saved, state = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    expected = scanned(module)
    module.to(rounded).double().load_state_dict(saved)
    torch.set_rng_state(state)
    assert torch.equal(scanned(module), expected)


@each_case
@pytest.mark.parametrize("assign", [True, False], ids=["assign", "to_empty"])
def test_a_module_can_be_built_without_memory_of_its_own(case, assign):
    """On the device "meta"; with parameters it is like any other."""
    module = make_small(case)
    with torch.device("meta"):
        other = make_small(case)
    assert {each.device.type for each in (*other.parameters(), *other.buffers())} == {"meta"}
    if not assign:
        other.to_empty(device="cpu")
    other.load_state_dict(module.state_dict(), assign=assign)
    state = torch.get_rng_state()
    expected = scanned(module)
    torch.set_rng_state(state)
    assert torch.equal(scanned(other), expected)


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_module_of_half_precision_steps_and_scans(case, dtype):
    """Recurrences compute in float32 inside, as under autocast; what comes out is of the module's type."""
    module = make_small(case, torch.float32).to(dtype)
    x, start, place, strategy = sequence(module, 20, 3)
    start[0] = True
    y, last = module.scan(x, start, module.initial_state(3), place, strategy)
    slow, slow_last = Memory.scan(module, x, start, module.initial_state(3), place, strategy)
    y.square().sum().backward()
    with torch.no_grad():
        acted, _ = Memory.scan(module, x, start, module.initial_state(3), place, strategy)
    assert [each.dtype for each in (y, *last)] == [each.dtype for each in (slow, *slow_last)]
    assert y.dtype == acted.dtype == dtype
    assert_close((y, acted), (slow, slow), rtol=0, atol=0.1)


@each_case
def test_what_changes_nothing_leaves_buffers_alone(case):
    """In inference mode a buffer that is made anew could not be trained with."""
    module = make_small(case)
    before = [each.data_ptr() for each in module.buffers()]
    with torch.inference_mode():
        module.double()
    assert [each.data_ptr() for each in module.buffers()] == before
    assert not any(each.is_inference() for each in module.buffers())

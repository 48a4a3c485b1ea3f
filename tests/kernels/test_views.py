"""Arrays of parameters that are kept from step to step notice whatever happens to the parameters."""

import copy
import pickle

import pytest
import torch
from numba import njit
from torch import nn

from palimpsest.memory import make
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.views import Views

NAMES = ["lstm", "gru", "rnn", "ffm", "rewrite"]


def square(name):
    """A memory of some of whose weights only the strides tell that they were transposed."""
    return make(name, 6, output_size=6, **({"num_layers": 2} if name in ("lstm", "rewrite") else {}))


def doubled_in_place(module):
    for parameter in module.parameters():
        parameter.data.mul_(2)


def given_new_memory(module):
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.1


def transposed_where_it_lies(module):
    for parameter in module.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
            parameter.data = parameter.data.t()


def loaded(module):
    module.load_state_dict({name: value + 0.1 for name, value in module.state_dict().items()})


def loaded_by_assignment(module):
    module.load_state_dict({name: value + 0.1 for name, value in module.state_dict().items()}, assign=True)


def shared_with_other_processes(module):
    module.share_memory()
    doubled_in_place(module)


def made_double(module):
    module.double()


def replaced(module):
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                setattr(owner, name, nn.Parameter(parameter.detach() + 0.1))


CHANGES = [
    doubled_in_place,
    given_new_memory,
    transposed_where_it_lies,
    loaded,
    loaded_by_assignment,
    shared_with_other_processes,
    made_double,
    replaced,
]


def two_steps(module):
    x = torch.linspace(-1, 1, 30, dtype=module.dtype).view(5, 6)
    first, state = module.step(x, module.initial_state(5))
    return torch.stack([first, module.step(x, state)[0]]).detach()


def acted(module):
    with torch.no_grad():
        return two_steps(module)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_sees_what_happened_to_the_parameters(name, change):
    module = square(name)
    before = acted(module)
    change(module)
    after = acted(module)
    torch.testing.assert_close(after, two_steps(module), rtol=1e-5, atol=1e-5)
    if change not in (made_double, transposed_where_it_lies):
        assert not torch.allclose(after, before, atol=1e-4)
    doubled_in_place(module)
    torch.testing.assert_close(acted(module), two_steps(module), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_acts_by_its_own_parameters(name, duplicate):
    module = square(name)
    acted(module)
    other = duplicate(module)
    replaced(other)
    torch.testing.assert_close(acted(other), two_steps(other), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(acted(module), two_steps(module), rtol=1e-5, atol=1e-5)


def viewed(views, tensors, modules=(), fit=lambda: True):
    return views(torch.zeros(1), modules, tensors, fit)


def test_arrays_are_kept_while_nothing_moves_and_share_the_memory():
    views, tensor = Views(), nn.Parameter(torch.zeros(2, 3))
    (first,) = viewed(views, [tensor])
    tensor.data.add_(1)
    assert viewed(views, [tensor])[0] is first
    assert first[1, 2] == 1
    tensor.data = torch.zeros(2, 3)
    assert viewed(views, [tensor])[0][1, 2] == 0


def test_a_part_of_the_same_memory_is_another_tensor():
    views, tensor = Views(), nn.Parameter(torch.arange(6.0).view(2, 3))
    viewed(views, [tensor])
    assert viewed(views, [nn.Parameter(tensor.detach()[:1])])[0].shape == (1, 3)
    assert viewed(views, []) == ()
    assert viewed(views, [tensor])[0].shape == (2, 3)


def test_a_tensor_that_must_be_copied_is_copied_each_time():
    views, tensor = Views(), torch.zeros(2, 3).t()
    assert viewed(views, [tensor])[0].flags.c_contiguous
    tensor[0, 1] = 5
    assert viewed(views, [tensor])[0][0, 1] == 5


def test_a_hook_is_noticed_though_something_else_could_not_be_viewed():
    views, tensor, first, second = Views(), nn.Parameter(torch.zeros(2, 3)), nn.Linear(3, 2), nn.Linear(3, 2)
    assert viewed(views, [tensor], [first]) is not None
    first.register_forward_hook(print)
    with pytest.raises(ZeroDivisionError):
        viewed(views, [tensor], [second], lambda: 1 / 0)
    assert viewed(views, [tensor], [first]) is None


def test_whether_a_kernel_may_compute_is_asked_where_something_changed():
    asked, views, tensor, first = [], Views(), nn.Parameter(torch.zeros(2, 3)), nn.Linear(3, 2)

    def look(module, answer):
        return viewed(views, [tensor], [module], lambda: asked.append(module) or answer) is not None

    assert [look(first, True), look(first, False)] == [True, True]
    assert asked == [first]
    second = nn.Linear(3, 2)
    assert [look(second, False), look(second, True)] == [False, False]
    tensor.data = torch.zeros(2, 3)
    assert look(second, True)
    handle = second.register_forward_hook(print)
    assert not look(second, True)
    handle.remove()
    assert look(second, False)
    assert asked == [first, second, second]
    assert viewed(views, [tensor, None]) is None
    assert views(torch.zeros(1, dtype=torch.float64), [second], [tensor], lambda: True) is None


@njit
def doubled_at(address, like):
    array = array_at(address, (2, 3), like)
    array *= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_address_is_the_tensor_that_lies_there(dtype):
    tensor = torch.arange(12, dtype=dtype).view(4, 3)
    doubled_at(tensor[1:].data_ptr(), tensor.numpy()[:0])
    assert tensor.tolist() == [[0, 1, 2], [6, 8, 10], [12, 14, 16], [9, 10, 11]]


def test_arrays_come_in_the_order_that_a_kernel_takes_and_are_ordered_once():
    views, tensors, calls = Views(), [torch.zeros(1), torch.ones(1)], []
    for _ in range(2):
        first, second = views(torch.zeros(1), [], tensors, lambda: True, lambda each: calls.append(1) or each[::-1])
        assert (first[0], second[0]) == (1, 0)
    assert calls == [1]

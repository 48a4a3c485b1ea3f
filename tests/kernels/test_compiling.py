"""What compiles, and what must hold so that machine code is found again: see also test_machine_code."""

import gc

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError
from small import FEATURES, make_small

from palimpsest import memory
from palimpsest.memory.kernels.arithmetic.products import multiply, pack


@pytest.mark.parametrize("odd", range(3))
def test_products_of_two_types_do_not_compile(odd):
    a, b, out = (torch.ones(4, 4, dtype=torch.float64 if odd == i else torch.float32).numpy() for i in range(3))
    with pytest.raises(TypingError):
        multiply(a, pack(b), out, False)
    assert np.array_equal(out, np.ones((4, 4)))


def test_machine_code_is_found_again():
    """Numba looks for it by what a kernel holds; another kernel that it holds has a new name in each process."""
    start, place = torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.int64)
    for name in memory.names():
        module = make_small(name)
        x = torch.randn(3, 2, FEATURES, dtype=torch.float64, requires_grad=True)
        module.scan(x, start, module.initial_state(2), place)[0].sum().backward()
        with torch.no_grad():
            module.step(x[0], module.initial_state(2), place[0])
    found = [each for each in gc.get_objects() if issubclass(type(each), Dispatcher)]
    ours = [each.py_func for each in found if each.py_func.__module__.startswith("palimpsest.")]
    assert any("kernels.delta" in function.__module__ for function in ours)
    for function in ours:
        held = [cell.cell_contents for cell in function.__closure__ or ()]
        assert all(isinstance(each, int | float | str | tuple | None) for each in held), function

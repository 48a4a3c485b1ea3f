"""What compiles, and what must hold so that machine code is found again: see also test_machine_code."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError
from small import FEATURES, make_small

import palimpsest
from palimpsest import memory
from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.products import multiply, pack

ROOT = Path(palimpsest.__file__).parents[1]
CALLER = """
from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.products import multiply_transposed

@njit(cache=True)
def product(a, b, out):
    multiply_transposed(a, b, out, False)
"""
CALL = """
import numpy as np
from caller import product

out = np.empty((2, 1))
product(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, 6.0]]), out)
print(out.ravel(), sum(product.stats.cache_hits.values()))
"""


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


@njit(**OPTIONS)
def product_of(a, b, out):
    multiply(a, pack(b), out, False)


def test_a_caller_holds_no_copy_of_a_product():
    out = np.empty((2, 1), np.float32)
    product_of(np.float32([[1, 2], [3, 4]]), np.float32([[5], [6]]), out)
    assert out.ravel().tolist() == [17, 39]
    product_of.recompile()  # code from the cache cannot be inspected
    (code,) = product_of.inspect_llvm().values()
    assert "fmul" not in code
    assert 'declare i32 @"palimpsest.memory.kernels.arithmetic.products._product' in code


@pytest.mark.programs
def test_a_later_process_finds_what_the_caller_calls(tmp_path):
    """Also where the caller was compiled from a kernel between the two that came from a file: the second time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    for source in (CALLER, f"{CALLER}# edited\n"):
        (tmp_path / "caller.py").write_text(source)
        for hits in (0, 1):
            command = [sys.executable, "-c", CALL]
            done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
            assert done.stdout == f"[17. 39.] {hits}\n"

"""Machine code of earlier runs: thrown away as soon as a file that it may hold code of is newer."""

import gc
import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher
from numba.core.errors import TypingError
from small import FEATURES, make_small

from palimpsest import memory
from palimpsest.memory.kernels.arithmetic.compiling import drop_stale
from palimpsest.memory.kernels.arithmetic.products import multiply, pack

INNER = "from numba import njit\n\n@njit(cache=True)\ndef inner(x):\n    return x + {}\n"
OUTER = """from numba import njit
from stale_inner import inner

@njit(cache=True)
def outer(x):
    return 10 * inner(x)
"""


def test_a_kernel_follows_the_file_of_one_that_it_calls(tmp_path, monkeypatch):
    """By itself numba would go on with the old one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    inner, outer = tmp_path / "stale_inner.py", tmp_path / "stale_outer.py"

    def called(added):
        """What the caller gives in a new process, so to speak, `added` seconds after the last edit."""
        inner.write_text(INNER.format(added))
        os.utime(inner, (time.time() + added,) * 2)
        for name in ("stale_inner", "stale_outer"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("stale_outer").outer

    outer.write_text(OUTER)
    assert called(1)(1) == 20
    assert called(2)(1) == 20
    kernel = called(3)
    drop_stale(kernel.py_func, [inner, outer])
    assert kernel(1) == 40


def test_importing_the_kernels_drops_what_is_older_than_any_of_their_files():
    folder = Path(FunctionCache(drop_stale).cache_path)
    old, new = (folder / f"planted{os.getpid()}{age}.nbi" for age in ("old", "new"))
    for path, time_ in ((old, 1.0), (new, time.time() + 1)):
        path.touch()
        os.utime(path, (time_, time_))
    try:
        importlib.reload(memory.kernels)
        assert not old.exists()
        assert new.exists()
    finally:
        old.unlink(missing_ok=True)
        new.unlink(missing_ok=True)


def test_files_that_another_process_deletes_meanwhile(tmp_path, monkeypatch):
    gone, old = tmp_path / "gone.nbi", tmp_path / "old.nbc"
    old.touch()
    os.utime(old, (0, 0))
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone, old])
    drop_stale(drop_stale, [Path(__file__)])
    assert not old.exists()


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

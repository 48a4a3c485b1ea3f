"""Where numba cannot compile the intrinsics, torch computes everything, after one warning."""

import pytest
import torch
from numba import njit
from torch.testing import assert_close

from palimpsest.memory.kernels import lstm_scan, torch_only
from palimpsest.memory.kernels.arithmetic import dispatch, self_test
from palimpsest.memory.kernels.arithmetic.compiling import as_intrinsic
from palimpsest.memory.kernels.arithmetic.self_test import check_intrinsics


@pytest.fixture
def ask_again():
    """The question is answered anew, in the test and after it."""
    dispatch._intrinsics_work.cache_clear()
    yield
    dispatch._intrinsics_work.cache_clear()


@as_intrinsic
def _outdated(typing, address):
    """Calls what numba no longer has."""

    def generate(context, builder, signature, args):
        return builder.no_longer_there(args[0])

    return address(address), generate


@njit
def _does_not_compile(address, transposed, sums, product):
    _outdated(address)


def _computes_nothing(address, transposed, sums, product):
    pass


def test_the_intrinsics_compile_here():
    check_intrinsics()


@pytest.mark.parametrize("use", [_does_not_compile, _computes_nothing])
def test_torch_takes_over_with_one_warning(monkeypatch, ask_again, use):
    T, B, F, H = 5, 2, 3, 4
    weights = torch.randn(4 * H, F), torch.randn(4 * H, H), torch.randn(4 * H), torch.randn(4 * H)
    given = torch.randn(T, B, F), torch.rand(T, B) < 0.3, *torch.randn(2, B, H), weights
    with torch_only():
        expected = lstm_scan(*given)
    monkeypatch.setattr(self_test, "_use", use)
    with pytest.warns(RuntimeWarning, match="does not compile") as said:
        found = [lstm_scan(*given) for _ in range(2)]
    assert len(said) == 1
    assert_close(found, [expected, expected], rtol=0, atol=0)

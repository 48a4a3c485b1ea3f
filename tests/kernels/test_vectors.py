"""Vectors in compiled loops against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from palimpsest.memory.kernels.arithmetic.vectors import (
    aligned,
    fold,
    lanes_of,
    load,
    root,
    store,
    sum_rows,
    zeros_like,
)

FLOATS = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@FLOATS
@pytest.mark.parametrize("count", [1, 5, 16, 32])
def test_arithmetic_from_anywhere_in_memory(dtype, count):
    @njit
    def run(x, a, out):
        one, other = load(x, 3, count), load(x, 3 + count, count)
        store((a * one + other * a - one) / root(other * other + a) + zeros_like(one), out, 2)

    x = np.random.default_rng(0).normal(size=(2, count + 2)).astype(dtype)
    out = np.zeros(count + 4, dtype)
    a = dtype(1.5)
    run(x, a, out)
    one, other = x.ravel()[3 : 3 + count], x.ravel()[3 + count : 3 + 2 * count]
    expected = (a * one + other * a - one) / np.sqrt(other * other + a)
    np.testing.assert_allclose(out[2:-2], expected, rtol=10 * np.finfo(dtype).eps, atol=10 * np.finfo(dtype).eps)
    assert not out[:2].any()
    assert not out[-2:].any()


@FLOATS
@pytest.mark.parametrize("count", [1, 5, 16, 33])
@pytest.mark.parametrize("rows", [1, 3, 16, 35])
def test_sums_of_folded_rows(dtype, count, rows):
    lanes = lanes_of(np.dtype(dtype).itemsize)

    @njit
    def run(x, parts, out):
        for row in range(rows):
            store(fold(load(x, row * count, count)), parts, row * lanes)
        sum_rows(parts, rows, out, 1)

    x = np.random.default_rng(1).normal(size=(rows, count)).astype(dtype)
    out = np.zeros(1 + rows + lanes, dtype)
    run(x, np.zeros(rows * lanes, dtype), out)
    np.testing.assert_allclose(out[1 : rows + 1], x.sum(1), atol=100 * np.finfo(dtype).eps)


@FLOATS
def test_aligned_memory_is_zero_and_begins_with_a_cache_line(dtype):
    like = np.empty(0, dtype)
    for count in (0, 1, 100):
        memory = aligned(count, like)
        assert memory.shape == (count,)
        assert memory.dtype == dtype
        assert not memory.any()
        assert count == 0 or memory.ctypes.data % 64 == 0

"""Sigmoid and tanh inside kernels against numpy in float64."""

import numpy as np
import pytest

from palimpsest.memory.kernels.arithmetic.elementwise import sigmoid_in_place, tanh_in_place, write_tanh

NUMBERS = np.concatenate([np.linspace(-30, 30, 200_001), np.geomspace(1e-30, 30, 20_001), [0, 1e4, np.inf]])


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 3.5e-7), (np.float64, 1e-15)])
def test_tanh_is_close_in_relation_to_its_size(dtype, close):
    x = np.concatenate([NUMBERS, -NUMBERS]).astype(dtype)
    y, also = x.copy(), np.empty_like(x)
    tanh_in_place(y)
    write_tanh(x, also)
    expected = np.tanh(x.astype(np.float64))
    assert (np.abs(y - expected) <= close * np.abs(expected)).all()
    assert np.array_equal(y[: len(NUMBERS)], -y[len(NUMBERS) :])
    assert np.abs(y).max() == 1
    assert (np.abs(y[np.abs(x) > 9]) == 1).all() or dtype == np.float64
    assert np.array_equal(y, also)


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-7), (np.float64, 1e-15)])
def test_sigmoid_is_close(dtype, close):
    x = np.concatenate([NUMBERS, -NUMBERS]).astype(dtype)
    y = x.copy()
    sigmoid_in_place(y)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert (np.abs(y - expected) <= close).all()
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.parametrize("function", [sigmoid_in_place, tanh_in_place])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_nan(function, dtype):
    row = np.array([0, np.nan, 1] * 40, dtype)
    function(row)
    assert np.array_equal(np.isnan(row), [False, True, False] * 40)

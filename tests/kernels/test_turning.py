"""Turned queries and keys, against multiplication by complex numbers of modulus one."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from palimpsest.memory.kernels.delta.turning import period, periods, turn, turns

EXACT = dict(rtol=0, atol=1e-13)


def turned(x, times):
    return turn(x, times, torch.from_numpy(turns(x.shape[-1])))


@pytest.mark.parametrize(
    ("K", "expected"),
    [
        (1, []),
        (3, []),
        (4, [4]),
        (5, [4]),
        (7, [8]),
        (8, [8, 16]),
        (12, [16, 32, 64]),
        (16, [32, 64, 128, 256]),
        (20, [32, 64, 128, 256, 32]),
        (32, [32, 64, 128, 256] * 2),
    ],
)
def test_the_slower_half_of_the_pairs_turns(K, expected):
    assert periods(K) == expected
    assert period(K) == max(expected, default=2)
    assert turns(K).shape == (period(K), 2 * len(expected))
    assert all(period(K) % each == 0 for each in expected)


@pytest.mark.parametrize("K", [1, 5, 16, 20, 34])
def test_pairs_are_complex_numbers(K):
    """At any time, however late: Python's integers give the angle without rounding."""
    times = [[0, 1, 2], [255, 256, 257], [10**6 + 3, 10**12 + 7, 10**15 + 11]]
    x, R = torch.randn(3, 3, 2, K, dtype=torch.float64), K // 4
    found = turned(x, torch.tensor(times))
    for t, b, i in np.ndindex(3, 3, R):
        at = 2 * math.pi * (times[t][b] % periods(K)[i]) / periods(K)[i]
        expected = torch.complex(x[t, b, :, i], x[t, b, :, R + i]) * complex(math.cos(at), math.sin(at))
        assert_close(torch.complex(found[t, b, :, i], found[t, b, :, R + i]), expected, **EXACT)
    assert torch.equal(found[..., 2 * R :], x[..., 2 * R :])


def test_a_product_depends_on_the_lag():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def product(t, s):
        return (turned(q, torch.tensor([[t]])) * turned(k, torch.tensor([[s]]))).sum().item()

    assert product(40, 33) == pytest.approx(product(7, 0), abs=1e-12)
    assert product(3, 254) == pytest.approx(product(259, 254), abs=1e-12)
    assert abs(product(40, 33) - product(40, 32)) > 1e-3

"""Division by multiplication, as compiled worlds do it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.envs.kernels import quotient, reciprocal


@given(data=st.data(), b=st.integers(1, 2**31 - 1))
def test_it_is_the_whole_part_of_the_division(data, b):
    most = (2**31 - 1) // b
    near = data.draw(st.integers(0, most // b)) * b
    for a in {data.draw(st.integers(0, most)), most, near, max(near - 1, 0)}:
        assert quotient.py_func(a, reciprocal(b)) == a // b


@pytest.mark.parametrize("b", [1, 2, 3, 7, 16, 20, 100, 64, 10_016])
def test_it_is_as_good_compiled(b):
    for a in (0, 1, b - 1, b, b + 1, (2**31 - 1) // b):
        assert quotient(a, reciprocal(b)) == a // b

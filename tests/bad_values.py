"""Values that arguments of each kind must refuse: one clear line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXTS = ["", "x", "8", "1\n2", "a\0b", "../../etc/passwd", "$(id)", "__import__('os').system('id')", "ø" * 300]
NO_VALUES = [object, [1], {"a": 1}, b"1", Path("x"), 1j]
FLOATS = [float("nan"), float("inf"), float("-inf"), -0.5, 1.5]
HUGE = [2**31, 2**63, 2**64, 10**40]

ZERO = 0
NUMBERS = [None, *TEXTS, *NO_VALUES, np.array([1, 2]), True]
"""What no number is."""

SIZE = [*NUMBERS, *FLOATS, -0.0, 3.0, ZERO, -1, -(2**63), *HUGE]
"""What an integer of 1 or more is not, nor one of a size that fits into a machine."""

COUNT = [bad for bad in SIZE if bad is not ZERO]
FLAG = [None, *TEXTS, *NO_VALUES, *FLOATS, 0, 1, -1, 10**40, "True", "true\n"]
CHOICE = [*TEXTS, *NO_VALUES, *FLOATS, 0, 1, 10**40, True]
FRACTION = [*NUMBERS, *FLOATS, -1e-9, 1 + 1e-9, 2, -1, *HUGE]
NOISE = [*NUMBERS, *FLOATS[:4], -1e-9, 11, -1, *HUGE]
RENDER = ["human", *CHOICE]


def same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and repr(one) == repr(other))


def without(values: list, *allowed: Any) -> list:
    return [value for value in values if not any(same(value, good) for good in allowed)]


def label(value: Any) -> str:
    return f"{type(value).__name__}-{str(value)[:12]!r}"


def assert_refused(make, name: str, value: Any, directory: Path) -> None:
    """One ValueError of one line that names the argument, and an empty directory after it."""
    with pytest.raises(ValueError, match=name) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message, message
    assert len(message) < 1500, message
    assert list(directory.iterdir()) == [], value

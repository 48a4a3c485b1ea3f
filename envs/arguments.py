"""Refusals: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

MOST_ROWS = 1 << 20
"""The largest `num_envs`."""


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int; ValueError unless it is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}; got {value!r}")
    return int(value)


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float; ValueError unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1; got {value!r}")
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """`value` as a bool; ValueError unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value`; ValueError with the closest name unless it is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {listed}; got {value!r}{closest(value, allowed)}")
    return value


def check_keys(name: str, keys: Iterable[str], target: Callable[..., Any]) -> None:
    """ValueError with the closest name unless `target`, called `name`, takes all of `keys` as keywords."""
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    allowed = list(parameters)
    for key in keys:
        if key not in allowed:
            raise ValueError(f"{name} has no argument {key!r}{closest(key, allowed)}; allowed: {', '.join(allowed)}")


def closest(given: Any, known: Iterable[str]) -> str:
    """The hint "(did you mean ...?)", after a space, where `given` resembles one of `known`; else nothing."""
    found = difflib.get_close_matches(str(given), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""

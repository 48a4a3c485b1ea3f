"""Refusals of arguments, in one wording: "<name> must be <what is allowed>; got <what was given>".

memory/, envs/ and agents/ stand on it. It imports nothing of the package, and neither torch nor gymnasium. NumPy's
scalars count as Python's everywhere, and a truth value is never a number.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

MOST = 1 << 20
"""Largest size of anything that is allocated or counted: no machine needs more, and a typing error stays small."""

MOST_UNITS = 1 << 16
"""Widest layer."""

MOST_SHOWN = 500
"""Longest text that an error shows of a value, in characters."""


class Allowed(NamedTuple):
    """What an argument may be."""

    words: str
    """After "must be"."""
    fits: Callable[[Any], bool]
    """Whether a value is allowed; it takes anything."""
    hint: Callable[[Any], str] = lambda value: ""
    """What follows a refused value in the message."""


def check(name: str, value: Any, allowed: Allowed) -> None:
    """Refuse a value that is not allowed."""
    if not allowed.fits(value):
        refuse(name, allowed.words, value, allowed.hint(value))


def refuse(name: str, allowed: str, value: Any, hint: str = "") -> NoReturn:
    """Raise the ValueError that says what `name` must be and what it is."""
    raise ValueError(f"{name} must be {allowed}; got {shown(value)}{hint}")


def shown(value: Any) -> str:
    """A value's repr as one line of bounded length."""
    try:
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # an integer of thousands of digits, or a repr that fails
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite real number from `low` to `high`, which a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    value = value.item() if isinstance(value, np.generic) else value
    largest = sys.float_info.max
    return bool(max(low, -largest) <= value <= min(high, largest))


def is_integer(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is an integer from `low` to `high`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(low <= int(value) <= high)


def is_flag(value: Any) -> bool:
    """Whether `value` is a truth value."""
    return isinstance(value, bool | np.bool_)


FLAG = Allowed("True or False", is_flag)
STRING = Allowed("a string", lambda value: isinstance(value, str))
NAMED = Allowed(
    "a dict of arguments by name",
    lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
)


def integer(low: int, high: float = MOST) -> Allowed:
    """An integer from `low` to `high`."""
    return Allowed(f"an integer, {_span(low, high)}", lambda value: is_integer(value, low, high))


def number(low: float, high: float = math.inf) -> Allowed:
    """A finite number from `low` to `high`."""
    return Allowed(f"a number, {_span(low, high)}", lambda value: is_number(value, low, high))


def above(low: float) -> Allowed:
    """A finite number above `low`."""
    return Allowed(f"a number above {_bound(low)}", lambda value: is_number(value, low) and value > low)


def choice(options: Iterable[str]) -> Allowed:
    """One of the names."""
    known = list(options)
    return Allowed(
        f"one of {', '.join(map(repr, known))}",
        lambda value: isinstance(value, str) and value in known,
        lambda value: closest(value, known),
    )


def optional(allowed: Allowed) -> Allowed:
    """The same, or None."""
    return Allowed(f"{allowed.words}, or None", lambda value: value is None or allowed.fits(value), allowed.hint)


def check_integer(name: str, value: Any, low: int, high: int = MOST) -> int:
    """`value` as an int; ValueError unless it is an integer from `low` to `high`."""
    check(name, value, integer(low, high))
    return int(value)


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """`value` as a float; ValueError unless it is a finite number from `low` to `high`."""
    check(name, value, number(low, high))
    return float(value)


def check_above(name: str, value: Any, low: float) -> float:
    """`value` as a float; ValueError unless it is a finite number above `low`."""
    check(name, value, above(low))
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool; ValueError unless it is a truth value."""
    check(name, value, FLAG)
    return bool(value)


def check_choice(name: str, value: Any, options: Iterable[str]) -> str:
    """`value`; ValueError with the closest name unless it is one of `options`."""
    check(name, value, choice(options))
    return value


def check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """ValueError unless the integer `value` divides `whole`."""
    divisors = [str(n) for n in range(1, min(whole, 64) + 1) if whole % n == 0]
    words = f"a divisor of {whole_name}={whole}, such as {', '.join(divisors)}"
    check(name, value, Allowed(words, lambda part: whole % part == 0))


def check_keys(
    name: str,
    keys: Iterable[str],
    target: Callable[..., Any],
    skip: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """ValueError with the closest name unless `target` takes all of `keys` as keywords.

    Args:
        name: what the message calls the target.
        keys: names of arguments.
        target: a class or function.
        skip: parameters that may not be given.
        extra: further keys that may be given, with their defaults.
    """
    known = keywords(target, skip, extra)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    for key in keys:
        if key not in known and (key in skip or not takes_any):
            listed = ", ".join(known) or "none"
            raise ValueError(f"{name} has no argument {key!r}{closest(key, known)}; allowed: {listed}")


def keywords(
    target: Callable[..., Any], skip: Collection[str] = (), extra: Mapping[str, Any] | None = None
) -> dict[str, inspect.Parameter]:
    """The parameters of `target` that a keyword can reach, those of `extra` first; arguments as in `check_keys`."""
    found = {
        key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default)
        for key, default in (extra or {}).items()
    }
    for key, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[key] = parameter
    return {key: parameter for key, parameter in found.items() if key not in skip}


def closest(name: Any, known: Iterable[str]) -> str:
    """The hint " (did you mean ...?)" where `name` is close to one of `known`, in any case of letters; else ""."""
    folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1) if isinstance(name, str) else []
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""


def _span(low: float, high: float) -> str:
    return f"{_bound(low)} or more" if math.isinf(high) else f"{_bound(low)} to {_bound(high)}"


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"

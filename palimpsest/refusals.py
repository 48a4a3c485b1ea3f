"""Refusals of arguments: what was given, what is allowed, what to do. The ground that every part stands on."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any


def closest(name: str, known: Iterable[str]) -> str:
    """What to add to an error: the known name that is close to `name`, or nothing. Case is no difference."""
    folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""


def check_keys(
    keys: Iterable[str],
    target: Callable[..., Any],
    skip: Collection[str] = (),
    name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Refuse keyword arguments that `target` does not take; arguments as in `parse_key_values`."""
    known = parameters_of(target, skip, extra)
    name = name or getattr(target, "__name__", str(target))
    for key in keys:
        if key in known or (key not in skip and _takes_any(target)):
            continue
        listed = ", ".join(known) or "none"
        raise ValueError(f"{name} has no argument {key!r}{closest(key, known)}; allowed: {listed}")


def parameters_of(
    target: Callable[..., Any], skip: Collection[str], extra: Mapping[str, Any] | None
) -> dict[str, inspect.Parameter]:
    """The parameters that a keyword can reach, their annotations resolved."""
    try:
        hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        hints = {}  # names that exist only for a type checker
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {
        key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=inspect.Parameter.empty)
        for key, default in (extra or {}).items()
    }
    for key, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in by_keyword:
            found[key] = parameter.replace(annotation=hints.get(key, inspect.Parameter.empty))
    return {key: parameter for key, parameter in found.items() if key not in skip}


def _takes_any(target: Callable[..., Any]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(target).parameters.values())

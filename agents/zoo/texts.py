"""Values that rl-zoo3 writes as texts: `dict(...)` expressions and linear schedules. Nothing is evaluated."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from palimpsest.refusals import is_number

LONGEST = 10_000
"""Characters of an expression."""

MODULES = ("nn", "th.nn", "torch.nn")
"""What an activation's name may follow."""


class Activation(NamedTuple):
    """The name of a class of torch.nn."""

    name: str


class Scheduled(NamedTuple):
    """A number, and whether it falls linearly to 0 over the run."""

    value: float
    falls: bool


def read_expression(text: str) -> Any:
    """The value of an expression of plain values, lists, tuples, dicts, `dict(key=value)` and `nn.Name`.

    Raises:
        ValueError: it holds anything else.
    """
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST:,} characters")
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no expression: {type(error).__name__}") from None


def read_schedule(value: Any) -> Scheduled:
    """A number, its text, or `lin_` and a number, which falls linearly to 0.

    Raises:
        ValueError: it is none of them.
    """
    text = value if isinstance(value, str) else ""
    falls = text.startswith("lin_")
    return Scheduled(read_number(text.removeprefix("lin_") if text else value), falls)


def read_number(value: Any) -> float:
    """A finite number, or its text: YAML reads 1e6, without a point, as a text; ValueError for anything else."""
    number = float(value) if isinstance(value, str) else value
    if not is_number(number):
        raise ValueError(f"{value!r} is not a number")
    return number


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        if is_number(number):
            return -number
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part) for part in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return _pairs([(_value(key), part) for key, part in zip(node.keys, node.values) if key is not None])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return _pairs([(keyword.arg, keyword.value) for keyword in node.keywords])
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in MODULES:
        return Activation(node.attr)
    raise ValueError(f"{ast.unparse(node)!r} is not a plain value, a list, dict(...) or nn.Name")


def _pairs(pairs: list[tuple[Any, ast.expr]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"the keys of a dict must be different names; got {names}")
    return {name: _value(part) for name, part in pairs}

"""Observations and states as trees: functions for arrays, dicts and (named) tuples of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply `function` to each leaf of `tree`, together with the leaves of `others` at the same place.

    Dicts, tuples and NamedTuples are branches and keep their types; anything else is a leaf.
    """
    if isinstance(tree, dict):
        return {key: tree_map(function, leaf, *(other[key] for other in others)) for key, leaf in tree.items()}
    if isinstance(tree, tuple):
        leaves = [tree_map(function, *leaf) for leaf in zip(tree, *others, strict=True)]
        return type(tree)(*leaves) if hasattr(tree, "_fields") else tuple(leaves)
    return function(tree, *others)


def halves(tree: Any, at: int) -> tuple[Any, Any]:
    """A tree of [T, ...] tensors before and from entry `at`."""
    return tree_map(lambda leaf: leaf[:at], tree), tree_map(lambda leaf: leaf[at:], tree)

"""Observations and states as trees: functions for arrays, dicts and (named) tuples of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


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


def stacked(rows: Sequence[Any], like: Any) -> Any:
    """Observations of one row each as a tree of [b, ...] arrays, with the keys of `like`."""
    return {key: np.stack([row[key] for row in rows]) for key in like} if isinstance(like, dict) else np.stack(rows)

"""Trees of arrays and tensors, rows first: those of the whole batch, and each worker's part of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.agents.tree import tree_map
from palimpsest.agents.workers.group import here


def of_all(tree: Any) -> Any:
    """The whole, leaves [B, ...] on the CPU, from the workers' trees of [B / size, ...]. None is a leaf too."""
    workers = here()
    if workers.size == 1:
        return tree

    def join(*parts: Any) -> Any:
        if parts[0] is None:
            return None
        return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)

    mine = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, tree)
    return tree_map(join, *workers.objects(mine))


def own(tree: Any) -> Any:
    """Own rows of a tree of [B, ...]."""
    workers = here()
    if workers.size == 1:
        return tree
    return tree_map(lambda leaf: None if leaf is None else leaf[workers.rows(len(leaf) // workers.size)], tree)

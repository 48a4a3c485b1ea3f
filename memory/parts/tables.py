"""What memories whose state is a table [K, V] per head have in common."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.refusals import check_integer

EPSILON = 1e-2
"""Of the norm of what is read, added to the variance. What is read may be near zero, where a smaller one, as 1e-5,
would multiply rounding errors by hundreds: acting and the update would then differ."""


def check_tables(num_heads: int, key_size: int, value_size: int) -> tuple[int, int, int]:
    """H, K and V; ValueError unless each is an integer of 1 or more."""
    return (
        check_integer("num_heads", num_heads, 1),
        check_integer("key_size", key_size, 1),
        check_integer("value_size", value_size, 1),
    )


def written(k: Tensor, v: Tensor) -> Tensor:
    """What a step adds to its tables [..., H, K, V], from keys [..., H, K] and values [..., H, V]."""
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def read(S: Tensor, q: Tensor) -> Tensor:
    """S^T q [..., H, V], from tables [..., H, K, V] and queries [..., H, K]."""
    return (q.unsqueeze(-2) @ S).squeeze(-2)


def normal_per_head(x: Tensor) -> Tensor:
    """Layer norm without parameters of each head of [..., H, V], and heads side by side [..., H V]."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPSILON).flatten(-2)


def times_as_logits(shortest: float, longest: float, count: int, power: float = 1) -> Tensor:
    """Logits whose sigmoid to the `power` decays by e in `shortest` to `longest` steps, log-uniform; one is longest."""
    times = shortest * (longest / shortest) ** torch.linspace(1, 0, count).flip(0)
    # sigmoid(y)^power = exp(-1 / time), and 1 - exp(-1 / (power time)) without cancellation
    rate = 1 / (power * times)
    return -rate - torch.log(-torch.expm1(-rate))

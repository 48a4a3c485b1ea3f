"""What memories whose state is a table [K, V] per head have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.outer.chunked import outer_chunked
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


def outer_weights(k: Tensor, decay: Tensor, q: Tensor, start: Tensor) -> Tensor:
    """How much of the value of each step `outer_scan` reads at each step, from tables that are empty at first.

    k and q [T, B, H, K], decay [T, B, H] or [T, B, H, K] and start [T, B] as there -> [T, B, H, T], the last dimension
    being the step of the write.
    """
    T, B, H, K = k.shape
    # every step writes 1 into a column of its own, and a read shows what is left of each
    v = torch.eye(T, dtype=k.dtype, device=k.device)[:, None, None].expand(T, B, H, T)
    return outer_chunked(k, v, decay, q, start, k.new_zeros(B, H, K, T))[0]


def side_by_side(tables: Tensor) -> Tensor:
    """Tables [L, H, K, V] as one picture, heads side by side and layers below each other, with NaN between them."""
    L, H, K, V = tables.shape
    framed = functional.pad(tables, (0, 1, 0, 1), value=math.nan)
    return framed.transpose(1, 2).reshape(L * (K + 1), H * (V + 1))[:-1, :-1]


def head_names(layers: int, heads: int) -> tuple[str, ...]:
    """Names of all heads, layer by layer."""
    return tuple(f"layer {i + 1}, head {j + 1}" for i in range(layers) for j in range(heads))


def times_as_logits(shortest: float, longest: float, count: int, power: float = 1) -> Tensor:
    """Logits whose sigmoid to the `power` decays by e in `shortest` to `longest` steps, log-uniform; one is longest."""
    times = shortest * (longest / shortest) ** torch.linspace(1, 0, count).flip(0)
    # sigmoid(y)^power = exp(-1 / time), and 1 - exp(-1 / (power time)) without cancellation
    rate = 1 / (power * times)
    return -rate - torch.log(-torch.expm1(-rate))

"""Based: linear attention with features of a Taylor series, for all of the past, and exact attention to a small window.

q, k, v = W x_t                                [H, E], [H, E], [H, V]
phi(q) . phi(k) = 1 + s + s^2 / 2              s = q . k / sqrt(E): the exponential's series, always positive
S_t = S_{t-1} + phi(k) v^T                     z_t = z_{t-1} + phi(k)
r = S_t^T phi(q) / (z_t . phi(q))              a mean of all values so far
q', k', v' = W' x_t                            [H, K], [H, K], [H, V]
w = sum of softmax_j(q' . k'_j / sqrt(K) + c_j) v'_j        over the last M + 1 inputs of the episode
added = W_out (r, w)                           heads side by side

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context
from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.kernels.outer.scan import outer_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import read, written
from palimpsest.memory.parts.windows import Window
from palimpsest.refusals import check_integer

EPSILON = 1e-6
"""Added to the normaliser."""


class BasedState(NamedTuple):
    """State of Based."""

    S: Tensor
    """[B, L, H, 1 + E + E (E + 1) / 2, V], sums of products of features and values."""
    z: Tensor
    """[B, L, H, 1 + E + E (E + 1) / 2], sums of features."""
    keys: Tensor
    """[B, L, M, H K], of the inputs before the next one, oldest first."""
    values: Tensor
    """[B, L, M, H V], of the same."""
    filled: Tensor
    """[B, L] int64, how many of them are of this episode."""


class Based(Stack):
    """Linear attention that recalls roughly at any distance, beside attention that recalls exactly nearby.

    The paper has layers of either kind in turns, and projections of 16 features (E), hence 153 after the series, and
    windows of 64. Here a layer has both kinds side by side, E is 4 and the window 16, for speed: E is the dial between
    the size of the state and recall. Products of pairs stand once, not twice as in the authors' code, which gives the
    same scores. In the window a learned number per head and distance, c, tells near from far (rotations in the code).
    A layer here has neither convolution nor MLP.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, of either attention.
        feature_size: E, features of a query or key before the series.
        key_size: K, features of a query or key in the window.
        value_size: V, features of a value.
        window_size: M + 1, inputs that the window holds, the current one included; 2 or more.
    State:
        `BasedState`, zeros at first.
    Source: arXiv 2402.18668.
    """

    state_type = BasedState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 2,
        feature_size: int = 4,
        key_size: int = 16,
        value_size: int = 32,
        window_size: int = 16,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        feature_size = check_integer("feature_size", feature_size, 1)
        key_size = check_integer("key_size", key_size, 1)
        value_size = check_integer("value_size", value_size, 1)
        self_and_before = check_integer("window_size", window_size, 2)
        output_size = check_integer("output_size", output_size, 1)
        sizes = (output_size, num_heads, feature_size, key_size, value_size, self_and_before - 1)
        super().__init__(input_size, output_size, [BasedLayer(*sizes) for _ in range(num_layers)])
        self.window_size = self_and_before

    def context(self) -> Context:
        """The window is read directly; sums hold any earlier input."""
        return Context(self.window_size, math.inf)


class BasedLayer(Layer):
    """H heads of either attention."""

    def __init__(self, size: int, heads: int, features: int, key_size: int, value_size: int, before: int) -> None:
        super().__init__()
        self.heads, self.features, self.value_size, self.M = heads, features, value_size, before
        self.query = nn.Linear(size, heads * features)
        self.key = nn.Linear(size, heads * features)
        self.value = nn.Linear(size, heads * value_size)
        self.near_query = nn.Linear(size, heads * key_size)
        self.near_key = nn.Linear(size, heads * key_size)
        self.near_value = nn.Linear(size, heads * value_size)
        self.by_distance = nn.Parameter(torch.zeros(heads, before + 1))
        """C, farthest first."""
        self.leave = nn.Linear(2 * heads * value_size, size)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty sums and an empty window."""
        zeros, H, E = self.like.new_zeros, self.heads, self.features
        K = 1 + E + E * (E + 1) // 2
        return (
            zeros(batch_size, H, K, self.value_size),
            zeros(batch_size, H, K),
            zeros(batch_size, self.M, self.near_key.out_features),
            zeros(batch_size, self.M, self.near_value.out_features),
            zeros(batch_size, dtype=torch.int64),
        )

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        q, k, v = self.tokens(x)
        S, z, keys, values, filled = state
        S, z = S + written(k, v), z + k
        far = read(S, q) / ((z * q).sum(-1, keepdim=True) + EPSILON)
        query = self.near_query(x).unflatten(-1, (self.heads, -1))
        keys = torch.cat([keys, self.near_key(x).unsqueeze(1)], 1)
        values = torch.cat([values, self.near_value(x).unsqueeze(1)], 1)
        scores = torch.einsum("bhk,bmhk->bhm", query, keys.unflatten(-1, query.shape[1:])) / math.sqrt(query.shape[-1])
        seen = torch.arange(self.M, -1, -1, device=x.device) <= filled.unsqueeze(1)
        weights = (scores + self.by_distance).masked_fill(~seen.unsqueeze(1), -math.inf).softmax(-1)
        near = torch.einsum("bhm,bmhv->bhv", weights, values.unflatten(-1, (self.heads, -1)))
        after = (S, z, keys[:, 1:], values[:, 1:], (filled + 1).clamp(max=self.M))
        return self.leave(torch.cat([far.flatten(-2), near.flatten(-2)], -1)), after

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.outer_scan`, `memory.kernels.diagonal_scan` and blocks of windows."""
        q, k, v = self.tokens(x)
        S, z, *before = state
        found, S = outer_scan(k, v, k.new_ones(1).expand(k.shape[:3]), q, start, S)
        sums, last = diagonal_scan(k.new_ones(k[0, 0].numel()), k.flatten(2), start, z.flatten(1))
        far = found / ((sums.view_as(k) * q).sum(-1, keepdim=True) + EPSILON)
        near, after = self.window(x, start, *before)
        return self.leave(torch.cat([far.flatten(2), near], -1)), (S, last.view_as(z), *after)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys after the series [..., H, K], and values [..., H, V]."""
        q, k, v = (map_(x).unflatten(-1, (self.heads, -1)) for map_ in (self.query, self.key, self.value))
        return taylor(q), taylor(k), v

    def window(
        self, x: Tensor, start: Tensor, keys: Tensor, values: Tensor, filled: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the window gives [T, B, H V], and the last keys, values and count."""
        T, M, H = len(x), self.M, self.heads
        window = Window(start.t(), filled, M, x.dtype)
        keys, values = (
            torch.cat([old, map_(x).transpose(0, 1)], 1)
            for old, map_ in ((keys, self.near_key), (values, self.near_value))
        )
        # A weight of 0 times NaN is NaN. So inputs that are not finite are set to 0 here, and the queries that may
        # attend to one become NaN below.
        broken = (keys.detach().mul(0).sum(2) + values.detach().mul(0).sum(2)) != 0
        key, value = (
            window.in_blocks(
                functional.pad(each.masked_fill(broken.unsqueeze(2), 0), (0, 0, 0, window.padding))
                .unflatten(2, (H, -1))
                .transpose(1, 2),
                2,
            )
            for each in (keys, values)
        )
        query = functional.pad(self.near_query(x).transpose(0, 1), (0, 0, 0, window.padding))
        query = query.unflatten(1, (window.blocks, window.Q)).unflatten(3, (H, -1)).permute(0, 3, 1, 2, 4)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        scores = scores + window.shift(self.by_distance[:, None, None].expand(-1, -1, window.Q, -1))
        weights = (scores + window.unseen.unsqueeze(1)).softmax(-1)
        self.watched = {"attention": window.by_distance(weights.detach())}
        broken = window.in_blocks(functional.pad(broken, (0, window.padding)), 1).unsqueeze(2) & window.seen
        near = (weights @ value).permute(0, 2, 3, 1, 4).flatten(3)
        near = near.masked_fill(broken.any(3, keepdim=True), math.nan).flatten(1, 2)[:, :T]
        episode, ending = window.key_ids[:, T : T + M], window.query_ids[:, T - 1 : T]
        over = ((episode != ending) & (ending > 0)).unsqueeze(2)
        lasts = (each[:, T:].masked_fill(over, 0) for each in (keys, values))
        return near.transpose(0, 1), (*lasts, (episode == ending).sum(1))


def taylor(a: Tensor) -> Tensor:
    """Features [..., 1 + E + E (E + 1) / 2] of a [..., E], whose products are 1 + s + s^2 / 2, s = a . b / sqrt(E)."""
    E = a.shape[-1]
    a = a * E**-0.25
    # of two different factors the product stands for both orders
    pairs = [torch.cat([a[..., i : i + 1] * math.sqrt(0.5), a[..., i + 1 :]], -1) * a[..., i : i + 1] for i in range(E)]
    return torch.cat([torch.ones_like(a[..., :1]), a, *pairs], -1)

"""Linear attention: a sum of key-value products, normalised by the sum of the keys.

q, k, v = W x_t                                [H, K], [H, K], [H, V]
S_t = S_{t-1} + phi(k) v^T                     phi(a) = elu(a) + 1, which is positive
z_t = z_{t-1} + phi(k)
r = S_t^T phi(q) / (z_t . phi(q))              a mean of all values so far
added = W_out r                                heads side by side

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.kernels.outer.scan import outer_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import check_tables, outer_weights, read, written
from palimpsest.refusals import check_integer

EPSILON = 1e-6
"""Added to the normaliser."""


class LinearState(NamedTuple):
    """State of LinearAttention."""

    S: Tensor
    """[B, L, H, K, V], sums of products of keys and values."""
    z: Tensor
    """[B, L, H, K], sums of keys."""


class LinearAttention(Stack):
    """Linear attention: nothing is ever forgotten, and every input since the episode's start has a weight.

    The equations are the paper's sections 3.2 to 3.4, with the epsilon of the authors' code. A layer here has no MLP,
    and its layer norm has no parameters. Order is not known to it: no position is added to the input.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, tables per layer.
        key_size: K, rows of a table.
        value_size: V, columns of a table.
    State:
        S [B, L, H, K, V] and z [B, L, H, K], zeros at first.
    Source: arXiv 2006.16236.
    """

    state_type = LinearState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 32,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        sizes = check_tables(num_heads, key_size, value_size)
        output_size = check_integer("output_size", output_size, 1)
        super().__init__(input_size, output_size, [LinearLayer(output_size, *sizes) for _ in range(num_layers)])


class LinearLayer(Layer):
    """H tables and their normalisers."""

    def __init__(self, size: int, heads: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.sizes = heads, key_size, value_size
        self.query = nn.Linear(size, heads * key_size)
        self.key = nn.Linear(size, heads * key_size)
        self.value = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty sums."""
        H, K, V = self.sizes
        return self.like.new_zeros(batch_size, H, K, V), self.like.new_zeros(batch_size, H, K)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        q, k, v = self.tokens(x)
        S, z = state[0] + written(k, v), state[1] + k
        return self.mean(read(S, q), total(z, q)), (S, z)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.outer_scan` and `memory.kernels.diagonal_scan`."""
        q, k, v = self.tokens(x)
        found, S = outer_scan(k, v, k.new_ones(1).expand(k.shape[:3]), q, start, state[0])
        weights, last = self.totals(q, k, start, state[1])
        # how much of what a query reads is the current input
        self.watched = {"weight_of_now": ((q.detach() * k.detach()).sum(-1) / weights.detach().squeeze(-1))}
        return self.mean(found, weights), (S, last)

    def read_weights(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Each value's share of the mean."""
        q, k, _ = self.tokens(x)
        found = outer_weights(k, k.new_ones(1).expand(k.shape[:3]), q, start)
        return found / self.totals(q, k, start, state[1])[0]

    def totals(self, q: Tensor, k: Tensor, start: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the weights of all inputs so far [T, B, H, 1], and the last sum of keys [B, H, K]."""
        keys = k.flatten(2)
        sums, last = diagonal_scan(keys.new_ones(keys.shape[2]), keys, start, z.flatten(1))
        return total(sums.view_as(k), q), last.view_as(z)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of queries and keys [..., H, K], and values [..., H, V]."""
        q, k, v = (map_(x).unflatten(-1, (self.sizes[0], -1)) for map_ in (self.query, self.key, self.value))
        return functional.elu(q) + 1, functional.elu(k) + 1, v

    def mean(self, found: Tensor, weights: Tensor) -> Tensor:
        """What is added to the stream [..., D], from the sums that are read [..., H, V]."""
        return self.leave((found / weights).flatten(-2))


def total(z: Tensor, q: Tensor) -> Tensor:
    """The sum of the weights of all inputs so far [..., H, 1]."""
    return (z * q).sum(-1, keepdim=True) + EPSILON

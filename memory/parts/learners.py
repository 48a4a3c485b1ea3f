"""Networks that learn at test time: what the memories have in common that are small networks with changing weights.

q, k = W x_t, silu, of unit length;  v = silu(W_v x_t)              per head: [K], [K], [V]
f(k) = B^T silu(A^T k)                                              A [K, E] and B [E, V] are the weights
(A, B) learn from (k, v)                                            as each memory says
added = W_out (LN(f(q)) * silu(W_g x_t))                            f after it; LN per head, without parameters
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import State, reset
from palimpsest.memory.kernels.arithmetic.dispatch import is_transformed
from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.parts.stack import Layer
from palimpsest.memory.parts.tables import normal_per_head, read

BOUNDED_EVERY, LONGEST = 16, 1e3
"""Steps of a scan between two bounds on the gradient of its state, and the length that a row's may have there.

Steps of gradient descent are unstable where inner weights are large, and the outer gradient can grow tenfold with each:
without a bound it overflowed. One that is longer tells nothing; usual ones are below 1.
"""


class Surprise(NamedTuple):
    """The gradient of a loss with respect to A and B: two products of two vectors, k back^T and hidden slope^T."""

    error: Tensor
    """[..., H, V], f(k) - v."""
    back: Tensor
    """[..., H, E]."""
    hidden: Tensor
    """[..., H, E]."""
    slope: Tensor
    """[..., H, V], the loss's gradient with respect to f(k)."""
    scale: Tensor
    """[..., H, 1], 1 / sqrt(1 + |G|^2) of the whole gradient G: it makes G shorter than 1."""


class Learners(Layer):
    """H networks in a layer. A subclass says how they learn, in `rates_of` and `learn`.

    Args:
        size: D.
        heads: H.
        key_size: K, what a network reads.
        hidden_size: E, its hidden units.
        value_size: V, what it answers.
        num_rates: numbers per head and step that say how it learns.
    """

    state_type: ClassVar[Any]

    def __init__(self, size: int, heads: int, key_size: int, hidden_size: int, value_size: int, num_rates: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, heads * key_size, bias=False)
        self.key = nn.Linear(size, heads * key_size, bias=False)
        self.value = nn.Linear(size, heads * value_size, bias=False)
        self.rates = nn.Linear(size, num_rates * heads)
        """The rates before a function that bounds them."""
        self.gate = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size, bias=False)
        self.A = nn.Parameter(torch.randn(heads, key_size, hidden_size) * key_size**-0.5)
        self.B = nn.Parameter(torch.randn(heads, hidden_size, value_size) * hidden_size**-0.5)

    def rates_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """The rates [..., H]: how much is forgotten, how fast is learned, and others."""
        raise NotImplementedError

    def learn(self, token: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Tensor, Any]:
        """What is read and the error before, [B, H, V] each, and the next state, from q, k, v and the rates."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equations."""
        found, _, after = self.learn(self.tokens(x), state)
        return self.leaving(found, x), after

    def scan(self, x: Tensor, start: Tensor, state: State) -> tuple[Tensor, State]:
        """Step by step, all rows and heads at once; the maps of the inputs are done for all steps at once."""
        tokens = self.tokens(x)
        fresh, now = self.state_type(*self.initial_state(start.shape[1])), self.state_type(*state)
        reads, errors = [], []
        for t, (opens, *token) in enumerate(zip(start.unbind(), *(each.unbind() for each in tokens))):
            if t % BOUNDED_EVERY == 0:
                bound_gradients(now)
            found, error, now = self.learn(tuple(token), reset(now, fresh, opens))
            reads.append(found)
            errors.append(error)
        self.watched = {
            "surprise": torch.stack(errors).detach().square().sum(-1),
            "keep": 1 - tokens[3].detach(),
            "rate": tokens[4].detach(),
        }
        return self.leaving(torch.stack(reads), x), now

    def tokens(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries and keys [..., H, K], values [..., H, V], and the rates [..., H]."""
        heads = len(self.A)
        q, k, v = (functional.silu(map_(x)).unflatten(-1, (heads, -1)) for map_ in (self.query, self.key, self.value))
        q, k = (each * torch.rsqrt(square(each) + EPS) for each in (q, k))
        return q, k, v, *self.rates_of(x)

    def leaving(self, found: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from what is read [..., H, V]."""
        return self.leave(normal_per_head(found) * functional.silu(self.gate(x)))


def bound_gradients(state: State) -> None:
    """See `BOUNDED_EVERY`. Values, and gradients that are shorter, are as they are."""
    if torch.compiler.is_compiling() or is_transformed():
        return
    for each in state:
        if each.requires_grad and each.grad_fn is not None:
            each.register_hook(_bounded)


def _bounded(gradient: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), keepdim=True)
    return gradient * (LONGEST / lengths.clamp_min(LONGEST))


def answer(A: Tensor, B: Tensor, q: Tensor) -> Tensor:
    """f(q) [..., H, V] of networks with the weights A [..., H, K, E] and B [..., H, E, V]."""
    return read(B, functional.silu(read(A, q)))


def surprise(A: Tensor, B: Tensor, k: Tensor, v: Tensor, slope: Any = None) -> Surprise:
    """The gradient for k [..., H, K] and v [..., H, V].

    `slope` maps an error [..., H, V] to the gradient of the loss with respect to f(k). Without it the loss is half of
    the squared error.
    """
    a = read(A, k)
    gate = a.sigmoid()
    hidden = a * gate
    error = read(B, hidden) - v
    slopes = error if slope is None else slope(error)
    back = (B @ slopes.unsqueeze(-1)).squeeze(-1) * (gate + hidden * (1 - gate))
    # the squared length of a product of two vectors is the product of theirs
    length = square(k) * square(back) + square(hidden) * square(slopes)
    return Surprise(error, back, hidden, slopes, torch.rsqrt(1 + length))


def square(x: Tensor) -> Tensor:
    """The squared length [..., 1] of vectors [..., N]."""
    return x.square().sum(-1, keepdim=True)

"""Miras: small networks that learn at test time, with a loss and a way to forget of one's choice.

q, k, v, f and what is added                           as in `memory.parts.learners`
alpha, eta = sigmoid(w x_t + b), delta = softplus(...) [H] each
e = f(k) - v
g = the attentional bias: how the loss depends on f(k)
    "l2"        e                                      half of |e|^2
    "lp"        e (e^2 + 1e-4)^(p/2 - 1)               |e|_p^p / p, smooth
    "huber"     e min(1, delta / |e|)                  linear where |e| is above delta
G = the gradient with respect to the weights (A, B), from g
S <- S_0 + (1 - alpha) (S - S_0) - eta G / sqrt(1 + |G|^2)
(A, B) = the retention gate: weights made of S
    "l2"        S
    "lq"        S Q^(q/2-1) / mean(Q^(q/2))^(1-2/q)    Q = S^2 + 1e-4, the mean over all weights of A or B
    "kl"        sqrt(N) (softmax(S) - 1 / N)           over the N inputs of each unit

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.parts.learners import Learners, answer, square, surprise
from palimpsest.memory.parts.stack import Stack
from palimpsest.memory.parts.tables import check_tables, times_as_logits, written
from palimpsest.refusals import check, check_choice, check_integer, check_number, choice, optional

VARIANTS = {"moneta": ("lp", "lq"), "yaad": ("huber", "l2"), "memora": ("l2", "kl")}
"""The paper's named instances: attentional bias and retention gate."""

BIASES = ("l2", "lp", "huber")
RETENTIONS = ("l2", "lq", "kl")

TIMES_AT_START = (10.0, 500.0)
"""Steps: shortest and longest time constant of forgetting of a layer's heads before training; log-uniform."""

SMALL = 1e-4
"""Added to squared errors of "lp" and to squares of S in "lq", whose powers then have a derivative at zero."""


class MirasState(NamedTuple):
    """State of Miras."""

    A: Tensor
    """[B, L, H, K, E], S - S_0 of the inner weights."""
    B: Tensor
    """[B, L, H, E, V], the same of the outer weights."""


class Miras(Stack):
    """The three models that the Miras paper builds of four choices: Moneta, Yaad and Memora; and their other mixtures.

    Of the four choices two are fixed: the architecture, a network of two layers, and the algorithm, gradient descent.
    A retention gate is a mirror map: gradients are summed up in S, and S is mapped to the weights. In the paper's
    "kl" the sum is log W, of which the softmax forgets the constant.

    As in `titans`, whose frame this is: gradients at every input and not by chunks, a start S_0 that is learned and to
    which forgetting leads (the paper: to zero), a scale that makes a gradient shorter than 1, one rate per head (the
    paper: per channel), and no short convolution. In the paper f(k) is k plus a layer norm of what the network says,
    with GELU and four times as many hidden units.

    Different from the paper, further: Yaad's loss is its eq. 15 and not eq. 16, whose gradient jumps where |e| passes
    delta, so that rounding errors of acting and of the update could end on different sides. "lq" is the mirror map of
    the squared norm of the conjugate exponent, with a mean for the sum; without the factor |S|^(q-2), as it is stated,
    weights would shrink as S grows. Memora's weights are centred, because weights of one sign cannot answer with both.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, memories per layer.
        key_size: K, what a memory reads.
        hidden_size: E, its hidden units.
        value_size: V, what it answers.
        variant: "moneta" (lp, lq), "yaad" (huber, l2) or "memora" (l2, kl).
        bias: attentional bias, "l2", "lp" or "huber", in place of the variant's.
        retention: retention gate, "l2", "lq" or "kl", in place of the variant's.
        p: exponent of "lp", 1 or more.
        q: exponent of "lq", 2 or more.
    State:
        `MirasState`, zeros at first.
    Source: arXiv 2504.13173, known here from restatements; no code of the authors was found.
    """

    state_type = MirasState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        key_size: int = 16,
        hidden_size: int = 16,
        value_size: int = 16,
        variant: str = "yaad",
        bias: str | None = None,
        retention: str | None = None,
        p: float = 3.0,
        q: float = 4.0,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        heads, key_size, value_size = check_tables(num_heads, key_size, value_size)
        hidden_size = check_integer("hidden_size", hidden_size, 1)
        output_size = check_integer("output_size", output_size, 1)
        usual = VARIANTS[check_choice("variant", variant, VARIANTS)]
        check("bias", bias, optional(choice(BIASES)))
        check("retention", retention, optional(choice(RETENTIONS)))
        rule = bias or usual[0], check_number("p", p, 1, 8), retention or usual[1], check_number("q", q, 2, 8)
        sizes = output_size, heads, key_size, hidden_size, value_size
        super().__init__(input_size, output_size, [MirasLayer(*sizes, *rule) for _ in range(num_layers)])


class MirasLayer(Learners):
    """H memories."""

    state_type = MirasState

    def __init__(
        self,
        size: int,
        heads: int,
        key_size: int,
        hidden_size: int,
        value_size: int,
        bias: str,
        p: float,
        retention: str,
        q: float,
    ) -> None:
        super().__init__(size, heads, key_size, hidden_size, value_size, num_rates=2 + (bias == "huber"))
        self.attentional_bias, self.retention, self.p, self.q = bias, retention, p, q
        with torch.no_grad():
            alpha, eta, *delta = self.rates.bias.split(heads)
            alpha.copy_(-times_as_logits(*TIMES_AT_START, heads))
            eta.fill_(-2.2)
            for each in delta:
                each.fill_(0.54)  # the softplus is 1
            if retention == "kl":
                for start in (self.A, self.B):
                    start.normal_()

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The weights to start with."""
        return tuple(each.new_zeros(batch_size, *each.shape) for each in (self.A, self.B))

    def rates_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """Alpha, eta, and delta of a Huber loss."""
        alpha, eta, *delta = self.rates(x).split(len(self.A), -1)
        return alpha.sigmoid(), eta.sigmoid(), *map(functional.softplus, delta)

    def learn(self, token: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, MirasState]:
        """A step of mirror descent."""
        q, k, v, alpha, eta, *delta = token
        new = surprise(*self.weights(*state), k, v, partial(self.slope, delta=delta))
        eta = (eta.unsqueeze(-1) * new.scale).unsqueeze(-1)
        keep = (1 - alpha)[..., None, None]
        A = keep * state[0] - eta * written(k, new.back)
        B = keep * state[1] - eta * written(new.hidden, new.slope)
        return answer(*self.weights(A, B), q), new.error, MirasState(A, B)

    def slope(self, error: Tensor, delta: list[Tensor]) -> Tensor:
        """The attentional bias's gradient with respect to f(k), from the error [..., H, V]."""
        if self.attentional_bias == "lp":
            return error * (error.square() + SMALL).pow(self.p / 2 - 1)
        if self.attentional_bias == "huber":
            (limit,) = delta
            return error * (limit.unsqueeze(-1) * torch.rsqrt(square(error) + EPS)).clamp(max=1)
        return error

    def weights(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the networks, from S - S_0."""
        A, B = self.A + A, self.B + B
        if self.retention == "lq":
            A, B = (by_power(S, self.q) for S in (A, B))
        if self.retention == "kl":
            A, B = (S.shape[-2] ** 0.5 * (S.softmax(-2) - 1 / S.shape[-2]) for S in (A, B))
        return A, B


def by_power(S: Tensor, q: float) -> Tensor:
    """The mirror map "lq" of S [..., N, M]."""
    size = S.square() + SMALL
    return S * (size / size.pow(q / 2).mean((-2, -1), keepdim=True).pow(2 / q)).pow(q / 2 - 1)

"""Memories that memax has too, each with the parameters of memax's layer, for `beside_memax.py`.

A pair holds memax's layer, ours with the same parameters, and, where the definitions differ, memax's layer with our
definition: if that one equals ours, the difference that is named is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from memax.equinox.semigroups.attn import Attention
from memax.equinox.semigroups.delta import DeltaNet
from memax.equinox.semigroups.deltap import DeltaProduct
from memax.equinox.semigroups.fart import FART
from memax.equinox.semigroups.ffm import FFM
from memax.equinox.semigroups.fwp import FWP
from memax.equinox.semigroups.gdn import GDN
from memax.equinox.semigroups.lru import LRU
from memax.equinox.semigroups.mlp import MLP
from memax.equinox.semigroups.s6 import S6
from memax.equinox.set_actions.elman import Elman
from memax.equinox.set_actions.gru import GRU
from memax.equinox.set_actions.lstm import LSTM
from memax_copies import Scan, copy, copy_gates, maps, scanned, tensor, with_step
from torch import Tensor, nn
from torch.nn import functional

from palimpsest import memory
from palimpsest.memory import gtrxl
from palimpsest.memory.deltaproduct import DeltaProductLayer
from palimpsest.memory.gla import GLALayer
from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.kernels.diagonal.selective import selective_scan
from palimpsest.memory.kernels.outer.scan import outer_scan
from palimpsest.memory.linear import LinearLayer
from palimpsest.memory.mamba import MambaLayer
from palimpsest.memory.parts.windows import Window
from palimpsest.memory.s5 import S5Layer

TABLE, WINDOW, HOUSEHOLDERS = 32, 16, 2
"""Sides of a table, inputs in a window, steps of `deltaproduct` per token."""


@dataclass
class Pair:
    """A layer of memax and ours, both from D features to D."""

    ours: nn.Module
    """Ours, whose time is taken."""
    scan: Scan
    """Our scan of whole sequences, as it is timed."""
    theirs: Any
    """memax's layer as it is published."""
    read: Scan | None = None
    """Our recurrence with memax's parameters, where `scan` also holds what memax's layer does not have."""
    alike: Any = None
    """memax's layer with our definition, where the two differ."""
    difference: str = ""
    """Where memax's definition is another one."""
    around: str = ""
    """What surrounds a recurrence that is the same."""
    seen: Callable[[Any, Any, Any], Any] = lambda h, y, x: y
    """Of memax's states, outputs and inputs, what ours gives too."""


def lstm(D: int, key: Any) -> Pair:
    """LSTM; memax's cell is read without tanh."""

    def step(cell: Any, carry: Any, inputs: Any) -> Any:
        x, h = inputs[0], carry[1]
        c, _ = cell(carry, inputs)
        return c, jax.nn.sigmoid(cell.W_o(x) + cell.U_o(h)) * jnp.tanh(c)

    theirs = LSTM(D, key)
    cell = theirs.algebra.algebra
    made = memory.make("lstm", D, output_size=D)
    copy_gates(made, [cell.W_i, cell.W_f, cell.W_c, cell.W_o], [cell.U_i, cell.U_f, cell.U_c, cell.U_o])
    return Pair(
        made, scanned(made), theirs, alike=with_step(theirs, step), difference="memax's h is o * c, without tanh"
    )


def gru(D: int, key: Any) -> Pair:
    """GRU; memax resets before the product."""

    def step(cell: Any, h: Any, x: Any) -> Any:
        z = jax.nn.sigmoid(cell.W_z(x) + cell.U_z(h))
        r = jax.nn.sigmoid(cell.W_r(x) + cell.U_r(h))
        return (1 - z) * h + z * jnp.tanh(cell.W_h(x) + r * cell.U_h(h))

    theirs = GRU(D, key)
    cell = theirs.algebra.algebra
    made = memory.make("gru", D, output_size=D)
    copy_gates(made, [cell.W_r, cell.W_z, cell.W_h], [cell.U_r, cell.U_z, cell.U_h])
    with torch.no_grad():  # the weight of the candidate is z there and 1 - z here
        for parameter in made.parameters():
            parameter[D : 2 * D].neg_()
    told = "memax resets before the recurrent product, as later versions of the paper do; ours after it, as torch does"
    return Pair(made, scanned(made), theirs, alike=with_step(theirs, step), difference=told)


def rnn(D: int, key: Any) -> Pair:
    """Elman's network; memax reads it by a linear map, which is left out of the values."""
    theirs = Elman(D, D, key=key)
    made = memory.make("rnn", D, output_size=D)
    copy_gates(made, [theirs.W_h], [theirs.algebra.algebra.U_h])
    return Pair(made, scanned(made), theirs, around="memax adds a linear map of h", seen=lambda h, y, x: h[0])


def ffm(D: int, key: Any, m: int = 32, c: int = 4) -> Pair:
    """Fast and Forgetful Memory; memax normalises after its gate."""

    class NormalFirst(FFM):
        def backward_map(self, h: Any, x: Any, key: Any = None) -> Any:
            (S, _), (x, _) = h[0], x
            z = self.mix(jnp.concatenate([S.real, S.imag], -1).reshape(-1))
            gate = self.gate_out(x)
            return self.ln(z) * gate + x * (1 - gate)

    theirs = FFM(D, m, c, key)
    made: Any = memory.make("ffm", D, output_size=D, memory_size=m, context_size=c)
    pairs = (
        (made.value, theirs.pre),
        (made.input_gate, theirs.gate_in.linear),
        (made.output_gate, theirs.gate_out.linear),
    )
    for mine, other in (*pairs, (made.mix, theirs.mix)):
        copy(mine, other)
    alpha, omega = theirs.algebra.algebra.params
    with torch.no_grad():
        # memax has real and imaginary parts side by side for each decay, and turns the other way
        made.mix.weight.copy_(made.mix.weight.view(D, m, 2, c).transpose(1, 2).reshape(D, -1))
        made.skip.weight.copy_(torch.eye(D))
        made.skip.bias.zero_()
        made.alpha.copy_(tensor(alpha))
        made.omega.copy_(-tensor(omega))
    told = "memax has LN(z * g) + x (1 - g); the authors' code in torch and ours LN(z) * g + skip(x) (1 - g)"
    return Pair(made, scanned(made), theirs, alike=NormalFirst(D, m, c, key), difference=told)


def linear(D: int, key: Any) -> Pair:
    """Linear attention; memax's normaliser forgets."""

    def step(_: Any, carry: Any, new: Any) -> Any:
        return carry[0] + new[0], carry[1] + new[1]

    theirs = FART(D, TABLE, key)
    made = LinearLayer(D, 1, TABLE, TABLE)
    pairs = (made.query, theirs.Q), (made.key, theirs.K), (made.value, theirs.V), (made.leave, theirs.output)
    for mine, other in pairs:
        copy(mine, other)
    return Pair(
        made,
        scanned(made),
        theirs,
        alike=with_step(theirs, step),
        difference="a fault in memax: its normaliser is the last key, not the sum of the keys",
        seen=lambda h, y, x: y - x,
    )


def gla(D: int, key: Any) -> Pair:
    """Sums of outer products, with decay 1; memax multiplies the query into the wrong side."""

    class OtherSide(FWP):
        def backward_map(self, h: Any, x: Any, key: Any = None) -> Any:
            return self.output((1 + jax.nn.elu(self.Q(x[0]))) @ h[0])

    theirs = FWP(D, TABLE, key)
    made = GLALayer(D, 1, TABLE, TABLE, False)
    q, k, v, leave = maps(theirs.Q, theirs.K, theirs.V, theirs.output)

    def read(x: Tensor, start: Tensor) -> Tensor:
        k_t, q_t = (1 + functional.elu(each(x)).unsqueeze(2) for each in (k, q))
        nothing = x.new_zeros(x.shape[1], 1, TABLE, TABLE)
        found, _ = outer_scan(k_t, v(x).unsqueeze(2), k_t.new_ones(k_t.shape[:3]), q_t, start, nothing)
        return leave(found.flatten(2))

    return Pair(
        made,
        scanned(made),
        theirs,
        read=read,
        alike=OtherSide(D, TABLE, key),
        difference="a fault in memax: the query meets the values, not the keys",
        around="ours decays, and has a norm and a gate",
    )


def s5(D: int, key: Any) -> Pair:
    """Complex diagonal traces; memax's is the LRU."""
    theirs = LRU(D, D, key)
    made = S5Layer(D, D)
    decay, turn = np.exp(np.float64(theirs.nu_log)), np.exp(np.float64(theirs.theta_log))
    into = np.exp(np.float64(theirs.gamma_log))[:, None] * (np.float64(theirs.B_re) + 1j * np.float64(theirs.B_im))
    rate = -decay + 1j * turn
    into *= (rate / np.expm1(rate))[:, None]  # what S5's zero-order hold takes back
    with torch.no_grad():
        made.log_decay.copy_(tensor(np.log(decay)))
        made.frequency.copy_(tensor(turn))
        made.log_step.zero_()
        made.into.copy_(tensor(np.concatenate([into.real, into.imag])))
        made.out_of.copy_(tensor(np.concatenate([theirs.C_re, -np.float64(theirs.C_im)], 1) / 2))
        made.direct.copy_(tensor(theirs.D))

    def read(x: Tensor, start: Tensor) -> Tensor:
        A, B = made.discrete()
        h, _ = diagonal_scan(A, functional.linear(x, B), start, x.new_zeros(x.shape[1], 2 * D), paired=True)
        return 2 * functional.linear(h, made.out_of) + made.direct * x

    return Pair(made, scanned(made), theirs, read=read, around="S5 has step sizes, a gelu and a gate")


def mamba(D: int, key: Any) -> Pair:
    """Traces whose decay the input chooses."""
    theirs = S6(D, D, key)
    made = MambaLayer(D, D, 1, 4)
    delta, into, out_of = maps(theirs.dt.layers[0], theirs.B, theirs.C)
    A = -tensor(theirs.A_log).exp()

    def read(x: Tensor, start: Tensor) -> Tensor:
        step = functional.softplus(delta(x))
        value = torch.expm1(step * A) / A * into(x) * x
        one = x.new_ones(*x.shape[:2], 1)
        found, _ = selective_scan(step, A[None], value, one, one, start, x.new_zeros(x.shape[1], 1, D))
        return out_of(x) * found

    told = "memax writes by zero-order hold and reads by a factor; Mamba writes delta b u, reads S^T c, and convolves"
    return Pair(made, scanned(made), theirs, read=read, around=told)


def deltanet(D: int, key: Any) -> Pair:
    """The delta rule, without decay."""
    return _delta(DeltaNet, jax.nn.relu, 1, D, (D, TABLE), key, "")


def gated_deltanet(D: int, key: Any) -> Pair:
    """The gated delta rule."""
    return _delta(GDN, jax.nn.silu, 1, D, (D, TABLE), key, "")


def deltaproduct(D: int, key: Any) -> Pair:
    """Several Householder steps per token."""
    more = "; its n steps are one, with a product element by element of the k k^T, and keys have unit length together"
    return _delta(DeltaProduct, jax.nn.silu, HOUSEHOLDERS, D, (D, TABLE, HOUSEHOLDERS), key, more)


def _delta(cls: Any, activation: Any, n: int, D: int, sizes: tuple[int, ...], key: Any, more: str) -> Pair:
    def unit(x: Any) -> Any:
        return x * lax.rsqrt(jnp.square(x).sum(0) + EPS)

    class RightSide(cls):
        def forward_map(self, x: Any, key: Any = None) -> Any:
            emb, start = x
            k, v = unit(activation(self.K(emb)).reshape(-1, n)), self.V(emb).reshape(-1, n)
            beta = 2 * jax.nn.sigmoid(self.w(emb))
            M = jnp.eye(TABLE) * (jax.nn.sigmoid(self.alpha(emb)) if hasattr(self, "alpha") else 1)
            X = jnp.zeros_like(M)
            for j in range(n):
                H = jnp.eye(TABLE) - beta[j] * jnp.outer(k[:, j], k[:, j])
                M, X = H @ M, H @ X + beta[j] * jnp.outer(k[:, j], v[:, j])
            return (M, X), start

        def backward_map(self, h: Any, x: Any, key: Any = None) -> Any:
            return self.output(unit(activation(self.Q(x[0]))) @ h[0][1])

    class Theirs(DeltaProductLayer):
        """Ours with the maps that memax has."""

        def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            act = functional.relu if activation is jax.nn.relu else functional.silu
            k_t, v_t = (each(x).unflatten(-1, (1, TABLE, n)).movedim(-1, -3) for each in (k, v))
            alpha = decay(x).sigmoid() if decay else x.new_ones(*x.shape[:-1], 1)
            return act(q(x)).unsqueeze(-2), act(k_t), v_t, alpha, 2 * w(x).sigmoid().unsqueeze(-1)

        def leaving(self, found: Tensor, x: Tensor) -> Tensor:
            return leave(found.flatten(-2))

    theirs = cls(*sizes, key)
    q, k, v, w, leave = maps(theirs.Q, theirs.K, theirs.V, theirs.w, theirs.output)
    decay = maps(theirs.alpha)[0] if hasattr(theirs, "alpha") else None
    made, same = (kind(D, n, 1, TABLE, TABLE) for kind in (DeltaProductLayer, Theirs))
    told = f"a fault in memax: I - beta k k^T multiplies the side of the values, not that of the keys{more}"
    around = "ours has silu on values too, a decay, a norm and a gate"
    return Pair(made, scanned(made), theirs, scanned(same), RightSide(*sizes, key), difference=told, around=around)


def trxl(D: int, key: Any) -> Pair:
    """Attention over a window."""
    theirs = Attention(D, WINDOW, None, key)
    theirs = eqx.tree_at(lambda layer: layer.V.bias, theirs, jnp.zeros(D))
    made = gtrxl.Layer(D, 1, False)
    sinusoids = gtrxl.sinusoids(WINDOW, D)

    def scan(x: Tensor, start: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        window = Window(start.t(), torch.zeros(len(x), dtype=torch.int64), WINDOW - 1, x.dtype)
        known = functional.pad(gtrxl.standardise(x), (0, 0, WINDOW - 1, 0))
        return made.scan(x, known, window, sinusoids.to(x), None)[0].transpose(0, 1)

    def read(x: Tensor, start: Tensor) -> Tensor:
        weights = torch.cat([tensor(theirs.K.weight), tensor(theirs.V.weight)])
        found = []
        with torch.no_grad():
            made.query.weight.copy_(tensor(theirs.Q.weight))
            made.key_value.weight.copy_(weights)
            for silent in (made.position.weight, *made.mlp.parameters()):
                silent.zero_()
            for sign in (1, -1):  # the relu after `merge` lets one half pass at a time
                made.merge.weight.copy_(sign * torch.eye(D))
                found.append(scan(x, start) - x)
        return found[0] - found[1]

    told = "ours has relative positions, residual sums, a relu and an mlp"
    return Pair(made, scan, theirs, read=read, around=told)


def none(D: int, key: Any) -> Pair:
    """No memory."""
    theirs = MLP(D, key)
    made: Any = memory.make("none", D, output_size=D)
    copy(made.layer, theirs.project.layers[0])
    alike = eqx.tree_at(lambda layer: layer.project.layers[1], theirs, eqx.nn.Lambda(jnp.tanh))
    return Pair(made, scanned(made), theirs, alike=alike, difference="memax has a leaky relu, ours tanh")


PAIRS: dict[tuple[str, str], Callable[[int, Any], Pair]] = {
    ("lstm", "LSTM"): lstm,
    ("gru", "GRU"): gru,
    ("rnn", "Elman"): rnn,
    ("ffm", "FFM"): ffm,
    ("linear", "FART"): linear,
    ("gla, fixed", "FWP"): gla,
    ("s5", "LRU"): s5,
    ("mamba, N = 1", "S6"): mamba,
    ("deltaproduct, n = 1", "DeltaNet"): deltanet,
    ("deltaproduct, n = 1, decaying", "GDN"): gated_deltanet,
    ("deltaproduct, n = 2", "DeltaProduct"): deltaproduct,
    ("trxl", "Attention"): trxl,
    ("none", "MLP"): none,
}
"""Our name and memax's -> the function that makes both of D features."""

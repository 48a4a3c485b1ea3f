"""The attention of the Spatially-Aware Transformer, flat or by place, and its time code.

An entry that was stored at tau is read at t as M = [m, s(a)]. m is its content, and s(a) is the code of its age
a = t - tau:

    s(a) = [sin(a w_0), cos(a w_0), ..],  w_i = 10000^(-i/8),  i = 0 .. 7                                [16]

Ages are never computed. With sin + i cos as one complex number per rate,

    s(t - tau) = conj(s(tau)) (-cos(t w) + i sin(t w)).

So s(tau) is stored. A vector that is multiplied with it, or is a mean of it, is rotated by t instead. The maps to keys
and values are applied to the query and to the weighted mean, not to every entry: q . (W M) = (W^T q) . M.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.arithmetic.as_built import is_matrix
from palimpsest.memory.kernels.arithmetic.dispatch import in_full_precision
from palimpsest.memory.messages import described

RATES = 8
"""Rates of the time code, radians per step: from 1 down to 10000^(-7/8), 20,000 steps a turn."""


class View(NamedTuple):
    """The J keys of each of G groups, and which of them each of the C steps in a group may read."""

    content: Tensor
    """[G, J, D], m of the keys."""
    content_t: Tensor
    """[G, D, J], the same, transposed."""
    code: Tensor
    """[G, J, 16], s(tau) of the keys."""
    readable: Tensor
    """[G, C, J] bool. Each step may read at least one key."""
    barrier: Tensor
    """[G, C, J], 0 for readable keys and -inf for the others."""
    turn: Tensor
    """[G, C, 1, 8] complex, -cos + i sin of the time of the reading step."""
    among: Tensor | None
    """[G, J, P], the place of each key, one-hot; None for a flat read."""


def view(now: Tensor, keys: Tensor, readable: Tensor, among: Tensor | None) -> View:
    """The `View` of keys [G, J, D + 16], m and s(tau), for steps that read at the times `now` [G, C]."""
    content, code = keys.split([keys.shape[-1] - 2 * RATES, 2 * RATES], -1)
    s = time_code(now, torch.promote_types(keys.dtype, torch.float32)).unflatten(-1, (RATES, 2))
    turn = torch.view_as_complex(torch.stack([-s[..., 1], s[..., 0]], -1)[:, :, None])
    barrier = torch.zeros(readable.shape, dtype=keys.dtype, device=keys.device).masked_fill_(~readable, -math.inf)
    # With one step per group, memory bandwidth is the limit: a copy of the keys would cost more than it saves.
    content_t = content.mT if readable.shape[1] == 1 else content.mT.contiguous()
    return View(content, content_t, code, readable, barrier, turn, among)


def time_code(now: Tensor, dtype: torch.dtype) -> Tensor:
    """s(now) [..., 16] of steps `now` [...] int64. Angles are float64, because float32 is too coarse for long times."""
    rates = 1e4 ** (-torch.arange(RATES, dtype=torch.float64, device=now.device) / RATES)
    angle = now.unsqueeze(-1) * rates
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).to(dtype)


class ReadLayer(nn.Module):
    """h <- h + out(attention of LN(h) on M), then h <- h + MLP(LN(h)). The MLP has one hidden layer of size D.

    The weights of the attention start by Glorot's rule, as in `nn.MultiheadAttention`. With the rule of `nn.Linear`,
    one entry among 40 would change the stream five times less, and training would not find it.

    Args:
        size: D, width; a multiple of num_heads.
        num_heads: heads of the attention on entries.
        top_k: places that a hierarchical read attends to; 0 for a flat read.
    """

    def __init__(self, size: int, num_heads: int, top_k: int = 0) -> None:
        super().__init__()
        self.num_heads, self.top_k = num_heads, top_k
        entry_size = size + 2 * RATES
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(entry_size, size, bias=False)
        self.value = nn.Linear(entry_size, size, bias=False)
        self.out = nn.Linear(size, size)
        for projection in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(projection.weight)
        self.norm_mlp = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        if top_k:
            self.place_query = nn.Linear(size, size)
            self.place_key = nn.Linear(entry_size, size, bias=False)

    def forward(self, h: Tensor, seen: View) -> Tensor:
        """Map the stream h [G, C, D] to that of the next layer. Each step attends to its readable keys in `seen`."""
        n = self.norm(h)
        weights = _scores(self.query(n), self.key, self.num_heads, seen)
        if seen.among is None:
            weights = weights.softmax(-1)
        else:
            place_scores = _scores(self.place_query(n), self.place_key, 1, seen)
            weights = by_place(weights, place_scores.squeeze(2), seen.readable, seen.among, self.top_k)
        h = h + self.out(_means(weights, self.value, seen))
        return h + self.mlp(self.norm_mlp(h))

    def scores(self, h: Tensor, seen: View) -> Tensor:
        """Scores [G, C, H, J] of each step and head for the entries."""
        return _scores(self.query(self.norm(h)), self.key, self.num_heads, seen)


@in_full_precision
def by_place(scores: Tensor, place_scores: Tensor, readable: Tensor, among: Tensor, top_k: int) -> Tensor:
    """Weights [G, C, H, J] of a hierarchical read: a softmax over the best places times a softmax inside each place.

    Args:
        scores: [G, C, H, J] of the entries, -inf where unreadable.
        place_scores: [G, C, J], -inf where unreadable. Their mean over a place is the score of its mean entry.
        readable: [G, C, J] bool.
        among: [G, J, P], the places of the entries, one-hot.
        top_k: number of places that get weight, at most P; fewer if fewer hold an entry.
    """
    G, C, H, J = scores.shape
    counts = readable.to(among.dtype) @ among
    means = place_scores.masked_fill(~readable, 0.0) @ among / counts.clamp_min(1.0)
    best, which = means.masked_fill(counts == 0, -math.inf).topk(top_k, -1)
    chosen = torch.zeros_like(means).scatter(-1, which, best.softmax(-1))[:, :, None]
    with torch.no_grad():
        places = among.argmax(-1)[:, None, None].expand_as(scores)
        peak = scores.new_full((G, C, H, among.shape[-1]), -math.inf)
        peak = peak.scatter_reduce(-1, places, scores, "amax").gather(-1, places)
        peak = peak.masked_fill(peak == -math.inf, 0.0)
    raised = (scores - peak).exp()
    totals = (raised.view(G, C * H, J) @ among).view(G, C, H, among.shape[-1])  # 1 or more where a place holds an entry
    shares = chosen / totals.masked_fill(totals == 0, 1.0)
    return raised * (shares.flatten(1, 2) @ among.mT).view_as(raised)


def _scores(query: Tensor, key: nn.Linear, num_heads: int, seen: View) -> Tensor:
    """Scores of queries [G, C, D]: q . (key M) / sqrt(D / H) + barrier for each of H heads, [G, C, H, J]."""
    G, C, D = query.shape
    H, J = num_heads, seen.code.shape[1]
    if not is_matrix(key):
        q = query.view(G, C, H, D // H) * (D // H) ** -0.5
        return torch.einsum("gche,gcjhe->gchj", q, _mapped(key, H, seen)) + seen.barrier[:, :, None]
    q = query.reshape(G * C, H, D // H).transpose(0, 1)
    maps = (key.weight * (D // H) ** -0.5).view(H, D // H, -1)
    content = torch.bmm(q, maps[..., :D]).transpose(0, 1).reshape(G, C * H, D)
    code = torch.bmm(q, maps[..., D:]).transpose(0, 1).view(G, C, H, 2 * RATES)
    barrier = seen.barrier[:, :, None].expand(G, C, H, J).reshape(G, C * H, J)
    scores = torch.baddbmm(barrier, _rotated(code, seen.turn).flatten(1, 2), seen.code.mT)
    return torch.baddbmm(scores, content, seen.content_t).view(G, C, H, J)


def _means(weights: Tensor, value: nn.Linear, seen: View) -> Tensor:
    """Mean of `value` M over the keys with weights [G, C, H, J], heads side by side: [G, C, D]."""
    G, C, H, J = weights.shape
    D = seen.content.shape[-1]
    if not is_matrix(value):
        return torch.einsum("gchj,gcjhe->gche", weights, _mapped(value, H, seen)).flatten(2)
    weights = weights.view(G, C * H, J)
    content = torch.bmm(weights, seen.content).view(G * C, H, D).transpose(0, 1)
    code = _rotated(torch.bmm(weights, seen.code).view(G, C, H, 2 * RATES), seen.turn).flatten(0, 1).transpose(0, 1)
    maps = value.weight.view(H, D // H, -1)
    heads = torch.baddbmm(torch.bmm(code, maps[..., D:].mT), content, maps[..., :D].mT)
    return heads.transpose(0, 1).reshape(G, C, D)


def _mapped(map_: nn.Linear, num_heads: int, seen: View) -> Tensor:
    """What a map that is more than a matrix makes of M, of every key at every step: [G, C, J, H, D / H]."""
    ages = _rotated(seen.code[:, None], seen.turn)
    M = torch.cat([seen.content[:, None].expand(*ages.shape[:3], -1), ages], -1)
    return map_(M).unflatten(-1, (num_heads, -1))


def _rotated(code: Tensor, turn: Tensor) -> Tensor:
    """Rotate a code [G, C, H, 16] of times into one of ages, or back. The map is its own inverse and transpose."""
    # no complex number is made of bfloat16
    wide = code.to(turn.real.dtype)
    rotated = torch.view_as_complex(wide.unflatten(-1, (RATES, 2))).conj() * turn
    return torch.view_as_real(rotated).flatten(-2).to(code.dtype)


def checked_places(place: Tensor | None, num_places: int, size: tuple[int, ...], like: Tensor) -> Tensor:
    """`place` of a sequence of size [T, B], or of a single step of size [B], as [T, B]; on the device of `like`."""
    if place is None:
        if num_places > 1:
            raise ValueError(
                f"place is missing: num_places={num_places} needs it, int64 {list(size)}; give it, or set num_places=1"
            )
        place = torch.zeros(size, dtype=torch.int64, device=like.device)
    if not isinstance(place, Tensor) or place.shape != size or place.dtype != torch.int64:
        raise ValueError(f"place must be {list(size)} int64; got {described(place)}")
    return place if len(size) == 2 else place.unsqueeze(0)

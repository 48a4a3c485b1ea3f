"""Memoria: engrams of short and long term, linked where they fire together, which live longer where they are attended.

e_t = LN(W_e x_t),  q = W_q x_t                        [E]; [H, E]. LN without parameters
corr(j) = e_t . e_j / E                                how alike the working memory e_t and the engram j are
short: the k_s best of the last S engrams
long:  from each of these to the long-term engram that fired with it most often; from there on to the one that fired
       with that one most often and is not found yet, d times; of all that are found the k_l best
a = softmax_j(q . e_j / sqrt(E))                       over what was reminded, per head
added = W_out sum_j a_j e_j                            0 where nothing was
links_ij <- links_ij + 1                               for all i and j that were reminded, and e_t
life_j <- life_j - 1 + c a_j n                         a averaged over heads, n engrams that were reminded
life_t = lifespan                                      e_t takes an empty slot, or that of the shortest life

An engram whose life has ended is gone. x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.refusals import check_integer, check_number

UNITS = 1024
"""Lives are counted, and likenesses are ranked, in steps of 1 / UNITS: engrams that are alike but for rounding errors
are ranked by their slot, so that acting and the update remind the same ones."""

NONE = -(1 << 62)
"""Rank of what may not be chosen."""


class MemoriaState(NamedTuple):
    """State of Memoria; n = S + N slots."""

    engrams: Tensor
    """[B, L, n, E]."""
    links: Tensor
    """[B, L, n, n] int64, how often two engrams fired together."""
    life: Tensor
    """[B, L, n] int64, inputs that an engram has left to live, times `UNITS`; 0 where a slot is empty."""
    age: Tensor
    """[B, L, n] int64, inputs since the engram's own."""


class Memoria(Stack):
    """Engrams of working, short-term and long-term memory.

    In the paper a step is a segment of text, and what is stored of it are the outputs of a transformer. Here it is one
    input, and the working memory is one engram. Like the public code: chains of the strongest links, ended where none
    is left; the gain in life by the share of attention times `extension`; working memory fires too.

    Different from it:

    - Slots are of a fixed number. A new engram takes an empty one, or that of the long-term engram with the shortest
      life. Short-term are the last S inputs, alive or not.
    - Engrams have unit variance, and the nearest is the most alike.
    - An input is reminded of all short-term engrams by default. The paper chooses the most alike of them.
    - Equal links go to the lowest slot; the code draws. No link of 0 is followed.
    - Nothing is detached: within a scan, gradients reach every input that is reminded, through what is read of it. None
      pass through what is chosen, or through lives.
    - An engram's life is counted from the input after its own.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, heads that read.
        engram_size: E, numbers in an engram.
        short_term: S, the newest engrams.
        long_term: N, slots for older ones.
        remind_short: k_s, short-term engrams that an input is reminded of; at most S are. The choice is by likeness and
            has no gradient. So with fewer than S an agent does not learn to be reminded of what looks different, as a
            cue in a corridor does.
        remind_long: k_l, long-term engrams that it is reminded of.
        search_depth: d, links that are followed from a long-term engram to others; 0 or more.
        lifespan: inputs that an engram lives if it is never reminded; 1 or more.
        extension: c, inputs that an engram gains where all that is reminded is attended alike; 0 to 1000.
    State:
        `MemoriaState`, zeros at first.
    Source: arXiv 2310.03052 and its public code, cosmoquester/memoria.
    """

    state_type = MemoriaState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        engram_size: int = 32,
        short_term: int = 16,
        long_term: int = 16,
        remind_short: int = 16,
        remind_long: int = 4,
        search_depth: int = 3,
        lifespan: int = 64,
        extension: float = 8.0,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        sizes = (
            check_integer("output_size", output_size, 1),
            check_integer("num_heads", num_heads, 1),
            check_integer("engram_size", engram_size, 1),
            check_integer("short_term", short_term, 1),
            check_integer("long_term", long_term, 1),
            check_integer("remind_short", remind_short, 1),
            check_integer("remind_long", remind_long, 1),
            check_integer("search_depth", search_depth, 0),
            check_integer("lifespan", lifespan, 1),
        )
        extension = check_number("extension", extension, 0, 1000)
        super().__init__(input_size, output_size, [MemoriaLayer(*sizes, extension) for _ in range(num_layers)])


class Reminded(NamedTuple):
    """What an input reminds of, k engrams, and what it leaves behind."""

    slots: Tensor
    """[B, k], any number where fewer are reminded."""
    valid: Tensor
    """[B, k] bool."""
    written: Tensor
    """[B, n] bool, the slot of the input's own engram."""
    links: Tensor
    life: Tensor
    age: Tensor


class MemoriaLayer(Layer):
    """Engrams and their links."""

    def __init__(
        self,
        size: int,
        heads: int,
        width: int,
        short: int,
        long: int,
        remind_short: int,
        remind_long: int,
        depth: int,
        lifespan: int,
        extension: float,
    ) -> None:
        super().__init__()
        self.heads, self.width, self.short, self.slots = heads, width, short, short + long
        self.remind_short, self.remind_long = min(remind_short, short), min(remind_long, self.slots)
        self.depth, self.lifespan, self.extension = depth, lifespan, extension
        self.engram = nn.Linear(size, width)
        self.query = nn.Linear(size, heads * width)
        self.leave = nn.Linear(heads * width, size, bias=False)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """No engrams."""
        B, n = batch_size, self.slots
        none = torch.zeros(B, n, dtype=torch.int64, device=self.like.device)
        return self.like.new_zeros(B, n, self.width), none.new_zeros(B, n, n), none, none

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        engrams, links, life, age = state
        e, q = self.tokens(x)
        new = self.remind(e.detach(), q.detach(), engrams.detach(), links, life, age)
        found = picked(engrams, new.slots).masked_fill(~new.valid.unsqueeze(-1), 0)
        engrams = torch.where(new.written.unsqueeze(-1), e.unsqueeze(1), engrams)
        return self.leaving(q, found, new.valid), (engrams, new.links, new.life, new.age)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What is reminded step by step, without gradient; then all reads at once."""
        T, B = start.shape
        n = self.slots
        e, q = self.tokens(x)
        engrams, links, life, age = state[0].detach(), *state[1:]
        # which of the n + T engrams of a row stands in each slot; -1 for one that was emptied by a start
        stands = torch.arange(n, device=x.device).expand(B, n)
        which, valids, lives = [], [], []
        for t, (opens, e_t, q_t) in enumerate(zip(start.unbind(), e.detach().unbind(), q.detach().unbind())):
            opens = opens.unsqueeze(1)
            stands = stands.masked_fill(opens, -1)
            links = links.masked_fill(opens.unsqueeze(2), 0)
            life, age = life.masked_fill(opens, 0), age.masked_fill(opens, 0)
            new = self.remind(e_t, q_t, engrams, links, life, age)
            which.append(stands.gather(1, new.slots))
            valids.append(new.valid)
            engrams = torch.where(new.written.unsqueeze(-1), e_t.unsqueeze(1), engrams)
            stands = stands.masked_fill(new.written, n + t)
            links, life, age = new.links, new.life, new.age
            lives.append(life)
        table, valid = torch.cat([state[0], e.transpose(0, 1)], 1), torch.stack(valids)
        found = picked(table, torch.stack(which, 1).clamp_min(0).flatten(1)).unflatten(1, (T, -1)).transpose(0, 1)
        found = found.masked_fill(~valid.unsqueeze(-1), 0)
        last = picked(table, stands.clamp_min(0)).masked_fill((stands < 0).unsqueeze(-1), 0)
        short, long = valid.to(x.dtype).split([self.remind_short, self.remind_long], -1)
        self.watched = {
            "reminded_short": short.sum(-1, keepdim=True),
            "reminded_long": long.sum(-1, keepdim=True),
            "alive": (torch.stack(lives) > 0).to(x.dtype).sum(-1, keepdim=True),
        }
        return self.leaving(q, found, valid), (last, links, life, age)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E [..., E] and q [..., H, E]."""
        e = functional.layer_norm(self.engram(x), (self.width,), eps=1e-2)
        return e, self.query(x).unflatten(-1, (self.heads, -1))

    def remind(self, e: Tensor, q: Tensor, engrams: Tensor, links: Tensor, life: Tensor, age: Tensor) -> Reminded:
        """Choose what e [B, E] reminds of, attend to it by q [B, H, E], and keep the books; no gradient passes."""
        n = self.slots
        number = torch.arange(n, device=e.device)
        alive = life > 0
        old = age >= self.short
        likeness = ((engrams @ e.unsqueeze(-1)).squeeze(-1) * (UNITS / self.width)).round().long()
        rank = likeness * n - number
        best, near = rank.masked_fill(~alive | old, NONE).topk(self.remind_short)
        short = best > NONE
        at, linked, found = near, short, torch.zeros_like(alive)
        for _ in range(1 + self.depth):
            strength = links.gather(1, at.unsqueeze(-1).expand(-1, -1, n))
            reachable = (alive & old & ~found).unsqueeze(1) & (strength > 0)
            best, at = (strength * n - number).masked_fill(~reachable, NONE).max(-1)
            linked = linked & (best > NONE)
            found = marked(found, at, linked)
        best, far = rank.masked_fill(~found, NONE).topk(self.remind_long)
        slots, valid = torch.cat([near, far], 1), torch.cat([short, best > NONE], 1)

        weights = self.weights(q, picked(engrams, slots).masked_fill(~valid.unsqueeze(-1), 0), valid).mean(1)
        gain = weights * valid.sum(1, keepdim=True) * (self.extension * UNITS)
        life = life.scatter_add(1, slots, gain.round().long() * valid)
        life = (life - UNITS).clamp_min(0)
        # those that are of the last S inputs at the next step are not replaced
        kept = (life > 0) & (age + 1 < self.short)
        slot = (life * n + number).masked_fill(kept, -NONE).min(1).indices
        written = number == slot.unsqueeze(1)
        fired = marked(written, slots, valid)
        gone = written.unsqueeze(1) | written.unsqueeze(2)
        links = links.masked_fill(gone, 0) + (fired.unsqueeze(1) & fired.unsqueeze(2))
        return Reminded(
            slots,
            valid,
            written,
            links,
            life.masked_fill(written, self.lifespan * UNITS),
            (age + 1).masked_fill(written, 0),
        )

    def weights(self, q: Tensor, found: Tensor, valid: Tensor) -> Tensor:
        """Weights [..., H, k] of q [..., H, E] over found [..., k, E]; zeros where nothing is valid [..., k]."""
        valid = valid.unsqueeze(-2)
        scores = (q @ found.mT) * self.width**-0.5
        # the lowest finite number: where all are masked, the softmax is finite and is masked below
        weights = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).softmax(-1)
        return weights.masked_fill(~valid, 0)

    def leaving(self, q: Tensor, found: Tensor, valid: Tensor) -> Tensor:
        """What is added to the stream [..., D]."""
        return self.leave((self.weights(q, found, valid) @ found).flatten(-2))


def picked(table: Tensor, which: Tensor) -> Tensor:
    """Rows `which` [B, k] of table [B, n, E]: [B, k, E]."""
    return table.gather(1, which.unsqueeze(-1).expand(-1, -1, table.shape[-1]))


def marked(mask: Tensor, at: Tensor, where: Tensor) -> Tensor:
    """`mask` [B, n] bool, and true at the places `at` [B, k] where `where` [B, k] says so."""
    return mask | (torch.zeros_like(mask, dtype=torch.int64).scatter_add(1, at, where.long()) > 0)

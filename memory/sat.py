"""Spatially-Aware Transformer: slots of entries with time and place, read by attention.

An input x_t at place p_t becomes the entry

    e_t = encode(x_t) + place_embedding[p_t],    m_t = LN(e_t)                         [D]

m_t is stored in a slot before the step reads, so a step can read its own entry. Every layer reads an entry of age
a = t - tau as M = [m_tau, s(a)], where s is a sinusoid (`place_attention`). The query is a residual stream that starts
as e_t. y_t is the stream after the last layer.

With read="hierarchical", one scaled head scores every place: it compares the query with the mean M of the place. The
read attends inside each of the top_k best places. A softmax over their scores weights the results.

Time is the age of an entry, not the step of the episode. So a window of recent entries looks the same at step 10,000
as at step 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, Panel
from palimpsest.memory.kernels.arithmetic.dispatch import as_array, is_watched, refuse_tracing
from palimpsest.memory.messages import described
from palimpsest.memory.parts.allocation import BY_ATTENTION, STRATEGIES, Slots, allocate, allocate_step, reads
from palimpsest.memory.parts.place_attention import RATES, ReadLayer, checked_places, time_code, view
from palimpsest.memory.parts.steps import episode_steps
from palimpsest.memory.parts.strategy_values import StrategyValues
from palimpsest.refusals import check_choice, check_divides, check_integer

__all__ = ["STRATEGIES", "SATState", "SpatiallyAwareTransformer", "StrategyValues"]

CHUNK = 32
"""Steps of a scan that are read together. Every step pays for all keys of its chunk, readable or not."""


class SATState(NamedTuple):
    """S slots; integers are int64."""

    slots: Tensor
    """[B, S, D + 16], m and s(tau) of the entries; zeros where a slot is empty."""
    time: Tensor
    """[B, S], tau: the step of its episode at which an entry was stored; -1 where the slot is empty."""
    place: Tensor
    """[B, S], the place of an entry."""
    visits: Tensor
    """[B, num_places], number of entries ever stored from a place in this episode."""
    steps: Tensor
    """[B], inputs read in this episode."""
    strategy: Tensor
    """[B], index into `STRATEGIES`, read at the episode's first input."""
    attended: Tensor
    """[B, S], the step at which an entry was last attended or stored; 0 unless the strategy is lru or lfu."""
    attentions: Tensor
    """[B, S], how often it was attended; the same."""


class SpatiallyAwareTransformer(Memory):
    """Attention over entries. A strategy keeps or drops them by time and place.

    The memory of the public code is a finished sequence, and its query comes after the sequence. Further differences:

    - An entry is one step, not a chunk.
    - The query's own entry is stored and read. The public code lets the query attend to itself instead.
    - The query has a place.
    - m is normalised; the public code reads e.
    - The sinusoid of the age has 16 features beside m, and the maps to keys and values weight them. The public code
      adds D features to e.
    - Places are learned vectors, as in the paper. The public code has sinusoids of the place's index.
    - Entries are not detached: within a scan, gradients reach every input that is read.

    As in the public code, all layers read the same memory.

    Args:
        input_size: F, features per input.
        output_size: D, width; a multiple of num_heads.
        num_places: number of places that `place` may name; with 1, `place` may be None.
        capacity: number of slots.
        layout: "flat": all places share the slots; "place" (SAT-PM): each place has capacity // num_places slots.
        read: "flat": one attention over all entries; "hierarchical" (SAT-PM-PH): choose places first, then attend
            inside the best ones; needs layout="place".
        allocator: which entry is replaced when the slots are full, one of `STRATEGIES` (with layout="place" only fifo
            and lifo, inside a place), or "adaptive": `strategy` selects one of them. For lru and lfu an input attends
            to the entry whose score in the first layer, a mean over heads, is the highest.
        num_layers: number of layers of attention and MLP.
        num_heads: heads of each layer.
        top_k: number of places that a hierarchical read attends to; fewer if fewer hold an entry.
        num_tasks: number of tasks that an adaptive allocator distinguishes.
    State:
        See `SATState`; capacity * (D + 16) floats per row.

    Attributes:
        strategy_values: `StrategyValues` with allocator="adaptive", else None. It learns from returns in its own
            `update` and holds no parameters. Neither `step` nor `scan` uses it. The caller that runs the episodes calls
            `choose` when a memory is reset, and passes the result as `strategy`.
    Source: arXiv 2402.15160; lru and lfu: arXiv 2401.04881.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_places: int = 1,
        capacity: int = 64,
        layout: str = "flat",
        read: str = "flat",
        allocator: str = "fifo",
        num_layers: int = 2,
        num_heads: int = 4,
        top_k: int = 4,
        num_tasks: int = 1,
    ) -> None:
        super().__init__(input_size, output_size)
        num_places = check_integer("num_places", num_places, 1)
        capacity = check_integer("capacity", capacity, 1)
        num_layers = check_integer("num_layers", num_layers, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        top_k = check_integer("top_k", top_k, 1)
        num_tasks = check_integer("num_tasks", num_tasks, 1)
        check_choice("layout", layout, ("flat", "place"))
        check_choice("read", read, ("flat", "hierarchical"))
        check_choice("allocator", allocator, (*STRATEGIES, "adaptive"))
        check_divides("num_heads", num_heads, "output_size", output_size)
        if layout == "place" and allocator not in ("fifo", "lifo"):
            raise ValueError(
                f"layout='place' has the allocators 'fifo' and 'lifo'; got {allocator!r}: use layout='flat'"
            )
        if layout == "place" and capacity < num_places:
            raise ValueError(
                "layout='place' needs a slot for every place, capacity >= num_places; "
                f"got capacity={capacity}, num_places={num_places}"
            )
        if read == "hierarchical" and layout != "place":
            raise ValueError(f"read='hierarchical' needs layout='place'; got layout={layout!r}")
        self.num_places = num_places
        self.layout, self.read, self.allocator = layout, read, allocator
        self.slots_per_place = capacity // num_places if layout == "place" else capacity
        self.num_slots = self.slots_per_place * (num_places if layout == "place" else 1)
        self.encode = nn.Linear(input_size, output_size)
        self.place_embedding = nn.Parameter(torch.randn(num_places, output_size) / math.sqrt(output_size))
        self.norm = nn.LayerNorm(output_size)
        places_read = min(top_k, num_places) if read == "hierarchical" else 0
        self.layers = nn.ModuleList(ReadLayer(output_size, num_heads, places_read) for _ in range(num_layers))
        self.strategy_values = StrategyValues(num_tasks) if allocator == "adaptive" else None

    def initial_state(self, batch_size: int) -> SATState:
        """Empty slots."""
        B, S = batch_size, self.num_slots

        def integers(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=self.device)

        return SATState(
            torch.zeros(B, S, self.output_size + 2 * RATES, dtype=self.dtype, device=self.device),
            integers(B, S) - 1,
            integers(B, S),
            integers(B, self.num_places),
            integers(B),
            integers(B),
            integers(B, S),
            integers(B, S),
        )

    def step(
        self, x: Tensor, state: SATState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, SATState]:
        """Store one entry and read the slots; see `Memory.step`.

        Raises:
            ValueError: a place is missing or out of range, or a fresh state gets no valid strategy.
        """
        return self._step(x, state, place, strategy, keep_state=True)

    def advance(
        self, x: Tensor, state: SATState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, SATState]:
        """`step` without a copy of the slots; see `Memory.advance`."""
        return self._step(x, state, place, strategy, keep_state=torch.is_grad_enabled())

    def _step(
        self, x: Tensor, state: SATState, place: Tensor | None, strategy: Tensor | None, keep_state: bool
    ) -> tuple[Tensor, SATState]:
        B = self.check_step(x, state)
        place = checked_places(place, self.num_places, (B,), x)
        alone = STRATEGIES.index(self.allocator) if self.strategy_values is None else BY_ATTENTION
        if is_watched() and alone < BY_ATTENTION:
            fixed = torch.full_like(place[0], alone)
            slots, slot, now = allocate_step(state[1:6], place[0], fixed, self.layout == "place")
            slots = (*slots, state.attended, state.attentions)
        else:
            start = np.zeros((1, B), dtype=np.bool_)
            strategy = strategy[None] if isinstance(strategy, Tensor) else strategy
            arrays, *at = self._allocate(x[None], state, place, start, strategy, keep_state)
            slots, (slot, now) = tuple(_on(x, s) for s in arrays), (_on(x, each[0]) for each in at)
        h, stored = self._entries(x, place[0], now)
        put = Tensor.index_put if keep_state else Tensor.index_put_
        contents = put(state.slots, (torch.arange(B, device=x.device), slot), stored)
        after = SATState(contents, *slots)
        origin = self._slot_places().expand(B, -1) if self.read == "hierarchical" else None
        y = self._read(h[:, None], now[:, None], contents, (after.time >= 0)[:, None], origin)
        return y.squeeze(1), after

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: SATState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, SATState]:
        """Store and read a sequence, `CHUNK` steps at a time; see `Memory.scan`.

        Raises:
            ValueError: as `step`, or shapes do not fit.
        """
        T, B = self.check_sequence(x, start, state)
        place = checked_places(place, self.num_places, (T, B), x)
        if x.numel() == 0:
            return x.new_empty(T, B, self.output_size), state
        C = min(CHUNK, T)
        N = -(-T // C)
        flags = np.ascontiguousarray(as_array(start))
        slots, slot, now = self._allocate(x, state, place, flags, strategy)
        plan = reads(np.ascontiguousarray(as_array(state.time) >= 0), slot, flags, C)

        def grouped(sequence: Tensor) -> Tensor:
            """[T, B, ...] as [N, B, C, ...], with zeros after T."""
            padded = functional.pad(sequence, [0, 0] * (sequence.ndim - 1) + [0, N * C - T])
            return padded.unflatten(0, (N, C)).transpose(1, 2)

        steps, places = grouped(_on(x, now)), grouped(place)
        h, stored = self._entries(grouped(x), places, steps)
        S, W = state.slots.shape[1:]
        table = torch.cat([state.slots.reshape(-1, W), stored.reshape(-1, W)])
        held = table.index_select(0, _on(x, plan.held).flatten()).view(N, B, S, W)
        origin = None
        if self.read == "hierarchical":
            origin = torch.cat([self._slot_places().expand(N, B, S), places], 2).flatten(0, 1)
        y = self._read(
            h.flatten(0, 1),
            steps.flatten(0, 1),
            torch.cat([held, stored], 2).flatten(0, 1),
            _on(x, plan.readable).flatten(0, 1),
            origin,
        )
        y = y.view(N, B, C, -1).transpose(1, 2).flatten(0, 1)[:T]

        last = _on(x, plan.last)
        contents = table.index_select(0, last.clamp_min(0).flatten()).view(B, S, W)
        after = SATState(torch.where((last >= 0)[..., None], contents, 0.0), *(_on(x, s) for s in slots))
        # copies, because `advance` may write into the returned state
        self.watched = {"slots": tuple(each.clone() for each in after[1:])}
        return y, after

    def context(self) -> Context:
        """K: the number of entries before one is dropped; if each place has its own slots, the number for one place.

        K_eff is K only if the oldest entry is always dropped. Otherwise an entry may stay for the whole episode.
        """
        oldest_leaves = self.allocator in (("fifo",) if self.num_places > 1 else ("fifo", "mvfo", "lvfo"))
        one_queue = self.layout == "flat" or self.num_places == 1
        return Context(self.slots_per_place, self.slots_per_place if oldest_leaves and one_queue else math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """Diagnostics after the last scan: "occupancy" [num_places], the share of all slots with entries of each place.

        With an adaptive allocator also "strategy" [6], the number of rows that use each of `STRATEGIES`.
        """
        if not self.watched:
            return {}
        time, place, _, _, strategy, *_ = self.watched["slots"]
        counts = torch.bincount(place[time >= 0], minlength=self.num_places)
        shown = {"occupancy": counts.to(self.dtype) / max(time.numel(), 1)}
        if self.strategy_values is not None:
            shown["strategy"] = torch.bincount(strategy, minlength=len(STRATEGIES)).to(self.dtype)
        return shown

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """Occupancy by place, the entry that was dropped, and how old the entry in each slot is."""
        time, place, was = after.time[0], after.place[0], before.time[0]
        now, P, filled = after.steps[0] - 1, self.num_places, time >= 0
        occupancy = torch.bincount(place[filled], minlength=P).to(self.dtype) / len(time)
        # a new episode empties the slots, which drops nothing
        gone = (was >= 0) & (was != time) & (now > 0)
        dropped = torch.zeros(P, dtype=self.dtype, device=time.device)
        dropped[before.place[0][gone]] = (now - was[gone]).to(self.dtype)
        age = torch.where(filled, (now - time).to(self.dtype), math.nan)
        places = tuple(f"place {i}" for i in range(P))
        return [
            Panel("slots in use, by place", occupancy, (0, 1), places),
            Panel("dropped: age of the entry in steps", dropped, None, places),
            Panel("age of the entry in each slot", age, None, tuple(f"slot {i + 1}" for i in range(len(time)))),
        ]

    def _allocate(
        self,
        x: Tensor,
        state: SATState,
        place: Tensor,
        start: np.ndarray,
        strategy: Tensor | None,
        keep_state: bool = True,
    ) -> tuple[Slots, np.ndarray, np.ndarray]:
        """The slots after a sequence, and the slot and the step of every entry, [T, B] each."""
        refuse_tracing()
        as_slots = partial(np.array, order="C") if keep_state else np.ascontiguousarray
        slots = Slots(*(as_slots(as_array(s)) for s in state[1:]))
        if self.strategy_values is None:
            chosen = np.full(start.shape, STRATEGIES.index(self.allocator))
        elif strategy is not None:
            if not isinstance(strategy, Tensor) or strategy.shape != start.shape or strategy.dtype != torch.int64:
                raise ValueError(
                    f"strategy must have the shape of place, {list(place.shape)} for a sequence, and be int64; "
                    f"got {described(strategy)}"
                )
            chosen = np.ascontiguousarray(as_array(strategy))
        elif start.any() or not slots.steps.all():
            raise ValueError(
                "strategy is missing: with allocator='adaptive' an episode starts with one of "
                f"{', '.join(f'{i} {name}' for i, name in enumerate(STRATEGIES))}; see strategy_values.choose"
            )
        else:
            chosen = np.zeros(start.shape, dtype=np.int64)
        places = np.ascontiguousarray(as_array(place))
        if max(chosen.max(initial=0), slots.strategy.max(initial=0)) < BY_ATTENTION or not start.size:
            return slots, *allocate(slots, places, start, chosen, self.layout == "place")
        slot, now = zip(*self._by_attention(x.detach(), state.slots.detach(), slots, place, start, chosen))
        return slots, np.concatenate(slot), np.concatenate(now)

    @torch.no_grad()
    def _by_attention(
        self, x: Tensor, held: Tensor, slots: Slots, place: Tensor, start: np.ndarray, chosen: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`allocate`, `CHUNK` steps at a time; `held` [B, S, D + 16] are the entries before the first."""
        layer = cast(ReadLayer, self.layers[0])
        now, _ = episode_steps(_on(x, start), _on(x, slots.steps))
        rows = torch.arange(x.shape[1], device=x.device)
        for first in range(0, len(x), CHUNK):
            part = slice(first, first + CHUNK)
            known = place[part].clamp(0, self.num_places - 1)  # others are refused below
            h, stored = (each.transpose(0, 1) for each in self._entries(x[part], known, now[part]))
            keys = torch.cat([held, stored], 1)
            readable = torch.ones(*h.shape[:2], keys.shape[1], dtype=torch.bool, device=x.device)
            scores = as_array(layer.scores(h, view(now[part].T, keys, readable, None)).mean(2).double().contiguous())
            places = np.ascontiguousarray(as_array(place[part]))
            slot, times = allocate(slots, places, start[part], chosen[part], self.layout == "place", scores)
            held = held.clone()
            for i, s in enumerate(_on(x, slot)):
                held[rows, s] = stored[:, i]
            yield slot, times

    def _slot_places(self) -> Tensor:
        """[S], the place of each slot, with layout="place"."""
        return torch.arange(self.num_places, device=self.device).repeat_interleave(self.slots_per_place)

    def _entries(self, x: Tensor, place: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        """The start of the stream, e [..., D], and the entry to store, m and s(now) [..., D + 16]."""
        e = self.encode(x) + functional.embedding(place, self.place_embedding)
        return e, torch.cat([self.norm(e), time_code(now, e.dtype)], -1)

    def _read(self, h: Tensor, now: Tensor, keys: Tensor, readable: Tensor, origin: Tensor | None) -> Tensor:
        """Run the layers for G groups of C steps. A group has J keys, and each step attends to those readable for it.

        h [G, C, D], now [G, C], keys [G, J, D + 16], readable [G, C, J] bool, origin [G, J] the places of the keys for
        a hierarchical read -> y [G, C, D].
        """
        spoiled = None
        # A weight of 0 times NaN is NaN. So only steps that may read a NaN get NaN, and it is taken out for the others.
        if is_watched() or not keys.detach().sum().isfinite():
            bad = ~keys.isfinite().all(-1)
            spoiled = (readable & bad[:, None]).any(-1, keepdim=True)
            keys = torch.where(bad[..., None], 0.0, keys)
            h = torch.where(spoiled, 0.0, h)
        among = None if origin is None else functional.one_hot(origin, self.num_places).to(h.dtype)
        seen = view(now, keys, readable, among)
        for layer in self.layers:
            h = layer(h, seen)
        return h if spoiled is None else torch.where(spoiled, math.nan, h)


def _on(x: Tensor, array: np.ndarray) -> Tensor:
    """A numpy array as a tensor on the device of x."""
    return torch.from_numpy(array).to(x.device)

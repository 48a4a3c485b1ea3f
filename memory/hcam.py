"""Hierarchical Chunk Attention Memory: find the best chunks of the past, then attend inside them.

The episode's inputs are cut into chunks of C = chunk_size, counted from its start. In each of L layers, with p_i the
sinusoid of place i in a chunk, at step t with place i = t mod C and c = floor(t / C) chunks finished:

    h_t   = LN(x_t)
    local = MHA of h_t + p_i over {h_s + p_j : s in the running chunk, s <= t}
    r_m   = W_q h_t . W_k mean(chunk m) / sqrt(D)                      m in the last min(c, num_chunks)
    best  = the min(top_k, those) chunks of highest r_m                of equals the newest
    mem   = sum over m in best of softmax_best(r)_m MHA of h_t over {h_s + p_j : s in chunk m}
    x_t   = x_t + local + mem
    x_t   = x_t + MLP(LN(x_t))

With borders="surprise" a chunk ends sooner, where an input surprises (`memory.parts.surprise`); C is its largest size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, Panel
from palimpsest.memory.kernels.arithmetic.dispatch import is_watched, refuse_tracing
from palimpsest.memory.kernels.attention.slices import attend_slices, best_candidates
from palimpsest.memory.kernels.attention.torch_slices import softmax_where
from palimpsest.memory.parts.chunk_layer import ChunkLayer, read_by, sinusoid
from palimpsest.memory.parts.chunk_plan import plan_chunks
from palimpsest.memory.parts.surprise import Surprises, borders
from palimpsest.refusals import check_choice, check_divides, check_flag, check_integer, check_number, refuse


class HCAMState(NamedTuple):
    """L layers, C inputs in a chunk, N chunks stored."""

    steps: Tensor
    """[B] int64, inputs read since the episode's start."""
    running: Tensor
    """[B, L, C, D], h of the unfinished chunk's inputs, zeros after them."""
    chunks: Tensor
    """[B, L, N, C, D], h of finished chunks; the episode's m-th stands in slot m mod N."""
    summaries: Tensor
    """[B, L, N, D], the mean of each."""


class EventState(NamedTuple):
    """State with borders at surprises: that of `HCAMState`, and what chunks of several sizes need."""

    steps: Tensor
    running: Tensor
    chunks: Tensor
    summaries: Tensor
    place: Tensor
    """[B] int64, inputs in the running chunk."""
    finished: Tensor
    """[B] int64, chunks finished in this episode."""
    lengths: Tensor
    """[B, N] int64, inputs in the chunks that are stored."""
    last: Tensor
    """[B, F], the last input."""
    mean: Tensor
    """[B], of `memory.parts.surprise`."""
    square: Tensor
    """[B]."""


class HCAM(Memory):
    """Hierarchical Chunk Attention Memory.

    A full chunk is stored after its last step's read and readable from the next step; when all slots are taken the
    oldest leaves. Each layer has a memory of its own, of its own inputs h.

    The paper's attention has public code, without the storage and the agent around it. Followed here: scores by one
    scaled head without biases, keys from a chunk's mean, a softmax over the chosen chunks alone. Different from it:

    - It always reads top_k slots: empty ones with next to no weight, or all alike where no chunk is finished. Here only
      finished chunks are read, and mem is zero while there is none, so nothing depends on what an empty slot holds.
    - It counts places in a chunk from the chunk's end; here from its beginning, because the running chunk's end is
      not known yet and its local attention uses the same sinusoid.
    - Its query, key and value maps inside a chunk have biases; here they have none, so that `step` can move a query
      into the space of the contents.
    - It stops gradients into stored chunks always; here `detach` does, and False lets them through.

    EM-LLM cuts a text into events where a token's surprise, its negative log-likelihood, is above the mean and gamma
    deviations of a moving window. Here nothing predicts inputs, so an input is held against the one before it. Borders
    are those of the inputs of the whole memory, the same for all layers. Its refinement of borders by the similarity of
    keys looks ahead and is left out, and so are the events next to those that are read.

    Args:
        input_size: F, features per input.
        output_size: D, width of every layer.
        chunk_size: C, inputs in a chunk; 1 or more.
        num_chunks: N, finished chunks kept per layer; 1 or more.
        top_k: chunks that a query reads; 1 to num_chunks.
        num_layers: L; 1 or more.
        num_heads: heads of both attentions; must divide D.
        detach: whether gradients stop at a chunk when it is stored. A chunk read within the scan that wrote it then
            trains the reading, not what was written.
        borders: "fixed", a chunk is full after C inputs, or "surprise", or before an input that surprises.
        gamma: with borders="surprise", how many deviations above the mean a surprise is a border; 0 to 100.
    State:
        steps [B] int64, running [B, L, C, D], chunks [B, L, N, C, D], summaries [B, L, N, D]; with borders="surprise"
        `EventState`.

    Raises:
        ValueError: a size below 1, top_k above num_chunks, heads that do not divide the width.
    Source: arXiv 2105.14039; public code in deepmind-research, hierarchical_transformer_memory. Surprises: 2407.09450.
    """

    sinusoid: Tensor

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        chunk_size: int = 16,
        num_chunks: int = 16,
        top_k: int = 4,
        num_layers: int = 2,
        num_heads: int = 4,
        detach: bool = True,
        borders: str = "fixed",
        gamma: float = 1.0,
    ) -> None:
        super().__init__(input_size, output_size)
        chunk_size = check_integer("chunk_size", chunk_size, 1)
        num_chunks = check_integer("num_chunks", num_chunks, 1)
        top_k = check_integer("top_k", top_k, 1)
        num_layers = check_integer("num_layers", num_layers, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        detach = check_flag("detach", detach)
        self.borders = check_choice("borders", borders, ("fixed", "surprise"))
        self.gamma = check_number("gamma", gamma, 0, 100)
        if top_k > num_chunks:
            refuse("top_k", f"num_chunks={num_chunks} at most", top_k)
        check_divides("num_heads", num_heads, "output_size", output_size)
        self.chunk_size, self.num_chunks, self.top_k = chunk_size, num_chunks, top_k
        self.num_layers, self.num_heads, self.detach = num_layers, num_heads, detach
        self.embed = nn.Linear(input_size, output_size)
        self.layers: Sequence[ChunkLayer] = nn.ModuleList(ChunkLayer(output_size) for _ in range(num_layers))  # type: ignore[assignment]
        self.register_buffer("sinusoid", sinusoid(chunk_size, output_size), persistent=False)

    def constants(self) -> dict[str, Tensor]:
        """The code of a place in a chunk."""
        return {"sinusoid": sinusoid(self.chunk_size, self.output_size)}

    def initial_state(self, batch_size: int) -> HCAMState | EventState:
        """Zeros: nothing read, nothing stored."""
        B, L, N, C, D = batch_size, self.num_layers, self.num_chunks, self.chunk_size, self.output_size

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=self.dtype, device=self.device)

        none = torch.zeros(B, dtype=torch.int64, device=self.device)
        parts = none, zeros(B, L, C, D), zeros(B, L, N, C, D), zeros(B, L, N, D)
        if self.borders == "fixed":
            return HCAMState(*parts)
        return EventState(*parts, none, none, none.new_zeros(B, N), zeros(B, self.input_size), zeros(B), zeros(B))

    def step(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Map x [B, F] to y [B, D]. The stored chunks are copied at steps where some row's chunk is full."""
        return self._step(x, state, keep_state=True)

    def advance(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """`step` without its copies; see `Memory.advance`."""
        return self._step(x, state, keep_state=torch.is_grad_enabled())

    def _step(self, x: Tensor, state: Any, keep_state: bool) -> tuple[Tensor, Any]:
        if isinstance(state, EventState):
            refuse_tracing()  # chunks are stored where inputs surprise
        B, L, N, C = self.check_step(x, state), self.num_layers, self.num_chunks, self.chunk_size
        if isinstance(state, EventState):
            begins = torch.zeros(1, B, dtype=torch.bool, device=x.device)
            (border,), state = self._surprised(x.unsqueeze(0), begins, state)
            ends = border & (state.place > 0)
            state = self._stored(state, ends, state.finished, state.place, keep_state)
            at, finished = state.place.masked_fill(border, 0), state.finished + ends
        else:
            at, finished = state.steps % C, state.steps // C
        rows = torch.arange(B, device=x.device)
        place_code, chunks = self.sinusoid[at], state.chunks.flatten(0, 2)
        # with gradients each layer reads a table of its own, which no write spoils
        put = Tensor.index_put if torch.is_grad_enabled() else Tensor.index_put_
        running = state.running.clone() if keep_state else state.running
        running = running.contiguous().flatten(0, 1)
        x = self.embed(x)
        for index, layer in enumerate(self.layers):
            own = rows * L + index
            h = layer.norm(x)
            running = put(running, (own, at), h.to(running.dtype))
            maps = layer.local_key, layer.local_value, self.sinusoid
            query = layer.local_query(h + place_code)
            local = read_by(query, *maps, running, own[:, None], at[:, None] + 1, x.new_ones(B, 1), self.num_heads)

            slot, weight = layer.choose(h, state.summaries[:, index], finished, self.top_k)
            maps = layer.key, layer.value, self.sinusoid
            length = state.lengths.gather(1, slot).clamp(1) if self.borders == "surprise" else torch.full_like(slot, C)
            mem = read_by(layer.query(h), *maps, chunks, own[:, None] * N + slot, length, weight, self.num_heads)
            x = layer.output(x, local, mem)

        after = state._replace(running=running.unflatten(0, (B, L)))
        full = at == C - 1
        if is_watched() and not isinstance(after, EventState):
            return x, self._stored_by_selection(after, full, finished % N)._replace(steps=state.steps + 1)
        after = self._stored(after, full, finished, torch.full_like(at, C), keep_state)
        if isinstance(after, EventState):
            return x, after._replace(place=(at + 1) % C, finished=finished + full)
        return x, after._replace(steps=state.steps + 1)

    def _stored_by_selection(self, state: HCAMState, full: Tensor, slot: Tensor) -> HCAMState:
        """The state with the running chunks of rows that are `full` [B] bool in `slot` [B], whatever the numbers are.

        Every row costs the same: what records the operations does not know which rows are full.
        """
        running = state.running
        chunk = (running.detach() if self.detach else running)[:, :, None]
        here = (full[:, None] & (torch.arange(self.num_chunks, device=slot.device) == slot[:, None]))[:, None, :, None]
        return state._replace(
            running=torch.where(full[:, None, None, None], 0, running),
            chunks=torch.where(here[..., None], chunk, state.chunks),
            summaries=torch.where(here, chunk.mean(3), state.summaries),
        )

    def _surprised(self, x: Tensor, start: Tensor, state: EventState) -> tuple[Tensor, EventState]:
        """Where x [T, B, F] surprises, [T, B] bool, and the state with what is known of surprises after it."""
        known = Surprises(state.steps, state.last, state.mean, state.square)
        border, known = borders(x.to(state.last.dtype), start, known, self.chunk_size, self.gamma)
        return border, state._replace(steps=known.steps, last=known.last, mean=known.mean, square=known.square)

    def _stored(self, state: Any, ends: Tensor, finished: Tensor, length: Tensor, keep_state: bool) -> Any:
        """The state after the running chunks of the rows `ends` [B] are stored, each the row's chunk `finished` [B].

        With `keep_state` what is written into is copied first.
        """
        row = ends.nonzero()[:, 0]
        if not len(row):
            return state
        if keep_state:
            written = {"chunks", "summaries", "lengths", "running"} & set(state._fields)
            state = state._replace(**{name: getattr(state, name).clone() for name in written})
        chunk = state.running[row].detach() if self.detach else state.running[row]
        slot = finished[row] % self.num_chunks
        state.chunks[row, :, slot] = chunk
        state.summaries[row, :, slot] = chunk.sum(2) / length[row, None, None]
        if isinstance(state, EventState):
            state.lengths[row, slot] = length[row]
        state.running[row] = 0
        return state

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: Any,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Map x [T, B, F] to y [T, B, D] in one pass over time; time and memory are linear in T.

        A chunk that began before the scan is put together from the state's running inputs and the scan's.
        """
        T, B = self.check_sequence(x, start, state)
        if x.numel() == 0:
            return x.new_empty(T, B, self.output_size), state
        C, H, D = self.chunk_size, self.num_heads, self.output_size
        events, watched = isinstance(state, EventState), {}
        if events:
            border, state = self._surprised(x, start, state)
            watched["border"] = border.to(x.dtype).unsqueeze(2)
            plan = plan_chunks(start, state.place, state.finished, C, self.num_chunks, border)
            lengths = plan.length.index_copy(0, plan.stored_index, state.lengths[plan.stored])
        else:
            plan = plan_chunks(start, state.steps % C, state.steps // C, C, self.num_chunks)
            lengths = plan.length
        unfilled = (torch.arange(C, device=x.device) >= lengths.unsqueeze(1)).unsqueeze(2)
        before = torch.arange(B, device=x.device)[:, None], plan.place[:, : C - 1]
        untouched = torch.where(plan.untouched[:, None, None, None], state.running, 0)
        final_chunks, final_summaries, runnings = [], [], []
        reads = []
        x = self.embed(x.transpose(0, 1))  # [B, T, D]
        for index, layer in enumerate(self.layers):
            h = layer.norm(x)
            held = torch.where(plan.filled, state.running[:, index][before], 0)
            tokens = torch.cat([held, h], 1)  # [B, E, D]
            placed = tokens + self.sinusoid[plan.place]
            local = attend_slices(
                layer.local_query(placed[:, C - 1 :]).reshape(B * T, H, -1),
                layer.local_key(placed).view(-1, H, D // H),
                layer.local_value(placed).view(-1, H, D // H),
                plan.local_first,
                plan.local_length,
                h.new_ones(B * T, 1),
                C,
            )

            tokens = tokens.flatten(0, 1)
            stored_row, stored_slot = plan.stored
            stored = state.chunks[stored_row, index, stored_slot].flatten(0, 1)
            source = torch.cat([stored, tokens.detach() if self.detach else tokens])
            content = source.index_select(0, plan.content).view(-1, C, D)
            if events:
                content = content.masked_fill(unfilled, 0)
            summary = content.sum(1) / lengths.unsqueeze(1)
            summary = summary.index_copy(0, plan.stored_index, state.summaries[stored_row, index, stored_slot])
            best, score = best_candidates(
                layer.score_query(h).flatten(0, 1),
                layer.score_key(summary),
                plan.oldest,
                plan.finished,
                self.top_k,
            )
            read = best >= 0
            weight = softmax_where(score, read)
            placed = content + self.sinusoid
            mem = attend_slices(
                layer.query(h).view(B * T, H, -1),
                layer.key(placed).view(-1, H, D // H),
                layer.value(placed).view(-1, H, D // H),
                best * C,
                functional.pad(lengths, (0, 1))[best],  # -1 is what is not read, of length 0
                weight,
                C,
            )
            x = layer.output(x, local.view(B, T, D), mem.view(B, T, D))

            final_chunks.append(content[plan.final_index])
            final_summaries.append(summary[plan.final_index])
            runnings.append(torch.where(plan.running_filled, tokens[plan.running].view(B, C, D), untouched[:, index]))
            age = torch.where(read, (plan.oldest + plan.finished)[:, None] - 1 - best, 0)
            reads.append((age.view(B, T, -1), weight.detach().view(B, T, -1)))

        self.watched = watched | {"reads": reads}
        row, slot = plan.final
        chunks = torch.where(plan.kept[:, None, None, None, None], state.chunks, 0)
        chunks[row, :, slot] = torch.stack(final_chunks, 1)
        summaries = torch.where(plan.kept[:, None, None, None], state.summaries, 0)
        summaries[row, :, slot] = torch.stack(final_summaries, 1)
        after = state._replace(running=torch.stack(runnings, 1), chunks=chunks, summaries=summaries)
        if events:
            kept_lengths = torch.where(plan.kept[:, None], state.lengths, 0)
            kept_lengths[row, slot] = lengths[plan.final_index]
            return x.transpose(0, 1), after._replace(place=plan.rest, finished=plan.total, lengths=kept_lengths)
        return x.transpose(0, 1), after._replace(steps=plan.total * C + plan.rest)

    def context(self) -> Context:
        """K = C, K_eff = C (L N + 1).

        The running chunk is read directly, C inputs at its last step; local attention never leaves it, so more layers
        add nothing, and an input further back than C is always read from storage. A layer's oldest chunk begins up to
        N C inputs before the running one, and what it holds of that time is the output of the layer below, which had
        read N chunks further back: L N C + C inputs at a chunk's last step, fewer before. With `detach` gradients
        stop at C. Where borders are surprises, what surprises depends on all earlier inputs of the episode.
        """
        C = self.chunk_size
        reach = C * (self.num_layers * self.num_chunks + 1) if self.borders == "fixed" else math.inf
        return Context(C, reach)

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """The weight with which each layer reads each chunk, newest first, and what is stored."""
        L, N, C = self.num_layers, self.num_chunks, self.chunk_size
        shown = self.diagnostics()
        read = torch.cat([shown[f"chunks_read_{index}"][-1] for index in range(L)])
        names = tuple(f"layer {i + 1}, {f'{j} chunks old' if j else 'newest'}" for i in range(L) for j in range(N))
        stored = tuple(f"layer {i + 1}, slot {j + 1}" for i in range(L) for j in range(N))
        running = tuple(f"layer {i + 1}, input {j + 1}" for i in range(L) for j in range(C))
        return [
            Panel("weight of each chunk read", read, (0, 1), names),
            Panel("chunks stored: length of the mean", after.summaries[0].detach().norm(dim=2).flatten(), None, stored),
            Panel("running chunk: lengths", after.running[0].detach().norm(dim=2).flatten(), None, running),
        ]

    def diagnostics(self) -> dict[str, Tensor]:
        """The last scan's reads.

        `chunks_read_<layer>` [T, N]: weight of each chunk (columns: newest first) for the first row's queries over
        time. `read_entropy`, `read_age`: entropy of the weights in nats and mean age in chunks (0: the newest), over
        all queries that had a finished chunk and all layers; 0 where none had. `border` [T, B, 1]: 1 where an input
        surprised.
        """
        shown = dict(self.watched)
        reads = shown.pop("reads", ())
        if not reads:
            return shown
        for index, (age, weight) in enumerate(reads):
            image = weight.new_zeros(age.shape[1], self.num_chunks)
            shown[f"chunks_read_{index}"] = image.scatter_add_(1, age[0], weight[0])
        age, weight = (torch.stack(parts) for parts in zip(*reads))
        count = (weight > 0).any(-1).sum().clamp(min=1)
        shown["read_entropy"] = torch.special.entr(weight).sum() / count
        shown["read_age"] = (age * weight).sum() / count
        return shown

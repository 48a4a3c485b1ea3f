"""Gated Transformer-XL: attention over a sliding window of layer inputs, with gates instead of residual sums.

A layer reads its input E_t and its inputs of the `memory_length` steps before, as far as they are in this episode:

    H = LN(E),  q = W_q H_t,  k_j = W_k H_j,  v_j = W_v H_j,  r_d = W_r sinusoid(d)       per head
    a_d = softmax_d ((q + u) k_{t-d} + (q + w) r_d) / sqrt(head size)                     0 <= d <= memory_length
    Y_t = gate(E_t, relu(W_o sum_d a_d v_{t-d}))
    E'_t = gate(Y_t, relu(mlp(LN(Y_t))))

    gate(x, y):  r = sigmoid(W_r y + U_r x),  z = sigmoid(W_z y + U_z x - b_g),  h = tanh(W_g y + U_g (r * x))
                 (1 - z) * x + z * h

Without gates, `trxl`, gate(x, y) is x + y. With selective attention, inputs mask earlier ones. From every score for an
input j, that for t itself excepted, this is subtracted:

    sum over j < i < t of max(0, the first head's score of input i for j)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, reset
from palimpsest.memory.kernels.arithmetic.as_built import is_matrix, is_plain
from palimpsest.memory.parts.windows import Window
from palimpsest.refusals import check_divides, check_flag, check_integer

EPS = 1e-5
"""Of the layer norms, torch's."""


class GTrXLState(NamedTuple):
    """State of GTrXL: the window that the next input attends to."""

    inputs: Tensor
    """[B, L, M, D], the last M inputs of each of L layers, newest last, standardised to mean 0 and variance 1. All
    reads need them in this form. Zeros where there was no input."""
    filled: Tensor
    """[B] int64 in [0, M], how many of the inputs are of this episode."""


class SelectiveState(NamedTuple):
    """State of GTrXL with selective attention."""

    inputs: Tensor
    """[B, L, M, D], as in `GTrXLState`."""
    filled: Tensor
    """[B] int64."""
    masked: Tensor
    """[B, L, M], how far each of the inputs is masked by those after it."""


class GTrXL(Memory):
    """Gated Transformer-XL with GRU-type gates and identity-map reordering.

    Each sublayer has a layer norm before it and a relu after it. The output of the last layer is not normalised.
    Positions are encoded as in Transformer-XL: sinusoids of the distance, with biases u and w learned per layer. b_g
    starts at 2, so a new network is close to its linear embedding.

    In the paper, gradients do not reach the window, which lies before the rollout. Here nothing is detached inside a
    scan. Gradients reach every input of the window that is in the scan. Inputs before the scan have no graph, because
    agents/ passes the state without one. The paper leaves two points open; both follow the Transformer: the mlp has
    4 D hidden units, and weights start by Xavier's rule with biases at 0.

    Selective attention has no parameters. Its paper adds that the first token of a text is never masked; an episode's
    first input is one like others. A masked input stays in the window: the paper drops some, to save memory.

    Args:
        input_size: F, features per input.
        output_size: D, width of every layer.
        num_layers: L; 1 or more.
        num_heads: number of heads; it must divide D.
        memory_length: M, number of inputs before the current one that a layer attends to; 1 or more.
        gated: gates, or sums in their place.
        selective: whether an input can mask earlier ones for later ones.
    State:
        inputs [B, L, M, D], filled [B] int64; with `selective` also masked [B, L, M].

    Raises:
        ValueError: a size is not an integer of 1 or more, or output_size is not a multiple of num_heads.
    Source: arXiv 1910.06764; positions: arXiv 1901.02860; selective attention: arXiv 2410.02703.
    """

    sinusoids: Tensor

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        memory_length: int = 64,
        gated: bool = True,
        selective: bool = False,
    ) -> None:
        super().__init__(input_size, output_size)
        num_layers = check_integer("num_layers", num_layers, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        memory_length = check_integer("memory_length", memory_length, 1)
        check_divides("num_heads", num_heads, "output_size", output_size)
        gated = check_flag("gated", gated)
        self.selective = check_flag("selective", selective)
        self.num_layers = num_layers
        self.memory_length = memory_length
        self.embedding = maps(input_size, output_size, bias=True)
        self.layers = nn.ModuleList(Layer(output_size, num_heads, gated) for _ in range(num_layers))
        self.register_buffer("sinusoids", sinusoids(memory_length + 1, output_size), persistent=False)

    def constants(self) -> dict[str, Tensor]:
        """The codes of distances."""
        return {"sinusoids": sinusoids(self.memory_length + 1, self.output_size)}

    def initial_state(self, batch_size: int) -> GTrXLState | SelectiveState:
        """An empty window."""
        size = batch_size, self.num_layers, self.memory_length
        inputs = torch.zeros(*size, self.output_size, dtype=self.dtype, device=self.device)
        filled = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return SelectiveState(inputs, filled, inputs.new_zeros(size)) if self.selective else GTrXLState(inputs, filled)

    def step(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Map x [B, F] to y [B, D]. Keys and values of the window are never computed."""
        self.check_step(x, state)
        M = self.memory_length
        x = self.embedding(x)
        age = torch.arange(M, 0, -1, device=x.device)
        seen = age <= state.filled.unsqueeze(1)
        newest, masks = [], []
        for number, layer in enumerate(cast("list[Layer]", self.layers)):
            newest.append(standardise(x))
            mask = state.masked[:, number] if self.selective else None
            x, mask = layer(x, newest[-1], state.inputs[:, number], seen, self.sinusoids, mask)
            masks.append(mask)
        inputs = torch.cat([state.inputs[:, :, 1:], torch.stack(newest, 1).unsqueeze(2)], 2)
        return x, self._state(inputs, (state.filled + 1).clamp(max=M), masks)

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: Any,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Map x [T, B, F] to y [T, B, D] in one pass per layer. The memory use grows linearly with T."""
        T, B = self.check_sequence(x, start, state)
        if x.numel() == 0:
            return x.new_empty(T, B, self.output_size), state
        M = self.memory_length
        state = reset(state, self.initial_state(B), start[0])
        window = Window(start.t(), state.filled, M, self.dtype)
        x = self.embedding(x.transpose(0, 1))
        inputs, openness, masks = [], [], []
        attention = torch.zeros(M + 1, dtype=x.dtype, device=x.device)
        for number, layer in enumerate(cast("list[Layer]", self.layers)):
            known = torch.cat([state.inputs[:, number], standardise(x)], 1)
            inputs.append(known[:, -M:])
            mask = state.masked[:, number] if self.selective else None
            x, z, weights, mask = layer(x, known, window, self.sinusoids, mask)
            openness.append(z)
            masks.append(mask)
            attention += weights / self.num_layers
        self.watched = {"attention": attention}
        if openness[0].numel():
            self.watched["gate_openness"] = torch.cat(openness, 2).transpose(0, 1)
        episode, ending = window.key_ids[:, T : T + M], window.query_ids[:, T - 1 : T]
        over = ((episode != ending) & (ending > 0))[:, None]
        last = torch.stack(inputs, 1).masked_fill(over.unsqueeze(3), 0)
        kept = (episode == ending).sum(1)
        return x.transpose(0, 1), self._state(
            last, kept, [m if m is None else m.masked_fill(over[:, 0], 0) for m in masks]
        )

    def _state(self, inputs: Tensor, filled: Tensor, masks: list[Any]) -> GTrXLState | SelectiveState:
        return SelectiveState(inputs, filled, torch.stack(masks, 1)) if self.selective else GTrXLState(inputs, filled)

    def context(self) -> Context:
        """A layer attends to M + 1 inputs. L layers, each over the inputs of the one below, reach L M + 1 inputs."""
        return Context(self.memory_length + 1, self.num_layers * self.memory_length + 1)

    def diagnostics(self) -> dict[str, Tensor]:
        """Diagnostics of the last scan: mean attention by distance [M + 1], and mean z of the 2 L gates [T, B, 2 L]."""
        return dict(self.watched)


class Layer(nn.Module):
    """One layer: windowed attention and an mlp. Each has a layer norm before it, and a relu and a gate after it.

    Args:
        size: D.
        num_heads: H; D / H is a head's size.
        gated: gates, or sums in their place.
    """

    def __init__(self, size: int, num_heads: int, gated: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(size)
        self.query = maps(size, size)
        self.key_value = maps(size, size, parts=2)
        self.position = maps(size, size)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, size // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, size // num_heads))
        self.merge = maps(size, size)
        self.attention_gate = Gate(size) if gated else Sum()
        self.mlp_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(maps(size, 4 * size, bias=True), nn.ReLU(), maps(4 * size, size, bias=True))
        self.mlp_gate = Gate(size) if gated else Sum()

    def forward(self, *given: Any) -> tuple[Any, ...]:
        """`scan` with its arguments, else `step`. Only a call runs hooks, such as those that make pruned parameters."""
        return self.scan(*given) if isinstance(given[2], Window) else self.step(*given)

    def step(
        self, x: Tensor, now: Tensor, before: Tensor, seen: Tensor, sinusoids: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute one query per row.

        The keys and the values of the window would cost M D^2 each. One query needs neither of them. W_k is multiplied
        into the query, which then scores the inputs themselves. W_v is applied to the weighted sum of the inputs.

        Args:
            x: [B, D], the layer's input.
            now: [B, D], x standardised.
            before: [B, M, D], the standardised inputs before it.
            seen: [B, M] bool, the inputs that the query may attend to.
            sinusoids: [M + 1, D], farthest first.
            mask: [B, M], how far the inputs before are masked; None without selective attention.

        Returns:
            The next layer's input [B, D], and the mask of the last M inputs.
        """
        B, M, D = before.shape
        H = self.num_heads
        if not (is_matrix(self.key_value) and self._norm_is_plain()):
            window = Window(seen.new_zeros(B, 1), seen.sum(1), M, x.dtype)
            known = torch.cat([before, now.unsqueeze(1)], 1)
            x, _, _, mask = self.scan(x.unsqueeze(1), known, window, sinusoids, mask)
            return x.squeeze(1), mask
        gain, shift = self.attention_norm.weight, self.attention_norm.bias
        key, value = (w.view(H, D // H, D) for w in self.key_value.weight.chunk(2))
        to_content, to_position = self._queries(now)
        to_content = torch.einsum("bhe,hed->bhd", to_content, key)
        # `shift` adds the same number to the score of every key, and softmax cancels it
        common, to_content = to_content[:, 0] @ shift, to_content * gain
        now = now.unsqueeze(1)
        scores = torch.cat([to_content @ before.transpose(1, 2), to_content @ now.transpose(1, 2)], 2)
        scores = scores + torch.einsum("bhe,mhe->bhm", to_position, self.position(sinusoids).view(M + 1, H, -1))
        if mask is not None:
            after = mask + (scores[:, 0, :M] + common.unsqueeze(1)).relu().masked_fill(~seen, 0)
            scores = scores - functional.pad(mask, (0, 1)).unsqueeze(1)
            mask = functional.pad(after[:, 1:], (0, 1))
        seen = torch.cat([seen, seen.new_ones(B, 1)], 1)
        weights = scores.masked_fill(~seen.unsqueeze(1), -math.inf).softmax(2)
        mixed = (weights[..., :M] @ before + weights[..., M:] * now) * gain + shift
        return self._finish(x, torch.einsum("bhd,hed->bhe", mixed, value).flatten(1))[0], mask

    def scan(
        self, x: Tensor, known: Tensor, window: Window, sinusoids: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Compute all queries of a sequence.

        Args:
            x: [B, T, D], the layer's inputs.
            known: [B, M + T, D], the M inputs before the sequence, then x, all standardised.
            window: which keys each query may attend to.
            sinusoids: [M + 1, D], farthest first.
            mask: [B, M], how far the inputs before the sequence are masked; None without selective attention.

        Returns:
            The next layer's inputs [B, T, D], mean z of the gates [B, T, 2 or 0], mean attention by distance [M + 1],
            and the mask of the last M inputs.
        """
        B, T, D = x.shape
        M, H = window.M, self.num_heads
        # A weight of 0 times NaN is NaN. So inputs that are not finite are set to 0 here, and the queries that may
        # attend to one become NaN below.
        broken = known.detach().mul(0).sum(2) != 0
        safe = functional.pad(known.masked_fill(broken.unsqueeze(2), 0), (0, 0, 0, window.padding))
        broken = window.in_blocks(functional.pad(broken, (0, window.padding)), 1).unsqueeze(2) & window.seen
        to_content, to_position = (
            q.view(B, window.blocks, window.Q, H, -1).permute(0, 3, 1, 2, 4) for q in self._queries(safe[:, M:])
        )
        key, value = (
            window.in_blocks(a.unflatten(2, (H, -1)).transpose(1, 2), 2)
            for a in self._of_inputs(self.key_value, safe).chunk(2, 2)
        )
        position = self.position(sinusoids).view(M + 1, H, -1).permute(1, 2, 0).unsqueeze(1)
        scores = (to_content @ key.transpose(3, 4)).add_(window.shift(to_position @ position))
        if mask is not None:
            masked, mask = window.masked(scores[:, 0], mask)
            scores = scores - masked.unsqueeze(1)
        weights = scores.add_(window.unseen.unsqueeze(1)).softmax(4)
        read = (weights @ value).permute(0, 2, 3, 1, 4).reshape(B, window.blocks, window.Q, D)
        read = read.masked_fill(broken.any(3, keepdim=True), math.nan).flatten(1, 2)[:, :T]
        x, openness = self._finish(x, read)
        return x, openness, window.by_distance(weights.detach()), mask

    def _of_inputs(self, of: nn.Linear, standardised: Tensor) -> Tensor:
        """The map `of` after the layer norm, from standardised inputs [..., D].

        The gain and the shift of the norm are multiplied into the weights of the map. Where the map is more than a
        matrix it is called, and so is a norm that was replaced or hooked.
        """
        if not self._norm_is_plain():
            return of(self.attention_norm(centred(standardised)))
        gain, shift = self.attention_norm.weight, self.attention_norm.bias
        if not is_matrix(of):
            return of(standardised * gain + shift)
        return functional.linear(standardised, of.weight * gain, of.weight @ shift)

    def _norm_is_plain(self) -> bool:
        norm = self.attention_norm
        return is_plain(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None and norm.eps == EPS

    def _queries(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        """Map [..., D] to the scaled queries for keys and for positions, [..., H, D / H] each."""
        q = self._of_inputs(self.query, standardised).unflatten(-1, (self.num_heads, -1))
        scale = q.shape[-1] ** -0.5
        return (q + self.content_bias) * scale, (q + self.position_bias) * scale

    def _finish(self, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """Map the result of the attention [..., D] to the layer's output, and the mean z of its gates [..., 2 or 0]."""
        x, attention_z = self.attention_gate(x, self.merge(read).relu())
        x, mlp_z = self.mlp_gate(x, self.mlp(self.mlp_norm(x)).relu())
        return x, torch.cat([attention_z, mlp_z], -1)


def standardise(x: Tensor) -> Tensor:
    """[..., D] with mean 0 and variance 1: a layer norm without gain and shift."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPS)


def centred(standardised: Tensor) -> Tensor:
    """What is standardised [..., D] at its scale before: x - mean(x) from `standardise(x)`.

    The variance of that is v / (v + EPS), where v is that of x. Where v is large, 1 minus it is rounding: the result is
    then 100 times what is given, of which a layer norm makes the same.
    """
    left = 1 - standardised.var(-1, unbiased=False, keepdim=True)
    return standardised * (EPS / left.clamp(min=1e-4 * EPS)).sqrt()


class Gate(nn.Module):
    """GRU-type gate between a stream x and the output y of a sublayer; equations above.

    Args:
        size: D of both.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.W = maps(size, size, parts=3)
        self.U = maps(size, size, parts=2)
        self.U_g = maps(size, size)
        self.b_g = nn.Parameter(torch.full((size,), 2.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map x and y [..., D] to the new x and to the mean of z [..., 1], which says how far the gate is open."""
        W_r, W_z, W_g = self.W(y).chunk(3, -1)
        U_r, U_z = self.U(x).chunk(2, -1)
        r = (W_r + U_r).sigmoid()
        z = (W_z + U_z - self.b_g).sigmoid()
        h = (W_g + self.U_g(r * x)).tanh()
        # under autocast the stream stays in the type of the biases
        return torch.lerp(x.to(z.dtype), h.to(z.dtype), z), z.detach().mean(-1, keepdim=True)


class Sum(nn.Module):
    """In a gate's place."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map x and y [..., D] to their sum and to no z, [..., 0]."""
        return x + y, x.new_empty(*x.shape[:-1], 0)


def maps(size: int, output_size: int, parts: int = 1, bias: bool = False) -> nn.Linear:
    """Several linear maps of one input as one product. Each starts by Xavier's rule for itself, with biases at 0."""
    map_ = nn.Linear(size, parts * output_size, bias=bias)
    for part in map_.weight.detach().chunk(parts):
        nn.init.xavier_uniform_(part)
    if bias:
        nn.init.zeros_(map_.bias)
    return map_


def sinusoids(length: int, size: int) -> Tensor:
    """[length, size]: sines, then cosines, of the distances length - 1 to 0, with wavelengths of 2 pi to 20000 pi."""
    frequency = 10000 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(length - 1, -1, -1, dtype=torch.float64).unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :size].to(torch.get_default_dtype())

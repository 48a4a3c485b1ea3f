"""What a layer of HCAM has: its maps, and the code of a place in a chunk.

A step does not form the keys and values of many inputs for its one query: it maps the query and what is read instead. A
map that is more than a matrix, as one that is pruned, adapted or hooked, is called for every input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.arithmetic.as_built import is_matrix
from palimpsest.memory.kernels.attention.chunks import choose_chunks, read_chunks
from palimpsest.memory.kernels.attention.torch_chunks import torch_read_mapped


class ChunkLayer(nn.Module):
    """The maps of one layer. Query, key and value maps have no biases; `merge` holds both output maps side by side,
    so that its bias is the local attention's and mem is zero where nothing is read.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.local_query = nn.Linear(width, width, bias=False)
        self.local_key = nn.Linear(width, width, bias=False)
        self.local_value = nn.Linear(width, width, bias=False)
        self.score_query = nn.Linear(width, width, bias=False)
        self.score_key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.merge = nn.Linear(2 * width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def choose(self, h: Tensor, summaries: Tensor, finished: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The slots of the best chunks and their weights, for one h [B, D] a row; see `choose_chunks`."""
        query, key = self.score_query(h), self.score_key
        # q . W s = (Wᵀ q) . s, without N products W s
        toward, seen = (query @ key.weight, summaries) if is_matrix(key) else (query, key(summaries))
        return choose_chunks(toward, seen, finished, count)

    def output(self, x: Tensor, local: Tensor, mem: Tensor) -> Tensor:
        """The residual stream x [..., D] plus local plus mem, then the residual MLP."""
        x = x + self.merge(torch.cat([local, mem], -1))
        return x + self.mlp(x)


def read_by(query: Tensor, key: nn.Linear, value: nn.Linear, *chunks: Any) -> Tensor:
    """`read_chunks` by the maps `key` and `value`, whatever they do."""
    if is_matrix(key) and is_matrix(value):
        return read_chunks(query, key.weight, value.weight, *chunks)
    return torch_read_mapped(query, key, value, *chunks)


def sinusoid(length: int, width: int) -> Tensor:
    """[length, width]: sines, then cosines, of place / 10000^(2 i / width)."""
    rate = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width].to(torch.get_default_dtype())

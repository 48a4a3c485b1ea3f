"""What a layer of HCAM has: its maps, and the code of a place in a chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

    def output(self, x: Tensor, local: Tensor, mem: Tensor) -> Tensor:
        """The residual stream x [..., D] plus local plus mem, then the residual MLP."""
        x = x + self.merge(torch.cat([local, mem], -1))
        return x + self.mlp(x)


def sinusoid(length: int, width: int) -> Tensor:
    """[length, width]: sines, then cosines, of place / 10000^(2 i / width)."""
    rate = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width].to(torch.get_default_dtype())

"""A sliding attention window, computed in blocks: its memory use grows only linearly with the sequence length."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_BLOCK = 16
"""Fewest queries in a block. Smaller blocks are so many that they cost more than their smaller bands save."""


class Window:
    """The keys that each query of a sequence sees, in blocks of Q queries. Q >= M unless there is only one block.

    Keys are the M inputs before the sequence, then its T inputs. Block n holds the queries n Q to n Q + Q - 1, and the
    M + Q keys from n Q on. Query i of a block sees a band of M + 1 keys, from key i to its own key i + M:

        M = 3, Q = 4      key    0 1 2 3 4 5 6
                          query  0 0 0 0 . . .
                                 . 1 1 1 1 . .
                                 . . 2 2 2 2 .
                                 . . . 3 3 3 3

    Of this band it sees only the keys of its own episode. The last block is padded after the end of the sequence. The
    padding queries see one another, and no other query sees them.

    Args:
        start: [B, T] bool; T is 1 or more.
        filled: [B] int64, how many of the M inputs before the sequence are of the episode that continues.
        M: memory_length.
        dtype: dtype of the scores.
    """

    def __init__(self, start: Tensor, filled: Tensor, M: int, dtype: torch.dtype) -> None:
        B, T = start.shape
        Q = min(T, max(M, SMALLEST_BLOCK))
        self.blocks = -(-T // Q)
        self.Q, self.T, self.M = Q, T, M
        self.padding = self.blocks * Q - T
        # 0 for the episode that continues, one more at every start; -1 where there was no input, -2 for padding
        episode = functional.pad(start.long().cumsum(1), (0, self.padding), value=-2)
        age = torch.arange(M, 0, -1, device=start.device)
        before = (age <= filled.unsqueeze(1)).long() - 1
        self.query_ids = episode
        self.key_ids = torch.cat([before, episode], 1)
        distance = torch.arange(M, M + Q, device=start.device).unsqueeze(1) - torch.arange(M + Q, device=start.device)
        band = (distance >= 0) & (distance <= M)
        same = self.in_blocks(self.key_ids, 1).unsqueeze(2) == episode.view(B, self.blocks, Q, 1)
        self.seen = same & band
        """[B, blocks, Q, M + Q] bool."""
        self.unseen = torch.zeros(self.seen.shape, dtype=dtype, device=start.device).masked_fill_(~self.seen, -math.inf)
        """The mask to add to scores [B, heads, blocks, Q, M + Q]: 0 or -inf."""

    def in_blocks(self, keys: Tensor, dim: int) -> Tensor:
        """Split the dimension `dim` of size M + blocks * Q into the keys that each block sees, [blocks, M + Q]."""
        if self.blocks == 1:
            return keys.unsqueeze(dim)
        own = keys.narrow(dim, self.M, self.blocks * self.Q).unflatten(dim, (self.blocks, self.Q))
        before = keys.narrow(dim, 0, self.blocks * self.Q).unflatten(dim, (self.blocks, self.Q))
        return torch.cat([before.narrow(dim + 1, 0, self.M), own], dim + 1)

    def shift(self, bands: Tensor) -> Tensor:
        """Move scores by distance [..., Q, M + 1], farthest first, to their keys [..., Q, M + Q].

        Each line is padded with Q zeros to M + 1 + Q numbers, one more than a line of keys. So each line starts one key
        after the line above.
        """
        flat = functional.pad(bands, (0, self.Q)).flatten(-2)
        return flat[..., : self.Q * (self.M + self.Q)].unflatten(-1, (self.Q, self.M + self.Q))

    def masked(self, scores: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """How far the inputs between a query and a key mask the key: sum of max(0, their score for it).

        Args:
            scores: [B, blocks, Q, M + Q] of one head. An input does not mask itself.
            before: [B, M], how far the inputs before the sequence are masked by one another.

        Returns:
            The mask of each query and key, of the shape of the scores, and that of the last M inputs [B, M] after all.
        """
        M, Q = self.M, self.Q
        queries, keys = torch.arange(Q, device=scores.device).unsqueeze(1), torch.arange(M + Q, device=scores.device)
        through = scores.relu().masked_fill(~self.seen | (keys == queries + M), 0)
        after = through.cumsum(2)
        # the first M keys of a block are the last M of those that the block before brought
        carried = torch.cat([before.unsqueeze(1), after[:, :-1, -1, Q:]], 1)
        carried = functional.pad(carried, (0, Q)).unsqueeze(2)
        last = (after[:, -1, -1] + carried[:, -1, 0]).narrow(1, Q - self.padding, M)
        # of an episode that is over the masks may be NaN
        return (after - through + carried).masked_fill(~self.seen, 0), last

    def by_distance(self, weights: Tensor) -> Tensor:
        """Mean weight at distances 0 to M, over all queries but the padding, of [B, heads, blocks, Q, M + Q]."""
        B, heads, _, Q, _ = weights.shape
        total = weights.sum((0, 1)).flatten(0, 1)
        total[self.T :] = 0
        flat = total.view(self.blocks, -1).sum(0)
        bands = functional.pad(flat, (0, Q)).view(Q, self.M + Q + 1)[:, : self.M + 1]
        return bands.sum(0).flip(0) / (B * self.T * heads)


def attend(window: Window, query: Tensor, keys: Tensor, values: Tensor, by_distance: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of every input to its window.

    Args:
        window: of M inputs before each.
        query: [B, T, H, K].
        keys: [B, M + T, H K], of the M inputs before the sequence, then of the sequence.
        values: [B, M + T, H V].
        by_distance: [H, M + 1], added to the scores; farthest first.

    Returns:
        What is read [B, T, H V], NaN where a key or a value in sight is not finite, and the mean weight by distance
        [M + 1] without gradient.
    """
    T, H, K = query.shape[1:]
    # A weight of 0 times NaN is NaN. So inputs that are not finite are set to 0 here, and the queries that may attend
    # to one become NaN below.
    broken = (keys.detach().mul(0).sum(2) + values.detach().mul(0).sum(2)) != 0
    key, value = (
        window.in_blocks(
            functional.pad(each.masked_fill(broken.unsqueeze(2), 0), (0, 0, 0, window.padding))
            .unflatten(2, (H, -1))
            .transpose(1, 2),
            2,
        )
        for each in (keys, values)
    )
    query = functional.pad(query, (0, 0, 0, 0, 0, window.padding))
    query = query.unflatten(1, (window.blocks, window.Q)).permute(0, 3, 1, 2, 4)
    scores = query @ key.mT / math.sqrt(K)
    scores = scores + window.shift(by_distance[:, None, None].expand(-1, -1, window.Q, -1))
    weights = (scores + window.unseen.unsqueeze(1)).softmax(-1)
    broken = window.in_blocks(functional.pad(broken, (0, window.padding)), 1).unsqueeze(2) & window.seen
    found = (weights @ value).permute(0, 2, 3, 1, 4).flatten(3)
    found = found.masked_fill(broken.any(3, keepdim=True), math.nan).flatten(1, 2)[:, :T]
    return found, window.by_distance(weights.detach())

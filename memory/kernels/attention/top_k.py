"""The best few of a stream of scores."""

from __future__ import annotations

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS


@njit(**OPTIONS)
def insert(scores, indices, found, score, index):
    """Insert a score and its index into the best so far, behind equal scores; drop the worst if there are more than K.

    Args:
        scores: [K], the first `found` of which are set, best first.
        indices: [K], their indices.
        found: scores found so far, 0 to K.
        score: the new one.
        index: its index.

    Returns:
        The new `found`.
    """
    at = min(found, len(scores) - 1)
    if found == len(scores) and not score > scores[at]:
        return found
    while at > 0 and score > scores[at - 1]:
        scores[at], indices[at] = scores[at - 1], indices[at - 1]
        at -= 1
    scores[at], indices[at] = score, index
    return min(found + 1, len(scores))

"""The best few of scores that come one after the other."""

from __future__ import annotations

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS


@njit(**OPTIONS)
def insert(scores, indices, found, score, index):  # type: ignore[no-untyped-def]
    """Put a score and its index among the best so far, behind its equals, unless the row is full of others as good.

    Args:
        scores: [K], of which the first `found` are there, best first.
        indices: [K], theirs.
        found: 0 to K.
        score: the new one.
        index: its own.

    Returns:
        How many are there now.
    """
    at = min(found, len(scores) - 1)
    if found == len(scores) and not score > scores[at]:
        return found
    while at > 0 and score > scores[at - 1]:
        scores[at], indices[at] = scores[at - 1], indices[at - 1]
        at -= 1
    scores[at], indices[at] = score, index
    return min(found + 1, len(scores))

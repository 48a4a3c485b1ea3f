"""Transformer-XL: attention over a sliding window of layer inputs, by `memory.gtrxl` without its gates."""

from __future__ import annotations

from palimpsest.memory.gtrxl import GTrXL


class TransformerXL(GTrXL):
    """GTrXL without gates: Transformer-XL with the layer norms at the entrance of the sublayers.

    Transformer-XL itself has its norms after the sums. The GTrXL paper found that form hard to train in RL, and calls
    the one here TrXL-I: x + relu(sublayer(LN(x))).

    Args:
        input_size, output_size, num_layers, num_heads, memory_length, selective: those of `GTrXL`.
    State:
        That of `GTrXL`.
    Source: arXiv 1901.02860; the order of norms and sums: arXiv 1910.06764.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        memory_length: int = 64,
        selective: bool = False,
    ) -> None:
        super().__init__(input_size, output_size, num_layers, num_heads, memory_length, False, selective)

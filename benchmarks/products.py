"""Speed of our compiled products and of compiled tanh, compared with torch's, at shapes of the agent.

    python benchmarks/products.py

A product maps x [N, F] to [N, D] by a weight [D, F], forward, in float32. Ours runs as kernels run it: it packs the
weight and multiplies, in every call. Both run in one thread and take turns. Every figure is a median. The clock is the
thread's CPU time, which leaves out other programs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from measure import machine, markdown, side_by_side
from torch import Tensor
from torch.nn import functional

from palimpsest.agents.files.versions import versions
from palimpsest.agents.policy.layers import Tanh
from palimpsest.memory.kernels.arithmetic.elementwise import tanh_in_place
from palimpsest.memory.kernels.arithmetic.products import multiply, pack

SHAPES = ((64, 64), (64, 128), (64, 512), (128, 64), (65, 392), (128, 392), (128, 128))
"""(F, D) of the weights."""

HEAD = [
    *("N", "F", "D", "torch, GFlop/s", "ours, GFlop/s", "product, x torch"),
    *("tanh, x torch", "product and tanh, x torch"),
]


@dataclass(frozen=True)
class Options:
    """Time products and tanh."""

    rows: tuple[int, ...] = (2048, 8192)
    """N, the numbers of rows."""
    repeats: int = 15
    """Turns of each contestant."""


def contestants(N: int, F: int, D: int) -> dict[str, Callable[[], Any]]:
    """Torch's forms and ours of a product, of tanh in place, and of a product with a bias and tanh."""
    x, weight, bias = torch.randn(N, F), torch.randn(D, F) / F**0.5, torch.randn(D)
    theirs, ours, our_tanh = torch.randn(N, D), torch.randn(N, D), Tanh()
    return {
        "torch": lambda: functional.linear(x, weight),
        "ours": lambda: compiled_product(x, weight),
        "torch tanh": theirs.tanh_,
        "our tanh": lambda: tanh_in_place(ours.numpy().reshape(-1)),
        "torch product and tanh": lambda: functional.linear(x, weight, bias).tanh(),
        "our product and tanh": lambda: our_tanh(functional.linear(x, weight, bias)),
    }


def compiled_product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x [N, F] by weight [D, F], transposed, to [N, D]."""
    out = x.new_empty(len(x), len(weight))
    multiply(x.numpy(), pack(weight.t().numpy()), out.numpy(), False)
    return out


def measured(options: Options) -> list[list[Any]]:
    """The lines of the table."""
    lines = []
    for N in options.rows:
        for F, D in SHAPES:
            found = side_by_side(contestants(N, F, D), options.repeats, time.thread_time)
            speeds = (round(2e-9 * N * F * D / found[name], 1) for name in ("torch", "ours"))
            pairs = (("torch", "ours"), ("torch tanh", "our tanh"), ("torch product and tanh", "our product and tanh"))
            lines.append([N, F, D, *map(str, speeds), *(found[torch_s] / found[own] for torch_s, own in pairs)])
    return lines


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = {"load average": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    with torch.no_grad():
        lines = measured(options)
    print(f"{json.dumps({**machine(), **load, **versions()})}\n\n{markdown(HEAD, lines)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

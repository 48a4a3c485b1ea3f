"""Thousands of shapes, starts and splits that hypothesis thinks of, through every time recurrence.

Each is compared, values and gradients, with a plain loop over time, in one pass and in segments, some of them empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.memory.kernels import decay_scan, diagonal_scan, gated_delta_scan, outer_scan, torch_only
from palimpsest.memory.kernels.cells import gated
from palimpsest.memory.kernels.cells.naive import gru_naive, lstm_naive, rnn_naive
from palimpsest.memory.kernels.delta.chunked import gated_delta_chunked
from palimpsest.memory.kernels.delta.naive import gated_delta_naive
from palimpsest.memory.kernels.diagonal.naive import decay_naive, diagonal_naive
from palimpsest.memory.kernels.outer.chunked import outer_chunked
from palimpsest.memory.kernels.outer.hadamard import hadamard_scan
from palimpsest.memory.kernels.outer.naive import hadamard_naive, outer_naive
from palimpsest.memory.kernels.outer.torch_hadamard import torch_hadamard_scan

EXAMPLES = 150


class Recurrence(NamedTuple):
    """The forms of a recurrence, the first of which is the compiled one, and its definition."""

    sequences: tuple[tuple[int, ...], ...]
    """Shapes of its inputs, without [T, B]."""
    parameters: tuple[tuple[int, ...], ...]
    states: tuple[tuple[int, ...], ...]
    """Shapes, without [B]."""
    forms: tuple[Callable[..., Any], ...]
    """(sequences, parameters, start, states) -> y [T, B, ...], last states."""
    naive: Callable[..., Any]
    """The same by a plain loop over time."""


def decay_form(scan):
    def run(sequences, parameters, start, states):
        y, last = scan(*sequences, *parameters, start, *states)
        return y, (last,)

    return run


def diagonal_form(scan):
    def run(sequences, parameters, start, states):
        h, last = scan(*(each.tanh() for each in parameters), *sequences, start, *states)
        return h, (last,)

    return run


def matrix_form(scan, adapt=tuple, **kwargs):
    def run(sequences, parameters, start, states):
        read, last = scan(*adapt(sequences), start, *states, **kwargs)
        return read, (last,)

    return run


def delta_gates(inputs):
    """Keys of unit length, alpha in [0, 1] and beta in [0, 2], their ends included."""
    q, k, v, alpha, beta = inputs
    k = k / (k.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    return q, k, v, (alpha + 0.5).clamp(0, 1), (beta + 1).clamp(0, 2)


def gated_form(scan):
    def run(sequences, parameters, start, states):
        y, last = scan(*sequences, start, *states, tuple(parameters))
        return y, last if isinstance(last, tuple) else (last,)

    return run


def in_both_forms(cell):
    def run(sequences, parameters, start, states):
        return gated.scan(cell, *sequences, start, states, tuple(parameters))

    return run, torch_only()(run)


def weights(gates: int, F: int = 3, H: int = 4) -> tuple[tuple[int, ...], ...]:
    return (gates * H, F), (gates * H, H), (gates * H,), (gates * H,)


KERNELS = {
    "decay": Recurrence(
        ((3,),),
        ((3,), (2,)),
        ((3, 2, 2),),
        (decay_form(decay_scan), decay_form(torch_only()(decay_scan))),
        decay_form(decay_naive),
    ),
    "diagonal": Recurrence(
        ((3,), (3,)),
        (),
        ((3,),),
        (diagonal_form(diagonal_scan), diagonal_form(torch_only()(diagonal_scan))),
        diagonal_form(diagonal_naive),
    ),
    "diagonal, fixed": Recurrence(
        ((3,),),
        ((3,),),
        ((3,),),
        (diagonal_form(diagonal_scan), diagonal_form(torch_only()(diagonal_scan))),
        diagonal_form(diagonal_naive),
    ),
    "delta": Recurrence(
        ((2, 3), (2, 3), (2, 4), (2,), (2,)),
        (),
        ((2, 3, 4),),
        (matrix_form(gated_delta_scan, delta_gates), matrix_form(gated_delta_chunked, delta_gates)),
        matrix_form(gated_delta_naive, delta_gates),
    ),
    "delta, read first": Recurrence(
        ((2, 3), (2, 3), (2, 4), (2,), (2,)),
        (),
        ((2, 3, 4),),
        tuple(matrix_form(form, delta_gates, read_first=True) for form in (gated_delta_scan, gated_delta_chunked)),
        matrix_form(gated_delta_naive, delta_gates, read_first=True),
    ),
    "outer": Recurrence(
        ((2, 3), (2, 4), (2,), (2, 3)),
        (),
        ((2, 3, 4),),
        (matrix_form(outer_scan), matrix_form(outer_chunked)),
        matrix_form(outer_naive),
    ),
    "outer, a decay per key": Recurrence(
        ((2, 3), (2, 4), (2, 3), (2, 3)),
        (),
        ((2, 3, 4),),
        (matrix_form(outer_scan), matrix_form(outer_chunked)),
        matrix_form(outer_naive),
    ),
    "hadamard": Recurrence(
        ((3,),) * 5,
        (),
        ((3, 3),),
        (matrix_form(hadamard_scan), matrix_form(torch_hadamard_scan)),
        matrix_form(hadamard_naive),
    ),
    "lstm": Recurrence(((3,),), weights(4), ((4,), (4,)), in_both_forms(gated.LSTM), gated_form(lstm_naive)),
    "gru": Recurrence(((3,),), weights(3), ((4,),), in_both_forms(gated.GRU), gated_form(gru_naive)),
    "rnn": Recurrence(((3,),), weights(1), ((4,),), in_both_forms(gated.RNN), gated_form(rnn_naive)),
}


def in_segments(form, cuts, sequences, parameters, start, states):
    """One scan per segment between `cuts`, each from the states that the one before left."""
    ys = []
    for first, end in zip([0, *cuts], [*cuts, len(start)]):
        y, states = form([sequence[first:end] for sequence in sequences], parameters, start[first:end], states)
        ys.append(y)
    return torch.cat(ys), states


def with_gradients(run, sequences, parameters, start, states) -> list[Tensor]:
    """y, the last states and all gradients, of a loss that weighs every number differently."""
    leaves = [[leaf.detach().clone().requires_grad_() for leaf in group] for group in (sequences, parameters, states)]
    y, last = run(leaves[0], leaves[1], start, tuple(leaves[2]))
    outputs = [*([] if y is None or not len(y) else [y]), *last]
    weigh = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=weigh, dtype=torch.float64).to(o.dtype)).sum() for o in outputs)
    flat = [leaf for group in leaves for leaf in group]
    gradients = torch.autograd.grad(loss, flat, allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(flat, gradients)]
    return [*(output.detach() for output in outputs), *found]


def assert_near(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Equal up to rounding, which is measured by the largest number of each tensor: gradients are sums over time."""
    assert len(found) == len(expected)
    for mine, its in zip(found, expected):
        assert mine.shape == its.shape
        assert mine.dtype == dtype
        if mine.numel():
            most = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype] * max(1.0, its.abs().max().item())
            assert (mine - its).abs().max().item() <= most


STARTS = {
    "nowhere": lambda T, B: torch.zeros(T, B, dtype=torch.bool),
    "everywhere": lambda T, B: torch.ones(T, B, dtype=torch.bool),
    "at first": lambda T, B: torch.arange(T)[:, None].expand(T, B) == 0,
    "at last": lambda T, B: torch.arange(T)[:, None].expand(T, B) == T - 1,
    "in one row": lambda T, B: torch.arange(B).expand(T, B) == 0,
    "by turns": lambda T, B: (torch.arange(T)[:, None] + torch.arange(B)) % 2 == 0,
    "seldom": lambda T, B: torch.rand(T, B) < 0.1,
    "often": lambda T, B: torch.rand(T, B) < 0.7,
}


@st.composite
def drawn(draw) -> tuple[Any, ...]:
    T = draw(st.one_of(st.integers(0, 2), st.integers(0, 12), st.sampled_from([15, 16, 17, 32, 33, 65])))
    B = draw(st.integers(1, 5))
    cuts = sorted(draw(st.lists(st.integers(0, T), max_size=3)))
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32]))
    return T, B, draw(st.sampled_from(sorted(STARTS))), cuts, dtype, draw(st.integers(0, 2**32 - 1))


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(case=drawn())
def test_equals_its_definition_whole_and_in_segments(name, case):
    T, B, where, cuts, dtype, seed = case
    kernel = KERNELS[name]
    torch.manual_seed(seed)
    start = STARTS[where](T, B)
    sequences, parameters, states = (
        [0.5 * torch.randn(*lead, *shape, dtype=dtype) for shape in shapes]
        for lead, shapes in (((T, B), kernel.sequences), ((), kernel.parameters), ((B,), kernel.states))
    )
    given = sequences, parameters, start, states
    exact = [[leaf.double() for leaf in group] for group in (sequences, parameters, states)]
    expected = with_gradients(kernel.naive, *exact[:2], start, exact[2])
    for form in kernel.forms:
        assert_near(with_gradients(form, *given), expected, dtype)
    segmented = with_gradients(lambda *parts: in_segments(kernel.forms[0], cuts, *parts), *given)
    assert_near(segmented, expected, dtype)

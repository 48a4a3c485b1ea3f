"""The plain loops, which every other form is tested against: by hand, and against torch's modules."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from palimpsest.memory.kernels.attention.naive import (
    attend_slices_naive,
    best_candidates_naive,
    choose_chunks_naive,
    read_chunks_naive,
)
from palimpsest.memory.kernels.cells.naive import gru_naive, lstm_naive, rnn_naive
from palimpsest.memory.kernels.diagonal.naive import decay_naive, diagonal_naive

EXACT = dict(rtol=1e-12, atol=1e-12)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("naive", "module"), [(lstm_naive, nn.LSTM), (gru_naive, nn.GRU), (rnn_naive, nn.RNN)], ids=["lstm", "gru", "rnn"]
)
def test_cells_are_those_of_torch(naive, module):
    """Values and gradients; a start in the middle is a sequence of its own, from zeros."""
    F, H, T, B = 3, 4, 6, 2
    theirs = module(F, H).double()
    x, states = torch.randn(T, B, F, dtype=torch.float64), torch.randn(2, 1, B, H, dtype=torch.float64)
    states = states[: 2 if module is nn.LSTM else 1]
    hx = tuple(states) if module is nn.LSTM else states[0]
    weights = tuple(theirs.parameters())
    start = torch.zeros(T, B, dtype=torch.bool)
    start[4] = True
    y, last = naive(x, start, *states[:, 0], weights)
    expected = torch.cat([theirs(x[:4], hx)[0], theirs(x[4:])[0]])
    assert_close(y, expected, **EXACT)
    for found, wanted in zip(*(each if module is nn.LSTM else [each] for each in (last, theirs(x[4:])[1]))):
        assert_close(found, wanted[0], **EXACT)
    weighed = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    found, wanted = (torch.autograd.grad((each * weighed).sum(), weights) for each in (y, expected))
    assert_close(found, wanted, **EXACT)


def test_decay_by_hand():
    """A factor of -i / 2 at each step, from the state 1; the last step begins anew."""
    x, start = tensor(0, 2, 4).view(3, 1, 1), torch.tensor([[False], [False], [True]])
    states, last = decay_naive(x, tensor(math.log(2)), tensor(math.pi / 2), start, tensor(1, 0).view(1, 1, 1, 2))
    assert_close(states[:, 0, 0, 0], tensor([0, -0.5], [1.75, 0], [4, 0]), **EXACT)
    assert_close(last, states[-1], rtol=0, atol=0)


def test_diagonal_by_hand():
    a, b = tensor(2, 3, 5).view(3, 1, 1), tensor(1, 10, 100).view(3, 1, 1)
    start = torch.tensor([[False], [False], [True]])
    h, last = diagonal_naive(a, b, start, tensor(7).view(1, 1))
    assert h.flatten().tolist() == [15, 55, 100]
    assert last.item() == 100


@pytest.mark.parametrize("naive", [lstm_naive, gru_naive, rnn_naive, decay_naive])
def test_no_steps_leave_the_state(naive):
    start = torch.zeros(0, 2, dtype=torch.bool)
    if naive is decay_naive:
        states, last = naive(torch.ones(0, 2, 3), torch.ones(3), torch.ones(4), start, torch.ones(2, 3, 4, 2))
        assert states.shape == (0, 2, 3, 4, 2)
        assert torch.equal(last, torch.ones(2, 3, 4, 2))
        return
    gates, state = {lstm_naive: (4, 2), gru_naive: (3, 1), rnn_naive: (1, 1)}[naive]
    weights = [torch.ones(gates * 5, size) for size in (3, 5)] + [torch.ones(gates * 5)] * 2
    y, last = naive(torch.ones(0, 2, 3), start, *[torch.ones(2, 5)] * state, weights)
    assert y.shape == (0, 2, 5)
    assert torch.equal(torch.cat(last) if state == 2 else last, torch.ones(2 * state, 5))


def test_slices_by_hand():
    """Scores of ln 3 and 0 are weights of 3/4 and 1/4; a slice of one entry is that entry."""
    query, key = tensor(math.log(3)).view(1, 1, 1), tensor(0, 1, 0, 5).view(4, 1, 1)
    value = tensor(100, 8, 4, 7).view(4, 1, 1)
    first, length, weight = torch.tensor([[1, 3, 0]]), torch.tensor([[2, 1, 0]]), tensor([1, 10, 1000])
    read = attend_slices_naive(query, key, value, first, length, weight)
    assert_close(read, tensor(8 * 0.75 + 4 * 0.25 + 10 * 7).view(1, 1, 1), **EXACT)


def test_candidates_by_hand():
    """Scaled by sqrt(4); of the equals at 1 and 3 the last is first; the second range holds one candidate."""
    query, key = torch.ones(2, 4).double(), tensor(9, 1, 2, 1, 9).repeat(4, 1).T
    index, score = best_candidates_naive(query, key, torch.tensor([1, 0]), torch.tensor([3, 1]), 2)
    assert index.tolist() == [[2, 3], [0, -1]]
    assert score.tolist() == [[4, 2], [18, 0]]


def test_chunks_by_hand():
    """Slots 0, 1, 2 hold chunks 3, 1, 2 of a row with four; the other row has none."""
    query, summaries = torch.ones(2, 1).double(), tensor(0, math.log(3), 0).repeat(2, 1)[..., None]
    slot, weight = choose_chunks_naive(query, summaries, torch.tensor([4, 0]), 2)
    assert slot.tolist() == [[1, 0], [0, 0]]
    assert_close(weight, tensor([0.75, 0.25], [0, 0]), **EXACT)


def test_reading_chunks_by_hand():
    """Contents with their places' codes added, 0 + 1 and 1 + 1 in chunk 1, are keys and, doubled, values."""
    query, key, value = tensor([math.log(3)]), tensor([1]), tensor([2])
    contents, code = tensor([7, 7], [0, 1])[..., None], tensor(1, 1)[:, None]
    given = query, key, value, code, contents, torch.tensor([[1, 0]])
    read = read_chunks_naive(*given, torch.tensor([[2, 2]]), tensor([1, 0.5]), 1)
    assert_close(read, tensor([2 * (0.25 * 1 + 0.75 * 2) + 0.5 * 2 * 8]), **EXACT)

"""How a step of HCAM chooses and reads chunks: compiled and in torch, against plain loops."""

import math

import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.attention.chunks import choose_chunks, read_chunks
from palimpsest.memory.kernels.attention.naive import choose_chunks_naive, read_chunks_naive

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@torch.no_grad()
def both_forms(function, *args):
    compiled = function(*args)
    with torch_only():
        return compiled, function(*args)


@each_dtype
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_best_chunks_are_chosen_and_of_equals_the_newest(dtype, count):
    N = 5
    finished = torch.tensor([0, 1, 2, 4, 5, 6, 8, 13])
    query, summaries = torch.randn(8, 7, dtype=dtype), torch.randn(8, N, 7, dtype=dtype)
    summaries[:, 3] = summaries[:, 1]
    expected = choose_chunks_naive(query, summaries, finished, count)
    for found in both_forms(choose_chunks, query, summaries, finished, count):
        assert_close(found, expected, **tolerance(dtype))


@each_dtype
@pytest.mark.parametrize(("C", "D", "H"), [(1, 4, 2), (3, 6, 3), (16, 128, 4), (17, 20, 1)])
def test_a_read_is_attention_to_chunks(dtype, C, D, H):
    B, X, J = 5, 9, 3
    query, code, contents = (torch.randn(*size, dtype=dtype) for size in ((B, D), (C, D), (X, C, D)))
    key, value = (torch.randn(D, D, dtype=dtype) / math.sqrt(D) for _ in range(2))
    which, length = torch.randint(X, (B, J)), torch.randint(1, C + 1, (B, J))
    weight = torch.rand(B, J, dtype=dtype)
    weight[0], weight[1, 1:] = 0, 0
    query = query.t().contiguous().t()  # another layout
    given = query, key, value, code, contents, which, length, weight, H
    expected = read_chunks_naive(*given)
    for found in both_forms(read_chunks, *given):
        assert_close(found, expected, **tolerance(dtype))


@each_dtype
def test_nan_in_one_row_stays_there(dtype):
    query, contents = torch.randn(3, 8, dtype=dtype), torch.randn(3, 4, 8, dtype=dtype)
    contents[1, 2, 5] = torch.nan
    same = torch.eye(8, dtype=dtype)
    which, length, weight = torch.arange(3)[:, None], torch.full((3, 1), 4), torch.ones(3, 1, dtype=dtype)
    given = query, same, same, torch.zeros(4, 8, dtype=dtype), contents, which, length, weight, 2
    for read in both_forms(read_chunks, *given):
        assert read.isfinite().all(1).tolist() == [True, False, True]

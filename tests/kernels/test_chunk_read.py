"""How a step of HCAM chooses and reads chunks: compiled, by torch's operations, and by the definition."""

import math

import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.attention.chunk_read import choose_chunks, read_chunks

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
    results = both_forms(choose_chunks, query, summaries, finished, count)
    assert_close(*results, **tolerance(dtype))
    for b, chunks in enumerate(finished.tolist()):
        newest_first = [chunk % N for chunk in reversed(range(max(0, chunks - N), chunks))]
        score = {slot: (query[b] @ summaries[b, slot]).item() / math.sqrt(7) for slot in newest_first}
        score |= {1: score[3]} if score.keys() >= {1, 3} else {}
        best = sorted(newest_first, key=lambda slot: -score[slot])[:count]
        slot, weight = (result[b] for result in results[0])
        assert slot.tolist() == best + [0] * (count - len(best))
        expected = torch.tensor([score[s] for s in best], dtype=dtype).softmax(0)
        assert_close(weight[: len(best)], expected, **tolerance(dtype))
        assert not weight[len(best) :].any()


@each_dtype
@pytest.mark.parametrize(("C", "D", "H"), [(1, 4, 2), (3, 6, 3), (16, 128, 4), (17, 20, 1)])
def test_a_read_is_attention_to_chunks(dtype, C, D, H):
    B, X, J = 5, 9, 3
    query, code, contents = (torch.randn(*size, dtype=dtype) for size in ((B, D), (C, D), (X, C, D)))
    key, value = (torch.randn(D, D, dtype=dtype) / math.sqrt(D) for _ in range(2))
    which, length = torch.randint(X, (B, J)), torch.randint(1, C + 1, (B,))
    weight = torch.rand(B, J, dtype=dtype)
    weight[0], weight[1, 1:] = 0, 0
    query = query.t().contiguous().t()  # another layout
    results = both_forms(read_chunks, query, key, value, code, contents, which, length, weight, H)
    assert_close(*results, **tolerance(dtype))
    expected = torch.zeros(B, H, D // H, dtype=dtype)
    for b in range(B):
        for j in range(J):
            placed = (contents[which[b, j]] + code)[: length[b]]
            keys, values = ((placed @ w.T).view(-1, H, D // H) for w in (key, value))
            score = torch.einsum("he,nhe->hn", query[b].view(H, -1), keys) / math.sqrt(D // H)
            expected[b] += weight[b, j] * torch.einsum("hn,nhe->he", score.softmax(1), values)
    assert_close(results[0].view_as(expected), expected, **tolerance(dtype))


@each_dtype
def test_nan_in_one_row_stays_there(dtype):
    query, contents = torch.randn(3, 8, dtype=dtype), torch.randn(3, 4, 8, dtype=dtype)
    contents[1, 2, 5] = torch.nan
    same = torch.eye(8, dtype=dtype)
    which, length, weight = torch.arange(3)[:, None], torch.full((3,), 4), torch.ones(3, 1, dtype=dtype)
    given = query, same, same, torch.zeros(4, 8, dtype=dtype), contents, which, length, weight, 2
    for read in both_forms(read_chunks, *given):
        assert read.isfinite().all(1).tolist() == [True, False, True]

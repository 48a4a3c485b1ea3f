"""Attention to slices and the choice of candidates: compiled and in torch, against plain loops."""

import math

import pytest
import torch
from conftest import tolerance
from torch.testing import assert_close

from palimpsest.memory.kernels import torch_only
from palimpsest.memory.kernels.attention.naive import attend_slices_naive, best_candidates_naive
from palimpsest.memory.kernels.attention.slices import attend_slices, best_candidates

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
each_form = pytest.mark.parametrize("in_torch", [False, True], ids=["compiled", "torch"])


def with_gradients(outputs, leaves):
    """Outputs, and the gradients of a loss that weighs every number of the last one differently."""
    weighed = outputs[-1] * torch.linspace(-1, 2, outputs[-1].numel(), dtype=outputs[-1].dtype).view_as(outputs[-1])
    return [*(output.detach() for output in outputs), *torch.autograd.grad(weighed.sum(), leaves)]


@each_form
@each_dtype
def test_attention_to_slices(in_torch, dtype):
    """Entry 19 is NaN, and no slice reads it; the first query reads nothing."""
    N, J, S, H, E, longest = 7, 3, 20, 2, 5, 4
    query, key, value = (torch.randn(n, H, E, dtype=dtype) for n in (N, S, S))
    key[19] = value[19] = math.nan
    first, length = torch.randint(19 - longest, (N, J)), torch.randint(longest + 1, (N, J))
    length[0] = 0
    leaves = [t.requires_grad_() for t in (query, key, value, torch.rand(N, J, dtype=dtype))]
    run = torch_only()(attend_slices) if in_torch else attend_slices
    read = run(*leaves[:3], first, length, leaves[3], longest)
    expected = attend_slices_naive(*leaves[:3], first, length, leaves[3])
    found = with_gradients([read], leaves)
    assert_close(found, with_gradients([expected], leaves), **tolerance(dtype))
    assert read[0].count_nonzero() == 0
    assert all(each.isfinite().all() for each in found)


@each_form
@each_dtype
def test_the_best_candidates(in_torch, dtype):
    query, key = torch.randn(9, 4, dtype=dtype), torch.randn(12, 4, dtype=dtype)
    key[5] = key[3]
    leaves = [query.requires_grad_(), key.requires_grad_()]
    first, length = torch.tensor([0, 0, 2, 3, 3, 11, 4, 12, 1]), torch.tensor([12, 0, 2, 3, 6, 1, 8, 0, 11])
    run = torch_only()(best_candidates) if in_torch else best_candidates
    index, score = run(*leaves, first, length, 3)
    expected = best_candidates_naive(*leaves, first, length, 3)
    assert_close(with_gradients((index, score), leaves), with_gradients(expected, leaves), **tolerance(dtype))
    assert (index >= 0).sum(1).tolist() == [3, 0, 2, 3, 3, 1, 3, 0, 3]

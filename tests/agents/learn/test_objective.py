"""The compiled objective equals torch's operations, values and gradients."""

import math

import pytest
import torch
from torch import Tensor

from palimpsest.agents.learn.buffers import Minibatch
from palimpsest.agents.learn.objective import FIGURES, LossWeights, objective
from palimpsest.memory.kernels.arithmetic.dispatch import torch_only

CLOSE = {torch.float32: dict(rtol=2e-6, atol=2e-6), torch.float64: dict(rtol=1e-12, atol=1e-13)}
DTYPES = pytest.mark.parametrize("dtype", CLOSE, ids=["float32", "float64"])


def minibatch(dtype: torch.dtype, shape: tuple[int, int] = (40, 7)) -> tuple[list[Tensor], Minibatch]:
    """Values, log-probabilities and entropies of a policy, and a minibatch from another one."""
    old_values, old_log_prob, advantages, returns = (torch.randn(shape, dtype=dtype) for _ in range(4))
    seen = [old_values + 0.3 * torch.randn(shape, dtype=dtype), old_log_prob + 0.3 * torch.randn(shape, dtype=dtype)]
    seen.append(torch.rand(shape, dtype=dtype))
    nothing = torch.empty(0)
    return [each.requires_grad_() for each in seen], Minibatch(
        nothing, nothing, old_values, old_log_prob, 3 * advantages + 1, returns, nothing, None, None
    )


def found(seen: list[Tensor], has_entropy: bool, batch: Minibatch, weights: LossWeights):
    """The figures, the loss, and the gradients of three times the loss."""
    given = seen if has_entropy else seen[:2]
    loss, figures = objective(*given[:2], given[2] if has_entropy else None, batch, weights)
    assert list(figures) == list(FIGURES)
    assert not any(figure.requires_grad for figure in figures.values())
    return [*figures.values(), loss.detach(), *torch.autograd.grad(3 * loss, given)]


@DTYPES
@pytest.mark.parametrize("has_entropy", [True, False])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
@pytest.mark.parametrize(("normalise", "least"), [(True, 0.0), (True, 100.0), (False, 0.0)])
def test_the_compiled_form_is_torchs(normalise, least, clip_range_vf, has_entropy, dtype):
    seen, batch = minibatch(dtype)
    weights = LossWeights(0.2, clip_range_vf, normalise, least, 0.03, 0.7, 0.0)
    compiled = found(seen, has_entropy, batch, weights)
    with torch_only():
        wanted = found(seen, has_entropy, batch, weights)
    assert 0.2 < compiled[4] < 0.8
    for got, want in zip(compiled, wanted, strict=True):
        assert got.dtype == dtype or want.dim() == 0
        torch.testing.assert_close(got, want, check_dtype=False, **CLOSE[dtype])


def test_the_compiled_form_is_the_one_that_computes(monkeypatch):
    seen, batch = minibatch(torch.float32)
    weights = LossWeights(0.2, None, True, 0.0, 0.0, 0.5, 0.0)
    monkeypatch.setattr("palimpsest.agents.learn.objective._by_torch", None)
    assert all(each.isfinite().all() for each in found(seen, True, batch, weights))
    with torch_only(), pytest.raises(TypeError, match="NoneType"):
        found(seen, True, batch, weights)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1)])
def test_one_number_is_not_normalised(shape):
    seen, batch = minibatch(torch.float64, shape)
    weights = LossWeights(0.2, None, True, 0.0, 0.0, 0.5, 0.0)
    compiled = found(seen, True, batch, weights)
    with torch_only():
        torch.testing.assert_close(compiled, found(seen, True, batch, weights), check_dtype=False, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
@pytest.mark.parametrize(
    "place", ["values", "log_prob", "entropy", "old_values", "old_log_prob", "advantages", "returns"]
)
def test_what_is_not_a_number_is_not_hidden(place, clip_range_vf):
    if place == "old_values" and clip_range_vf is None:
        return
    seen, batch = minibatch(torch.float32)
    parts = dict(zip(("values", "log_prob", "entropy"), seen), **batch._asdict())
    parts[place].data[3, 2] = math.nan
    loss, _ = objective(*seen, batch, LossWeights(0.2, clip_range_vf, True, 0.0, 0.1, 0.5, 0.0))
    assert loss.isnan()


def test_an_inner_ratio_at_its_bound_has_a_gradient_and_one_beyond_it_has_none():
    seen, batch = minibatch(torch.float64, (3, 1))
    batch = batch._replace(advantages=torch.ones(3, 1, dtype=torch.float64))
    seen[1].data = batch.old_log_prob + torch.tensor([[1.2], [1.3], [0.5]], dtype=torch.float64).log()
    loss, _ = objective(*seen, batch, LossWeights(0.25, None, False, 0.0, 0.0, 0.0, 0.0))
    (gradient,) = torch.autograd.grad(loss, [seen[1]])
    torch.testing.assert_close(gradient, torch.tensor([[-0.4], [0.0], [-0.5 / 3]], dtype=torch.float64))

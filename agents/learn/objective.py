"""PPO's objective from what a policy makes of a minibatch, with its gradient, in one pass on the CPU."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.agents.learn.buffers import Minibatch
from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels


class LossWeights(NamedTuple):
    """The numbers of PPO's loss at one moment of training."""

    clip_range: float
    clip_range_vf: float | None
    normalize_advantage: bool
    min_advantage_std: float
    ent_coef: float
    vf_coef: float
    memory_aux_coef: float


FIGURES = ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
"""What `objective` tells of a minibatch."""


def objective(
    values: Tensor, log_prob: Tensor, entropy: Tensor | None, batch: Minibatch, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate, the value error and the entropy (arXiv 1707.06347, eq. 7 and 9), weighted.

    Args:
        values: [T, b], of the observations.
        log_prob: [T, b], of the actions taken.
        entropy: [T, b], or None where it has no closed form: the mean of -log_prob estimates it.
        batch: of whose sequences the old values and log-probabilities, advantages and returns are read.
        weights: clipping and the terms' weights.

    Returns:
        The loss [], differentiable once on the CPU, and detached scalars by the names in `FIGURES`.
    """
    old = (batch.old_values, batch.old_log_prob, batch.advantages, batch.returns)
    given = [values, log_prob, *old] if entropy is None else [values, log_prob, *old, entropy]
    if not has_kernels(*given) or any(each.shape != values.shape for each in given) or not values.numel():
        return _by_torch(values, log_prob, entropy, batch, weights)
    loss, figures = _Objective.apply(values, log_prob, entropy, old, weights)
    return loss, dict(zip(FIGURES, figures.unbind()))


def _by_torch(
    values: Tensor, log_prob: Tensor, entropy: Tensor | None, batch: Minibatch, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    clip, advantages = weights.clip_range, batch.advantages
    if weights.normalize_advantage and advantages.numel() > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8).clamp(min=weights.min_advantage_std)
    log_ratio = log_prob - batch.old_log_prob
    ratio = log_ratio.exp()
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    if weights.clip_range_vf is not None:
        change = (values - batch.old_values).clamp(-weights.clip_range_vf, weights.clip_range_vf)
        values = batch.old_values + change
    value_loss = functional.mse_loss(values, batch.returns)
    entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
    with torch.no_grad():
        kl = ((ratio - 1) - log_ratio).mean()
        clipped = ((ratio - 1).abs() > clip).to(ratio.dtype).mean()
    figures = (policy_loss.detach(), value_loss.detach(), entropy_loss.detach(), kl, clipped)
    loss = policy_loss + weights.ent_coef * entropy_loss + weights.vf_coef * value_loss
    return loss, dict(zip(FIGURES, figures))


class _Objective(torch.autograd.Function):
    """The compiled form, whose gradient comes with it."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        log_prob: Tensor,
        entropy: Tensor | None,
        old: tuple[Tensor, ...],
        weights: LossWeights,
    ) -> tuple[Tensor, Tensor]:
        gradients, figures = values.new_empty(3, *values.shape), values.new_empty(6)
        clip_vf = math.inf if weights.clip_range_vf is None else weights.clip_range_vf
        seen = [values, log_prob, values.new_empty(0) if entropy is None else entropy, *old]
        _evaluate(
            *(each.contiguous().numpy().reshape(-1) for each in seen),
            (weights.clip_range, clip_vf, weights.min_advantage_std, weights.ent_coef, weights.vf_coef),
            weights.normalize_advantage,
            gradients.numpy().reshape(3, -1),
            figures.numpy(),
        )
        ctx.save_for_backward(gradients)
        ctx.has_entropy = entropy is not None
        ctx.mark_non_differentiable(figures)
        return figures[5].clone(), figures

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        d_values, d_log_prob, d_entropy = (gradients * d_loss).unbind()
        return d_values, d_log_prob, d_entropy if ctx.has_entropy else None, None, None


@njit(**OPTIONS)
def _evaluate(  # type: ignore[no-untyped-def]
    values,
    log_prob,
    entropy,
    old_values,
    old_log_prob,
    advantages,
    returns,
    weights,
    normalize,
    gradients,
    figures,
):
    """Fill gradients [3, N] of the loss by values, log_prob and entropy, all [N], and figures: FIGURES and the loss.

    An empty entropy is estimated from log_prob.
    """
    clip, clip_vf, least, ent_coef, vf_coef = weights
    N, real = len(values), values.dtype.type
    mean, divisor = _mean_and_deviation(advantages) if normalize and N > 1 else (0.0, 1.0)
    if normalize and N > 1:
        divisor = max(divisor + 1e-8, least)
    centre, unit, one = real(mean), real(divisor), real(1)
    low, high, most, reach = real(1 - clip), real(1 + clip), real(clip), real(clip_vf)
    d_values, d_log_prob, d_entropy = gradients
    surrogate, errors, surprise, kl, clipped = 0.0, 0.0, 0.0, 0.0, 0
    for i in range(N):
        log_ratio = log_prob[i] - old_log_prob[i]
        ratio = math.exp(log_ratio)
        gain = (advantages[i] - centre) / unit * ratio
        bounded = (advantages[i] - centre) / unit * (low if ratio < low else high if ratio > high else ratio)
        # in this order NaN is kept
        surrogate += bounded if bounded <= gain else gain
        d_log_prob[i] = -gain / N if low <= ratio <= high or gain < bounded else 0
        kl += (ratio - one) - log_ratio
        clipped += abs(ratio - one) > most
        change = values[i] - old_values[i]
        inside = -reach <= change <= reach
        bounded_value = old_values[i] + (-reach if change < -reach else reach if change > reach else change)
        error = (values[i] if reach == np.inf else bounded_value) - returns[i]
        errors += error * error
        d_values[i] = 2 * vf_coef * error / N if inside else 0
    if len(entropy) > 0:
        for i in range(N):
            surprise -= entropy[i]
        d_entropy[:] = -ent_coef / N
    else:
        for i in range(N):
            surprise += log_prob[i]
            d_log_prob[i] += ent_coef / N
    figures[0], figures[1], figures[2] = -surrogate / N, errors / N, surprise / N
    figures[3], figures[4] = kl / N, clipped / N
    figures[5] = (-surrogate + ent_coef * surprise + vf_coef * errors) / N


@njit(**INLINED)
def _mean_and_deviation(x):  # type: ignore[no-untyped-def]
    """Of N > 1 numbers; the deviation is that of a sample."""
    total, squares = 0.0, 0.0
    for i in range(len(x)):
        total += x[i]
    mean = total / len(x)
    for i in range(len(x)):
        squares += (x[i] - mean) ** 2
    return mean, math.sqrt(squares / (len(x) - 1))

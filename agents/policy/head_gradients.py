"""The heads of a policy with discrete actions, compiled for the update on the CPU: one call forward, one back.

Torch records some twenty operations for two small heads and a softmax, and each of them takes longer to begin than to
do. What is computed here are the heads that `agents.policy.heads` knows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.agents.policy.heads import HeadedPolicy, compiled_heads, head_layers
from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.linear import layers_backward, layers_forward
from palimpsest.memory.kernels.arithmetic.threads import in_parts, part_borders


def judge(
    policy: HeadedPolicy, latent_pi: Tensor, latent_vf: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a policy makes of actions that were taken.

    Args:
        policy: whose heads are compiled on the CPU where they can be, then differentiable once; else its methods.
        latent_pi: [N, D], what the actor reads.
        latent_vf: [N, D], what the critic reads.
        actions: [N, ...].

    Returns:
        Values, log-probabilities of the actions, and entropies in nats or None; [N] each.

    Raises:
        IndexError: a discrete action that there is not, where heads are compiled.
        ValueError: more or fewer actions than latents, there.
    """
    if _may_compile(policy, latent_pi, latent_vf):
        depth, parameters = _parameters(policy)
        return _Heads.apply(latent_pi, actions.long(), depth, *parameters)
    distribution = policy._actor(latent_pi)
    return policy._critic(latent_vf), distribution.log_prob(actions), distribution.entropy()


def _may_compile(policy: HeadedPolicy, latent_pi: Tensor, latent_vf: Tensor) -> bool:
    # in one call, a critic with a memory of its own would reach the actor's backward pass
    if latent_vf is not latent_pi or not policy._heads_compile:
        return False
    if not has_kernels(latent_pi) or torch.is_autocast_enabled("cpu"):
        return False
    return compiled_heads(policy, latent_pi) is not None


def _parameters(policy: HeadedPolicy) -> tuple[int, list[Tensor]]:
    """How many linear layers the actor has; the weights of its layers and of the critic's, then the biases."""
    actor, critic = (head[::2] for head in head_layers(policy))
    maps: list[Any] = [layer._parameters for layer in (*actor, *critic)]
    return len(actor), [own["weight"] for own in maps] + [own["bias"] for own in maps]


class _Heads(torch.autograd.Function):
    """`judge`, compiled: both heads read one latent [N, D]."""

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, actions: Tensor, depth: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = latent.contiguous()
        N, biases = len(x), parameters[len(parameters) // 2 :]
        if actions.shape != (N,):
            raise ValueError(f"actions must be [N] = [{N}], one per latent; got {list(actions.shape)}")
        actions = actions.contiguous()
        # tangents of the actor and its probabilities, tangents of the critic and its values
        outputs = [x.new_empty(N, len(bias)) for bias in biases]
        log_probs, log_prob, entropy = torch.empty_like(outputs[depth - 1]), x.new_empty(N), x.new_empty(N)
        maps = _by_head(parameters, depth)

        def run(first: int, last: int) -> bool:
            rows = [_array(each)[first:last] for each in (x, actions, log_probs, log_prob, entropy)]
            kept = [_array(each)[first:last] for each in outputs]
            return _forward(*rows, *maps, tuple(kept[:depth]), tuple(kept[depth:]))

        if not all(in_parts(run, part_borders(1, N))):
            raise IndexError(f"actions must be in 0 to {log_probs.shape[1] - 1}; got {actions.unique().tolist()}")
        ctx.save_for_backward(x, actions, log_probs, entropy, *outputs, *parameters)
        ctx.depth = depth
        ctx.set_materialize_grads(False)
        return outputs[-1].flatten().clone(), log_prob, entropy

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any, d_values: Tensor | None, d_log_prob: Tensor | None, d_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, actions, log_probs, entropy, *others = ctx.saved_tensors
        count = len(others) // 3
        outputs, parameters = others[:count], others[count:]
        weights_pi, _, weights_vf, _ = _by_head(parameters, ctx.depth)
        # a head whose results are not used has no gradients, not zeros
        acts, rates = d_log_prob is not None or d_entropy is not None, d_values is not None
        nothing = torch.zeros_like(entropy)
        outside = [nothing if each is None else each.contiguous() for each in (d_values, d_log_prob, d_entropy)]
        outside[0] = outside[0].view(-1, 1)
        # of no rows where it is not asked for
        dx = x.new_empty(x.shape if ctx.needs_input_grad[0] else (0, x.shape[1]))

        def run(first: int, last: int) -> list[Tensor]:
            # contiguous, whatever the parameters are: kernels fill the tensors themselves
            gradients = [x.new_zeros(each.shape) for each in parameters]
            given = (*outside, x, actions, log_probs, entropy, dx)
            rows = [_array(each)[first:last] for each in given]
            kept = [_array(each)[first:last] for each in outputs]
            _backward(
                *rows,
                weights_pi,
                weights_vf,
                tuple(kept[: ctx.depth]),
                tuple(kept[ctx.depth :]),
                *_by_head(gradients, ctx.depth),
            )
            return gradients

        gradients, *rest = in_parts(run, part_borders(1, len(x)))
        for other in rest:
            torch._foreach_add_(gradients, other)
        used = [acts if number % count < ctx.depth else rates for number in range(2 * count)]
        found = [gradient if each else None for gradient, each in zip(gradients, used)]
        return dx if ctx.needs_input_grad[0] else None, None, None, *found


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _by_head(parameters: Any, depth: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """Arrays of the actor's weights and biases, and of the critic's."""
    arrays = [_array(each.contiguous()) for each in parameters]
    count = len(arrays) // 2
    weights, biases = arrays[:count], arrays[count:]
    return tuple(weights[:depth]), tuple(biases[:depth]), tuple(weights[depth:]), tuple(biases[depth:])


@njit(**OPTIONS)
def _forward(  # type: ignore[no-untyped-def]
    x,
    actions,
    log_probs,
    log_prob,
    entropy,
    weights_pi,
    biases_pi,
    weights_vf,
    biases_vf,
    outputs_pi,
    outputs_vf,
):
    """Fill what layers give, log_probs [N, n], and of actions [N] log_prob; entropy [N]. Whether all actions exist.

    Of the actor's last layer probabilities are left.
    """
    layers_forward(x, weights_pi, biases_pi, outputs_pi)
    layers_forward(x, weights_vf, biases_vf, outputs_vf)
    probs = outputs_pi[len(outputs_pi) - 1]
    N, n = probs.shape
    for row in range(N):
        if not 0 <= actions[row] < n:
            return False
        highest = probs[row, 0]
        for a in range(1, n):
            highest = max(highest, probs[row, a])
        total = 0.0
        for a in range(n):
            log_probs[row, a] = probs[row, a] - highest
            probs[row, a] = math.exp(log_probs[row, a])
            total += probs[row, a]
        shift, surprise = math.log(total), 0.0
        for a in range(n):
            probs[row, a] /= total
            log_probs[row, a] -= shift
            # what cannot be chosen adds nothing, where 0 * -inf would be NaN
            surprise -= probs[row, a] * log_probs[row, a] if probs[row, a] != 0 else 0.0
        log_prob[row], entropy[row] = log_probs[row, actions[row]], surprise
    return True


@njit(**OPTIONS)
def _backward(  # type: ignore[no-untyped-def]
    d_values,
    d_log_prob,
    d_entropy,
    x,
    actions,
    log_probs,
    entropy,
    dx,
    weights_pi,
    weights_vf,
    outputs_pi,
    outputs_vf,
    d_weights_pi,
    d_biases_pi,
    d_weights_vf,
    d_biases_vf,
):
    """Fill dx [N, D], unless it is empty; add to parameters' gradients."""
    probs = outputs_pi[len(outputs_pi) - 1]
    d_logits = np.empty_like(probs)
    for row in range(len(probs)):
        for a in range(probs.shape[1]):
            p = probs[row, a]
            uncertain = p * (log_probs[row, a] + entropy[row]) if p != 0 else p
            d_logits[row, a] = -d_log_prob[row] * p - d_entropy[row] * uncertain
        d_logits[row, actions[row]] += d_log_prob[row]
    layers_backward(d_logits, x, weights_pi, outputs_pi, dx, False, d_weights_pi, d_biases_pi)
    layers_backward(d_values, x, weights_vf, outputs_vf, dx, True, d_weights_vf, d_biases_vf)

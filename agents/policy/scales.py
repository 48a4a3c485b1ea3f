"""Running scales: of the observations that a policy reads, and of the returns that its critic predicts.

Both change between rollouts only, so that an update computes what acting computed. They are buffers of the policy, so
that its files, copies and exports hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

CLIP = 10.0
"""Standard deviations at which a scaled observation is cut off, as in SB3's VecNormalize."""
EPS = 1e-8
"""Added to a variance before its root is taken."""
ROUNDING = 1e-5
"""Standard deviation of equal returns over their mean, that rounding may leave."""
SMALLEST_RETURN = 1e-3
"""The smallest number that rewards of a replay are divided by."""


class RunningMoments(nn.Module):
    """Mean and variance of all vectors so far.

    Args:
        size: n, numbers of a vector.
    """

    mean: Tensor
    """[n] float32, 0 before the first vector."""
    var: Tensor
    """[n] float32, 1 before the first vector."""
    count: Tensor
    """[] int64, vectors so far."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Add vectors [N, n], by the formula for two samples of Chan, Golub and LeVeque 1979."""
        found = vectors.numpy(force=True).astype(np.float64)
        before, added = int(self.count), len(found)
        if not added:
            return
        total = before + added
        mean, var = self.mean.numpy(force=True).astype(np.float64), self.var.numpy(force=True).astype(np.float64)
        delta = found.mean(0) - mean
        squares = (var * before if before else 0.0) + found.var(0) * added + delta**2 * (before * added / total)
        self.mean.copy_(torch.from_numpy(mean + delta * (added / total)))
        self.var.copy_(torch.from_numpy(squares / total))
        self.count.fill_(total)


class ObservationScales(nn.Module):
    """Observations at mean 0 and variance 1, number by number, cut off at ±10.

    A Box of floats is scaled unless it is an image or its bounds lie within -1 to 1: then it is scaled already, or
    holds flags and one-hots. All else is left as it is.

    Args:
        space: the observation space, a Dict too.
        normalize_images: the policy's argument, which says what an image is.
    """

    def __init__(self, space: spaces.Space, normalize_images: bool = True) -> None:
        super().__init__()
        parts = list(space.spaces.items()) if isinstance(space, spaces.Dict) else [(None, space)]
        sizes = {key: flatdim(part) for key, part in parts if _needs_scale(part, normalize_images)}
        # two lists, as a module cannot be named by every key
        self.keys = list(sizes)
        self.moments = nn.ModuleList(RunningMoments(size) for size in sizes.values())

    def forward(self, observations: Any) -> Any:
        """Scale a tree of [N, ...], of any float type."""
        for key, moments in zip(self.keys, self.moments):
            assert isinstance(moments, RunningMoments)
            if key is None:
                return _scaled(observations, moments)
            observations = {**observations, key: _scaled(observations[key], moments)}
        return observations

    def update(self, observations: Any) -> None:
        """Add the observations of a rollout, a tree of [T, B, ...]."""
        for key, moments in zip(self.keys, self.moments):
            assert isinstance(moments, RunningMoments)
            moments.update((observations if key is None else observations[key]).flatten(0, 1).flatten(1))


def _scaled(x: Tensor, moments: RunningMoments) -> Tensor:
    shape = (1, *x.shape[1:])
    scale = (moments.var + EPS).rsqrt().to(x.dtype).view(shape)
    return ((x - moments.mean.to(x.dtype).view(shape)) * scale).clamp(-CLIP, CLIP)


def _needs_scale(space: spaces.Space, normalize_images: bool) -> bool:
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return False
    if is_image_space(space, normalized_image=not normalize_images):
        return False
    return bool((np.abs(space.low) > 1).any() or (np.abs(space.high) > 1).any())


class ReturnScale(nn.Module):
    """Mean and standard deviation of returns: the critic predicts (return - mean) / std.

    The mean is that of the latest rollout. Returns move as a whole while values are learned, as they are bootstrapped
    from values, and values must follow such a move at once (MAPPO's value normalisation, arXiv 2103.01955). PopArt
    (arXiv 1602.07714) instead changes the critic's last layer so that values stay, and the gradient has to learn every
    move: then values of returns of some hundreds explain nothing in the first quarter of 100,000 steps
    (docs/notebook/defaults.md). The value loss is divided by std squared, so that it does not drown the policy's in a
    memory that both train.

    The std is the largest of any rollout so far. When a task is solved all returns are alike. A std that fell with them
    would blow up what the critic still gets wrong, and with it the next returns. A training begins it at 0, so that the
    first rollout's returns hold rewards alone and not what an untrained critic says. So the size of the rewards does
    not matter: a policy learns the same from rewards of 0.01 as from rewards of 1.

    Before that nothing is scaled, nor with weights that came without a scale, such as those of an agent of SB3's. Such
    a critic can act and be evaluated. It cannot be trained on: it predicts returns as they are.
    """

    _is_of_others = False
    """Whether the critic's weights came without a scale."""

    mean: Tensor
    """[] float32."""
    std: Tensor
    """[] float32; 0 before returns differ."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def begin(self) -> None:
        """Make ready for the first rollout of a training; a scale that has seen returns stays as it is.

        Raises:
            ValueError: the critic's weights came without a scale.
        """
        self.check_own()
        if self.mean == 0 and self.std == 1:
            self.std.zero_()

    def check_own(self) -> None:
        """Refuse to train a critic whose weights came without a scale: it would take returns for scaled ones."""
        if self._is_of_others:
            raise ValueError(
                "the weights were trained without a scale of returns, and this critic predicts scaled ones; go on with "
                "normalize_returns=False (--no-normalize-returns)"
            )

    def adopted(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of a policy, with this scale as it is before a training where they hold a critic and no scale."""
        has_scale, has_critic = (
            any(name.startswith(part) for name in weights) for part in ("return_scale.", "value_net.")
        )
        if has_scale or has_critic:
            self._is_of_others = not has_scale
        if has_scale or not has_critic:
            return weights
        return {**weights, "return_scale.mean": torch.zeros(()), "return_scale.std": torch.ones(())}

    def forward(self, predicted: Tensor) -> Tensor:
        """Values of what the critic's last layer predicts, any shape."""
        return predicted * self.std.to(predicted.dtype) + self.mean.to(predicted.dtype)

    @property
    def variance(self) -> Tensor:
        """[] float32, above 0: what the value loss is divided by. That loss is 0 as long as all returns are equal."""
        return self.std.square().clamp(min=torch.finfo(self.std.dtype).tiny)

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Take the moments of a rollout's returns, [T, B]."""
        self.begin()
        found = returns.to(self.mean.dtype)
        mean, std = found.mean(), found.std(correction=0)
        self.mean.copy_(mean)
        # equal returns differ by rounding
        self.std.copy_(torch.maximum(std * (std > ROUNDING * mean.abs()), self.std))


class RewardScale(ReturnScale):
    """What a replay's rewards are divided by: the standard deviation of all discounted sums of rewards so far, or the
    largest reward where that is more.

    Values of a replay are bootstrapped from a target network, so they cannot follow a scale as `ReturnScale` lets them:
    here the rewards are scaled instead, and the values learned from them have a size near 1, whatever the rewards' is.
    Nothing is shifted, as that would change what an early end of an episode is worth.

    No reward exceeds 1 then. Where every step costs 0.01 and only the last one brings 1 or -1, most sums so far are of
    the costs, and their standard deviation is 0.17. Divided by that, the last reward would be 6, and the Huber loss,
    which is linear beyond 1, would learn its median in place of its mean.
    """

    largest: Tensor
    """[] float32, the largest size of a reward so far."""

    def adopted(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as they are: none come without this scale."""
        return weights

    def __init__(self) -> None:
        super().__init__()
        self.moments = RunningMoments(1)
        self.register_buffer("largest", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor, rewards: Tensor) -> None:  # type: ignore[override]
        """Add discounted sums of rewards, [B], one of each row, and the last reward of each, [B]."""
        self.moments.update(returns.unsqueeze(1))
        self.largest.copy_(torch.maximum(self.largest, rewards.abs().max()))
        self.std.copy_(torch.maximum(self.moments.var[0].sqrt(), self.largest).clamp(min=SMALLEST_RETURN))

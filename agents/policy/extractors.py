"""Observations to features, before any memory: SB3's extractors, and what they lack for small grids and dicts."""

from __future__ import annotations

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_NATURE_IMAGE = 36
"""Pixels: a side below it is consumed by NatureCNN's three strided convolutions."""


class SmallImageExtractor(BaseFeaturesExtractor):
    """An image too small to convolve, often a grid of categories: every value as a one-hot and as a fraction.

    Values 0 to 15 get a column each, larger ones share the last; the fraction (value / 255) tells those apart.

    Args:
        observation_space: uint8 image space [..., ...], any channel order.
        normalized_image: whether what arrives was already divided by 255, as SB3 does by default.
    """

    VALUES = 16

    def __init__(self, observation_space: spaces.Box, normalized_image: bool = True) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space) * (self.VALUES + 1))
        self.unit = 255.0 if normalized_image else 1.0

    def forward(self, observations: Tensor) -> Tensor:
        """Image [N, ...] to features [N, pixels * 17]."""
        flat = observations.flatten(1)
        category = (flat * self.unit).round().long().clamp_(0, self.VALUES - 1)
        one_hot = functional.one_hot(category, self.VALUES).to(flat.dtype)
        return torch.cat([one_hot.flatten(1), flat * (self.unit / 255.0)], dim=1)


def image_extractor(space: spaces.Box, features_dim: int) -> BaseFeaturesExtractor:
    """NatureCNN where the image is large enough for it, else `SmallImageExtractor`. `space` is channels first."""
    if min(space.shape[1:]) < SMALLEST_NATURE_IMAGE:
        return SmallImageExtractor(space)
    return NatureCNN(space, features_dim)


class ImageExtractor(BaseFeaturesExtractor):
    """An image space through NatureCNN, or as categories where its smaller side is below 36 pixels.

    Args:
        observation_space: uint8 image space, channels first (SB3's `VecTransposeImage` sees to that).
        features_dim: NatureCNN's number of features.
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int = 256) -> None:
        if not isinstance(observation_space, spaces.Box) or not is_image_space(observation_space):
            raise ValueError(
                "CnnMemoryPolicy needs a uint8 image space with values 0 to 255; "
                f"got {observation_space}. Use MlpMemoryPolicy or MultiInputMemoryPolicy"
            )
        extractor = image_extractor(observation_space, features_dim)
        super().__init__(observation_space, extractor.features_dim)
        self.image = extractor

    def forward(self, observations: Tensor) -> Tensor:
        """Image [N, C, H, W] to features [N, D]."""
        return self.image(observations)


class DictExtractor(BaseFeaturesExtractor):
    """A Dict space: images as in `ImageExtractor`, everything else flattened, one after the other.

    Args:
        observation_space: Dict of Box, Discrete, MultiDiscrete and MultiBinary spaces, not nested.
        cnn_output_dim: NatureCNN's number of features, for each large image.
    """

    def __init__(self, observation_space: spaces.Dict, cnn_output_dim: int = 256) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"MultiInputMemoryPolicy needs a Dict observation space; got {observation_space}. "
                "Use MlpMemoryPolicy or CnnMemoryPolicy"
            )
        parts: dict[str, BaseFeaturesExtractor] = {}
        for key, space in observation_space.spaces.items():
            if isinstance(space, spaces.Box) and is_image_space(space):
                parts[key] = image_extractor(space, cnn_output_dim)
            else:
                parts[key] = FlattenExtractor(space)
        super().__init__(observation_space, sum(part.features_dim for part in parts.values()))
        self.parts = nn.ModuleDict(parts)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of preprocessed tensors [N, ...] to features [N, D]."""
        return torch.cat([part(observations[key]) for key, part in self.parts.items()], dim=1)

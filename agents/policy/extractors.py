"""Observations to features, before any memory: SB3's extractors, and what they lack for small grids and dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.agents.policy.scales import ObservationScales
from palimpsest.agents.policy.spaces import as_batch, flattened, preprocess

Observation = Tensor | dict[str, Tensor]

SMALLEST_NATURE_IMAGE = 36
"""Pixels: a side below it is consumed by NatureCNN's three strided convolutions."""


class SmallImageExtractor(BaseFeaturesExtractor):
    """An image too small to convolve, often a grid of categories: every value as a one-hot and as a fraction.

    Values 0 to 15 get a column each, larger ones share the last; the fraction (value / 255) tells those apart.

    Args:
        observation_space: uint8 image space [..., ...], any channel order.
        normalize_images: whether what arrives was divided by 255, as SB3 does by default.
    """

    VALUES = 16

    def __init__(self, observation_space: spaces.Box, normalize_images: bool = True) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space) * (self.VALUES + 1))
        self.unit = 255.0 if normalize_images else 1.0

    def forward(self, observations: Tensor) -> Tensor:
        """Image [N, ...] to features [N, pixels * 17]."""
        flat = observations.flatten(1)
        category = (flat * self.unit).round().long().clamp_(0, self.VALUES - 1)
        one_hot = functional.one_hot(category, self.VALUES).to(flat.dtype)
        return torch.cat([one_hot.flatten(1), flat * (self.unit / 255.0)], dim=1)


def image_extractor(space: spaces.Box, features_dim: int, normalize_images: bool = True) -> BaseFeaturesExtractor:
    """NatureCNN where the image is large enough for it; else its categories, or its numbers where they are floats.

    Args:
        space: an image space, channels first.
        features_dim: NatureCNN's number of features.
        normalize_images: whether what arrives was divided by 255, as SB3 does with bytes by default.
    """
    if min(space.shape[1:]) >= SMALLEST_NATURE_IMAGE:
        return NatureCNN(space, features_dim, normalized_image=not normalize_images)
    if space.dtype == np.uint8:
        return SmallImageExtractor(space, normalize_images)
    return FlattenExtractor(space)


class ImageExtractor(BaseFeaturesExtractor):
    """An image space through NatureCNN, or as categories where its smaller side is below 36 pixels.

    Args:
        observation_space: image space, channels first (SB3's `VecTransposeImage` sees to that for bytes): of bytes, or,
            with `normalize_images=False`, of floats.
        features_dim: NatureCNN's number of features.
        normalize_images: the policy's argument: whether images of bytes arrive divided by 255.
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int = 256, normalize_images: bool = True) -> None:
        if not isinstance(observation_space, spaces.Box) or not is_image_space(
            observation_space, normalized_image=not normalize_images
        ):
            raise ValueError(
                "CnnMemoryPolicy needs a uint8 image space with values 0 to 255, or, with "
                "policy_kwargs=dict(normalize_images=False), one of floats, channels first; "
                f"got {observation_space}. Use MlpMemoryPolicy or MultiInputMemoryPolicy"
            )
        extractor = image_extractor(observation_space, features_dim, normalize_images)
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
        normalize_images: the policy's argument: whether images of bytes arrive divided by 255.
    """

    def __init__(
        self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalize_images: bool = True
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"MultiInputMemoryPolicy needs a Dict observation space; got {observation_space}. "
                "Use MlpMemoryPolicy or CnnMemoryPolicy"
            )
        parts: list[BaseFeaturesExtractor] = []
        for space in observation_space.spaces.values():
            if isinstance(space, spaces.Box) and is_image_space(space, normalized_image=not normalize_images):
                parts.append(image_extractor(space, cnn_output_dim, normalize_images))
            else:
                parts.append(FlattenExtractor(flattened(space)))
        super().__init__(observation_space, sum(part.features_dim for part in parts))
        # a list, as a module cannot be named by every key: "forward" and "a.b" are keys too
        self.keys = list(observation_space.spaces)
        self.parts = nn.ModuleList(parts)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of preprocessed tensors [N, ...] to features [N, D]."""
        return torch.cat([part(observations[key]) for key, part in zip(self.keys, self.parts)], dim=1)


class ObservingPolicy(ActorCriticPolicy):
    """SB3's policy, which reads observations of every space of numbers, scaled where its subclass makes the scales."""

    observation_scales: ObservationScales | None

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """A features extractor of this policy's class; see SB3."""
        cls, arguments = self.features_extractor_class, dict(self.features_extractor_kwargs)
        if issubclass(cls, ImageExtractor | DictExtractor):
            arguments.setdefault("normalize_images", self.normalize_images)
        return cls(
            flattened(self.observation_space) if cls is FlattenExtractor else self.observation_space, **arguments
        )

    def extract_features(self, obs: Observation, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Features [N, D] of observations, a tree of [N, ...]; a pair of them where actor and critic have one each."""
        floats = self.floats(obs)
        if features_extractor is not None:
            return features_extractor(floats)
        if self.share_features_extractor:
            return self.features_extractor(floats)
        return self.pi_features_extractor(floats), self.vf_features_extractor(floats)

    def floats(self, obs: Observation) -> Observation:
        """Observations, a tree of [N, ...], as SB3 preprocesses them, scaled."""
        floats = preprocess(obs, self.observation_space, self.normalize_images)
        return floats if self.observation_scales is None else self.observation_scales(floats)

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """Observations as tensors [N, ...], and whether they came as a batch; see SB3.

        Raises:
            ValueError: a shape that is not the space's, or parts of a Dict of different N.
        """
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            parts = {key: as_batch(observation[key], part) for key, part in space.spaces.items()}
            arrays = {key: array for key, (array, _) in parts.items()}
            rows = {key: len(array) for key, array in arrays.items()}
            if len(set(rows.values())) > 1:
                raise ValueError(f"the parts of an observation must have as many rows, one alone or N; got {rows}")
            return obs_as_tensor(arrays, self.device), any(batch for _, batch in parts.values())
        array, batch = as_batch(observation, space)
        return obs_as_tensor(array, self.device), batch


def only_flattens(policy: ObservingPolicy) -> bool:
    """Whether a policy's features are its observations, flattened."""
    return (
        type(policy).extract_features is ObservingPolicy.extract_features
        and type(policy.features_extractor) is FlattenExtractor
        and policy.share_features_extractor
        and isinstance(policy.observation_space, spaces.Box)
        and not is_image_space(policy.observation_space)
    )

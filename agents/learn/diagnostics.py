"""Write a memory's diagnostics of its last scan to the logger."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Image, Logger
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from palimpsest.agents.environments import declares
from palimpsest.agents.tree import tree_map
from palimpsest.memory.base import Memory

TEXT_FORMATS = ("stdout", "log", "json", "csv")


def record_memory(logger: Logger, memories: list[Memory], observations: Any, env: VecEnv | None) -> None:
    """Log each memory's diagnostics under `memory/` (and `memory_critic/` for a second one).

    A quantity with a value per step gets three means: over all steps, over steps that show an event (by the
    environment's `event_mask`), and over the other steps. They show how a gate reacts to events.

    Args:
        logger: a logger of SB3.
        memories: the memories of the policy, right after a scan of `observations`.
        observations: tree of [T, B, ...] that they scanned.
        env: the training environments.
    """
    events = None
    for prefix, memory in zip(("memory", "memory_critic"), memories, strict=False):
        for name, value in memory.diagnostics().items():
            key = f"{prefix}/{name}"
            if value.ndim == 0:
                logger.record(key, value.item())
            elif value.ndim == 1:
                logger.record(f"{key}_mean", value.float().mean().item())
                logger.record(key, value.float().cpu(), exclude=TEXT_FORMATS)
            elif value.ndim == 2:
                image = (value.float().clamp(0, 1) * 255).byte().cpu().numpy()
                logger.record(key, Image(image, "HW"), exclude=TEXT_FORMATS)
            else:
                events = event_mask(env, observations) if events is None else events
                _record_steps(logger, key, value.float(), events.to(value.device))


def _record_steps(logger: Logger, key: str, value: Tensor, events: Tensor) -> None:
    """Log the mean of `value` [T, B, N], and its means at and outside `events` [T, B] bool if there are both."""
    logger.record(f"{key}_mean", value.mean().item())
    if events.any() and not events.all():
        logger.record(f"{key}_at_events", value[events].mean().item())
        logger.record(f"{key}_elsewhere", value[~events].mean().item())


def event_mask(env: VecEnv | None, observations: Any) -> Tensor:
    """[T, B] bool, the steps whose observation shows an event; all false if the environment has no `event_mask`."""
    leaf = next(iter(observations.values())) if isinstance(observations, dict) else observations
    none = torch.zeros(leaf.shape[:2], dtype=torch.bool)
    if env is None or not declares(env, "event_mask"):
        return none
    arrays = tree_map(lambda tensor: tensor.cpu().numpy(), observations)
    normalize = unwrap_vec_normalize(env)
    if normalize is not None:
        arrays = normalize.unnormalize_obs(arrays)
    return torch.from_numpy(np.asarray(env.env_method("event_mask", arrays, indices=[0])[0], dtype=bool))

"""A memory's diagnostics of its last scan, and their means for the logger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from palimpsest.agents import environments
from palimpsest.agents.device import refuse_beyond_memory
from palimpsest.agents.learn.buffers import MemoryRolloutBuffer, Minibatch
from palimpsest.agents.tree import tree_map
from palimpsest.agents.workers.group import Alone
from palimpsest.memory.base import Memory


def tell_size(
    step: MemoryRolloutBuffer, T: int, B: int, segment: int | None, state: Any, device: torch.device, verbose: int
) -> None:
    """Say how many bytes a rollout takes on a device, before they are taken; ValueError for more than there are.

    Args:
        step: a rollout of one step of one row, on the device "meta", which takes no memory.
        T: steps.
        B: rows.
        segment: steps of a segment; None for T.
        state: a memory's state before a segment, of one row.
        device: where the rollout will be.
        verbose: whether it is said.
    """
    needed = T * B * _bytes(step.columns) + -(-T // min(segment or T, T)) * B * _bytes(state)
    steps = f"{T:,} steps of {B:,} environments"
    refuse_beyond_memory(device, needed, f"a rollout of {steps}", "choose fewer n_steps or environments")
    if verbose:
        print(f"The rollout of {steps} takes {needed / 1e6:,.1f} MB on {device}")


def _bytes(tree: Any) -> int:
    sizes: list[int] = []
    tree_map(lambda leaf: sizes.append(leaf.nbytes if isinstance(leaf, Tensor) else 0), tree)
    return sum(sizes)


def by_memory(memories: Sequence[Memory]) -> Iterator[tuple[str, str, Tensor]]:
    """Group, name and value of each quantity: `memory`, or `memory_critic` for a second memory."""
    for group, memory in zip(("memory", "memory_critic"), memories, strict=False):
        for name, value in memory.diagnostics().items():
            yield group, name, value


def record_returns(logger: Logger, buffer: MemoryRolloutBuffer) -> None:
    """Log what a rollout returned, and how much of it its values explain."""
    variance = explained_variance(buffer.values.ravel(), buffer.returns.ravel())
    logger.record("train/explained_variance", float(variance))
    if buffer.min_gae_lambda < buffer.gae_lambda:
        logger.record("train/gae_lambda", buffer.chosen_gae_lambda)
    logger.record("train/return_mean", float(buffer.returns.mean()))
    logger.record("train/return_std", float(buffer.returns.std()))


def record_memory(logger: Logger, memories: list[Memory], batch: Minibatch, env: VecEnv | None, workers: Alone) -> None:
    """Log means of each memory's diagnostics under `memory/` (and `memory_critic/` for a second one).

    A quantity with a value per step gets three: over all steps, over steps that show an event (by the environment's
    `event_mask`), and over the other steps. They show how a gate reacts to events. Images have no mean that tells
    anything; `agents.board` shows them, and distributions.

    Args:
        logger: a logger of SB3.
        memories: the memories of the policy, right after a scan of `batch`.
        batch: this worker's part of the last minibatch.
        env: the training environments.
        workers: who have the other parts; the means are those of all parts.
    """
    found = {f"{group}/{name}": value for group, name, value in by_memory(memories) if value.ndim != 2}
    events = None
    if any(value.ndim > 2 for value in found.values()):
        events = event_mask(env, batch.observations)
    if workers.size > 1:
        found, events = _of_all(workers, found, events, batch.share)
    for key, value in found.items():
        if value.ndim == 0:
            logger.record(key, value.item())
        elif value.ndim == 1:
            logger.record(f"{key}_mean", value.float().mean().item())
        else:
            assert events is not None
            _record_steps(logger, key, value.float(), events.to(value.device))


def _of_all(
    workers: Alone, found: dict[str, Tensor], events: Tensor | None, share: float
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Quantities by name, and the event mask, of the parts of all workers; see `record_memory`."""
    mine = {key: value.detach().cpu() for key, value in found.items()}
    parts = [part for part in workers.objects((share, mine, events)) if part[0]]

    def joined(key: str) -> Tensor:
        values = [values[key] for _, values, _ in parts]
        if values[0].ndim > 2:
            return torch.cat(values, 1)
        return torch.stack([value * share for value, (share, _, _) in zip(values, parts)]).sum(0)

    return {key: joined(key) for key in found}, None if events is None else torch.cat([part[2] for part in parts], 1)


def _record_steps(logger: Logger, key: str, value: Tensor, events: Tensor) -> None:
    """Log the mean of `value` [T, B, N], and its means at and outside `events` [T, B] bool if there are both."""
    logger.record(f"{key}_mean", value.mean().item())
    if events.any() and not events.all():
        logger.record(f"{key}_at_events", value[events].mean().item())
        logger.record(f"{key}_elsewhere", value[~events].mean().item())


def event_mask(env: VecEnv | None, observations: Any) -> Tensor:
    """[T, B] bool, the steps whose observation shows an event.

    All are false where the environment has no `event_mask`, or wrappers change what it shows.
    """
    leaf = next(iter(observations.values())) if isinstance(observations, dict) else observations
    if env is None or not environments.declares(env, "event_mask"):
        return torch.zeros(leaf.shape[:2], dtype=torch.bool)
    arrays = tree_map(lambda tensor: tensor.cpu().numpy(), observations)
    return torch.from_numpy(environments.event_mask(env, arrays))

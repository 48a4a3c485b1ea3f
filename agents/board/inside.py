"""What is inside an agent's memory now, and what it learns from: tensors for histograms, and pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from palimpsest.agents.board.pictures import Bars, Map, drawn, heads
from palimpsest.agents.learn.diagnostics import by_memory, event_mask
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.policy.memory_pair import PairState
from palimpsest.agents.tree import tree_map
from palimpsest.memory.base import Memory
from palimpsest.memory.kernels.arithmetic.dispatch import torch_only

MOST = 2**15
"""Numbers in a histogram; of more, evenly spread ones are taken."""
STEPS = 48
"""Steps of a picture of reads; the time that it takes grows with the square."""


def distributions(model: SavedAlgorithm) -> dict[str, Tensor]:
    """Tag -> [N] finite numbers: what the memories show of their last scan, their states, and what PPO learned from."""
    found = {f"{group}/{name}": value for group, name, value in by_memory(model.policy.memories()) if value.ndim != 2}
    found |= states(model)
    if isinstance(model, OnPolicyAlgorithm):
        buffer = model.rollout_buffer
        found |= {f"rollout/{name}": torch.from_numpy(getattr(buffer, name)) for name in ("advantages", "returns")}
    return {tag: few for tag, value in found.items() if value.ndim and len(few := _few(value))}


def states(model: SavedAlgorithm) -> dict[str, Tensor]:
    """Tag -> the floats [B, ...] of every field of the memories' states."""
    state = model.recall()
    parts = state if isinstance(state, PairState) else (state,)
    found = {}
    for group, part in zip(("memory", "memory_critic"), parts, strict=False):
        for name, field in zip(getattr(part, "_fields", ()), part):
            if isinstance(field, Tensor) and field.is_floating_point():
                found[f"{group}/state_{name}"] = field.detach()
    return found


def root_mean_square(values: Tensor) -> float:
    """Of all numbers; 0 of none."""
    return float(values.float().norm()) / math.sqrt(max(values.numel(), 1))


def pictures(model: SavedAlgorithm) -> dict[str, np.ndarray]:
    """Tag -> picture: the last scan of each memory, and what its reads weigh where it tells."""
    found: dict[str, list[Map | Bars]] = {}
    for group, name, value in by_memory(model.policy.memories()):
        if value.ndim and value.numel():
            found.setdefault(group, []).append(_part(name.replace("_", " "), value.float()))
    shown = {f"{group}/last_scan": drawn(parts) for group, parts in found.items()}
    weights = reads(model)
    return shown if weights is None else shown | {"memory/read_weights": weights}


def _part(title: str, value: Tensor) -> Map | Bars:
    if value.ndim == 1:
        return Bars(title, value.numpy(force=True))
    if value.ndim == 2:
        return Map(title, value.numpy(force=True), f"rows: {len(value)}, columns")
    return Map(f"{title}, of one row", value[:, 0].flatten(1).T.numpy(force=True), "steps of the last sequence")


def reads(model: SavedAlgorithm) -> np.ndarray | None:
    """What the reads of the actor's memory weigh, over steps that were played; None where it does not tell."""
    policy = model.policy
    if type(policy.memory).read_weights is Memory.read_weights:
        return None
    played = _played(model)
    if played is None:
        return None
    observations, start, opens, state = played
    with torch.no_grad(), torch_only():
        x = policy.memory_pair.marked(policy.memory_inputs(observations), opens).actor
        weights = policy.memory.read_weights(x, start, state.actor if isinstance(state, PairState) else state)
    if weights is None:
        return None
    events = event_mask(model.env, observations)[:, 0].numpy()
    return heads(weights[0].numpy(force=True), events, f"{len(start)} steps of one row")


def _played(model: SavedAlgorithm) -> tuple[Any, Tensor, Tensor, Any] | None:
    """Steps that were played in one row; None where there are none yet.

    Observations, a tree of [T, 1, ...]; where the memory began anew and where an episode did, [T, 1] bool each; the
    memory's state [1, ...] before them.
    """
    if isinstance(model, OnPolicyAlgorithm):
        buffer: Any = model.rollout_buffer
        row = slice(buffer.own.start, buffer.own.start + 1)
        T = min(buffer.sequence_length, STEPS)
        columns = buffer.columns
        if not buffer.states:
            return None
        observations = tree_map(lambda leaf: leaf[:T, row], columns.observations)
        start = columns.memory_start[:T, row]
        opens = start if columns.episode_start is None else columns.episode_start[:T, row]
        return observations, start, opens, tree_map(lambda leaf: leaf[row], buffer.states[0])
    replay: Any = model.replay  # type: ignore[attr-defined]
    if not replay.ready:
        return None
    # a generator of its own: a picture must not change what is learned
    sequence = replay.sample(1, np.random.default_rng(model.num_timesteps), model.get_vec_normalize_env())
    observations = tree_map(lambda leaf: leaf[:STEPS], sequence.observations)
    start = sequence.memory_start[:STEPS]
    return observations, start, start, sequence.state


def _few(values: Tensor) -> Tensor:
    flat = values.detach().flatten()
    flat = flat[:: max(1, len(flat) // MOST)].float().cpu()
    return flat[flat.isfinite()]

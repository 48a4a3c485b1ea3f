"""The rows of this process that act and step together: all of them, or one of two halves that take turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsest.agents.tree import tree_map


class Step(NamedTuple):
    """What the rows of a part saw, chose and got in one step; trees and tensors of [B, ...]."""

    observations: Any
    chosen: Tensor
    values: Tensor
    log_probs: Tensor
    masks: Tensor | None
    actions: np.ndarray
    """As the environments take them."""
    new_obs: Any = None
    rewards: Any = None
    dones: Any = None
    infos: Any = None


class Part:
    """Rows that act and step together: what they know before the next action, and the step that they are at.

    Args:
        env: the VecEnv of the whole, or an `envs.halves.Half` of it.
        rows: which of this process's rows these are.
        whole: whether these are all.
        gives_up: whether a step may write into the state that it is given.
        obs: tree of [B, ...] of all of this process's rows, as are the others.
        episode_starts: [B] bool.
        memory_starts: [B] bool.
        state: tree of [B, ...].
    """

    step: Step
    masks: np.ndarray | None = None
    """[B, n] bool, what its next actions may be; None where all may be."""
    before: Any = None
    """The memory's state before the segment under way."""
    failed: Exception | None = None
    """What went wrong as it acted."""

    def __init__(
        self,
        env: Any,
        rows: slice,
        whole: bool,
        gives_up: bool,
        obs: Any,
        episode_starts: Any,
        memory_starts: Any,
        state: Any,
    ) -> None:
        self.env, self.rows, self.whole, self.gives_up = env, rows, whole, gives_up
        known = (obs, episode_starts, memory_starts, state)
        if not whole:
            known = tree_map(lambda leaf: leaf[rows], known)
        self.obs, self.episode_starts, self.memory_starts, self.state = known

    @property
    def venv(self) -> Any:
        """The VecEnv of these rows; between their steps it answers."""
        return self.env if self.whole else self.env.settled()

    def begin(self, step: Step) -> None:
        """Take the actions of a step. A half begins to step; the whole does so when it is waited for."""
        self.step = step
        if not self.whole:
            self.env.begin(step.actions)

    def end(self) -> Step:
        """Wait for the step's end. Its arrays are copies, for a VecEnv may write the next step's into its own."""
        *arrays, infos = self.env.step(self.step.actions) if self.whole else self.env.end()
        new_obs, rewards, dones = tree_map(np.array, tuple(arrays))
        return self.step._replace(new_obs=new_obs, rewards=rewards, dones=dones, infos=infos)


def together(parts: Sequence[Step]) -> Step:
    """The step of all rows, from those of the parts in order."""
    if len(parts) == 1:
        return parts[0]
    fields = dict(zip(Step._fields, zip(*parts)))
    infos = [info for part in fields.pop("infos") for info in part]
    return Step(**{name: joined(each) for name, each in fields.items()}, infos=infos)


def joined(parts: Sequence[Any]) -> Any:
    """Trees of [b, ...] one after the other. None is a leaf too."""
    if len(parts) == 1 or parts[0] is None:
        return parts[0]

    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else np.concatenate(leaves)

    return tree_map(join, *parts)


def truncated_rows(dones: np.ndarray, infos: Sequence[dict[str, Any]]) -> list[int]:
    """The rows whose episodes a step has truncated, from what SB3's VecEnvs return.

    As in SB3, an end without its observation has nothing to bootstrap from: it counts as a termination.
    """
    return [
        row
        for row in np.flatnonzero(dones).tolist()
        if infos[row].get("TimeLimit.truncated", False) and infos[row].get("terminal_observation") is not None
    ]

"""`predict`: from an environment's observation to an action, with what is remembered handed in and out as arrays."""

from __future__ import annotations

from operator import methodcaller
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor

from palimpsest.agents.masks import checked_masks
from palimpsest.agents.observation_checks import refuse_not_finite
from palimpsest.agents.policy.distributions import restricted
from palimpsest.agents.policy.extractors import Observation
from palimpsest.agents.policy.heads import HeadedPolicy, in_its_form
from palimpsest.agents.policy.memory_pair import Both, State, check_rows
from palimpsest.agents.policy.spaces import greedy_strategy
from palimpsest.agents.slips import refuse_pair
from palimpsest.agents.tree import tree_map
from palimpsest.memory.base import Memory

_to_array = methodcaller("numpy", force=True)


class Look(NamedTuple):
    """What a policy makes of a sequence of T steps in B rows."""

    latent: Both
    """[T, B, D] each, what the memories gave out."""
    state: State
    """After the last step."""
    distribution: Distribution
    """Of T B actions, step by step."""
    judged: Tensor
    """[T, B], values of the states; [T, B, A], values of the actions, where these are what the critics give."""


class PredictingPolicy(HeadedPolicy):
    """A policy that acts for SB3's callers, which know arrays."""

    memory: Memory
    mark_starts: bool
    acts_by_values: ClassVar[bool] = False
    """Whether actions are chosen by their values, so that `Look.distribution` says nothing of them."""

    def initial_state(self, batch_size: int) -> State:
        """What is remembered before an episode, for `batch_size` rows."""
        raise NotImplementedError

    def get_distribution(  # type: ignore[override]
        self,
        obs: Observation,
        state: State,
        start: Tensor | None = None,
        strategy: Tensor | None = None,
        action_masks: Tensor | None = None,
    ) -> tuple[Distribution, State]:
        """The distribution of the next actions, and the state after `obs`."""
        raise NotImplementedError

    def _scan(
        self, obs: Observation, state: State, start: Tensor, strategy: Tensor | None, opens: Tensor | None
    ) -> tuple[Both, State]:
        raise NotImplementedError

    def _encode(self, obs: Observation) -> Both:
        raise NotImplementedError

    @in_its_form
    def look(
        self,
        obs: Observation,
        state: State,
        start: Tensor,
        strategy: Tensor | None = None,
        action_masks: Tensor | None = None,
    ) -> Look:
        """Read a sequence by the memories' scan, whose diagnostics then tell of it.

        Args:
            obs: tree of [T, B, ...].
            state: before the first step, batch B.
            start: [T, B] bool, where episodes begin.
            strategy: [T, B] int64 or None.
            action_masks: [T, B, n] bool or None.
        """
        latent, after = self._scan(obs, state, start, strategy, None)
        masks = None if action_masks is None else action_masks.flatten(0, 1)
        distribution = restricted(self._actor(latent.actor.flatten(0, 1)), masks)
        return Look(latent, after, distribution, self._judge(latent))

    def _judge(self, latent: Both) -> Tensor:
        return self._critic(latent.critic)

    @in_its_form
    def memory_inputs(self, obs: Observation) -> Both:
        """What the memories read of a sequence, a tree of [T, B, ...]: [T, B, F] each."""
        leaf = next(iter(obs.values())) if isinstance(obs, dict) else obs
        flat = self._encode(tree_map(lambda each: each.flatten(0, 1), obs))
        return Both(*(each.unflatten(0, leaf.shape[:2]) for each in flat))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[Any, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[Any, ...] | None]:
        """Actions for observations, as SB3's `evaluate_policy` asks for them.

        Args:
            observation: one observation, or a batch of them.
            state: what the call before returned; None at the beginning.
            episode_start: [B] bool, rows that begin an episode; None for none.
            deterministic: the likeliest action instead of a sample.
            action_masks: [B, n] bool, or [n] for one observation, as `agents.get_action_masks` gives them; None where
                everything is allowed.

        Returns:
            Actions, and the state as a tuple of numpy arrays, batch first.

        Raises:
            ValueError: an observation does not fit the space or is not finite, the state has another batch size, or
                masks do not fit or allow nothing.
        """
        refuse_pair(observation)
        if self.training:  # walking the tree at every step would take as long as the step
            self.set_training_mode(False)
        if isinstance(self.observation_space, spaces.Dict) and isinstance(observation, dict):
            missing = [key for key in self.observation_space.spaces if key not in observation]
            if missing:
                raise ValueError(f"observation lacks {missing}; it needs {list(self.observation_space.spaces)}")
            observation = {key: observation[key] for key in self.observation_space.spaces}
        refuse_not_finite(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        B, device = len(next(iter(obs.values())) if isinstance(obs, dict) else obs), self.device
        if state is None:
            self.look_for_changes()
            before = self.initial_state(B)
            state = tree_map(_to_array, before)
            if episode_start is None and self.mark_starts:
                episode_start = np.ones(B, dtype=bool)
        else:
            before = tree_map(lambda leaf: torch.as_tensor(leaf, device=device), state)
            tree_map(lambda leaf: check_rows(leaf, B), before)
        start = None
        if episode_start is not None:
            start = torch.as_tensor(np.asarray(episode_start, dtype=bool).reshape(-1), device=device)
            if start.shape != (B,):
                raise ValueError(f"episode_start must be [B] = [{B}]; got {list(start.shape)}")
        masks = {}
        if action_masks is not None:
            allowed = checked_masks(action_masks, self.action_space, B)
            masks["action_masks"] = torch.tensor(allowed, device=device)
        with torch.no_grad():
            strategy = greedy_strategy(self.memory, obs, B)
            distribution, after = self.get_distribution(obs, before, start, strategy, **masks)
            actions = distribution.get_actions(deterministic=deterministic)
        array = actions.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        if isinstance(self.action_space, spaces.Box):
            if self.squash_output:
                array = self.unscale_action(array)
            else:
                array = np.clip(array, self.action_space.low, self.action_space.high)
        if not vectorized:
            array = array.squeeze(axis=0)
        # a part that no step changes stays the caller's: wrapped anew at each step, every wrapper would hold the last
        return array, tree_map(lambda new, old, given: given if new is old else _to_array(new), after, before, state)

"""What the policies of `MemoryDQN` and `MemorySAC` have in common: they scan sequences from a stored state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from palimpsest.agents.policy.extractors import Observation
from palimpsest.agents.policy.heads import in_its_form
from palimpsest.agents.policy.memory_pair import Both, State
from palimpsest.agents.policy.observation_keys import place_of
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.tree import tree_map


class SequencePolicy(MemoryActorCriticPolicy):
    """An actor-critic policy of which an off-policy algorithm scans sequences."""

    @in_its_form
    def refreshed(self, obs: Observation, state: State, start: Tensor) -> State:
        """The state after a sequence.

        Args:
            obs: tree of [T, B, ...].
            state: before the first step, batch B.
            start: [T, B] bool, where the memory begins anew.
        """
        return self._scan(obs, state, start)[1] if len(start) else state

    def _scan(self, obs: Observation, state: State, start: Tensor) -> tuple[Both, State]:
        """What the heads read of a sequence, [T B, D] each, and the state after it; arguments as in `refreshed`."""
        T, B = start.shape
        features = self._encode(tree_map(lambda leaf: leaf.flatten(0, 1), obs))
        memories = self.memory_pair
        place = place_of(obs, memories.actor, self.observation_space)
        latent, state = memories.scan(Both(*(each.unflatten(0, (T, B)) for each in features)), start, state, place)
        return Both(*(each.flatten(0, 1) for each in latent)), state


def halves(tree: Any, at: int) -> tuple[Any, Any]:
    """A tree of [T, ...] tensors before and from entry `at`."""
    return tree_map(lambda leaf: leaf[:at], tree), tree_map(lambda leaf: leaf[at:], tree)

"""What actor and critic remember with: one memory that both read, or one for each."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from palimpsest.agents.tree import tree_map
from palimpsest.memory.base import Memory, reset
from palimpsest.memory.kernels.arithmetic.dispatch import is_watched

State = tuple[Any, ...]
"""A memory's state, or a `PairState` of two."""


class Both(NamedTuple):
    """What the actor's and the critic's memory read, or what they give out; one tensor twice where they are one."""

    actor: Tensor
    critic: Tensor


class PairState(NamedTuple):
    """The states of an actor's and a critic's own memories."""

    actor: State
    critic: State


class MemoryPair(NamedTuple):
    """The actor's and the critic's memory; the same one twice where they share it.

    Memories are called as modules, so that hooks on them run. `place` and `strategy` are those of `Memory.step`.
    """

    actor: Memory
    critic: Memory
    mark: Tensor | None = None
    """[memories, F], added to the input of each memory that opens an episode. Without it a memory that is carried over
    an episode's end cannot know that the episode is another one (RL², arXiv 1611.02779, gives its memory such a
    flag)."""

    def each(self) -> list[Memory]:
        """The memories, each once."""
        return [self.actor] if self.critic is self.actor else [self.actor, self.critic]

    def initial_state(self, batch_size: int) -> State:
        """What is remembered before an episode, for `batch_size` rows."""
        if self.critic is self.actor:
            return self.actor.initial_state(batch_size)
        return PairState(self.actor.initial_state(batch_size), self.critic.initial_state(batch_size))

    def step(
        self,
        x: Both,
        state: Any,
        start: Tensor | None = None,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
        keep_state: bool = True,
        opens: Tensor | None = None,
    ) -> tuple[Both, State]:
        """Read one input, [B, F] for each memory; rows where `start` [B] is true begin anew.

        Without `keep_state` the caller gives `state` up, as for `Memory.advance`; no gradient may be wanted then.
        `opens` [B] bool says which inputs open an episode; None for those of `start`.
        """
        x = self._marked(x, start if opens is None else opens)
        if self.critic is self.actor:
            y, after = _step(self.actor, x.actor, state, start, place, strategy, keep_state)
            return Both(y, y), after
        y_pi, pi = _step(self.actor, x.actor, state[0], start, place, strategy, keep_state)
        y_vf, vf = _step(self.critic, x.critic, state[1], start, place, strategy, keep_state)
        return Both(y_pi, y_vf), PairState(pi, vf)

    def scan(
        self,
        x: Both,
        start: Tensor,
        state: Any,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
        opens: Tensor | None = None,
    ) -> tuple[Both, State]:
        """Read a sequence, [T, B, F] for each memory, as `Memory.scan`; `opens` as for `step`, [T, B]."""
        x = self._marked(x, start if opens is None else opens)
        if self.critic is self.actor:
            y, after = self.actor(x.actor, state, start, place, strategy)
            return Both(y, y), after
        y_pi, pi = self.actor(x.actor, state[0], start, place, strategy)
        y_vf, vf = self.critic(x.critic, state[1], start, place, strategy)
        return Both(y_pi, y_vf), PairState(pi, vf)

    def _marked(self, x: Both, opens: Tensor | None) -> Both:
        if self.mark is None or opens is None:
            return x
        opens = opens.unsqueeze(-1).to(self.mark.dtype)
        actor = x.actor + opens * self.mark[0]
        return Both(actor, actor if self.critic is self.actor else x.critic + opens * self.mark[1])


def _step(
    memory: Memory,
    x: Tensor,
    state: State,
    start: Tensor | None,
    place: Tensor | None,
    strategy: Tensor | None,
    keep_state: bool,
) -> tuple[Tensor, State]:
    if start is not None:
        state = _begun(memory, state, start, in_place=memory.reuses_state and not keep_state)
    return memory(x, state, None, place, strategy, keep_state)


def _begun(memory: Memory, state: State, start: Tensor, in_place: bool) -> State:
    """The state, begun anew in the rows where `start` [B] is true."""
    if is_watched():
        # how many rows begin is not known to what records the operations
        return reset(state, memory.initial_state(len(start)), start)
    rows = start.nonzero().squeeze(1)
    if not len(rows):
        return state
    begin = Tensor.index_copy_ if in_place else Tensor.index_copy
    return tree_map(lambda old, new: begin(old, 0, rows, new), state, memory.initial_state(len(rows)))


def check_rows(leaf: Tensor, batch_size: int) -> None:
    """Refuse a leaf of a state that has not one row per observation."""
    if leaf.shape[:1] != (batch_size,):
        raise ValueError(
            f"state must have one row per observation, {batch_size}; got {list(leaf.shape)}. "
            "Pass state=None when the number of environments changes"
        )

"""The rollout: whole columns of steps, the memory's state at the first of them, and advantages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from torch import Tensor

from palimpsest.agents.advantages import chosen_lambda, generalized_advantages, slopes_of
from palimpsest.agents.tree import tree_map
from palimpsest.agents.workers.group import Alone


class Minibatch(NamedTuple):
    """Segments of a rollout: sequences [T, b, ...], the memory's state [b, ...] before their first step."""

    observations: Any
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    memory_start: Tensor
    state: Any
    strategy: Tensor | None
    action_masks: Tensor | None = None
    episode_start: Tensor | None = None
    """Where episodes begin; None where memories are never carried over, so that `memory_start` says it."""
    share: float = 1.0
    """How much of the minibatch these segments are; the other workers have the rest."""
    whole_advantages: Tensor | None = None
    """[T, all segments of the minibatch]; None for `advantages`."""


class MemoryRolloutBuffer:
    """A rollout of T steps in B rows, on the policy's device.

    A row's steps are one column, cut into segments of L steps (the last may be shorter). The memory's state is kept
    before each segment, not at every step: the update scans each segment again from there. `episode_starts` bounds
    values and advantages, `memory_start` the memory; they differ where a memory is carried over an episode's end.

    The attributes with SB3's names (`observations`, `actions`, `values`, `log_probs`, `advantages`, `returns`,
    `rewards`, `episode_starts`) are arrays [T, B, ...] as in SB3; on the CPU they share the tensors' memory.

    Args:
        buffer_size: T.
        observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of them.
        action_space: any of SB3's.
        device: where the tensors are.
        gae_lambda: λ of the returns, and the largest of the advantages.
        gamma: discount per step.
        n_envs: B.
        strategies: whether the memory's allocation strategy is stored.
        sequence_length: L, 1 to T; None for T, whole columns.
        carries_over: whether `memory_start` may differ from `episode_starts`, so that minibatches hold both.
        min_gae_lambda: smallest λ of the advantages, see `agents.advantages`; None for `gae_lambda`.
        gae_slopes: what earlier rollouts say of smaller λ.
        workers: who fill the buffer. Each adds the steps of its own rows, `n_envs` / size of them, and `gather` brings
            the others'.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 0.95,
        gamma: float = 0.99,
        n_envs: int = 1,
        strategies: bool = False,
        sequence_length: int | None = None,
        carries_over: bool = False,
        workers: Alone | None = None,
        min_gae_lambda: float | None = None,
        gae_slopes: list[float] | None = None,
    ) -> None:
        self.workers = workers or Alone()
        self.own = self.workers.rows(n_envs // self.workers.size)
        """The rows whose steps are added here."""
        self.buffer_size = buffer_size
        self.n_envs = n_envs
        self.device = get_device(device)
        self.gae_lambda = gae_lambda
        self.min_gae_lambda = gae_lambda if min_gae_lambda is None else min_gae_lambda
        self.gae_slopes = [] if gae_slopes is None else gae_slopes
        self.chosen_gae_lambda = gae_lambda
        """λ of the advantages that were computed last."""
        self.found_slopes: list[float] = []
        """What this rollout says of smaller λ, see `agents.advantages`."""
        self.gamma = gamma
        self.sequence_length = min(sequence_length or buffer_size, buffer_size)
        T, B = buffer_size, n_envs
        discrete = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete)
        assert action_space.shape is not None

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(T, B, *shape, dtype=dtype, device=self.device)

        if isinstance(observation_space, spaces.Dict):
            parts = observation_space.spaces.items()
            observations: Any = {key: empty(*_shape(s), dtype=_dtype(s)) for key, s in parts}
        else:
            observations = empty(*_shape(observation_space), dtype=_dtype(observation_space))
        self.columns = Minibatch(
            observations,
            empty(*action_space.shape, dtype=torch.int64 if discrete else torch.float32),
            empty(),
            empty(),
            empty(),
            empty(),
            empty(dtype=torch.bool),
            None,
            empty(dtype=torch.int64) if strategies else None,
            None,
            empty(dtype=torch.bool) if carries_over else None,
        )
        """The tensors of all steps and rows; `state` is that before the first step."""
        self.rewards = np.zeros((T, B), np.float32)
        self.episode_starts = np.zeros((T, B), bool)
        self.states: list[Any] = []
        """The memory's state, a tree of [B, ...], before each segment so far; while steps are added, of own rows."""
        self.pos = 0

    @property
    def full(self) -> bool:
        """Whether every step is there."""
        return self.pos == self.buffer_size

    def size(self) -> int:
        """How many steps of every row are there."""
        return self.pos

    @property
    def observations(self) -> Any:
        """[T, B, ...], a dict of arrays for a Dict space."""
        return tree_map(_array, self.columns.observations)

    @property
    def actions(self) -> np.ndarray:
        """[T, B, ...]."""
        return _array(self.columns.actions)

    @property
    def values(self) -> np.ndarray:
        """[T, B] float32."""
        return _array(self.columns.old_values)

    @property
    def log_probs(self) -> np.ndarray:
        """[T, B] float32."""
        return _array(self.columns.old_log_prob)

    @property
    def action_masks(self) -> np.ndarray | None:
        """[T, B, n] bool, what the environments allowed; None where masks are not kept."""
        return None if self.columns.action_masks is None else _array(self.columns.action_masks)

    @property
    def advantages(self) -> np.ndarray:
        """[T, B] float32."""
        return _array(self.columns.advantages)

    @property
    def returns(self) -> np.ndarray:
        """[T, B] float32."""
        return _array(self.columns.returns)

    def keep_masks(self, choices: int) -> None:
        """Keep action masks [T, B, choices] of each step from now on; none if `choices` is 0."""
        shape = (self.buffer_size, self.n_envs, choices)
        masks = torch.ones(shape, dtype=torch.bool, device=self.device) if choices else None
        self.columns = self.columns._replace(action_masks=masks)

    def reset(self) -> None:
        """Begin a rollout."""
        self.pos = 0
        self.states = []

    @property
    def at_segment(self) -> bool:
        """Whether the next step begins a segment."""
        return self.pos % self.sequence_length == 0

    def begin_segment(self, state: Any) -> None:
        """Keep the memory's state, a tree of [B, ...] without graph, before the next step."""
        assert self.at_segment, "a segment begins every sequence_length steps"
        self.states.append(state)
        if self.pos == 0:
            self.columns = self.columns._replace(state=state)

    def add(
        self,
        observations: Any,
        actions: Tensor,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
        memory_start: np.ndarray,
        values: Tensor,
        log_probs: Tensor,
        strategy: Tensor | None = None,
        action_masks: Tensor | None = None,
    ) -> None:
        """Store step `pos` of all own rows; each argument [B, ...]."""
        t, own, columns = self.pos, self.own, self.columns
        assert t < self.buffer_size, "add was called on a full rollout"

        def put(into: Tensor, value: Tensor) -> None:
            here = into[t, own]
            here.copy_(value.view_as(here))

        tree_map(put, columns.observations, observations)
        put(columns.actions, actions)
        columns.old_values[t, own] = values
        columns.old_log_prob[t, own] = log_probs
        columns.memory_start[t, own] = torch.from_numpy(memory_start)
        if columns.episode_start is not None:
            columns.episode_start[t, own] = torch.from_numpy(episode_starts)
        if columns.strategy is not None:
            assert strategy is not None
            columns.strategy[t, own] = strategy
        if columns.action_masks is not None:
            assert action_masks is not None
            columns.action_masks[t, own] = action_masks
        self.rewards[t, own] = rewards
        self.episode_starts[t, own] = episode_starts
        self.pos += 1

    def gather(self) -> None:
        """Bring the other workers' steps, and the states before their segments."""
        workers = self.workers
        if workers.size == 1:
            return
        columns = _tensors(self.columns._replace(state=None))
        for leaves in (columns, [torch.from_numpy(each) for each in (self.rewards, self.episode_starts)]):
            parts = workers.gather([leaf[:, self.own] for leaf in leaves])  # [size, T, B / size, ...] each
            for leaf, part in zip(leaves, parts):
                leaf.copy_(part.transpose(0, 1).flatten(1, 2))
        self.states = self._of_all_rows(self.states)
        self.columns = self.columns._replace(state=self.states[0])

    def _of_all_rows(self, states: list[Any]) -> list[Any]:
        """Trees of [B, ...] from the workers' trees, of their own rows each."""
        parts = iter(self.workers.gather(_tensors(tuple(states))))
        return list(tree_map(lambda _: next(parts).flatten(0, 1), tuple(states)))

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Advantages of own rows by GAE, of the λ that earlier rollouts choose, and returns of `gae_lambda`.

        Args:
            last_values: [B] of own rows, of the observation after the last step.
            dones: [B] bool of own rows, whether that observation opens an episode.
        """
        steps = [np.ascontiguousarray(each[:, self.own]) for each in (self.rewards, self.values, self.episode_starts)]
        estimate = functools.partial(
            generalized_advantages, *steps, _array(last_values).reshape(-1), np.asarray(dones, dtype=bool), self.gamma
        )
        bounds = self.min_gae_lambda, self.gae_lambda
        self.chosen_gae_lambda = chosen_lambda(*bounds, self.gae_slopes)
        self.found_slopes = slopes_of(
            estimate, *bounds, self.gamma, lambda sums: np.sum(self.workers.objects(sums), axis=0)
        )
        advantages = estimate(self.chosen_gae_lambda)
        longest = advantages if self.chosen_gae_lambda == self.gae_lambda else estimate(self.gae_lambda)
        columns = self.columns
        columns.advantages[:, self.own] = torch.from_numpy(advantages).to(self.device)
        columns.returns[:, self.own] = torch.from_numpy(longest).to(self.device) + columns.old_values[:, self.own]

    def get(self, batch_size: int | None, rng: np.random.Generator) -> Iterator[Minibatch]:
        """Every segment once, batch_size // L at a time (1 or more; None for all), in an order drawn from `rng`.

        Segments of a shorter end of the columns come in minibatches of their own, of as many samples. Of several
        workers each gets its part of every minibatch: every size-th segment, whoever added its steps.
        """
        assert self.full, "the rollout is not complete"
        L, B = self.sequence_length, self.n_envs
        whole, rest = divmod(self.buffer_size, L)
        batch_size = batch_size or self.buffer_size * B
        order = torch.as_tensor(rng.permutation(whole * B), device=self.device)
        chosen = [(L, segments) for segments in order.split(max(1, batch_size // L))]
        if rest:
            ends = torch.as_tensor(whole * B + rng.permutation(B), device=self.device)
            chosen += [(rest, segments) for segments in ends.split(max(1, batch_size // rest))]
            chosen = [chosen[i] for i in rng.permutation(len(chosen))]
        for length, segments in chosen:
            yield self._part(length, segments)

    def _part(self, length: int, segments: Tensor) -> Minibatch:
        """Own part of the minibatch of `segments` [b]."""
        rank, size = self.workers.rank, self.workers.size
        if size == 1:
            return self._segments(length, segments)
        mine = segments[rank::size]
        # where none is left, any one does, and counts nothing
        part = self._segments(length, mine if len(mine) else segments[:1])
        advantages = self._picked(length, segments)(self.columns.advantages)
        return part._replace(share=len(mine) / len(segments), whole_advantages=advantages)

    def refresh_states(self, state_after: Callable[[Minibatch], Any]) -> None:
        """Compute the states before segments again, in the order of steps, from the one before the first step.

        Args:
            state_after: gives the memory's state, a tree of [b, ...] without graph, after one segment of b rows.
        """
        rows = torch.arange(self.n_envs, device=self.device)[self.own]
        for cut in range(1, len(self.states)):
            before = (cut - 1) * self.n_envs + rows
            self.states[cut] = self._of_all_rows([state_after(self._segments(self.sequence_length, before))])[0]

    def _segments(self, length: int, segments: Tensor) -> Minibatch:
        """The first `length` steps of segments [b], which are numbered row by row within each cut of the columns."""
        pick = self._picked(length, segments)
        columns = self.columns._replace(state=None)
        picked = tree_map(lambda leaf: pick(leaf) if isinstance(leaf, Tensor) else leaf, columns)
        return picked._replace(state=self._states_before(segments // self.n_envs, segments % self.n_envs))

    def _picked(self, length: int, segments: Tensor) -> Callable[[Tensor], Tensor]:
        """What takes the steps [length, b, ...] of segments [b] from all steps [T, B, ...]."""
        cuts, rows = segments // self.n_envs, segments % self.n_envs
        if self.sequence_length == self.buffer_size:
            return lambda sequence: sequence.index_select(1, rows)
        steps = cuts * self.sequence_length + torch.arange(length, device=self.device).unsqueeze(1)
        return lambda sequence: sequence[steps, rows]

    def _states_before(self, cuts: Tensor, rows: Tensor) -> Any:
        """The memory's state [b, ...] before segments: of each, its cut and its row."""
        if len(self.states) == 1:
            return tree_map(lambda leaf: leaf[rows], self.states[0])

        def pick(*leaves: Tensor) -> Tensor:
            picked = leaves[0][rows]
            for cut, leaf in enumerate(leaves[1:], start=1):
                here = cuts == cut
                picked[here] = leaf[rows[here]]
            return picked

        return tree_map(pick, *self.states)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Any] = []
    tree_map(found.append, tree)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def _shape(space: spaces.Space) -> tuple[int, ...]:
    assert space.shape is not None
    return space.shape


def _dtype(space: spaces.Space) -> torch.dtype:
    dtype = torch.as_tensor(np.zeros(0, space.dtype)).dtype
    return torch.float32 if dtype == torch.float64 else dtype

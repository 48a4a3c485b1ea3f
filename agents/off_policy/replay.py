"""Replay of sequences: the columns as they were played, and the memory's state at every L-th entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from palimpsest.agents.device import refuse_beyond_memory
from palimpsest.agents.files.replay_file import SETTINGS, fitting
from palimpsest.agents.off_policy.priorities import SumTree, sequence_priorities
from palimpsest.agents.tree import tree_map
from palimpsest.refusals import closest, keywords

ALPHA, BETA, ETA = 0.9, 0.6, 0.9
"""Of prioritized replay, as in R2D2: exponent of priorities, of the weights that correct for them, share of the
largest error in a priority."""
SMALLEST = 1e-6
"""Added to a priority, so that a sequence without error can be drawn again."""


class Sequences(NamedTuple):
    """Sequences of T = burn_in + sequence_length + n_steps entries, [T, b, ...]."""

    observations: Any
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    """[T, b] bool, whether the action ended the episode."""
    acted: Tensor
    """[T, b] bool, false for the final observation of a truncated episode, after which no action was taken."""
    memory_start: Tensor
    """[T, b] bool, where the memory begins anew, before the observation is read."""
    state: Any
    """Tree of [b, ...]: the memory's state before the first entry, as it was when that was played."""
    weights: Tensor
    """[b], weights of the losses: 1 for all where sequences are drawn uniformly."""
    items: np.ndarray
    """[b] int64, for `SequenceReplay.update_priorities`."""
    age: np.ndarray
    """[b] int64, environment steps of its row since the last entry of each."""
    staleness: np.ndarray
    """[b] int64, updates of the parameters since each stored state was computed."""


class SequenceReplay:
    """The last T entries of each of B rows, from which whole sequences are drawn.

    A row's entries are one column, in the order in which they were played, through the ends of episodes: nothing is
    padded or cut. Where an episode was truncated, its final observation is one more entry, without an action: the
    memory reads it before it begins anew, and its value is what the return is bootstrapped from. So rows are not
    written in step. An episode that was left in the middle (`env.reset()`) gives up its last action: its last
    observation becomes the final one.

    Sequence c of a row begins at entry c L, before which the memory's state is kept. Its first `burn_in` entries
    refresh that state, the next L are learned from, and the last n_steps are looked ahead into. Every entry is learned
    from in one sequence, once that is complete, until its first entry is overwritten.

    Each observation is stored once, in the type of its space; batches have float32 in place of float64.

    Args:
        buffer_size: environment steps that are kept, over all rows; rounded down to whole sequences in each.
        observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of them.
        action_space: Discrete or Box.
        initial_state: the memory's initial state of one row, a tree of [1, ...] tensors.
        device: where sampled sequences are.
        n_envs: B.
        sequence_length: L.
        burn_in: entries that refresh a stored state, 0 or more.
        n_steps: steps that returns look ahead, 1 or more.
        prioritized: whether sequences with large errors are drawn more often (R2D2); else uniformly.

    Raises:
        ValueError: `buffer_size` does not hold a sequence of each row at all times, or is beyond the machine's memory.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        initial_state: Any,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        sequence_length: int = 32,
        burn_in: int = 0,
        n_steps: int = 1,
        prioritized: bool = False,
    ) -> None:
        self.device = get_device(device)
        sizes = buffer_size, n_envs, sequence_length, burn_in, n_steps
        buffer_size, n_envs, sequence_length, burn_in, n_steps = map(int, sizes)  # of NumPy's integers too
        self.n_envs = n_envs
        self.sequence_length, self.burn_in, self.n_steps = sequence_length, burn_in, n_steps
        self.prioritized = prioritized
        self.whole = burn_in + sequence_length + n_steps
        """Entries of a sequence."""
        cuts = buffer_size // n_envs // sequence_length
        # the oldest of the T entries are at any place of a sequence: up to L - 1 are of one that is overwritten already
        needed = -(-(self.whole + sequence_length - 1) // sequence_length)
        if cuts < needed:
            raise ValueError(
                f"buffer_size must be {n_envs * sequence_length * needed:,} or more, so that each of {n_envs} rows "
                f"holds a sequence of burn_in + sequence_length + n_steps = {self.whole} entries at any time, while "
                f"the oldest of {sequence_length} are overwritten; got {buffer_size:,}"
            )
        self.buffer_size = cuts * sequence_length
        """T, entries of a row."""
        assert action_space.shape is not None
        dtype = np.dtype(np.int64 if isinstance(action_space, spaces.Discrete) else np.float32)
        entry = tree_map(lambda space: (space.shape, np.dtype(space.dtype)), _parts(observation_space))
        state = tree_map(lambda leaf: leaf[0].numpy(force=True), initial_state)
        T, B = self.buffer_size, n_envs
        self.bytes_per_sequence = sequence_length * (_entry_bytes(entry, action_space, dtype)) + _bytes(state)
        refuse_beyond_memory(
            torch.device("cpu"),
            self.bytes_per_sequence * cuts * B,
            f"a replay of buffer_size={buffer_size:,} steps",
            "choose a smaller buffer_size, or a longer sequence_length where the memory's state is large",
        )
        self.observations = _map_entries(lambda shape, kind: np.zeros((T, B, *shape), kind), entry)
        self.actions = np.zeros((T, B, *action_space.shape), dtype)
        self.rewards = np.zeros((T, B), np.float32)
        self.terminated, self.acted, self.memory_start = (np.zeros((T, B), bool) for _ in range(3))
        self.states = tree_map(lambda leaf: np.zeros((cuts, B, *leaf.shape), leaf.dtype), state)
        """The memory's state before every L-th entry, a tree of [T // L, B, ...]."""
        self.state_updates = np.zeros((cuts, B), np.int64)
        """Updates of the parameters before each of these was computed."""
        self.written = np.zeros(B, np.int64)
        """Entries ever written, of each row; the next goes to slot `written % T`."""
        self.tree = SumTree(cuts * B)
        self.largest = 1.0
        """The largest priority so far, which new sequences get."""

    @property
    def pos(self) -> int:
        """Entries ever written in the row that has fewest, up to T."""
        return int(min(self.written.min(), self.buffer_size))

    @property
    def full(self) -> bool:
        """Whether every slot is written."""
        return self.pos == self.buffer_size

    def size(self) -> int:
        """Entries that are there, in the row that has fewest."""
        return self.pos

    @property
    def ready(self) -> bool:
        """Whether there is a whole sequence."""
        return self.tree.total > 0

    def add(
        self,
        observations: Any,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        memory_start: np.ndarray,
        state: Any,
        updates: int = 0,
    ) -> None:
        """Write the next step of every row.

        Args:
            observations: tree of [B, ...], before the action.
            actions: [B, ...].
            rewards: [B].
            terminated: [B] bool, whether the action ended the episode, other than by truncation.
            memory_start: [B] bool, where the memory begins anew before this observation.
            state: tree of [B, ...] tensors, the memory before this observation.
            updates: updates of the parameters so far.
        """
        last = (self.written - 1) % self.buffer_size
        rows = np.arange(self.n_envs)
        left = memory_start & (self.written > 0) & self.acted[last, rows] & ~self.terminated[last, rows]
        self.acted[last[left], rows[left]] = False
        slots = self._write(rows, observations, memory_start, state, updates)
        self.actions[slots, rows] = actions.reshape(self.n_envs, *self.actions.shape[2:])
        self.rewards[slots, rows] = rewards
        self.terminated[slots, rows] = terminated
        self.acted[slots, rows] = True

    def add_final(self, rows: np.ndarray, observations: Any, state: Any, updates: int = 0) -> None:
        """Write the final observations, a tree of [b, ...], of the rows [b] whose episodes were truncated.

        `state` is a tree of [B, ...] tensors, the memory of all rows before the final observations.
        """
        slots = self._write(rows, observations, False, state, updates)
        for array in (self.actions, self.rewards, self.terminated, self.acted):
            array[slots, rows] = 0

    def _write(self, rows: np.ndarray, observations: Any, start: Any, state: Any, updates: int) -> np.ndarray:
        """What all entries have; the slots [b] of `rows` [b] that are written."""
        slots, L = self.written[rows] % self.buffer_size, self.sequence_length

        def put(into: np.ndarray, value: Any) -> None:
            into[slots, rows] = value

        tree_map(put, self.observations, observations)
        self.memory_start[slots, rows] = start if np.ndim(start) == 0 else start[rows]
        begins = slots % L == 0
        if begins.any():
            cuts, begun = slots[begins] // L, rows[begins]

            def keep(into: np.ndarray, leaf: Tensor) -> None:
                into[cuts, begun] = leaf.numpy(force=True)[begun]

            tree_map(keep, self.states, state)
            self.state_updates[cuts, begun] = updates
            # what began here is overwritten
            self.tree.set(cuts * self.n_envs + begun, 0.0)
        self.written[rows] += 1
        begun_at = self.written[rows] - self.whole
        complete = (begun_at >= 0) & (begun_at % L == 0)
        if complete.any():
            cuts = begun_at[complete] % self.buffer_size // L
            self.tree.set(cuts * self.n_envs + rows[complete], self.largest)
        return slots

    def sample(
        self, batch_size: int, rng: np.random.Generator | None = None, env: VecNormalize | None = None
    ) -> Sequences:
        """Draw `batch_size` sequences, with replacement.

        Args:
            batch_size: b.
            rng: what draws; None for NumPy's global generator, as in SB3.
            env: normalises observations and rewards, as in SB3; None for none.
        """
        assert self.ready, "there is no whole sequence yet"
        uniform = np.random.random(batch_size) if rng is None else rng.random(batch_size)  # noqa: NPY002
        items = self.tree.draw(uniform)
        cuts, rows = items // self.n_envs, items % self.n_envs
        slots = (cuts * self.sequence_length + np.arange(self.whole)[:, None]) % self.buffer_size

        def pick(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array[slots, rows], device=self.device)

        observations = tree_map(lambda array: array[slots, rows], self.observations)
        rewards = self.rewards[slots, rows]
        if env is not None:
            observations, rewards = env.normalize_obs(observations), env.normalize_reward(rewards).astype(np.float32)
        weights = np.ones(batch_size)
        if self.prioritized:
            weights = self.tree.priorities[items] ** -BETA
            weights /= weights.max()
        # the entries since the last one of the sequence
        age = (self.written[rows] - 1 - slots[-1]) % self.buffer_size
        return Sequences(
            tree_map(lambda array: _for_networks(array, self.device), observations),
            pick(self.actions),
            torch.as_tensor(rewards, device=self.device),
            pick(self.terminated),
            pick(self.acted),
            pick(self.memory_start),
            tree_map(lambda array: torch.as_tensor(array[cuts, rows], device=self.device), self.states),
            torch.as_tensor(weights, dtype=torch.float32, device=self.device),
            items,
            age,
            self.state_updates[cuts, rows],
        )

    def update_priorities(self, items: np.ndarray, errors: np.ndarray, counted: np.ndarray) -> None:
        """Give drawn sequences the priorities of their TD errors; nothing where sequences are drawn uniformly.

        Args:
            items: [b], of `Sequences`.
            errors: [L, b].
            counted: [L, b] bool, see `sequence_priorities`.
        """
        if self.prioritized:
            priorities = (sequence_priorities(errors, counted, ETA) + SMALLEST) ** ALPHA
            self.tree.set(items, priorities)
            self.largest = max(self.largest, float(priorities.max()))

    def refresh(self, items: np.ndarray, state: Any, updates: int) -> None:
        """Replace the states before the entries after the first L of drawn sequences, where the next ones begin.

        A state grows stale with each update, and a burn-in mends that only as far as the memory forgets. An update
        scans these entries anyway, so the next sequences can begin from what it finds (as in DreamerV3, arXiv
        2301.04104).

        Args:
            items: [b], of `Sequences`.
            state: tree of [b, ...] tensors.
            updates: updates of the parameters so far.
        """
        cuts, rows = (items // self.n_envs + 1) % len(self.state_updates), items % self.n_envs

        def keep(into: np.ndarray, leaf: Tensor) -> None:
            into[cuts, rows] = leaf.numpy(force=True)

        tree_map(keep, self.states, state)
        self.state_updates[cuts, rows] = updates

    def contents(self) -> dict[str, Any]:
        """All that is stored, for a file: slots that were never written are left out."""
        entries = int(min(self.written.max(), self.buffer_size))
        cuts = -(-entries // self.sequence_length)

        def cut(name: str, end: int) -> Any:
            return tree_map(lambda array: array[:end], getattr(self, name))

        return {
            **{name: cut(name, entries) for name in _ENTRIES},
            **{name: cut(name, cuts) for name in _CUTS},
            **{name: getattr(self, name) for name in SETTINGS},
            "written": self.written,
            "largest": self.largest,
            "priorities": self.tree.priorities,
        }

    def restore(self, contents: Any, source: str = "the file") -> None:
        """Take over what `contents` gave, or nothing of it.

        Args:
            contents: of a replay with the same settings, spaces and memory.
            source: what messages call it.

        Raises:
            ValueError: it is of a replay of other settings, spaces or memory; this one is as it was.
        """
        settings = {name: getattr(self, name) for name in SETTINGS}
        entries, cuts = ({name: getattr(self, name) for name in names} for names in (_ENTRIES, _CUTS))
        for into, part in fitting(contents, settings, entries, cuts, self.tree.size, source):
            into[: len(part)] = part
        self.written[:] = contents["written"]
        self.largest = float(contents["largest"])
        self.tree.set(np.arange(self.tree.size), contents["priorities"])


def check_replay_arguments(cls: type[SequenceReplay] | None, given: Mapping[str, Any] | None) -> None:
    """Refuse arguments of a replay that it does not take, or that the algorithm gives it.

    Args:
        cls: class of the replay; None for `SequenceReplay`.
        given: `replay_buffer_kwargs`.
    """
    cls, given = cls or SequenceReplay, given or {}
    if "handle_timeout_termination" in given:
        raise ValueError(
            "replay_buffer_kwargs cannot hold 'handle_timeout_termination': truncations are always handled; leave "
            "it out"
        )
    own = set(keywords(SequenceReplay))
    if wrong := next((name for name in given if name in own), None):
        raise ValueError(
            f"replay_buffer_kwargs cannot hold {wrong!r}: the model gives it to its replay; set it as the model's own "
            "argument, or leave it out"
        )
    # of its bases too, as a class may hand **kwargs on
    known = {name for each in cls.__mro__ for name in keywords(each.__init__, skip={"self", *own})}  # type: ignore[misc]
    if unknown := next((name for name in given if name not in known), None):
        raise ValueError(
            f"replay_buffer_kwargs: {cls.__name__} has no argument {unknown!r}{closest(unknown, known)}; allowed: "
            f"{', '.join(sorted(known)) or 'none'}"
        )


_ENTRIES = ("observations", "actions", "rewards", "terminated", "acted", "memory_start")
_CUTS = ("states", "state_updates")


def _parts(space: spaces.Space) -> Any:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else space


def _map_entries(make: Any, entry: Any) -> Any:
    """`make(shape, dtype)` of each part of an observation."""
    return {key: make(*part) for key, part in entry.items()} if isinstance(entry, dict) else make(*entry)


def _for_networks(array: np.ndarray, device: torch.device) -> Tensor:
    """As networks read it: float64 is for what is normalised before, as the large numbers of a clock."""
    return torch.as_tensor(array.astype(np.float32) if array.dtype == np.float64 else array, device=device)


def _bytes(tree: Any) -> int:
    sizes: list[int] = []
    tree_map(lambda leaf: sizes.append(leaf.nbytes), tree)
    return sum(sizes)


def _entry_bytes(entry: Any, action_space: spaces.Space, dtype: np.dtype) -> int:
    """Bytes of one entry: observation, action, reward and three flags."""
    observation = _bytes(_map_entries(lambda shape, kind: np.empty(shape, kind), entry))
    return observation + int(np.prod(action_space.shape)) * dtype.itemsize + 4 + 3  # type: ignore[arg-type]

"""The replay against lists in Python: whole columns, stored states, priorities, n-step returns."""

from __future__ import annotations

import copy
import math
import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces

from palimpsest.agents.off_policy.priorities import SumTree, sequence_priorities
from palimpsest.agents.off_policy.replay import SequenceReplay, Sequences
from palimpsest.agents.off_policy.targets import lookahead, rescale, unscale

B, L = 3, 4


class State(NamedTuple):
    h: torch.Tensor
    count: torch.Tensor


class Twin:
    """Draws as `SumTree` does, by the sums of all priorities before each."""

    def __init__(self, size):
        self.priorities = np.zeros(size)

    def set(self, items, priorities):
        for item, priority in zip(items, np.broadcast_to(priorities, len(items))):
            self.priorities[item] = priority

    def draw(self, uniform):
        ends = np.cumsum(self.priorities)
        return np.array([next(i for i, end in enumerate(ends) if u * ends[-1] < end) for u in uniform])


@pytest.mark.parametrize("size", [1, 2, 5, 8, 100])
def test_the_sum_tree_draws_as_its_twin(size):
    rng, tree, twin = np.random.default_rng(size), SumTree(size), Twin(size)
    for _ in range(5):
        items = rng.integers(size, size=7)
        # small integers, so that sums are exact in any order
        priorities = rng.integers(0, 4, size=7).astype(float)
        tree.set(items, priorities)
        twin.set(items, priorities)
        tree.set(items[:1], 3.0)
        twin.set(items[:1], 3.0)
        np.testing.assert_array_equal(tree.priorities, twin.priorities)
        assert tree.total == twin.priorities.sum()
        uniform = rng.random(50)
        np.testing.assert_array_equal(tree.draw(uniform), twin.draw(uniform))


def test_an_item_without_priority_is_never_drawn():
    tree = SumTree(6)
    tree.set(np.array([1, 4]), np.array([0.1, 0.3]))
    assert set(tree.draw(np.append(np.linspace(0, 1, 1000, endpoint=False), np.nextafter(1, 0)))) == {1, 4}


def test_a_priority_mixes_the_largest_and_the_mean_error():
    errors = np.array([[1.0, -3.0], [-2.0, 9.0], [0.5, 1.0]])
    counted = np.array([[True, True], [True, False], [True, True]])
    expected = [0.9 * 2.0 + 0.1 * 3.5 / 3, 0.9 * 3.0 + 0.1 * 2.0]
    np.testing.assert_allclose(sequence_priorities(errors, counted, 0.9), expected)


def dict_space():
    return spaces.Dict({"image": spaces.Box(0, 255, (2, 1), np.uint8), "place": spaces.Discrete(9)})


def replay_for(space=None, buffer_size=B * 24, **kwargs):
    fresh = State(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32) if space is None else space
    return SequenceReplay(buffer_size, space, spaces.Discrete(5), fresh, "cpu", n_envs=B, sequence_length=L, **kwargs)


def observe(space, row, entry):
    number = 100 * row + entry
    if isinstance(space, spaces.Dict):
        return {"image": np.full((2, 1), number % 256, np.uint8), "place": number % 9}
    return np.array([number, -number], np.float32)


def stack(rows):
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def played(replay, space, steps, seed=0):
    """Fill the replay; returns each row's entries as a list of dicts, final observations among them."""
    rng, rows = np.random.default_rng(seed), [[] for _ in range(B)]
    start = np.ones(B, bool)
    for step in range(steps):
        obs = [observe(space, b, len(rows[b])) for b in range(B)]
        state = State(torch.tensor([[b, len(rows[b])] for b in range(B)]).float(), torch.tensor([len(r) for r in rows]))
        actions, rewards = rng.integers(5, size=B), rng.random(B).astype(np.float32)
        terminated = rng.random(B) < 0.15
        truncated = (rng.random(B) < 0.15) & ~terminated
        replay.add(stack(obs), actions, rewards, terminated, start, state, updates=step)
        for b in range(B):
            rows[b].append(
                dict(obs=obs[b], action=actions[b], reward=rewards[b], terminated=terminated[b], acted=True)
                | dict(start=start[b], state=len(rows[b]), updates=step)
            )
        ended = np.flatnonzero(truncated)
        if ended.size:
            finals = [observe(space, b, len(rows[b])) for b in ended]
            state = State(
                torch.tensor([[b, len(rows[b])] for b in range(B)]).float(), torch.tensor([len(r) for r in rows])
            )
            replay.add_final(ended, stack(finals), state, updates=step)
            for b, final in zip(ended, finals):
                rows[b].append(
                    dict(obs=final, action=0, reward=0.0, terminated=False, acted=False, start=False)
                    | dict(state=len(rows[b]), updates=step)
                )
        start = terminated | truncated
    return rows


def leaves(tree):
    return tree.values() if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize("steps", [15, 24, 200])
@pytest.mark.parametrize(("burn_in", "n_steps"), [(0, 1), (3, 2), (6, 5)])
@pytest.mark.parametrize("space", [None, dict_space()])
def test_every_whole_sequence_is_drawn_as_it_was_played(space, burn_in, n_steps, steps):
    replay = replay_for(space, burn_in=burn_in, n_steps=n_steps)
    rows = played(replay, space, steps)
    whole = burn_in + L + n_steps
    expected = set()
    for b, row in enumerate(rows):
        oldest = max(0, len(row) - replay.buffer_size)
        expected |= {(b, s) for s in range(0, len(row), L) if s >= oldest and s + whole <= len(row)}
    batch = replay.sample(150, np.random.default_rng(0))
    found = set()
    for i in range(150):
        b, first = int(batch.state.h[i, 0]), int(batch.state.count[i])
        found.add((b, first))
        for t in range(whole):
            entry = rows[b][first + t]
            for mine, its in zip(leaves(batch.observations), leaves(entry["obs"]), strict=True):
                np.testing.assert_array_equal(mine[t, i], its)
            taken = batch.actions[t, i], batch.rewards[t, i], batch.terminated[t, i], batch.acted[t, i]
            assert taken == (entry["action"], entry["reward"], entry["terminated"], entry["acted"])
            assert batch.memory_start[t, i] == entry["start"]
        assert batch.state.h[i, 1] == rows[b][first]["state"]
        assert batch.staleness[i] == rows[b][first]["updates"]
        assert batch.age[i] == len(rows[b]) - (first + whole)
    assert found == expected


def test_bytes_stay_bytes():
    replay = replay_for(dict_space())
    played(replay, dict_space(), 20)
    assert replay.observations["image"].dtype == np.uint8
    assert replay.sample(2, np.random.default_rng(0)).observations["image"].dtype == torch.uint8


def test_an_episode_left_in_the_middle_ends_with_its_last_observation():
    replay, state = replay_for(), State(torch.zeros(B, 2), torch.zeros(B, dtype=torch.int64))
    for step in range(8):
        start = np.array([step in (0, 5), step == 0, step in (0, 3)])
        terminated = np.array([False, False, step == 2])
        replay.add(np.zeros((B, 2), np.float32), np.ones(B, int), np.ones(B), terminated, start, state)
    assert replay.acted[:8, 0].tolist() == [True] * 4 + [False] + [True] * 3
    assert replay.acted[:8, 1:].all()


def test_a_replay_is_what_was_written_of_it():
    space = dict_space()
    replay, other = (replay_for(space, burn_in=2, prioritized=True) for _ in range(2))
    played(replay, space, 50)
    replay.update_priorities(np.array([0, 4]), np.array([[2.0, 0.5]]), np.ones((1, 2), bool))
    other.restore(replay.contents())
    mine, its = (each.sample(30, np.random.default_rng(0)) for each in (replay, other))
    for name, a, b in zip(Sequences._fields, mine, its):
        for left, right in zip(leaves(a), leaves(b), strict=True):
            for x, y in zip(left, right) if isinstance(left, tuple) else [(left, right)]:
                np.testing.assert_array_equal(x, y, err_msg=name)
    with pytest.raises(ValueError, match="burn_in"):
        replay_for(space).restore(replay.contents())


class Other(NamedTuple):
    h: torch.Tensor


def unlike(**changed):
    """A replay of other settings, spaces or memory, of the same size."""
    given = dict(buffer_size=B * 24, observation_space=spaces.Box(-1, 1, (2,)), action_space=spaces.Discrete(5))
    given |= dict(initial_state=State(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)), device="cpu", n_envs=B)
    return SequenceReplay(**(given | dict(sequence_length=L) | changed))


REFUSED = {
    "rows": (dict(n_envs=2 * B, buffer_size=B * 24), r"'here' is of a replay with n_envs=6; this one has n_envs=3"),
    "size": (dict(buffer_size=B * 28), "buffer_size=28 .entries of each row.; this one has buffer_size=24"),
    "observations": (dict(observation_space=spaces.Box(-1, 1, (3,))), r"another observation space.*\[3\] float32"),
    "a Dict": (dict(observation_space=spaces.Dict(a=spaces.Box(-1, 1, (2,)))), "another observation space"),
    "actions": (dict(action_space=spaces.Box(-1, 1, ())), "another action space"),
    "memory": (dict(initial_state=Other(torch.zeros(1, 2))), "another memory"),
    "units": (dict(initial_state=State(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))), "another memory"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_replay_that_does_not_fit_is_refused_as_a_whole(kind):
    changed, said = REFUSED[kind]
    replay, other = unlike(), unlike(**changed)
    played(replay, None, 20)
    before = copy.deepcopy(replay.contents())
    with pytest.raises(ValueError, match=said):
        replay.restore(other.contents(), "'here'")
    assert repr(replay.contents()) == repr(before)


def test_a_replay_whose_parts_do_not_fit_together_is_refused():
    replay, other = unlike(), unlike()
    played(other, None, 20)
    whole = other.contents()
    for changed, said in (
        (dict(rewards=whole["rewards"][:-1]), "rewards of a row"),
        (dict(written=whole["written"] - 1000), "how many entries"),
        (dict(priorities=-whole["priorities"]), "priorities, 0 or more"),
        (dict(largest=float("nan")), "the largest priority"),
        (dict(terminated=whole["rewards"]), "another kind of replay"),
    ):
        with pytest.raises(ValueError, match=said):
            replay.restore(whole | changed)
    for broken in (3, {}, {name: part for name, part in whole.items() if name != "acted"}):
        with pytest.raises(ValueError, match="holds no whole replay"):
            replay.restore(broken)
    assert not replay.written.any()


def test_prioritized_sequences_are_drawn_and_weighted_by_their_errors():
    replay = replay_for(prioritized=True)
    played(replay, None, 9)
    replay.update_priorities(np.arange(6), np.full((1, 6), 0.01), np.ones((1, 6), bool))
    replay.update_priorities(np.array([2]), np.array([[1.0]]), np.ones((1, 1), bool))
    p = np.array([0.01, 0.01, 1.0, 0.01, 0.01, 0.01])
    p = (p + 1e-6) ** 0.9
    batch = replay.sample(4000, np.random.default_rng(0))
    counts = np.bincount(batch.items, minlength=6) / 4000
    np.testing.assert_allclose(counts, p / p.sum(), atol=0.03)
    weights = p[batch.items] ** -0.6
    np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-5)


def test_a_replay_beyond_the_machine_is_refused_with_the_figure():
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    steps = int(there * 1e9)
    with pytest.raises(ValueError, match=rf"takes [\d.]+ GB, and the machine has {there:.1f} GB"):
        replay_for(buffer_size=steps)
    with pytest.raises(ValueError, match=r"buffer_size must be 36 or more, so that each of 3 rows .* = 7 entries"):
        replay_for(buffer_size=35, burn_in=2)


@pytest.mark.parametrize(("burn_in", "n_steps"), [(0, 1), (1, 3), (2, 1), (3, 2), (4, 5)])
def test_the_smallest_replay_always_holds_a_sequence_once_it_is_full(burn_in, n_steps):
    """It is searched for; the ends of episodes move rows against each other."""
    for cuts in range(1, 9):
        try:
            replay = replay_for(buffer_size=B * L * cuts, burn_in=burn_in, n_steps=n_steps)
        except ValueError:
            continue
        break
    # with one sequence less there are moments without any
    assert replay.buffer_size - L < replay.whole + L - 1 <= replay.buffer_size
    state = State(torch.zeros(B, 2), torch.zeros(B, dtype=torch.int64))
    rng, seen = np.random.default_rng(0), []
    for _ in range(100):
        replay.add(
            np.zeros((B, 2), np.float32), np.zeros(B, int), np.zeros(B), np.zeros(B, bool), np.zeros(B, bool), state
        )
        if (ended := np.flatnonzero(rng.random(B) < 0.2)).size:
            replay.add_final(ended, np.zeros((len(ended), 2), np.float32), state)
        if replay.full:
            seen.append(replay.tree.priorities.reshape(-1, B).sum(0))
    assert len(seen) > 50
    assert np.min(seen) > 0


def slow_return(values, rewards, terminated, acted, t, gamma, n):
    total, discount = 0.0, 1.0
    for _ in range(n):
        if not acted[t]:
            break
        total += discount * rewards[t]
        if terminated[t]:
            return total
        discount *= gamma
        t += 1
    return total + discount * values[t]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_n_step_returns_are_those_of_a_loop(n):
    rng = np.random.default_rng(n)
    T = 30
    values, rewards = rng.normal(size=(2, T, B))
    acted = rng.random((T, B)) > 0.2
    terminated = acted & (rng.random((T, B)) < 0.2)
    found = lookahead(*map(torch.from_numpy, (values, rewards, terminated, acted)), 0.9, n)
    assert found.shape == (T - n, B)
    for t in range(T - n):
        for b in range(B):
            columns = (each[:, b] for each in (values, rewards, terminated, acted))
            assert math.isclose(found[t, b], slow_return(*columns, t, 0.9, n), rel_tol=1e-12, abs_tol=1e-12)


def test_rescaled_values_come_back():
    x = torch.tensor([-1e4, -3.0, -0.1, 0.0, 0.2, 1.0, 500.0], dtype=torch.float64)
    torch.testing.assert_close(rescale(x)[4:5], torch.tensor([math.sqrt(1.2) - 1 + 2e-4], dtype=torch.float64))
    torch.testing.assert_close(unscale(rescale(x)), x)

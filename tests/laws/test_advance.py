"""A state that its caller gives up: the numbers are those of a step that keeps it, alone and in rollouts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small import cases, make_small, small_policy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from test_memory_laws import sequence, used_state
from torch.testing import assert_close
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.archive import read_tree
from palimpsest.agents.learn.model_file import save_model
from palimpsest.agents.learn.numerics import NotFinite, policy_input
from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.agents.tree import tree_map
from palimpsest.memory.hcam import HCAM

WRITES_IN_PLACE = {"hcam": "chunks", "sat": "slots"}
N_STEPS = 40


def assert_equal(one, other):
    assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", cases())
@torch.no_grad()
def test_advance_is_step_without_its_copies(case, dtype):
    """For longer than any of the small memories needs to fill up and to drop what is oldest."""
    module = make_small(case, dtype)
    x, _, place, strategy = sequence(module, 40, 3)
    state = used_state(module, 3)
    given_up = copy.deepcopy(state)
    for t in range(len(x)):
        before = copy.deepcopy(state)
        y, after = module.step(x[t], state, place[t], strategy[t])
        assert_equal(state, before)
        advanced, given_up = module.advance(x[t], given_up, place[t], strategy[t])
        assert_equal(advanced, y)
        assert_equal(given_up, after)
        state = after


@pytest.mark.parametrize("name", WRITES_IN_PLACE)
def test_large_states_stay_where_they_are(name):
    module = make_small(name)
    x, _, place, strategy = sequence(module, 20, 3)
    state = module.initial_state(3)
    where = getattr(state, WRITES_IN_PLACE[name]).data_ptr()
    with torch.no_grad():
        for t in range(len(x)):
            _, state = module.advance(x[t], state, place[t], strategy[t])
    assert getattr(state, WRITES_IN_PLACE[name]).data_ptr() == where


@pytest.mark.parametrize("name", WRITES_IN_PLACE)
def test_nothing_is_written_into_where_gradients_are_wanted(name):
    module = make_small(name)
    x, _, place, strategy = sequence(module, 1, 3)
    state = used_state(module, 3, steps=8)  # the next input ends a chunk of hcam
    before = copy.deepcopy(state)
    y, _ = module.advance(x[0], state, place[0], strategy[0])
    assert_equal(state, before)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


class Loud(HCAM):
    """A memory as users derive one: what it gives out is doubled."""

    def step(self, x, state, place=None, strategy=None):
        y, state = super().step(x, state, place, strategy)
        return 2 * y, state


@torch.no_grad()
def test_a_step_of_ones_own_is_the_one_that_acts():
    module = Loud(3, output_size=8)
    x, state = torch.randn(2, 3), module.initial_state(2)
    assert_equal(module.advance(x, state), module.step(x, state))
    assert_equal(module.advance(x, state)[0], 2 * HCAM.step(module, x, state)[0])


class Watch(BaseCallback):
    """Keeps a copy of the memory before each rollout, and of its values as a callback of a step finds them.

    After `end` steps it stops, or does what `then` does.
    """

    def __init__(self, end=None, then=None) -> None:
        super().__init__()
        self.end, self.then, self.before, self.values = end, then, [], []

    def _on_rollout_start(self) -> None:
        self.before.append(copy.deepcopy(self.model._last_state))

    def _on_step(self) -> bool:
        if self.n_calls < 20:
            with torch.no_grad():
                values = self.model.policy.predict_values(**policy_input(self.model))
            self.values.append(values - self.locals["values"])
        if self.n_calls != self.end:
            return True
        return self.then is not None and self.then(self.model)


@torch.no_grad()
def spoil(model):
    model.policy.action_net.bias[0] = np.nan
    return True


def interrupt(model):
    raise KeyboardInterrupt


class OwnForward(MlpMemoryPolicy):
    """A policy as users write it, which knows nothing of states that are given up."""

    def forward(self, obs, state, start=None, strategy=None, deterministic=False, episode_start=None):
        return super().forward(obs, state, start, strategy, deterministic, episode_start=episode_start)


def played(name, keep_state, share_memory, watch, rollouts=3):
    """A model after rollouts without updates, and what they were; episodes are truncated, half of them carried over."""
    env = DummyVecEnv([lambda row=row: Counter(row, True) for row in range(3)])
    kwargs = small_policy(name, share_memory=share_memory)
    model = MemoryPPO(
        OwnForward if keep_state else MlpMemoryPolicy,
        env,
        n_steps=N_STEPS,
        batch_size=N_STEPS,
        policy_kwargs=kwargs,
        memory_carry_over=0.8,
        normalize_returns=False,  # before the first update all scaled values are 0
        seed=0,
        device="cpu",
    )
    _, callback = model._setup_learn(10_000, watch)
    found, buffer = [], model.rollout_buffer
    for _ in range(rollouts):
        if not model.collect_rollouts(model.env, callback, buffer, N_STEPS):
            break
        columns = buffer.columns
        given = columns.actions, columns.old_values, columns.old_log_prob, columns.advantages, columns.state
        found.append(copy.deepcopy((*given, torch.from_numpy(buffer.rewards))))
        assert_equal(buffer.columns.state, watch.before[-1])
    return model, found


@pytest.mark.parametrize("share_memory", [True, False], ids=["shared", "pair"])
@pytest.mark.parametrize("name", WRITES_IN_PLACE)
def test_rollouts_are_the_same(name, share_memory):
    watch = Watch()
    model, found = played(name, False, share_memory, watch)
    kept, expected = played(name, True, share_memory, Watch())
    assert len(found) == 3
    assert_equal(found, expected)
    assert_equal(model._last_state, kept._last_state)
    assert_close(torch.stack(watch.values), torch.zeros(19, 3), rtol=0, atol=1e-5)
    starts = model.rollout_buffer.columns.memory_start[1:]
    assert starts.any()
    assert (np.abs(found[0][-1].numpy()) != 1).any(), "no episode was bootstrapped"


@pytest.mark.parametrize("name", WRITES_IN_PLACE)
def test_a_rollout_that_stops_leaves_the_memory_after_its_last_step(name):
    end = N_STEPS + 17
    model, _ = played(name, False, True, Watch(end))
    kept, _ = played(name, True, True, Watch(end))
    assert model.rollout_buffer.pos == 17
    assert_equal(model._last_state, kept._last_state)
    short = tree_map(lambda leaf: leaf.clone(), model.rollout_buffer.columns.state)
    assert not torch.equal(short[1], model._last_state[1])


@pytest.mark.parametrize(("then", "error"), [(spoil, NotFinite), (interrupt, KeyboardInterrupt)])
@pytest.mark.parametrize("name", WRITES_IN_PLACE)
def test_a_step_that_fails_leaves_the_memory_before_it(name, then, error, tmp_path):
    watches, states = [Watch(N_STEPS + 17, then) for _ in range(2)], []
    for watch, keep_state in zip(watches, (False, True)):
        with pytest.raises(error):
            played(name, keep_state, True, watch)
        states.append(watch.model._last_state)
    assert_equal(*states)
    save_model(watches[0].model, tmp_path / "x.zip")
    assert_equal(tuple(read_tree(tmp_path / "x.zip")["_last_state"]), tuple(states[1]))

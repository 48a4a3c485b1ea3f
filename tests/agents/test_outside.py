"""Numbers outside the space that an environment declares are told of, and stop only those who cannot read them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_agent
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import ALWAYS, Broken, Counter, Spaces

from palimpsest.agents.observation_checks import outside_space

OUTSIDE = [
    (spaces.Box(0, 1, (2, 3), np.float32), [[[0, 1, 0.5]] * 2, [[0, 0, 0], [0, 1.5, 0]]], (1, 1, 1), 1.5, (0, 1)),
    (spaces.Box(-1, 1, (1,), np.float64), [[-1.0], [-1.25]], (1, 0), -1.25, (-1, 1)),
    (spaces.Box(0, 10, (2,), np.uint8), [[0, 10], [11, 3]], (1, 0), 11, (0, 10)),
    (spaces.Box(0, 1000, (2,), np.uint16), [[0, 1000], [1001, 3]], (1, 0), 1001, (0, 1000)),
    (spaces.Box(5, 2**31, (1,), np.uint32), [[5], [4]], (1, 0), 4, (5, 2**31)),
    (spaces.Box(np.array([0, 5]), np.array([1, 6]), dtype=np.int64), [[0, 5], [1, 4]], (1, 1), 4, (5, 6)),
    (spaces.Discrete(3), [0, 3], (1,), 3, (0, 2)),
    (spaces.Discrete(3, start=-1), [-2, 1], (0,), -2, (-1, 1)),
    (spaces.MultiDiscrete([2, 4]), [[1, 3], [1, 4]], (1, 1), 4, (0, 3)),
    (spaces.MultiBinary(2), [[0, 1], [2, 0]], (1, 0), 2, (0, 1)),
]


@pytest.mark.parametrize("case", OUTSIDE, ids=[str(case[0]) for case in OUTSIDE])
@pytest.mark.parametrize("tensor", [False, True], ids=["array", "tensor"])
def test_the_first_number_outside_its_space(case, tensor):
    space, batch, place, value, bounds = case
    array = np.array(batch, dtype=space.dtype)
    found = outside_space(space, torch.as_tensor(array) if tensor else array)
    assert (found.place, found.value, (found.low, found.high)) == (place, value, bounds)
    inside = np.stack([space.sample() for _ in range(20)])
    assert outside_space(space, inside) is None
    keyed = outside_space(spaces.Dict({"a": space, "b": space}), {"a": inside, "b": array})
    assert keyed.name == "observation['b']"


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_wide_unsigned_observations_are_learnt_from(dtype):
    env = DummyVecEnv([lambda: Spaces(spaces.Box(0, 1000, (2,), dtype), spaces.Discrete(3))] * 2)
    model = small_agent(env)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(16)
    assert model.num_timesteps == 16
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters()))


def test_bounds_of_other_precision_leave_nothing_out():
    """A float64 space is kept in float32: its own bounds, rounded, are inside."""
    space = spaces.Box(0.1, 0.7, (1,), np.float64)
    assert outside_space(space, torch.tensor([[0.1], [0.7]], dtype=torch.float32)) is None
    assert outside_space(spaces.Box(-np.inf, np.inf, (1,)), np.array([[np.nan], [3e38]], np.float32)) is None


def test_an_observation_outside_its_space_is_said_once(tmp_path):
    env = DummyVecEnv([Counter, lambda: Broken(1, 5, "observation", 250.0), lambda: Broken(2, 6, "observation", 300.0)])
    model = small_agent(env)
    expected = (
        r"observation is 250 at index \[1\] in environment row 1 at step 15, outside its space, which is 0 to 100 "
    )
    with pytest.warns(UserWarning, match=expected) as caught:
        model.learn(48)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(48)


def test_what_is_normalised_is_not_held_against_its_space():
    env = VecNormalize(DummyVecEnv([Counter, Counter]))
    model = small_agent(env)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(48)
    assert not [warning for warning in caught if "outside its space" in str(warning.message)]
    assert model.rollout_buffer.observations.min() < 0 == Counter().observation_space.low.min()


def test_a_category_that_is_not_there_is_named():
    class Beyond(Spaces):
        def step(self, action):
            _, reward, terminated, truncated, info = super().step(action)
            return np.int64(7), reward, terminated, truncated, info

    env = DummyVecEnv([lambda: Spaces(spaces.Discrete(4), spaces.Discrete(2))] * 2)
    env.envs[1] = Beyond(spaces.Discrete(4), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"observation is 7 in environment row 1 at step 2, .*which is 0 to 3 there"):
        small_agent(env).learn(16)


@pytest.mark.parametrize("error", [RuntimeError("a kernel's fault"), torch.OutOfMemoryError("no room")], ids=repr)
def test_what_is_no_fault_of_the_observation_passes_unchanged(error, monkeypatch):
    """The observation is outside its Box as well, which stops no policy."""
    model = small_agent(DummyVecEnv([lambda: Broken(0, ALWAYS, "observation", 250.0)]))
    act, calls = model.policy.forward, []

    def fail(*args):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return act(*args)

    monkeypatch.setattr(model.policy, "forward", fail)
    with pytest.raises(type(error)) as caught:
        model.learn(16)
    assert caught.value is error

"""What the agent warns of and what it refuses: arguments, devices, spaces, observations and states."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from test_ppo import counters, model_for
from worlds import Counter, Spaces

from palimpsest import envs
from palimpsest.agents import MemoryPPO


def test_long_horizons_are_warned_of():
    venv = envs.make_vec("Palimpsest/EndlessTMaze-v0", 2, seed=0, length=20)
    with pytest.warns(UserWarning, match="horizon, 21 steps, exceeds n_steps=16"):
        model_for(env=venv)


def test_a_batch_smaller_than_a_column_is_warned_of():
    with pytest.warns(UserWarning, match="batch_size=8 is less than n_steps=16: .* segments of 8 steps"):
        model_for(n_steps=16, batch_size=8)
    model_for(n_steps=16, batch_size=8, sequence_length=8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy": {"memory": "lstn"}}, r"unknown memory 'lstn' \(did you mean 'lstm'\?\)"),
        ({"policy": {"memory_kwargs": {"num_layer": 1}}}, r"no argument 'num_layer' \(did you mean 'num_layers'\?\)"),
        ({"policy": {"share_features_extractor": False}}, "set share_memory=False"),
        ({"memory_carry_over": 1.5}, "memory_carry_over must be a number, 0 to 1; got 1.5"),
        ({"gamma": -1}, "gamma must be a number, 0 to 1; got -1"),
        ({"n_epochs": 0}, "n_epochs must be an integer, 1 to 10,000; got 0"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        model_for(**kwargs)


def test_wrong_devices_policies_and_spaces_are_refused():
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'; got 'gpu'"):
        MemoryPPO("MlpMemoryPolicy", counters(), device="gpu")
    with pytest.raises(ValueError, match="torch sees"):
        MemoryPPO("MlpMemoryPolicy", counters(), device="cuda:99")
    with pytest.raises(ValueError, match="policy must be one of 'MlpMemoryPolicy'"):
        MemoryPPO("MlpPolicy", counters())
    with pytest.raises(ValueError, match="the action space must be"):
        MemoryPPO("MlpMemoryPolicy", Spaces(spaces.Discrete(2), spaces.Text(3)))
    with pytest.raises(ValueError, match="needs a uint8 image space"):
        MemoryPPO("CnnMemoryPolicy", counters())
    with pytest.raises(ValueError, match="Dict observation space"):
        MemoryPPO("MultiInputMemoryPolicy", counters())


def test_observations_that_are_not_finite_are_refused():
    class Broken(Counter):
        def _observe(self):
            obs = super()._observe()
            if self.steps == 2:
                obs[1] = np.nan
            return obs

    model = model_for(env=DummyVecEnv([Counter, Broken]))
    with pytest.raises(FloatingPointError, match=r"nan at index \[1, 1\].*at step 4"):
        model.learn(100)
    with pytest.raises(ValueError, match="inf"):
        model.predict(np.array([np.inf, 0], np.float32))


def test_states_and_observations_of_another_shape_are_refused():
    model = model_for()
    _, state = model.predict(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="one row per observation, 2"):
        model.predict(np.zeros((2, 2), np.float32), state)
    with pytest.raises(ValueError, match="episode_start must be"):
        model.predict(np.zeros((3, 2), np.float32), state, np.array([True]))
    with pytest.raises(ValueError, match="shape"):
        model.predict(np.zeros((3, 4), np.float32))

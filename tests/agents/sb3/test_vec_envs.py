"""Other people's vector environments: what their infos lack, share or hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from situations import MEMORIES, agent, assert_finite
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from worlds import Counter, Reusing

from palimpsest.agents import MemoryPPO
from palimpsest.envs.sb3_wrappers import VecDropText, VecPreviousActionReward

COUNT = spaces.Box(0, 100, (2,), np.float32)


class Rows(VecEnvWrapper):
    """Two rows with words in their observations, which DummyVecEnv does not take, and one dict of infos for both."""

    shared: dict

    def __init__(self, truncate: bool = True, silent: bool = False) -> None:
        space = spaces.Dict(count=COUNT, mission=spaces.Text(20))
        super().__init__(DummyVecEnv([lambda: Counter(0, truncate)] * 2), observation_space=space)
        self.silent = silent

    def reset(self):
        return self._worded(self.venv.reset())

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        self.shared = {"TimeLimit.truncated": infos[0]["TimeLimit.truncated"]}
        if dones[0] and not self.silent:
            self.shared["terminal_observation"] = {"count": infos[0]["terminal_observation"], "mission": "count"}
        return self._worded(obs), rewards, dones, [self.shared] * 2

    def _worded(self, counts):
        return {"count": counts, "mission": np.array(["count"] * 2)}


def to_the_end(venv):
    venv.reset()
    for _ in range(3):
        obs, _, dones, infos = venv.step(np.array([1, 2]))
    assert dones.all()
    return obs, infos


def test_infos_that_rows_share_are_not_written_to():
    rows = Rows()
    obs, infos = to_the_end(VecDropText(rows))
    assert obs.keys() == {"count"}
    assert rows.shared["terminal_observation"].keys() == {"count", "mission"}
    for info in infos:
        assert info["TimeLimit.truncated"]
        assert info["terminal_observation"].keys() == {"count"}
        assert info["terminal_observation"]["count"].tolist() == [0, 3]


def test_each_row_that_shares_infos_has_its_own_action_and_reward():
    rows = Rows()
    _, infos = to_the_end(VecPreviousActionReward(VecDropText(rows)))
    finals = [info["terminal_observation"] for info in infos]
    assert [final["previous_action"].tolist() for final in finals] == [[0, 1, 0], [0, 0, 1]]
    assert [final["previous_reward"].tolist() for final in finals] == [[1], [1]]
    assert rows.shared["terminal_observation"].keys() == {"count", "mission"}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("silent", [False, True])
def test_an_end_without_its_observation_is_a_termination(silent, memory):
    """The last reward has a value added only where the final observation is told."""
    venv = VecPreviousActionReward(VecDropText(Rows(silent=silent)))
    _, infos = to_the_end(venv)
    assert ("terminal_observation" in infos[0]) != silent
    # before the first update all scaled values are 0
    model = agent("MultiInput", venv, memory, normalize_returns=False).learn(32)
    assert_finite(model)
    buffer = model.rollout_buffer
    last = np.roll(buffer.episode_starts, -1, axis=0)[:-1]
    bootstrapped = buffer.rewards[:-1] != 1
    assert (bootstrapped == (last & (not silent))).all()


def test_text_is_dropped_from_a_vec_env_of_ones_own():
    model = agent("MultiInput", Rows()).learn(32)
    assert list(model.observation_space.spaces) == ["count"]
    assert_finite(model)


class Bare(VecEnv):
    """Two rows without environments behind them, of which attributes and methods cannot be asked."""

    def __init__(self, answer) -> None:
        self.answer = answer
        super().__init__(2, COUNT, spaces.Discrete(2))

    def reset(self):
        self.steps = 0
        return np.zeros((2, 2), np.float32)

    def step_async(self, actions):
        self.steps += 1

    def step_wait(self):
        ended = np.full(2, self.steps % 4 == 0)
        return np.full((2, 2), self.steps % 4, np.float32), np.ones(2, np.float32), ended, [{}, {}]

    def get_attr(self, attr_name, indices=None):
        return [None, None] if attr_name == "render_mode" else self._answered()

    def set_attr(self, attr_name, value, indices=None):
        self._answered()

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return self._answered()

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False, False]

    def close(self):
        """Nothing is open."""

    def _answered(self):
        if self.answer is None:
            return [None, None]
        raise self.answer


@pytest.mark.parametrize("answer", [AttributeError("none"), NotImplementedError("none"), None], ids=repr)
def test_rows_that_cannot_be_asked_train_and_are_evaluated(answer, tmp_path):
    """Whatever they answer to any name: an error, or None."""
    env = Bare(answer)
    model = agent("Mlp", env).learn(32)
    assert_finite(model)
    mean, _ = evaluate_policy(model, env, 2, warn=False)
    assert mean == 4
    model.save(tmp_path / "model")
    assert MemoryPPO.load(tmp_path / "model", env=env).learn(32).num_timesteps == 32


@pytest.mark.parametrize("memory", MEMORIES)
def test_arrays_that_an_environment_uses_again_are_learned_from_as_they_were(memory):
    rows = [lambda row=row: Counter(row, truncate=row == 0) for row in range(2)]
    own, reused = (agent("Mlp", kind(rows), memory).learn(32) for kind in (DummyVecEnv, Reusing))
    for name in ("observations", "rewards", "episode_starts", "log_probs", "returns"):
        np.testing.assert_array_equal(getattr(own.rollout_buffer, name), getattr(reused.rollout_buffer, name))
    for mine, its in zip(own.policy.parameters(), reused.policy.parameters()):
        assert torch.equal(mine, its)

"""Agents of stable-baselines3 and sb3-contrib act the same after examples/from_sb3.py has taken them over."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from palimpsest.agents import MemoryPPO

PATH = Path(__file__).resolve().parents[3] / "examples" / "from_sb3.py"
SPEC = importlib.util.spec_from_file_location("from_sb3", PATH)
from_sb3 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(from_sb3)

IDS = {"discrete": "CartPole-v1", "box": "Pendulum-v1"}


def played(model, observations: np.ndarray, starts: np.ndarray) -> np.ndarray:
    state, actions = None, []
    for obs, start in zip(observations, starts):
        action, state = model.predict(obs, state, start, deterministic=True)
        actions.append(action)
    return np.stack(actions)


def sequence(env_id: str, steps: int = 30, rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    width = gym.make(env_id).observation_space.shape[0]
    starts = rng.random((steps, rows)) < 0.2
    starts[0] = True
    return rng.standard_normal((steps, rows, width)).astype(np.float32), starts


@pytest.mark.parametrize("actions", IDS)
@pytest.mark.parametrize("arch", [None, [8], {"pi": [8, 5, 4], "vf": [8, 3]}])
def test_ppo(actions, arch, tmp_path):
    env_id = IDS[actions]
    theirs = PPO("MlpPolicy", env_id, n_steps=32, batch_size=32, device="cpu", seed=1, policy_kwargs={"net_arch": arch})
    theirs.learn(64).save(tmp_path / "theirs")
    from_sb3.main("PPO", str(tmp_path / "theirs"), env_id, str(tmp_path / "ours"))
    ours = MemoryPPO.load(tmp_path / "ours", device="cpu")
    observations, starts = sequence(env_id)
    np.testing.assert_allclose(
        played(ours, observations, starts), played(theirs, observations, starts), rtol=1e-5, atol=1e-6
    )
    obs = torch.as_tensor(observations[0])
    values = ours.policy.predict_values(obs, ours.policy.initial_state(3))
    torch.testing.assert_close(values, theirs.policy.predict_values(obs).squeeze(1))


@pytest.mark.parametrize("actions", IDS)
@pytest.mark.parametrize("shared", [False, True])
def test_recurrent_ppo(actions, shared):
    contrib = pytest.importorskip("sb3_contrib")
    arguments = dict(lstm_hidden_size=6, n_lstm_layers=2, shared_lstm=shared, enable_critic_lstm=not shared)
    env = make_vec_env(IDS[actions], 3, seed=0)
    theirs = contrib.RecurrentPPO("MlpLstmPolicy", env, n_steps=32, seed=1, policy_kwargs=arguments, device="cpu")
    theirs.learn(96)
    ours = from_sb3.convert(theirs, env)
    observations, starts = sequence(IDS[actions])
    np.testing.assert_allclose(
        played(ours, observations, starts), played(theirs, observations, starts), rtol=1e-4, atol=1e-5
    )
    ours.learn(96)


def test_the_updates_arguments_are_taken_over(tmp_path):
    given = dict(clip_range=0.3, clip_range_vf=0.4, normalize_advantage=False, target_kl=0.05, n_epochs=3)
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu", **given).save(tmp_path / "theirs")
    from_sb3.main("PPO", str(tmp_path / "theirs"), "CartPole-v1", str(tmp_path / "ours"))
    ours = MemoryPPO.load(tmp_path / "ours", device="cpu")
    assert (ours.clip_range(1.0), ours.clip_range_vf(1.0)) == (0.3, 0.4)
    assert (ours.normalize_advantage, ours.target_kl, ours.n_epochs) == (False, 0.05, 3)


@pytest.mark.parametrize("words", [[], ["PPO"], ["DQN", "a", "b", "c"]])
def test_wrong_words_get_the_usage(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["from_sb3.py", *words])
    with pytest.raises(SystemExit, match="usage"):
        runpy.run_path(str(PATH), run_name="__main__")


def test_what_is_not_taken_over_is_refused():
    relu = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"activation_fn": torch.nn.ReLU})
    uneven = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"net_arch": {"pi": [4], "vf": []}})
    for theirs in (relu, uneven):
        with pytest.raises(ValueError, match="begin with a tanh layer"):
            from_sb3.convert(theirs, gym.make("CartPole-v1"))


def test_the_refusal_of_their_files_names_this_example(tmp_path):
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"stable-baselines3") as refused:
        MemoryPPO.load(tmp_path / "theirs")
    (named,) = re.findall(r"\S+\.py", str(refused.value))
    assert (PATH.parent.parent / named) == PATH

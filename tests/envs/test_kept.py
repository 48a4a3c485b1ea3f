"""Chosen numbers of observations: every face shows the same part, and bad indices are refused with words."""

from __future__ import annotations

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from faces import same
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from palimpsest import envs
from palimpsest.agents.environments import chance_level, longest_horizon
from palimpsest.envs.sb3 import VectorEnvAdaptor
from palimpsest.envs.wrappers import (
    KeepObservations,
    PreviousActionReward,
    VecKeepObservations,
    VecPreviousActionReward,
    VectorKeepObservations,
)

TWIN = dict(velocities=True)
CART, HIDE = "Palimpsest/CartPoleNoVel-v0", "Palimpsest/HideAndSeek-v0"
DECLARED = ("memory_horizons", "chance_level", "event_mask")


def test_every_face_shows_the_part():
    """The whole CartPole, of which positions are kept, is CartPole without velocities."""
    kept = [0, 2]
    masked = envs.make_vec(CART, 5, seed=3)
    venv = VecKeepObservations(envs.make_vec(CART, 5, seed=3, **TWIN), kept)
    vector = VectorKeepObservations(gym.make_vec(CART, 5, **TWIN), kept)
    adapted = VectorEnvAdaptor(VectorKeepObservations(gym.make_vec(CART, 5, **TWIN), kept))
    adapted.seed(3)
    singles = [KeepObservations(gym.make(CART, **TWIN), kept) for _ in range(5)]
    faces = masked, venv, vector, adapted
    assert len({str(getattr(face, "single_observation_space", face.observation_space)) for face in faces}) == 1
    assert singles[0].observation_space == masked.observation_space
    first = masked.reset()
    assert same(first, venv.reset())
    assert same(first, vector.reset(seed=3)[0])
    assert same(first, adapted.reset())
    for i, single in enumerate(singles):
        assert same(first[i], single.reset(seed=3 + i)[0])
    rng, ended = np.random.default_rng(0), 0
    for _ in range(80):
        actions = rng.integers(2, size=5)
        obs, rewards, dones, infos = masked.step(actions)
        for face in (venv, adapted):
            got, its_rewards, its_dones, its_infos = face.step(actions)
            assert same((obs, rewards, dones), (got, its_rewards, its_dones))
            for i in np.flatnonzero(dones):
                assert same(infos[i]["terminal_observation"], its_infos[i]["terminal_observation"])
        got, *_, final = vector.step(actions)
        assert same(obs, got)
        for i, single in enumerate(singles):
            one = single.step(actions[i])[0]
            if dones[i]:
                assert same(one, final["final_obs"][i])
                one, _ = single.reset()
                ended += 1
            assert same(one, obs[i])
    assert ended > 10


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_gymnasiums_own_vector_environments(mode):
    kept = [2, 0]
    whole = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)
    part = VectorKeepObservations(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode), kept)
    assert same(whole.reset(seed=0)[0][:, kept], part.reset(seed=0)[0])
    ends = 0
    for _ in range(60):
        actions = np.ones(3, int)
        obs, *_, infos = whole.step(actions)
        got, *_, its = part.step(actions)
        assert same(obs[:, kept], got)
        for row in np.flatnonzero(infos.get("_final_obs", [])):
            assert same(infos["final_obs"][row][kept], its["final_obs"][row])
            ends += 1
    assert (ends > 0) == (mode == AutoresetMode.SAME_STEP)


def test_order_bounds_and_dtype():
    env = KeepObservations(gym.make("MountainCarContinuous-v0"), (1, 0))
    assert env.observation_space == gym.spaces.Box(
        np.array([-0.07, -1.2], np.float32), np.array([0.07, 0.6], np.float32)
    )
    assert env.observation(np.array([5.0, 6.0])).tolist() == [6, 5]
    with pytest.warns(UserWarning, match="different from the unwrapped version"):
        check_env(KeepObservations(gym.make("CartPole-v1"), [2]), skip_render_check=True)
    clone = pickle.loads(pickle.dumps(copy.deepcopy(KeepObservations(gym.make(CART, **TWIN), [1]))))
    assert same(clone.reset(seed=1)[0], gym.make(CART, **TWIN).reset(seed=1)[0][[1]])


def test_what_is_declared_of_the_whole_is_hidden():
    whole, part = envs.make_vec(CART, 2, **TWIN), VecKeepObservations(envs.make_vec(CART, 2, **TWIN), [0])
    both = VecPreviousActionReward(part)
    single = KeepObservations(gym.make(CART, **TWIN), [0])
    assert (chance_level(whole), longest_horizon(whole)) == (1, 1)
    for face in (part, both, VectorEnvAdaptor(VectorKeepObservations(gym.make_vec(CART, 2, **TWIN), [0]))):
        assert chance_level(face) is longest_horizon(face) is None
        assert not face.has_attr("event_mask")
    for name in DECLARED:
        assert not single.has_wrapper_attr(name)
        with pytest.raises(AttributeError, match=name):
            single.get_wrapper_attr(name)
        with pytest.raises(AttributeError, match="whole observations"):
            part.env_method(name)
        with pytest.raises(AttributeError, match="whole observations"):
            part.get_attr(name)
    assert part.env_method("hidden_state")[0].keys() == single.get_wrapper_attr("hidden_state")().keys()
    assert single.has_wrapper_attr("expert_action")


def test_with_the_previous_action():
    env = PreviousActionReward(KeepObservations(gym.make(CART, **TWIN), [2]))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (1 + 2 + 1,)
    obs, *_ = env.step(1)
    assert obs[1:].tolist() == [0, 1, 1]
    PPO(
        "MlpPolicy",
        VecKeepObservations(DummyVecEnv([lambda: gym.make("CartPole-v1")]), [0, 2]),
        n_steps=16,
        batch_size=16,
    ).learn(16)


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([], "one or more indices of observations; got []"),
        ("02", "one or more indices of observations; got '02'"),
        (3, "one or more indices of observations; got 3"),
        ([4], "each of keep_observations must be an integer, 0 to 3; got 4"),
        ([-1], "each of keep_observations must be an integer, 0 to 3; got -1"),
        ([0, 1.0], "each of keep_observations must be an integer, 0 to 3; got 1.0"),
        ([True], "each of keep_observations must be an integer, 0 to 3; got True"),
        ([0, 2, 0], "different indices; got [0, 2, 0]"),
    ],
    ids=str,
)
def test_bad_indices_are_refused(indices, words):
    for wrap, env in (
        (KeepObservations, gym.make("CartPole-v1")),
        (VectorKeepObservations, gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")),
        (VecKeepObservations, envs.make_vec("CartPole-v1", 2)),
    ):
        with pytest.raises(ValueError, match="keep_observations") as caught:
            wrap(env, indices)
        assert words in str(caught.value)


@pytest.mark.parametrize("id", [HIDE, "Palimpsest/MiniGridMemory-S7-v0"])
def test_other_observations_are_refused(id):
    with pytest.raises(ValueError, match="keep_observations chooses from a Box of one dimension; the observations are"):
        KeepObservations(gym.make(id), [0])

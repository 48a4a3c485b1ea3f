"""What `MemoryDQN` scales: observations, rewards, and what a VecNormalize around the environments does."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from small_dqn import B, counters, make, played
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from palimpsest.agents import MemoryDQN, MemorySAC
from palimpsest.envs.sb3_wrappers import VecKeepObservations, VecPreviousActionReward


def test_normalised_environments_are_stored_as_they_are():
    env = VecNormalize(counters(), norm_reward=True)
    model = make(env=env)
    model.learn(90)
    rows = model.replay_buffer.observations[:20, :, 0]
    np.testing.assert_allclose(rows, np.broadcast_to(np.arange(B), (20, B)), atol=1e-6)
    assert set(np.unique(model.replay_buffer.rewards[:20])) <= {0.0, 1.0}
    batch = model.replay_buffer.sample(5, np.random.default_rng(0), env)
    assert batch.observations.abs().max() < 10
    assert not set(batch.rewards.unique().tolist()) <= {0.0, 1.0}


class Filmed(gym.Env):
    """A picture, channels last, and a number, both of which tell the steps so far; episodes are cut after three."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (36, 40, 3), np.uint8), count=spaces.Box(0, 100, (1,), np.float32)
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), 1.0, False, self.steps == 3, {}

    def _observe(self):
        image = np.zeros((36, 40, 3), np.uint8)
        image[1, 2, 0] = image[4, 5, 2] = self.steps
        return {"image": image, "count": np.array([self.steps], np.float32)}


class Titled(VecEnvWrapper):
    """A VecEnv whose observations have a text, too."""

    def __init__(self, venv):
        parts = venv.observation_space.spaces
        super().__init__(venv, observation_space=spaces.Dict({**parts, "title": spaces.Text(9)}))

    def reset(self):
        return self.venv.reset() | {"title": np.array(["a film"])}

    def step_wait(self):
        obs, *rest = self.venv.step_wait()
        return obs | {"title": np.array(["a film"])}, *rest


@pytest.mark.parametrize("titled", [False, True])
def test_pictures_are_stored_as_they_are_seen_beside_what_is_normalised(titled):
    rows = DummyVecEnv([Filmed])
    env = VecMonitor(VecNormalize(Titled(rows) if titled else rows, norm_obs_keys=["count"]))
    settings = dict(sequence_length=4, burn_in=2, buffer_size=100, learning_starts=8, batch_size=3, device="cpu")
    model = MemoryDQN("MultiInputMemoryPolicy", env, policy_kwargs=small_policy("gru"), **settings).learn(24)
    stored, steps = model.replay.observations, np.tile(np.arange(4), 6)
    assert stored.keys() == {"image", "count"}
    # the final observation is the fourth of each episode
    np.testing.assert_allclose(stored["count"][:24, 0, 0], steps, atol=1e-5)
    for place in ((0, 1, 2), (2, 4, 5)):
        np.testing.assert_array_equal(stored["image"][:24, 0][:, *place], steps)
    batch = model._sample(5)
    assert batch.observations["count"].min() < 0
    assert batch.observations["image"].dtype == torch.uint8


def test_pictures_alone_are_learned_from_where_rewards_are_normalised():
    def one():
        return gym.wrappers.TransformObservation(
            Filmed(), lambda obs: obs["image"], Filmed.observation_space.spaces["image"]
        )

    env = VecNormalize(DummyVecEnv([one]), norm_obs=False)
    settings = dict(sequence_length=4, burn_in=2, buffer_size=100, learning_starts=8, batch_size=3, device="cpu")
    model = MemorySAC("CnnMemoryPolicy", env, policy_kwargs=small_policy("gru"), **settings).learn(24)
    assert model._n_updates > 0
    assert model.replay.observations[:5, 0, 2, 4, 5].tolist() == [0, 1, 2, 3, 0]


class Fives(VecEnvWrapper):
    """What is seen is 5, whatever happens."""

    def reset(self):
        return self.venv.reset() * 0 + 5

    def step_wait(self):
        obs, *rest = self.venv.step_wait()
        return obs * 0 + 5, *rest


AROUND = {
    "VecFrameStack": lambda env: VecFrameStack(env, 2),
    "VecPreviousActionReward": VecPreviousActionReward,
    "VecKeepObservations": lambda env: VecKeepObservations(env, [1]),
    "Fives": Fives,
}


@pytest.mark.parametrize("name", AROUND)
def test_normalising_inside_another_wrapper_is_refused_and_goes_the_other_way_round(name):
    around = AROUND[name]
    model = make(env=VecCheckNan(VecNormalize(around(counters()))))
    said = rf"must be around {name}; got {name} around VecNormalize: exchange them, as VecNormalize\({name}\(...\)\)"
    for wrong in (around(VecNormalize(counters())), VecMonitor(around(VecNormalize(counters(), norm_obs=False)))):
        for refused in (lambda env=wrong: make(env=env), lambda env=wrong: model.set_env(env)):
            with pytest.raises(ValueError, match=said):
                refused()
    assert model.learn(60)._n_updates > 0


class Clock(gym.Env):
    """Seconds since 1970, of which float32 would leave a difference of 128."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Discrete(3)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.steps = 0
        return np.array([1.7e9]), {}

    def step(self, action):
        self.steps += 1
        return np.array([1.7e9 + self.steps]), 0.0, False, self.steps >= 100, {}


def test_observations_in_float64_are_kept_as_they_are_and_read_in_float32():
    env = VecNormalize(DummyVecEnv([Clock]))
    model = make(env=env)
    model.learn(90)
    replay = model.replay
    assert replay.observations.dtype == np.float64
    np.testing.assert_array_equal(replay.observations[:90, 0, 0], 1.7e9 + np.arange(90))
    batch = replay.sample(200, np.random.default_rng(0), env)
    assert batch.observations.dtype == torch.float32
    assert len(batch.observations.unique()) > 60
    alone = replay.sample(5, np.random.default_rng(0))
    assert alone.observations.dtype == torch.float32
    # files of earlier versions hold float32
    older = replay.contents()["observations"].astype(np.float32)
    replay.restore(replay.contents() | {"observations": older})
    np.testing.assert_array_equal(replay.observations[: len(older)], older)


def test_observations_are_scaled_by_what_was_played(tmp_path):
    model = make(normalize_observations=True)
    model.learn(90)
    (moments,) = model.policy.observation_scales.moments
    assert moments.count > 0
    assert 0.5 < moments.mean[0] < 1.5
    assert model.q_net_target.observation_scales is model.policy.observation_scales
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(played(MemoryDQN.load(tmp_path / "model", device="cpu")), played(model))


def test_rewards_are_scaled_by_the_returns_so_far(tmp_path):
    env = counters()
    model = make(env=env, normalize_returns=True, gamma=0.95)
    rewards, dones, take = [], [], env.step_wait

    def step():
        result = take()
        rewards.append(np.array(result[1]))
        dones.append(np.array(result[2]))
        return result

    env.step_wait = step
    model.learn(90)
    sums, before = [], np.zeros(B)
    for reward, done in zip(rewards, dones):
        before = 0.95 * before + reward
        sums.append(before)
        before = np.where(done, 0, before)
    std = float(np.std(sums))
    assert float(model.policy.return_scale.std) == pytest.approx(std, rel=1e-4)
    assert std > 1.05
    batch = model._sample(40)
    cuts, rows = batch.items // B, batch.items % B
    slots = cuts * 4 + np.arange(model.replay.whole)[:, None]
    np.testing.assert_allclose(batch.rewards * std, model.replay.rewards[slots % len(model.replay.rewards), rows], 1e-4)
    # what is told of values is on the scale of rewards
    state, start = model.policy.initial_state(40), batch.memory_start
    look = model.policy.look(batch.observations, state, start)
    torch.testing.assert_close(
        look.judged, model.policy.q_scan(batch.observations, state, start) * std, rtol=1e-4, atol=1e-6
    )
    model.save(tmp_path / "model")
    loaded = MemoryDQN.load(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.policy.return_scale.std, model.policy.return_scale.std)

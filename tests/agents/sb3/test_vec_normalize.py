"""What stable-baselines3 tests of VecNormalize, where it concerns MemoryPPO: the situations are theirs.

A file of ours keeps the statistics with the model, where SB3's are saved beside it; what that asks for comes last.
"""

from __future__ import annotations

import re
import warnings
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_arguments
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    sync_envs_normalization,
    unwrap_vec_normalize,
)
from worlds import Counter, Spaces

from palimpsest.agents import MemoryPPO, evaluate
from palimpsest.agents.files.archive import CorruptFile, read_tree, write_tree
from palimpsest.agents.learn.diagnostics import event_mask

MIXED = spaces.Dict(
    goal=spaces.Box(-20, 20, (4,), np.float32), kind=spaces.Discrete(3), place=spaces.Box(-20, 20, (2,), np.float32)
)
BOXES = spaces.Dict({key: MIXED[key] for key in ("goal", "place")})
IMAGE = spaces.Box(0, 255, (8, 8, 1), np.uint8)


def counters(n: int = 2, **kwargs) -> DummyVecEnv:
    return DummyVecEnv([lambda row=row: Counter(row, **kwargs) for row in range(n)])


def samples(space: spaces.Space) -> DummyVecEnv:
    return DummyVecEnv([lambda: Spaces(space, spaces.Discrete(2)) for _ in range(2)])


def make(env, policy: str = "MlpMemoryPolicy", **kwargs) -> MemoryPPO:
    memory = {"memory": "gru", "memory_kwargs": small_arguments("gru")}
    defaults = dict(n_steps=8, batch_size=16, n_epochs=1, policy_kwargs=memory, device="cpu")
    return MemoryPPO(policy, env, **{**defaults, **kwargs})


def assert_same_moments(first: VecNormalize, second: VecNormalize) -> None:
    def parts(normalize):
        obs = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {"": normalize.obs_rms}
        return {**obs, "of returns": normalize.ret_rms}

    assert parts(first).keys() == parts(second).keys()
    for key, moments in parts(first).items():
        np.testing.assert_array_equal(moments.mean, parts(second)[key].mean)
        np.testing.assert_array_equal(moments.var, parts(second)[key].var)
        assert moments.count == parts(second)[key].count


@pytest.mark.parametrize("observations", [None, BOXES], ids=["box", "dict"])
def test_a_model_knows_which_normalisation_it_trains_under(observations):
    def normalized(**kwargs):
        return VecNormalize(counters() if observations is None else samples(observations), **kwargs)

    env, other = normalized(), normalized(training=False, norm_reward=False)
    model = make(env, "MlpMemoryPolicy" if observations is None else "MultiInputMemoryPolicy")
    assert model.get_vec_normalize_env() is env
    model.set_env(other)
    assert model.get_vec_normalize_env() is other
    model.learn(16)
    assert other.ret_rms.count < 1
    model.set_env(env)
    model.learn(16)
    assert env.ret_rms.count > 16
    assert make(counters()).get_vec_normalize_env() is None


def test_the_policy_sees_what_is_normalised():
    env = VecNormalize(counters(), clip_obs=0.5, clip_reward=0.25)
    model = make(env).learn(16)
    seen = model.rollout_buffer.observations
    assert np.abs(seen).max() == pytest.approx(0.5)
    np.testing.assert_allclose(model._last_obs, env.normalize_obs(env.get_original_obs()))


def test_chosen_keys_alone_are_normalised():
    env = VecNormalize(samples(MIXED), norm_obs_keys=["goal"])
    model = make(env, "MultiInputMemoryPolicy").learn(16)
    original = env.get_original_obs()
    assert not np.allclose(model._last_obs["goal"], original["goal"])
    for key in ("kind", "place"):
        np.testing.assert_array_equal(model._last_obs[key], original[key])
    with pytest.raises(ValueError, match="norm_obs_keys"):
        VecNormalize(samples(MIXED))


@pytest.mark.parametrize("policy", ["MlpMemoryPolicy", "MultiInputMemoryPolicy"])
def test_rewards_alone_are_normalised(policy):
    space = spaces.Discrete(5) if policy == "MlpMemoryPolicy" else MIXED
    env = VecNormalize(samples(space), norm_obs=False)
    model = make(env, policy).learn(16)
    np.testing.assert_equal(model._last_obs, env.get_original_obs())
    assert env.ret_rms.count > 16


def test_the_final_observation_of_a_truncated_episode_is_normalised_too():
    env = VecNormalize(counters(truncate=True), norm_reward=False)
    model = make(env)
    seen = []
    values = model.policy.predict_values
    model.policy.predict_values = lambda obs, *rest, **named: seen.append(obs) or values(obs, *rest, **named)
    model.learn(16)
    *finals, last = seen
    assert len(finals) >= 2
    assert all(final.abs().max() < 10 for final in finals)
    assert {round(float(env.unnormalize_obs(final.numpy())[0, 0])) for final in finals} <= {0, 1}
    assert last.shape == (2, 2)


def test_evaluations_are_normalised_as_the_training_is():
    env, evaluated = VecNormalize(counters()), VecNormalize(VecMonitor(counters(1)), training=False, norm_reward=False)
    make(env).learn(48, EvalCallback(evaluated, n_eval_episodes=2, eval_freq=24, verbose=0))
    assert_same_moments(env, evaluated)
    make(env).learn(16)
    assert evaluated.ret_rms.count < env.ret_rms.count
    sync_envs_normalization(env, evaluated)
    assert_same_moments(env, evaluated)


def test_wrappers_around_it_are_seen_through(tmp_path):
    env = VecFrameStack(VecNormalize(counters()), 2)
    model = make(env).learn(16)
    assert model.get_vec_normalize_env() is unwrap_vec_normalize(env)
    model.save(tmp_path / "model")
    again = VecFrameStack(VecNormalize(counters()), 2)
    MemoryPPO.load(tmp_path / "model", env=again)
    assert_same_moments(unwrap_vec_normalize(env), unwrap_vec_normalize(again))


@pytest.mark.parametrize("keys", [None, ["goal"]], ids=["all", "one key"])
def test_statistics_come_back_with_the_model(keys, tmp_path):
    env = VecNormalize(samples(BOXES), norm_obs_keys=keys)
    model = make(env, "MultiInputMemoryPolicy").learn(16)
    model.save(tmp_path / "model")
    again = VecNormalize(samples(BOXES), norm_obs_keys=keys)
    MemoryPPO.load(tmp_path / "model", env=again)
    assert_same_moments(env, again)
    np.testing.assert_array_equal(env.returns, again.returns)


def test_statistics_outlive_a_model_without_environments(tmp_path):
    env = VecNormalize(counters())
    make(env).learn(16).save(tmp_path / "model")
    MemoryPPO.load(tmp_path / "model").save(tmp_path / "again")
    later = MemoryPPO.load(tmp_path / "again")
    wrapped = VecNormalize(counters())
    later.set_env(wrapped)
    assert_same_moments(env, wrapped)
    later.learn(16)
    newest = VecNormalize(counters())
    later.set_env(newest)  # the statistics of the file have gone into the first one, which has moved on
    assert newest.ret_rms.count < 1


def test_statistics_saved_by_sb3_are_used_as_they_are(tmp_path):
    make(counters()).save(tmp_path / "model")
    env = VecNormalize(counters())
    make(env).learn(16)
    env.save(str(tmp_path / "statistics.pkl"))
    again = VecNormalize.load(str(tmp_path / "statistics.pkl"), counters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MemoryPPO.load(tmp_path / "model", env=again)
    assert_same_moments(env, again)


def test_a_missing_normalisation_is_told(tmp_path):
    make(VecNormalize(counters())).learn(16).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"model\.zip' was trained under VecNormalize and env has none.*wrap env in"):
        MemoryPPO.load(tmp_path / "model", env=counters())


def test_a_new_normalisation_is_told(tmp_path):
    make(counters()).learn(16).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"was trained without VecNormalize.*leave VecNormalize out"):
        MemoryPPO.load(tmp_path / "model", env=VecNormalize(counters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MemoryPPO.load(tmp_path / "model", env=VecNormalize(counters(), norm_obs=False))


def dicts(**kwargs) -> VecNormalize:
    return VecNormalize(samples(BOXES), **kwargs)


OTHERS = {
    "none here": (dicts(), dicts(norm_obs=False), r"normalises the observations ['goal', 'place'],", "no observations"),
    "none there": (dicts(norm_obs=False), dicts(), "normalises no observations,", "make it with norm_obs=False"),
    "fewer here": (dicts(), dicts(norm_obs_keys=["goal"]), "", "make it with norm_obs_keys=['goal', 'place']"),
    "others here": (
        dicts(norm_obs_keys=["place"]),
        dicts(norm_obs_keys=["goal"]),
        "normalises the observations ['place'],",
        "normalises the observations ['goal']; make it with norm_obs_keys=['place']",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_normalisation_of_other_observations_is_refused_with_the_remedy(case, tmp_path):
    trained, given, cause, remedy = OTHERS[case]
    make(trained, "MultiInputMemoryPolicy").learn(16).save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{re.escape(cause)}.*{re.escape(remedy)}") as caught:
        MemoryPPO.load(tmp_path / "model", env=given)
    assert not isinstance(caught.value, CorruptFile)


def test_images_that_become_floats_are_told_of(tmp_path):
    make(samples(IMAGE), "CnnMemoryPolicy").save(tmp_path / "model")
    with pytest.raises(
        ValueError, match="VecNormalize turns images into floats: leave it out, or give it norm_obs=False"
    ):
        MemoryPPO.load(tmp_path / "model", env=VecNormalize(samples(IMAGE)))
    MemoryPPO.load(tmp_path / "model", env=VecNormalize(samples(IMAGE), norm_obs=False)).learn(16)


@pytest.mark.parametrize("wrong", [3, {}, {"obs": {}, "ret": 1, "returns": []}, {"obs": {"": (0, [1, 2], 3)}}])
def test_statistics_that_are_none_are_the_files_fault(wrong, tmp_path):
    make(VecNormalize(counters())).save(tmp_path / "model")
    write_tree(tmp_path / "evil", read_tree(tmp_path / "model") | {"vec_normalize": wrong})
    with pytest.raises(CorruptFile, match="holds no statistics of a VecNormalize"):
        MemoryPPO.load(tmp_path / "evil", env=VecNormalize(counters()))


class Far(gym.Env):
    """Observations near 1000, which it notes; episodes of three steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    shown: ClassVar[list[float]] = []

    def _observe(self):
        self.shown.append(1000 + self.np_random.normal())
        return np.array(self.shown[-1:], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action):
        self.time += 1
        return self._observe(), 0.0, self.time == 3, False, {}


gym.register("Test/Far-v0", entry_point=Far)


@pytest.mark.parametrize("source", ["the model", "its file"])
def test_evaluate_shows_what_training_showed(source, tmp_path, monkeypatch):
    env = VecNormalize(DummyVecEnv([Far, Far]), clip_obs=0.5)
    model = make(env).learn(32)
    if source == "its file":
        model.save(tmp_path / "model")
        model = MemoryPPO.load(tmp_path / "model", device="cpu")
    before, seen, predict = env.obs_rms.mean.copy(), [], model.predict

    def seeing(obs, *arguments, **more):
        seen.append(obs.copy())
        return predict(obs, *arguments, **more)

    monkeypatch.setattr(model, "predict", seeing)
    Far.shown.clear()
    assert evaluate(model, "Test/Far-v0", episodes=1)["episodes"] == 1
    first = np.array(Far.shown[:1], np.float32)
    np.testing.assert_array_equal(seen[0], env.normalize_obs(first[None]))
    assert np.abs(np.concatenate(seen)).max() <= 0.5
    np.testing.assert_array_equal(env.obs_rms.mean, before)


class Eventful(Counter):
    """Every third step is an event."""

    def event_mask(self, obs):
        return obs[..., 1] % 3 == 1


def test_events_are_told_where_only_the_normalisation_changed_what_was_seen():
    def told(env):
        return event_mask(make(env).env, torch.tensor([[[0.0, 1.0], [0.0, 2.0]]]))

    rows = DummyVecEnv([Eventful])
    unchanged = VecNormalize(rows, norm_obs=False)
    for env in (rows, unchanged, VecMonitor(unchanged)):
        assert told(env).tolist() == [[True, False]]
    assert not told(VecFrameStack(VecNormalize(rows), 2)).any()
    stacked = make(VecFrameStack(VecNormalize(rows), 2), policy_kwargs={"memory": "rewrite"}).learn(16)
    assert "memory/rewrite_mean" in stacked.logger.name_to_value

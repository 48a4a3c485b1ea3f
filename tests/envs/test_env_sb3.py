"""The SB3 face as SB3's own tools use it, and the adaptor that serves any gymnasium VectorEnv to SB3."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from worlds import Counter

from palimpsest import envs
from palimpsest.envs.sb3 import Ends, VectorEnvAdaptor, WorldVecEnv

ID = "Palimpsest/EndlessTMaze-v0"
SHORT = dict(corridors=2, length=2, regime="uniform")


def make(rows: int = 4, **kwargs) -> WorldVecEnv:
    return envs.make_vec(ID, rows, seed=0, **{**SHORT, **kwargs})


class Expert:
    """Reads the hidden state; a stand-in for a trained model."""

    def __init__(self, venv):
        self.venv = venv

    def predict(self, obs, state=None, episode_start=None, deterministic=True):
        return np.array(self.venv.env_method("expert_action")), state


def test_infos_are_one_dict_per_row_and_empty_between_ends():
    venv = make(64)
    venv.reset()
    rng = np.random.default_rng(0)
    dicts: list[dict] = []
    ended = 0
    for _ in range(200):
        _, rewards, dones, infos = venv.step(rng.integers(3, size=64))
        assert rewards.dtype == np.float32
        dicts = dicts or list(infos)
        assert all(a is b for a, b in zip(dicts, infos))
        assert all(bool(info) == done for info, done in zip(infos, dones))
        for row in np.flatnonzero(dones):
            assert set(infos[row]) == {
                "is_success",
                "success",
                "episode",
                "terminal_observation",
                "TimeLimit.truncated",
            }
            assert set(infos[row]["episode"]) == {"r", "l", "t"}
        ended += dones.sum()
    assert ended > 100
    venv.reset()
    assert not any(dicts)


def test_last_ends_says_what_the_infos_say():
    venv = make(16)
    venv.reset()
    assert venv.last_ends is None
    rng = np.random.default_rng(1)
    returns = np.zeros(16)
    for _ in range(300):
        _, rewards, dones, infos = venv.step(rng.integers(3, size=16))
        returns += rewards
        ends = venv.last_ends
        if ends is None:
            assert not dones.any()
            continue
        assert isinstance(ends, Ends)
        assert ends.rows.tolist() == np.flatnonzero(dones).tolist()
        for k, row in enumerate(ends.rows):
            info = infos[row]
            np.testing.assert_array_equal(ends.final_obs[k], info["terminal_observation"])
            assert ends.truncated[k] == info["TimeLimit.truncated"]
            assert ends.success[k] == info["success"]
            assert info["episode"]["r"] == pytest.approx(ends.returns[k], abs=1e-6)
            assert ends.returns[k] == pytest.approx(returns[row], abs=1e-5)
            assert ends.lengths[k] == info["episode"]["l"]
        returns[dones] = 0


def test_truncation_is_told():
    venv = make(2, corridors=1, length=1)
    venv.reset()
    for _ in range(12):
        *_, dones, infos = venv.step(np.array([1, 1]))
    assert dones.all()
    assert all(info["TimeLimit.truncated"] and not info["is_success"] for info in infos)
    assert infos[0]["episode"] | {"t": 0} == {"r": -0.12, "l": 12, "t": 0}


def test_seeds_count_at_the_next_reset():
    a, b = make(), make()
    first = a.reset()
    np.testing.assert_array_equal(first, b.reset())
    assert a.seed(40) == [40, 41, 42, 43]
    a.reset()
    fresh = envs.make_vec(ID, 4, seed=40, **SHORT)
    fresh.reset()
    for name, array in a.world.hidden_state().items():
        np.testing.assert_array_equal(array, fresh.world.hidden_state()[name])
    a.reset()
    assert not np.array_equal(a.world.hidden_state()["rng"], fresh.world.hidden_state()["rng"])


def test_options_restore_a_hidden_state():
    venv = make()
    venv.reset()
    for _ in range(3):
        venv.step(np.zeros(4, int))
    hidden = venv.world.hidden_state()
    venv.step(np.zeros(4, int))
    venv.set_options({"hidden_state": hidden})
    venv.reset()
    for name, array in venv.world.hidden_state().items():
        np.testing.assert_array_equal(array, hidden[name])


def test_a_snapshot_goes_on_where_it_was_taken():
    venv, other = make(8), make(8)
    venv.reset()
    rng = np.random.default_rng(3)
    for _ in range(50):
        venv.step(rng.integers(3, size=8))
    snapshot = venv.snapshot()
    script = rng.integers(3, size=(100, 8))
    played = [
        (obs, rewards, dones, [dict(info) for info in infos]) for obs, rewards, dones, infos in map(venv.step, script)
    ]
    other.restore(snapshot)
    for actions, (obs, rewards, dones, infos) in zip(script, played):
        again = other.step(actions)
        np.testing.assert_array_equal(again[0], obs)
        np.testing.assert_array_equal(again[1], rewards)
        np.testing.assert_array_equal(again[2], dones)
        for row in np.flatnonzero(dones):
            assert again[3][row]["episode"] | {"t": 0} == infos[row]["episode"] | {"t": 0}


def test_questions_to_rows():
    venv = make(render_mode="rgb_array")
    venv.reset()
    state = venv.world.state
    for _ in range(20):
        venv.step(np.array(venv.env_method("expert_action")))
        assert [h["x"][0] for h in venv.env_method("hidden_state")] == state.x.tolist()
    assert venv.env_method("expert_action", indices=[2, 0]) == [venv.env_method("expert_action")[i] for i in (2, 0)]
    assert venv.get_attr("render_mode", indices=-1) == ["rgb_array"]
    assert venv.has_attr("memory_horizons")
    assert not venv.has_attr("nonsense")
    venv.set_attr("note", 7, indices=[1])
    assert venv.get_attr("note", indices=[1]) == [7]
    with pytest.raises(AttributeError):
        venv.get_attr("note", indices=[0])
    with pytest.raises(ValueError, match="belongs to the world"):
        venv.set_attr("rules", None)
    for method in ("step", "reset"):
        with pytest.raises(ValueError, match="rows move together"):
            venv.env_method(method, 0)
    assert venv.env_is_wrapped(Monitor) == [True] * 4
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    images = venv.get_images()
    assert len(images) == 4
    height, width, _ = images[0].shape
    assert venv.render().shape == (2 * height, 2 * width, 3)
    assert make().get_images() == [None] * 4


def test_sb3_wrappers():
    venv = VecNormalize(make(8), norm_reward=False)
    venv.reset()
    rng = np.random.default_rng(0)
    seen = 0
    while seen < 20:
        *_, dones, infos = venv.step(rng.integers(3, size=8))
        for row in np.flatnonzero(dones):
            raw = venv.venv.last_ends.final_obs[venv.venv.last_ends.rows == row][0]
            np.testing.assert_allclose(infos[row]["terminal_observation"], venv.normalize_obs(raw))
            seen += 1
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        monitored = VecMonitor(make(8))
    monitored.reset()
    seen = 0
    while seen < 20:
        *_, dones, infos = monitored.step(rng.integers(3, size=8))
        for row in np.flatnonzero(dones):
            ours = monitored.venv.last_ends
            k = ours.rows.tolist().index(row)
            assert infos[row]["episode"]["l"] == ours.lengths[k]
            assert infos[row]["episode"]["r"] == pytest.approx(ours.returns[k], abs=1e-4)
            seen += 1


def test_evaluate_policy_and_learn():
    venv = make(4, regime="fixed")
    returns, lengths = evaluate_policy(Expert(venv), venv, n_eval_episodes=12, return_episode_rewards=True)
    assert returns == [pytest.approx(2 * (1 - 0.02))] * 12
    assert lengths == [6] * 12
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, seed=0).learn(256)
    assert len(model.ep_info_buffer) > 0


def test_any_registered_id_becomes_a_vec_env():
    venv = envs.make_vec("CartPole-v1", 3, seed=5)
    assert isinstance(venv, DummyVecEnv)
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    obs = venv.reset()
    np.testing.assert_array_equal(obs[1], gym.make("CartPole-v1").reset(seed=6)[0])


COUNT = gym.spaces.Box(0, 100, (2,), np.float32)
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


@pytest.mark.parametrize("mode", MODES)
def test_the_adaptor_equals_our_own_face(mode):
    def one():
        return gym.make(ID, **SHORT)

    ours, theirs = make(), VectorEnvAdaptor(SyncVectorEnv([one] * 4, autoreset_mode=mode))
    theirs.seed(0)
    compare(ours, theirs, lambda rng: rng.integers(3, size=4))


def test_the_adaptor_serves_our_vector_env():
    theirs = VectorEnvAdaptor(gym.make_vec(ID, 4, vectorization_mode="vector_entry_point", **SHORT))
    theirs.seed(0)
    compare(make(), theirs, lambda rng: rng.integers(3, size=4))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_the_adaptor_equals_dummy_vec_env(kind, mode):
    makers = [lambda row=row: Counter(row, truncate=row == 1) for row in range(3)]
    theirs = VectorEnvAdaptor(kind(makers, autoreset_mode=mode))
    ours = DummyVecEnv([lambda make=make: Monitor(make()) for make in makers])
    try:
        compare(ours, theirs, lambda rng: rng.integers(3, size=3), steps=40, success=False)
    finally:
        theirs.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("key", [None, "count"])
def test_observations_stay_as_they_were_where_rows_write_into_the_same_arrays(kind, mode, key):
    def one():
        return gym.wrappers.TransformObservation(Counter(), lambda obs: {key: obs}, gym.spaces.Dict({key: COUNT}))

    venv = VectorEnvAdaptor(kind([one if key else Counter], copy=False, autoreset_mode=mode))
    try:
        seen = [venv.reset(), *(venv.step(np.zeros(1, int))[0] for _ in range(4))]
    finally:
        venv.close()
    assert [int((each[key] if key else each)[0, 1]) for each in seen] == [0, 1, 2, 0, 1]


def compare(ours, theirs, act, steps=300, success=True):
    """Step both and compare everything but the clock."""
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ended = 0
    for _ in range(steps):
        actions = act(rng)
        (obs, rewards, dones, infos), (obs_2, rewards_2, dones_2, infos_2) = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(obs, obs_2)
        np.testing.assert_array_equal(rewards, rewards_2)
        np.testing.assert_array_equal(dones, dones_2)
        assert rewards.dtype == rewards_2.dtype
        for row in np.flatnonzero(dones):
            one, two = dict(infos[row]), dict(infos_2[row])
            np.testing.assert_array_equal(one.pop("terminal_observation"), two.pop("terminal_observation"))
            assert one.pop("episode") | {"t": 0} == two.pop("episode") | {"t": 0}
            assert one == two
            ended += 1
        for row in np.flatnonzero(~dones):
            assert infos_2[row] == {}
    assert ended > 10
    assert (theirs.last_ends is None) or (theirs.last_ends.success is None) != success


def test_the_adaptor_passes_on_what_rows_say():
    class Chatty(Counter):
        def step(self, action):
            obs, reward, terminated, truncated, _ = super().step(action)
            return obs, reward, terminated, truncated, {"steps": self.steps, "deep": {"row": self.row}}

        def double(self, number):
            return 2 * number + self.row

    for mode in MODES:
        venv = VectorEnvAdaptor(SyncVectorEnv([lambda row=row: Chatty(row) for row in range(2)], autoreset_mode=mode))
        venv.reset()
        for t in range(1, 4):
            *_, infos = venv.step(np.zeros(2, int))
            assert [info["steps"] for info in infos] == [t, t]
            assert infos[1]["deep"] == {"row": 1}
        assert infos[0]["terminal_observation"].tolist() == [0, 3]
        assert venv.env_method("double", 5, indices=[1]) == [11]
        assert venv.get_attr("row") == [0, 1]
        venv.set_attr("mark", "m")
        assert venv.get_attr("mark", indices=[0]) == ["m"]


class Silent(VectorEnv):
    """A vector environment of the caller's own, which ends every episode and tells nothing."""

    def __init__(self, mode):
        self.metadata = {"autoreset_mode": mode}
        self.num_envs = 2
        self.single_observation_space = gym.spaces.Box(0, 1, (1,))
        self.single_action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1), np.float32), {}

    def step(self, actions):
        return np.zeros((2, 1), np.float32), np.zeros(2), np.ones(2, bool), np.zeros(2, bool), {}


def test_what_the_adaptor_refuses():
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED, None):
        with pytest.raises(ValueError, match=r"make it with AutoresetMode.SAME_STEP, or as Sync- or AsyncVectorEnv"):
            VectorEnvAdaptor(Silent(mode))
    venv = VectorEnvAdaptor(Silent(AutoresetMode.SAME_STEP))
    venv.reset()
    with pytest.raises(ValueError, match=r"ended rows \[0, 1\] without infos\['final_obs'\]"):
        venv.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="no rows to call 'double' of"):
        venv.env_method("double")


def test_a_vector_environment_without_rows_declares_what_it_knows():
    env = VectorEnvAdaptor(gym.make_vec("Palimpsest/TMaze-v0", 3, length=4))
    horizons = env.env_method("memory_horizons", indices=[0, 2])
    assert horizons == [env.env.unwrapped.memory_horizons()] * 2
    assert env.env_method("chance_level", indices=[1]) == [0.5]
    assert env.env_method("longest_wait", indices=[1]) == [max(horizons[0])]

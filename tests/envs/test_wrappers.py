"""The previous action and reward in observations: by hand, and every face against single environments."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from faces import TINIES, any_actions, mixed
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import Counter, Spaces

from palimpsest import envs
from palimpsest.envs.sb3 import VectorEnvAdaptor
from palimpsest.envs.wrappers import Joined, PreviousActionReward, VecPreviousActionReward, VectorPreviousActionReward

TMAZE = "Palimpsest/EndlessTMaze-v0"
SHORT = dict(corridors=2, length=2)
HIDE = "Palimpsest/HideAndSeek-v0"
FEW = dict(rooms=2, boxes=2, objects=2, moves=1)
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


class Rewarding(Counter):
    """Observation [row, steps so far], or a Dict of it; the reward of step t is 10 row + t."""

    def __init__(self, row: int = 0, truncate: bool = False, as_dict: bool = False) -> None:
        super().__init__(row, truncate)
        self.as_dict = as_dict
        if as_dict:
            self.observation_space = spaces.Dict({"count": self.observation_space, "place": spaces.Discrete(9)})

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 10.0 * self.row + self.steps, *rest

    def _observe(self):
        obs = super()._observe()
        return {"count": obs, "place": np.int64(self.row)} if self.as_dict else obs


def same(a, b) -> bool:
    """Equal bit for bit, types and shapes included."""
    return data_equivalence(a, b, exact=True)


def test_a_longer_box_by_hand():
    env = PreviousActionReward(Rewarding(row=2))
    assert env.observation_space == spaces.Box(
        np.array([0, 0, 0, 0, 0, -np.inf], np.float32), np.array([100, 100, 1, 1, 1, np.inf], np.float32)
    )
    assert env.reset()[0].tolist() == [2, 0, 0, 0, 0, 0]
    assert env.step(1)[0].tolist() == [2, 1, 0, 1, 0, 21]
    assert env.step(np.int64(2))[0].tolist() == [2, 2, 0, 0, 1, 22]
    obs, reward, *_ = env.step(np.array(0))
    assert (obs.tolist(), reward) == ([2, 3, 1, 0, 0, 23], 23)
    assert obs.dtype == np.float32
    assert env.reset()[0].tolist() == [2, 0, 0, 0, 0, 0]


def test_the_mark_of_the_first_observation_by_hand():
    env = PreviousActionReward(Rewarding(row=2), antialias=True)
    assert env.reset()[0].tolist() == [2, 0, 0, 0, 0, 1, 0]
    assert env.step(1)[0].tolist() == [2, 1, 0, 1, 0, 0, 21]
    assert env.reset()[0].tolist() == [2, 0, 0, 0, 0, 1, 0]
    joined = Joined(BOX, spaces.Box(-1, 1, (2,)), antialias=True)
    assert joined.encode(np.zeros((1, 2))).tolist() == [[0, 0, 0]]
    assert joined.no_action.tolist() == [0, 0, 1]
    assert joined.space == spaces.Box(np.float32([-2, -2, -1, -1, 0, -np.inf]), np.float32([2, 2, 1, 1, 1, np.inf]))
    with pytest.raises(ValueError, match="antialias must be True or False; got 1"):
        Joined(BOX, spaces.Discrete(2), antialias=1)


def test_more_keys_by_hand():
    env = PreviousActionReward(Rewarding(row=2, as_dict=True))
    assert set(env.observation_space.spaces) == {"count", "place", "previous_action", "previous_reward"}
    first = dict(count=[2, 0], place=2, previous_action=[0, 0, 0], previous_reward=[0])
    then = dict(count=[2, 1], place=2, previous_action=[0, 0, 1], previous_reward=[21])
    for obs, expected in ((env.reset()[0], first), (env.step(2)[0], then)):
        assert {key: part.tolist() for key, part in obs.items()} == expected
        assert obs in env.observation_space


BOX = spaces.Box(-2, 2, (2,), np.float32)
OBSERVATIONS = {
    "floats": (spaces.Box(-1, 1, (3,), np.float64), spaces.Box, np.float64),
    "bytes": (spaces.Box(0, 255, (3,), np.uint8), spaces.Box, np.float32),
    "large integers": (spaces.Box(0, 2**40, (3,), np.int64), spaces.Box, np.float64),
    "image": (spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Dict, np.float32),
    "discrete": (spaces.Discrete(5), spaces.Dict, np.float32),
    "dict": (spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}), spaces.Dict, np.float32),
}
ACTIONS = {
    "discrete": (spaces.Discrete(3, start=4), [(4, [1, 0, 0]), (6, [0, 0, 1])]),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), [([1, 0], [0, 1, 1, 0, 0]), ([0, 2], [1, 0, 0, 0, 1])]),
    "multi-discrete from": (spaces.MultiDiscrete([2, 2], start=[5, -1]), [([6, -1], [0, 1, 1, 0])]),
    "multi-binary": (spaces.MultiBinary(3), [([1, 0, 1], [1, 0, 1])]),
    "box": (spaces.Box(1, 2, (2, 2), np.float32), [([[1, 2], [1.5, 1]], [1, 2, 1.5, 1])]),
}


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_all_spaces(observations, actions):
    space, kind, dtype = OBSERVATIONS[observations]
    action_space, cases = ACTIONS[actions]
    joined = Joined(space, action_space)
    assert type(joined.space) is kind
    for action, expected in cases:
        encoded = joined.encode(np.array([action, action]))
        assert encoded.tolist() == [expected] * 2
        assert encoded.dtype == dtype
    env = PreviousActionReward(Spaces(space, action_space))
    action_space.seed(0)
    seen, _ = env.reset(seed=0)
    twin = Spaces(copy.deepcopy(space), action_space)
    raw, _ = twin.reset(seed=0)
    for _ in range(5):
        assert seen in env.observation_space
        assert same(joined.part(seen), raw.astype(dtype) if kind is spaces.Box else raw)
        action = action_space.sample()
        seen, raw = env.step(action)[0], twin.step(action)[0]


def rows(mode=AutoresetMode.SAME_STEP, kind=SyncVectorEnv, wrap=lambda env: env, as_dict=False):
    """Three counters; row r ends at step 3 + r, row 1 by truncation."""
    makers = [lambda row=row: wrap(Rewarding(row, row == 1, as_dict)) for row in range(3)]
    return kind(makers, autoreset_mode=mode)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES)
def test_rows_equal_singles(mode, kind, as_dict):
    """Wrapping the batch is the same as batching wrapped environments, in every autoreset mode."""
    whole = VectorPreviousActionReward(rows(mode, kind, as_dict=as_dict), antialias=as_dict)
    apart = rows(mode, kind, lambda env: PreviousActionReward(env, antialias=as_dict), as_dict)
    try:
        assert whole.observation_space == apart.observation_space
        assert whole.single_observation_space == apart.single_observation_space
        assert same(whole.reset(seed=0), apart.reset(seed=0))
        rng = np.random.default_rng(0)
        ended = 0
        for _ in range(40):
            actions = rng.integers(3, size=3)
            one, two = whole.step(actions), apart.step(actions)
            assert same(one, two)
            over = one[2] | one[3]
            ended += over.sum()
            if mode == AutoresetMode.DISABLED and over.any():
                masks = over.copy(), over.copy()
                assert same(
                    whole.reset(options={"reset_mask": masks[0]}), apart.reset(options={"reset_mask": masks[1]})
                )
        assert ended > 20
    finally:
        whole.close()
        apart.close()


def test_final_obs_by_hand():
    env = VectorPreviousActionReward(rows())
    env.reset()
    for _ in range(2):
        env.step(np.array([0, 1, 2]))
    obs, rewards, *_, infos = env.step(np.array([2, 1, 0]))
    assert rewards.tolist() == [3, 13, 23]
    assert obs.tolist() == [[0, 0, 0, 0, 0, 0], [1, 3, 0, 1, 0, 13], [2, 3, 1, 0, 0, 23]]
    assert infos["final_obs"][0].tolist() == [0, 3, 0, 0, 1, 3]
    assert infos["_final_obs"].tolist() == [True, False, False]
    assert infos["final_obs"][1:].tolist() == [None, None]


@pytest.mark.usefixtures("tiny_family")
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("id", "kwargs"), [(TMAZE, SHORT), (HIDE, FEW), *((id, {}) for id in TINIES)])
def test_worlds_on_every_face(id, kwargs, antialias):
    vector = VectorPreviousActionReward(gym.make_vec(id, 5, **kwargs), antialias)
    venv = VecPreviousActionReward(envs.make_vec(id, 5, seed=3, **kwargs), antialias)
    singles = [PreviousActionReward(gym.make(id, **kwargs), antialias) for _ in range(5)]
    obs, _ = vector.reset(seed=3)
    assert same(obs, venv.reset())

    def row(obs, i):
        return {key: part[i] for key, part in obs.items()} if isinstance(obs, dict) else obs[i]

    for i, single in enumerate(singles):
        assert same(row(obs, i), single.reset(seed=3 + i)[0])
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        actions = mixed(rng.random(5) < 0.8, vector.unwrapped.expert_action(), any_actions(vector, rng))
        obs, _, terminated, truncated, infos = vector.step(actions)
        sb3_obs, _, dones, sb3_infos = venv.step(actions)
        assert same(obs, sb3_obs)
        for i, single in enumerate(singles):
            one = single.step(actions[i])[0]
            if dones[i]:
                assert terminated[i] or truncated[i]
                assert same(one, infos["final_obs"][i])
                assert same(one, sb3_infos[i]["terminal_observation"])
                one, _ = single.reset()
                ended += 1
            assert same(one, row(obs, i))
            assert one in single.observation_space
    assert ended > 10
    assert same(vector.event_mask(obs), venv.env_method("event_mask", obs, indices=[0])[0])
    assert same(vector.event_mask(obs), vector.unwrapped.event_mask(vector.joined.part(obs)))
    assert same(vector.event_mask(obs), np.array([singles[0].event_mask(row(obs, i)) for i in range(5)]))


@pytest.mark.parametrize("as_dict", [False, True])
def test_sb3_rows_equal_dummy_vec_env(as_dict):
    makers = [lambda row=row: Rewarding(row, row == 1, as_dict) for row in range(3)]
    whole = VecPreviousActionReward(DummyVecEnv(makers), antialias=True)
    apart = DummyVecEnv([lambda make=make: PreviousActionReward(make(), antialias=True) for make in makers])
    assert whole.observation_space == apart.observation_space
    compare(whole, apart)


@pytest.mark.parametrize("mode", MODES)
def test_the_adaptor_serves_the_vector_wrapper(mode):
    makers = [lambda row=row: PreviousActionReward(Rewarding(row, row == 1)) for row in range(3)]
    compare(VectorEnvAdaptor(VectorPreviousActionReward(rows(mode))), DummyVecEnv(makers))


def compare(ours, theirs) -> None:
    """Step both; observations, rewards, ends and last observations must be alike."""

    def plain(obs):
        return dict(obs) if isinstance(obs, dict) else obs

    assert same(plain(ours.reset()), plain(theirs.reset()))
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(40):
        actions = rng.integers(3, size=3)
        (obs, rewards, dones, infos), (obs_2, rewards_2, dones_2, infos_2) = ours.step(actions), theirs.step(actions)
        assert same(plain(obs), plain(obs_2))
        assert same([rewards, dones], [rewards_2, dones_2])
        for row in np.flatnonzero(dones):
            assert same(infos[row]["terminal_observation"], infos_2[row]["terminal_observation"])
            assert infos[row]["TimeLimit.truncated"] == infos_2[row]["TimeLimit.truncated"]
            ended += 1
    assert ended > 20


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version", "ignore:.*value is -?infinity")
@pytest.mark.parametrize(("id", "kwargs"), [(TMAZE, SHORT), (HIDE, FEW)])
def test_checkers_and_sb3_accept_it(id, kwargs):
    spec = gym.make(id, **kwargs).spec
    spec.additional_wrappers = (PreviousActionReward.wrapper_spec(),)
    env = gym.make(spec)
    assert isinstance(env, PreviousActionReward)
    check_env(env)
    sb3_check_env(env)
    venv = VecPreviousActionReward(envs.make_vec(id, 4, seed=0, **kwargs))
    several = isinstance(venv.observation_space, spaces.Dict)
    venv = VecNormalize(venv, norm_obs_keys=["seen", "previous_reward"] if several else None)
    PPO("MultiInputPolicy" if several else "MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, seed=0).learn(64)


def test_what_was_returned_is_never_written_again():
    vector, venv = (
        VectorPreviousActionReward(rows(as_dict=True)),
        VecPreviousActionReward(envs.make_vec(HIDE, 3, **FEW)),
    )
    kept = [vector.reset()[0], venv.reset()]
    rng = np.random.default_rng(0)
    script = rng.integers(3, size=(20, 3))
    for actions in script[:10]:
        kept += [vector.step(actions)[0], venv.step(actions)[0]]
    copies = copy.deepcopy(kept)
    for actions in script[10:]:
        vector.step(actions)
        venv.step(actions)
    assert same(kept, copies)


def test_clones_go_on_alike():
    vector = VectorPreviousActionReward(gym.make_vec(TMAZE, 4, **SHORT))
    vector.reset(seed=0)
    vector.step(np.zeros(4, int))
    other = pickle.loads(pickle.dumps(vector))
    for _ in range(10):
        actions = vector.unwrapped.expert_action()
        assert same(vector.step(actions)[:4], other.step(actions)[:4])


class Silent(VectorEnv):
    """A vector environment that does not say when it resets."""

    num_envs = 1
    single_observation_space = spaces.Box(0, 1, (1,))
    single_action_space = spaces.Discrete(2)


def test_refusals():
    with pytest.raises(ValueError, match="actions must be Discrete, MultiDiscrete, MultiBinary or Box; got Text"):
        PreviousActionReward(Spaces(BOX, spaces.Text(3)))
    taken = spaces.Dict({"previous_action": BOX})
    with pytest.raises(ValueError, match=r"must not have the keys .* yet; it has \['previous_action'\]"):
        PreviousActionReward(Spaces(taken, spaces.Discrete(2)))
    with pytest.raises(ValueError, match=r"must name in metadata\['autoreset_mode'\]"):
        VectorPreviousActionReward(Silent())
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = envs.wrappers.Nonsense


def test_a_refused_action_is_not_remembered():
    vector = VectorPreviousActionReward(gym.make_vec(TMAZE, 2, **SHORT))
    vector.reset(seed=0)
    before = vector.step(np.array([1, 2]))[0]
    with pytest.raises(ValueError, match="actions must be integers"):
        vector.step(np.array([0, 9]))
    mask = np.array([True, False])
    after, _ = vector.reset(options={"reset_mask": mask})
    assert after[0, 3:].tolist() == [0, 0, 0, 0]
    assert same(after[1], before[1])
    assert after[1, 3:].tolist() == [0, 0, 1, np.float32(-0.01)]


@pytest.mark.programs
def test_importing_the_wrappers_leaves_sb3_out():
    code = (
        "import sys, palimpsest.envs.wrappers as w; print({'torch', 'stable_baselines3'} & sys.modules.keys());"
        "w.VecPreviousActionReward; print('stable_baselines3' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["set()", "True"]

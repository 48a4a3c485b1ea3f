"""Environments of others: wrapped by name, in this process or in others, found where the user stands."""

from __future__ import annotations

import os
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from palimpsest.agents.environments import longest_horizon
from palimpsest.agents.run.key_values import environment_arguments
from palimpsest.agents.worlds.vectors import VECS, Row, close_all, make_environments
from palimpsest.agents.worlds.wrappers import found, wrapped
from palimpsest.envs.sb3 import VectorEnvAdaptor
from palimpsest.envs.sb3_wrappers import watch_workers
from palimpsest.imports import from_here, imported

MAZE = "Palimpsest/EndlessTMaze-v0"
MODULE = '''
import gymnasium as gym
import numpy as np


class Sum(gym.Env):
    """Two numbers in a Tuple. The reward is the first, and an episode ends by chance."""

    observation_space = gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(-9, 9, (2,), np.float32)))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def seen(self):
        self.number = int(self.np_random.integers(3))
        return self.number, self.np_random.normal(size=2).astype(np.float32)

    def step(self, action):
        return self.seen(), float(self.number + action), bool(self.np_random.random() < 0.2), False, {}


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


def nothing(env):
    return None


gym.register("Sum-v0", entry_point="users_world:Sum")
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a user's module, in which one stands."""
    (tmp_path / "users_world.py").write_text(MODULE)
    (tmp_path / "broken_world.py").write_text("x = 1\nraise RuntimeError('out of\\norder')\n")
    (tmp_path / "needy_world.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    with from_here():
        yield tmp_path
    sys.modules.pop("users_world", None)
    gym.registry.pop("Sum-v0", None)


@pytest.mark.parametrize("vec", ["subproc", "async"])
def test_workers_leave_sigterm_to_their_parent_which_can_end_them(vec):
    """Also where one of two groups cannot be closed, for its workers are dead."""
    env, other = (make_environments("CartPole-v1", 2, 0, {}, vec=vec) for _ in range(2))
    env.reset()
    workers, others = ((each.env if vec == "async" else each).processes for each in (env, other))
    for process in [*workers, *others]:
        os.kill(process.pid, signal.SIGTERM)
    env.step(np.zeros(2, np.int64))
    workers[1].terminate()
    workers[1].join(20)
    assert workers[1].exitcode == -signal.SIGKILL
    watch_workers(env)
    with pytest.raises(ChildProcessError, match=r"environment 1 .* was killed by SIGKILL"):
        env.reset()
    close_all(None, env, other)
    assert not any(process.is_alive() for process in [*workers, *others])


def test_all_environments_are_closed_whatever_one_raises():
    closed = []

    class Pool:
        def close(self):
            closed.append(self)
            raise ChildProcessError("dead")

    close_all(Pool(), Pool())
    assert len(closed) == 2


BAD = """
import gymnasium as gym
import numpy as np


class Sized(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, size, *, level, name="a"):
        pass


class Spaceless(gym.Env):
    pass


class Importing(gym.Env):
    def __init__(self):
        import no_such_package


for name in ("Sized", "Spaceless", "Importing"):
    gym.register(f"{name}-v0", entry_point=f"bad_world:{name}")
"""


@pytest.mark.parametrize("vec", VECS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sized", "needs 'level', which has no default; got 'size': give --env-args level=..."),
        ("Spaceless", "environment .*Spaceless-v0' cannot be made: The environment must specify an"),
        ("Importing", "environment .*Importing-v0' cannot be made: No module named 'no_such_package'"),
    ],
)
def test_an_environment_that_cannot_be_made_is_a_sentence(name, message, vec, tmp_path, monkeypatch):
    (tmp_path / "bad_world.py").write_text(BAD)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = {"size": 3} if name == "Sized" else {}
    try:
        with pytest.raises(ValueError, match=message):
            make_environments(f"bad_world:{name}-v0", 2, 0, arguments, vec=vec)
    finally:
        sys.modules.pop("bad_world", None)
        for made in ("Sized", "Spaceless", "Importing"):
            gym.registry.pop(f"{made}-v0", None)


def test_a_view_is_taken_of_what_has_one():
    with pytest.raises(ValueError, match="only observations with an entry 'image', as MiniGrid's, have a view"):
        wrapped(gym.make("CartPole-v1"), ["minigrid-image"])


def test_modules_are_found_from_here_and_nowhere_else_afterwards(tmp_path, monkeypatch):
    (tmp_path / "passing_world.py").write_text("here = 1\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(ValueError, match="no module 'passing_world'; stand in the folder that holds it"):
        imported("passing_world:x", "environment")
    with from_here():
        assert sys.path == [*before, str(tmp_path)]
        module, name = imported("passing_world:x", "environment")
    assert (module.here, name) == (1, "x")
    assert sys.path == before
    del sys.modules["passing_world"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users_world:", "must read module:name"),
        (":Sum-v0", "must read module:name"),
        ("users world:Sum-v0", "must read module:name"),
        ("../users_world:Sum-v0", "must read module:name"),
        ("users_world.py:Sum-v0", "must read module:name, .*, without .py"),
        ("broken_world:Sum-v0", r"RuntimeError: out of order \(.*broken_world.py, line 2\)"),
        ("needy_world:Sum-v0", "needs 'no_such_package', which is not installed"),
        ("users_world.inner:Sum-v0", "cannot be imported"),
        ("users_world:Sums-v0", "unknown environment 'users_world:Sums-v0'.*'Sum-v0'.*must call gymnasium.register"),
    ],
)
def test_modules_that_do_not_work_are_told_in_one_line(text, message, here):
    with pytest.raises(ValueError, match=message) as caught:
        make_environments(text, 1, 0, {}, wrapper=("flatten",))
    assert "\n" not in str(caught.value)


def played(venv, steps: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    seen = [venv.reset()]
    for _ in range(steps):
        obs, rewards, dones, infos = venv.step(rng.integers(2, size=venv.num_envs))
        ends = [(i, *info["terminal_observation"], info["episode"]["r"]) for i, info in enumerate(infos) if dones[i]]
        seen += [obs, rewards, dones, np.array(ends)]
    venv.close()
    return seen


def test_rows_are_the_same_wherever_they_step(here):
    """By hand in gymnasium's own wrapper, in this process, and in processes that import the user's module."""

    def by_hand() -> gym.Env:
        from stable_baselines3.common.monitor import Monitor

        env = gym.make("users_world:Sum-v0")
        return Monitor(sys.modules["users_world"].Doubled(FlattenObservation(env)))

    venv = DummyVecEnv([by_hand] * 2)
    venv.seed(3)
    expected = played(venv)
    assert sum(len(part) for part in expected[4::4]) > 4
    wrapper = ("flatten", "users_world:Doubled")
    for vec, kind in zip(VECS, (DummyVecEnv, SubprocVecEnv, VectorEnvAdaptor), strict=True):
        venv = make_environments("users_world:Sum-v0", 2, 3, {}, wrapper=wrapper, vec=vec)
        assert type(venv) is kind
        for ours, theirs in zip(played(venv), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, vec)


def test_what_does_not_fit_is_told_before_a_process_starts(here):
    with pytest.raises(ValueError, match="wrapper 'keep-observations=9' does not take"):
        make_environments("users_world:Sum-v0", 2, 0, {}, wrapper=("flatten", "keep-observations=9"), vec="subproc")
    with pytest.raises(ValueError, match="has no argument 'size'"):
        make_environments("users_world:Sum-v0", 2, 0, {"size": 3}, vec="async")
    with pytest.raises(ValueError, match="must return a gymnasium environment; got NoneType"):
        make_environments("users_world:Sum-v0", 2, 0, {}, wrapper=("users_world:nothing",))
    with pytest.raises(ValueError, match=r"has no wrapper 'Double' .did you mean 'Doubled'"):
        make_environments("users_world:Sum-v0", 2, 0, {}, wrapper=("users_world:Double",))


@pytest.mark.parametrize("vec", VECS)
def test_one_batch_takes_no_other_form(vec):
    with pytest.raises(ValueError, match=f"vec='{vec}' is for environments of others.*leave vec out"):
        make_environments(MAZE, 2, 0, {}, vec=vec)
    with pytest.raises(ValueError, match="vec must be one of 'dummy', 'subproc', 'async'; got 'sync'"):
        make_environments("CartPole-v1", 2, 0, {}, vec="sync")


def test_a_world_of_ours_in_a_wrapper_steps_row_by_row():
    """It is the same world, with what it declares."""
    venv = make_environments(MAZE, 3, 7, {"corridors": 2, "length": 3}, wrapper=("time-limit=50",))
    batch = make_environments(MAZE, 3, 7, {"corridors": 2, "length": 3})
    assert isinstance(venv, DummyVecEnv)
    assert longest_horizon(venv) == longest_horizon(batch)
    np.testing.assert_array_equal(venv.reset(), batch.reset())
    for actions in np.random.default_rng(0).integers(3, size=(49, 3)):
        for ours, theirs in zip(venv.step(actions)[:3], batch.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def pictures(shape: tuple[int, ...] = (40, 40, 3)) -> gym.Env:
    class Pictures(gym.Env):
        observation_space = spaces.Box(0, 255, shape, np.uint8)
        action_space = spaces.Discrete(2)
        shown = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.shown = 0
            return np.full(shape, self.shown, np.uint8), {}

        def step(self, action):
            self.shown += 1
            return np.full(shape, self.shown, np.uint8), 0.5, False, False, {}

    return Pictures()


def test_frames_are_stacked_and_pictures_stay_pictures():
    env = wrapped(pictures(), ["frame-stack=3"])
    assert env.observation_space == spaces.Box(0, 255, (40, 40, 9), np.uint8)
    env.reset()
    for action in (0, 1, 0):
        obs = env.step(action)[0]
    assert obs in env.observation_space
    assert obs[0, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    env = wrapped(pictures((2,)), ["frame-stack=3", "flatten"])
    env.reset()
    assert env.step(0)[0].tolist() == [0, 0, 0, 0, 1, 1]


def test_the_other_names():
    env = wrapped(pictures((3,)), ["keep-observations=2,0", "previous-action-reward", "time-limit=2"])
    env.reset()
    assert env.step(1)[0].tolist() == [1, 1, 0, 1, 0.5]
    assert [env.step(1)[3] for _ in range(1)] == [True]
    image = Row("MiniGrid-Empty-5x5-v0", {}, ("minigrid-image",), False)()
    assert image.observation_space.shape == (7, 7, 3)
    pixels = Row("MiniGrid-Empty-5x5-v0", {}, ("minigrid-pixels",), False)()
    assert pixels.observation_space.shape == (56, 56, 3)
    flat = Row("MiniGrid-Empty-5x5-v0", {}, ("flatten",), False)()
    assert flat.observation_space.shape == (7 * 7 * 3 + 4,)
    assert set(Row("MiniGrid-Empty-5x5-v0", {}, (), False)().observation_space.spaces) == {"image", "direction"}
    seen = Row(MAZE, {}, ("flatten",), True)()
    assert seen.observation_space.shape > gym.make(MAZE).observation_space.shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "flaten",
            "unknown wrapper 'flaten'.*'flatten'.*known: flatten, frame-stack=N, .*, or module:Wrapper",
        ),
        ("", "unknown wrapper ''"),
        ("flatten=3", "wrapper 'flatten' must read flatten; got 'flatten=3'"),
        ("frame-stack", "wrapper 'frame-stack' must read frame-stack=N; got 'frame-stack'"),
        ("frame-stack=0", "N of wrapper 'frame-stack' must be an integer, 1 or more; got '0'"),
        ("frame-stack=1,2", "must be an integer, 1 or more; got '1,2'"),
        ("time-limit=1.5", "must be an integer, 1 or more; got '1.5'"),
        ("time-limit=" + "9" * 99, "must be an integer"),
        ("keep-observations=a", "must be indices separated by commas; got 'a'"),
        ("os:sep", "module 'os' has no wrapper 'sep'"),
    ],
)
def test_names_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        found(text)


def test_a_world_whose_package_is_missing_is_told_in_one_line(here, monkeypatch):
    """As those of gymnasium that need Box2D or MuJoCo."""
    (here / "boxed_world.py").write_text(
        "from gymnasium.error import DependencyNotInstalled\nraise DependencyNotInstalled('install box2d')\n"
    )
    gym.register("Boxed-v0", entry_point="boxed_world:Boxed")
    monkeypatch.syspath_prepend(here)
    with pytest.raises(ValueError, match="environment 'Boxed-v0' cannot be imported: install box2d"):
        environment_arguments("Boxed-v0", {})
    del gym.registry["Boxed-v0"]


class Speaks(gym.Env):
    """Of any spaces; it is never played."""

    def __init__(self, space):
        self.observation_space, self.action_space = space, gym.spaces.Discrete(2)


gym.register("Test/Speaks-v0", entry_point=Speaks)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Text(5),
        gym.spaces.Sequence(gym.spaces.Discrete(2)),
        gym.spaces.Dict(a=gym.spaces.Dict(b=gym.spaces.Discrete(3)), c=gym.spaces.Discrete(2)),
        gym.spaces.Tuple((gym.spaces.Discrete(2), gym.spaces.Text(5))),
    ],
    ids=str,
)
@pytest.mark.parametrize("wrapper", [(), ("time-limit=9",)], ids=["plain", "wrapped"])
def test_spaces_without_a_shape_are_refused_in_words(space, wrapper):
    with pytest.raises(ValueError, match=r"the observation space must be Box, .* got .*--wrapper flatten"):
        make_environments("Test/Speaks-v0", 2, 0, {"space": space}, wrapper=wrapper)

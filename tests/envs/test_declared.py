"""What environments declare of their observations: it holds under wrappers that leave these, and under no others."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import DelayObservation, FlattenObservation, FrameStackObservation, TransformReward
from gymnasium.wrappers.vector import FlattenObservation as VectorFlatten
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from palimpsest import envs
from palimpsest.agents.environments import chance_level, declares, event_mask, longest_horizon, longest_wait
from palimpsest.agents.learn import diagnostics
from palimpsest.agents.worlds.vectors import VECS, make_environments
from palimpsest.envs.declared import DECLARED
from palimpsest.envs.sb3 import VectorEnvAdaptor
from palimpsest.envs.wrappers import PreviousActionReward, VecPreviousActionReward, VectorPreviousActionReward

TMAZE, HIDE, MINIGRID = "Palimpsest/TMaze-v0", "Palimpsest/HideAndSeek-v0", "Palimpsest/MiniGridMemory-S7-v0"


class Blank(gym.Wrapper):
    """A user's wrapper of no known kind, that shows less."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Box(0, 1, (1,))

    def reset(self, **kwargs):
        return np.zeros(1, np.float32), self.env.reset(**kwargs)[1]


WRAPS = {
    "rewards": (lambda env: TransformReward(env, lambda reward: 2 * reward), set(DECLARED)),
    "flatten": (FlattenObservation, {"memory_horizons", "chance_level"}),
    "frames": (lambda env: FrameStackObservation(env, 3), set()),
    "flat frames": (lambda env: FlattenObservation(FrameStackObservation(env, 3)), set()),
    "late": (lambda env: DelayObservation(env, 2), set()),
    "blank": (Blank, set()),
    "action": (PreviousActionReward, {"event_mask"}),
    "action and frames": (lambda env: PreviousActionReward(FrameStackObservation(env, 3)), set()),
}
"""The wrapper, and what still holds of what is declared. All but the last two are of others."""


def declared(venv) -> set[str]:
    return {name for name in DECLARED if declares(venv, name)}


@pytest.mark.parametrize("name", WRAPS)
def test_what_holds_in_a_wrapper(name):
    wrap, holds = WRAPS[name]

    def one() -> gym.Env:
        return wrap(gym.make(TMAZE))

    for venv in (
        DummyVecEnv([lambda: Monitor(one())] * 2),
        VecMonitor(DummyVecEnv([one] * 2)),
        VectorEnvAdaptor(SyncVectorEnv([one] * 2, autoreset_mode=AutoresetMode.SAME_STEP)),
    ):
        assert declared(venv) == holds
        assert (chance_level(venv) is None) == ("chance_level" not in holds)
        assert longest_wait(venv) == gym.make(TMAZE).unwrapped.longest_wait()


def test_rows_in_processes_of_their_own_are_looked_at():
    venv = SubprocVecEnv([lambda: FrameStackObservation(gym.make(f"palimpsest:{TMAZE}"), 3)] * 2)
    assert declared(venv) == set()
    venv.close()


NAMED = {
    "frame-stack=3": set(),
    "flatten": {"memory_horizons", "chance_level"},
    "keep-observations=0,1": set(),
    "previous-action-reward": {"event_mask"},
    "time-limit=5": {"memory_horizons", "event_mask"},
}


@pytest.mark.parametrize(("wrapper", "vec"), [*((name, None) for name in NAMED), *(("flatten", vec) for vec in VECS)])
def test_the_named_wrappers(wrapper, vec):
    venv = make_environments(TMAZE, 1, 0, {}, wrapper=(wrapper,), vec=vec)
    assert declared(venv) == NAMED[wrapper]
    venv.close()


def test_the_last_action_is_a_memory():
    """So no level without memory is declared on any face; events are."""
    vector = VectorPreviousActionReward(gym.make_vec(TMAZE, 2))
    single = PreviousActionReward(gym.make(TMAZE))
    faces = (
        VecPreviousActionReward(envs.make_vec(TMAZE, 2)),
        VectorEnvAdaptor(vector),
        DummyVecEnv([lambda: PreviousActionReward(gym.make(TMAZE))]),
    )
    for venv in faces:
        assert declared(venv) == {"event_mask"}
        assert chance_level(venv) is longest_horizon(venv) is None
    for name in ("memory_horizons", "chance_level"):
        assert not hasattr(vector, name)
        assert not single.has_wrapper_attr(name)
        with pytest.raises(AttributeError, match=f"'{name}' is declared of whole observations of the environment"):
            single.get_wrapper_attr(name)
        with pytest.raises(AttributeError, match=f"'{name}' is declared of whole observations of the environment"):
            faces[0].env_method(name)


def test_an_environment_without_events_has_none_beside_the_last_action():
    makers = [lambda: PreviousActionReward(gym.make("CartPole-v1"))] * 2
    sync = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    for venv in (DummyVecEnv(makers), VectorEnvAdaptor(VectorPreviousActionReward(sync))):
        assert declared(venv) == set()
        assert not diagnostics.event_mask(venv, diagnostics.torch.zeros(3, 2, 7)).any()


def test_wrappers_around_gymnasiums_vector_environments():
    """Rows have what they declare, but a wrapper around all of them shows something else."""

    def rows(mode: AutoresetMode) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: gym.make(TMAZE)] * 2, autoreset_mode=mode)

    assert declared(VectorEnvAdaptor(rows(AutoresetMode.SAME_STEP))) == set(DECLARED)
    for wrapped in (
        VectorPreviousActionReward(rows(AutoresetMode.SAME_STEP)),
        VectorFlatten(rows(AutoresetMode.NEXT_STEP)),
    ):
        assert declared(VectorEnvAdaptor(wrapped)) == set()


def test_sb3s_wrappers():
    assert declared(VecFrameStack(envs.make_vec(TMAZE, 2), 3)) == set()
    assert declared(VecNormalize(envs.make_vec(TMAZE, 2))) == {"memory_horizons", "chance_level"}
    assert declared(VecNormalize(envs.make_vec(TMAZE, 2), norm_obs=False)) == set(DECLARED)
    assert declared(VecTransposeImage(envs.make_vec(MINIGRID, 2))) == set(DECLARED)


def test_events_are_found_in_what_an_agent_sees():
    """With pictures transposed, beside the last action: the events are those of the world's own view."""
    inner = envs.make_vec(MINIGRID, 4, seed=0)
    venv = VecTransposeImage(VecPreviousActionReward(inner))
    rng, found, obs = np.random.default_rng(0), [], venv.reset()
    for _ in range(60):
        own = inner.world.event_mask(inner.world.copied(inner.world.io.obs))
        np.testing.assert_array_equal(event_mask(venv, obs), own)
        stacked = {key: np.stack([part, part]) for key, part in obs.items()}
        np.testing.assert_array_equal(event_mask(venv, stacked), [own, own])
        found += own.tolist()
        obs = venv.step(rng.integers(3, size=4))[0]
    assert 0 < sum(found) < len(found)

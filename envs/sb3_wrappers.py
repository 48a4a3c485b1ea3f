"""Wrappers for SB3's VecEnv: add the previous action and reward to observations, keep a part of them, or remove text.

One more class is no wrapper: a world's VecEnv that shows the hidden state too. This module imports SB3. `envs.wrappers`
imports it when one of its names is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from palimpsest.envs.declared import DECLARED, refuse_declared
from palimpsest.envs.joined import Joined
from palimpsest.envs.kept import Kept
from palimpsest.envs.kernels import STEP
from palimpsest.envs.observed import Observed, numbers
from palimpsest.envs.sb3 import WorldVecEnv
from palimpsest.envs.text import DropText, has_text, without_text
from palimpsest.envs.workers import watch


class VecHiding(VecEnv):
    """A VecEnv that hides what its rows declare of their own observations. It stands before another base class."""

    hides: Sequence[str] = DECLARED

    def has_attr(self, attr_name: str) -> bool:
        """Whether every row has the attribute, and it is not hidden."""
        return attr_name not in self.hides and super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each row; AttributeError if it is hidden."""
        refuse_declared(attr_name, self.hides)
        return super().get_attr(attr_name, indices)  # type: ignore[safe-super]

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of every row; AttributeError if it is hidden."""
        refuse_declared(method_name, self.hides)
        return super().env_method(method_name, *args, indices=indices, **kwargs)  # type: ignore[safe-super]


class VecPreviousActionReward(VecHiding, VecEnvWrapper):
    """A VecEnv whose observations include the previous action and reward; see `envs.joined.Joined`.

    The first observation of an episode has zeros; `terminal_observation` has the last action and reward. The reward is
    what the wrapped VecEnv returns, [B] float32. If VecNormalize wraps this wrapper, it is the unnormalised reward.
    The last action is itself a memory, so chance level and horizons of the rows are hidden.

    Args:
        venv: the environment.
        antialias: whether to mark the first observation of an episode; see `Joined`.

    Raises:
        ValueError: spaces that `Joined` does not support.
    """

    hides = ("memory_horizons", "chance_level")

    def __init__(self, venv: VecEnv, antialias: bool = False) -> None:
        self.joined = Joined(venv.observation_space, venv.action_space, antialias)
        super().__init__(venv, observation_space=self.joined.space)
        self._actions: Any = None

    def reset(self) -> Any:
        """Start an episode in every row."""
        no_actions = np.tile(self.joined.no_action.astype(self.joined.dtype), (self.num_envs, 1))
        return self.joined.join(self.venv.reset(), no_actions, np.zeros(self.num_envs))

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions [B, ...] for the next `step_wait`."""
        self.venv.step_async(actions)
        self._actions = self.joined.encode(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """One step in every row: observations, rewards [B], dones [B] bool, infos."""
        obs, rewards, dones, infos = self.venv.step_wait()
        action, reward = self._actions, np.array(rewards)
        infos = _with_finals(infos, dones, lambda row, final: self.joined.join(final, action[row], reward[row]))
        action[dones] = self.joined.no_action
        reward[dones] = 0
        return self.joined.join(obs, action, reward), rewards, dones, infos

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of every row. `event_mask` gets the observations without action and reward."""
        if method_name == "event_mask":
            args = tuple(map(self.joined.part, args))
            kwargs = {name: self.joined.part(obs) for name, obs in kwargs.items()}
        return super().env_method(method_name, *args, indices=indices, **kwargs)


class VecKeepObservations(VecHiding, VecEnvWrapper):
    """A VecEnv of whose observations only chosen numbers are seen, such as positions without velocities.

    What the environment declares of its whole observation (`envs.declared.DECLARED`) is hidden.
    `terminal_observation` is a part too.

    Args:
        venv: the environment; its observations are a Box of one dimension.
        indices: the numbers to keep, in this order.

    Raises:
        ValueError: other observations, or indices that do not fit.
    """

    def __init__(self, venv: VecEnv, indices: Sequence[int]) -> None:
        self.kept = Kept(venv.observation_space, indices)
        super().__init__(venv, observation_space=self.kept.space)

    def reset(self) -> np.ndarray:
        """Start an episode in every row."""
        return self.kept.part(self.venv.reset())  # type: ignore[arg-type]

    def step_wait(self) -> VecEnvStepReturn:
        """One step in every row: observations, rewards [B], dones [B] bool, infos."""
        obs, rewards, dones, infos = self.venv.step_wait()
        infos = _with_finals(infos, dones, lambda row, final: self.kept.part(final))
        return self.kept.part(obs), rewards, dones, infos  # type: ignore[arg-type]


class FullyObservedVecEnv(VecHiding, WorldVecEnv):
    """A `World` whose observations include the hidden state; see `envs.observed.Observed`.

    What the environment declares of its own observations (`envs.declared.DECLARED`) is hidden: nothing must be
    remembered. Arguments are those of `WorldVecEnv`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.observed = Observed(self.observation_space, self.world.hidden_state())
        self.observation_space = self.observed.space

    def reset(self) -> Any:
        """Start an episode in every row."""
        return self.observed.join(super().reset(), numbers(self.world.hidden_state()))

    def step_wait(self) -> VecEnvStepReturn:
        """One step in every row: observations, rewards [B] float32, dones [B] bool, infos."""
        obs, rewards, dones, infos = super().step_wait()
        return self.observed.join(obs, numbers(self.world.hidden_state())), rewards, dones, infos

    def _advance(self) -> tuple[int, Any]:
        """One step; rows begin anew only after the hidden state of their end was read."""
        world, io = self.world, self.world.io
        ends = world.run(STEP)
        if not ends:
            return 0, None
        rows = io.row[:ends]
        last, hidden = world.copied(io.obs), numbers(world.hidden_state())[rows]
        last = {key: part[rows] for key, part in last.items()} if isinstance(last, dict) else last[rows]
        world.begin(io.terminated | io.truncated, [None] * self.num_envs, lambda: world.np_random, None)
        return ends, self.observed.join(last, hidden)


class VecDropText(VecHiding, VecEnvWrapper):
    """A VecEnv without the text keys of its Dict observations (MiniGrid's `mission`). No policy reads text."""

    hides = ()

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, observation_space=without_text(venv.observation_space))

    @staticmethod
    def where_needed(env: Any) -> Any:
        """`env` (a gymnasium Env or a VecEnv), wrapped only if it has text keys."""
        if not has_text(env.observation_space):
            return env
        return VecDropText(env) if isinstance(env, VecEnv) else DropText(env)

    def _keep(self, obs: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.observation_space, spaces.Dict)
        return {key: obs[key] for key in self.observation_space.spaces}

    def reset(self) -> dict[str, Any]:
        """The first observations, without text."""
        return self._keep(self.venv.reset())  # type: ignore[arg-type]

    def step_wait(self) -> VecEnvStepReturn:
        """One step. Observations and `terminal_observation` have no text."""
        obs, rewards, dones, infos = self.venv.step_wait()
        infos = _with_finals(infos, dones, lambda row, final: self._keep(final))
        return self._keep(obs), rewards, dones, infos  # type: ignore[arg-type]


def _with_finals(
    infos: Sequence[dict[str, Any]], dones: np.ndarray, change: Callable[[int, Any], Any]
) -> list[dict[str, Any]]:
    """The infos of a step, with `change(row, terminal_observation)` in the rows that ended and have one.

    The dicts that are changed are copies: rows may share a dict, and a VecEnv may return the same one again.
    """
    changed = list(infos)
    for row in np.flatnonzero(dones).tolist():
        final = infos[row].get("terminal_observation")
        if final is not None:
            changed[row] = {**infos[row], "terminal_observation": change(row, final)}
    return changed


def watch_workers(venv: VecEnv) -> None:
    """Make a SubprocVecEnv, under any wrappers, report a dead worker (`envs.workers`). Others are not changed."""
    while isinstance(venv, VecEnvWrapper):
        venv = venv.venv
    if isinstance(venv, SubprocVecEnv):
        watch(venv, "remotes")

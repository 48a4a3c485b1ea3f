"""Two of SB3's VecEnvs as one, whose halves can step by turns: while the one steps, an agent acts for the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from palimpsest.envs.sb3 import VectorEnvAdaptor, WorldVecEnv


class Half:
    """One half, a VecEnv in its wrappers, and the step that it is at.

    Args:
        env: the VecEnv.
        rows: which rows of the whole it has.
    """

    def __init__(self, env: VecEnv, rows: slice) -> None:
        self.env, self.rows = env, rows
        self._steps = False
        self._result: VecEnvStepReturn | None = None

    def begin(self, actions: np.ndarray) -> None:
        """Begin a step; what an unfinished one gave is dropped."""
        self.settled().step_async(actions)
        self._steps = True

    def end(self) -> VecEnvStepReturn:
        """Wait for the end of the step. Infos are copies, for a VecEnv may use its own again at the next step."""
        self.settled()
        assert self._result is not None, "a step must begin before it can end"
        return self._result

    def settled(self) -> VecEnv:
        """The VecEnv once it does not step, so that it can be asked something. A result waits for `end`."""
        if self._steps:
            self._steps = False
            obs, rewards, dones, infos = self.env.step_wait()
            self._result = obs, rewards, dones, [dict(info) for info in infos]
        return self.env


class VecHalves(VecEnv):
    """The rows of two VecEnvs, those of `first` before those of `second`.

    `MemoryPPO` steps the halves by turns; to all others this is one VecEnv. Row i of the whole gets the seed of row i.

    Args:
        first: a VecEnv that steps while this process does something else: SB3's SubprocVecEnv, or an AsyncVectorEnv of
            gymnasium's in `envs.sb3.VectorEnvAdaptor`. Wrappers go around each half.
        second: another one with the same spaces, best with as many rows.

    Raises:
        ValueError: a half that steps in this process, whose spaces differ, or that normalises.
    """

    def __init__(self, first: VecEnv, second: VecEnv) -> None:
        for half in (first, second):
            _check(half)
        if (first.observation_space, first.action_space) != (second.observation_space, second.action_space):
            raise ValueError(
                f"both halves must have the same spaces; got {first.observation_space}, {first.action_space} and "
                f"{second.observation_space}, {second.action_space}"
            )
        border, rows = first.num_envs, first.num_envs + second.num_envs
        self.halves = (Half(first, slice(0, border)), Half(second, slice(border, rows)))
        super().__init__(rows, first.observation_space, first.action_space)

    def wrapped(self, wrap: Callable[[VecEnv], VecEnv]) -> VecHalves:
        """The halves in wrappers; this object where `wrap` adds none."""
        first, second = (wrap(half.env) for half in self.halves)
        return self if first is self.halves[0].env and second is self.halves[1].env else VecHalves(first, second)

    def reset(self) -> Any:
        """Start an episode in every row."""
        parts = []
        for half in self.halves:
            env, rows = half.settled(), half.rows
            if self._seeds[rows.start] is not None:
                env.seed(self._seeds[rows.start])
            env.set_options(self._options[rows])
            parts.append(env.reset())
        self._reset_seeds()
        self._reset_options()
        self._gather_reset_infos()
        return joined(parts)

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step of every row with the actions [B, ...]."""
        for half in self.halves:
            half.begin(actions[half.rows])

    def step_wait(self) -> VecEnvStepReturn:
        """The end of that step: observations, rewards [B], dones [B] bool, infos."""
        observations, rewards, dones, infos = zip(*(half.end() for half in self.halves))
        self._gather_reset_infos()
        return joined(observations), np.concatenate(rewards), np.concatenate(dones), [*infos[0], *infos[1]]

    def _gather_reset_infos(self) -> None:
        self.reset_infos = [info for half in self.halves for info in half.env.reset_infos]

    def close(self) -> None:
        """Close both halves."""
        try:
            self.halves[0].settled().close()
        finally:
            self.halves[1].settled().close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether every row has the attribute."""
        return all(half.settled().has_attr(attr_name) for half in self.halves)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each row."""
        return self._of_rows(indices, lambda env, rows: env.get_attr(attr_name, rows))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each row."""

        def set_it(env: VecEnv, rows: VecEnvIndices) -> list[None]:
            env.set_attr(attr_name, value, rows)
            return [None] * env.num_envs

        self._of_rows(indices, set_it)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of each row."""
        return self._of_rows(indices, lambda env, rows: env.env_method(method_name, *args, indices=rows, **kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each row is in a wrapper."""
        return self._of_rows(indices, lambda env, rows: env.env_is_wrapped(wrapper_class, rows))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture per row; None where there is none."""
        return [image for half in self.halves for image in half.settled().get_images()]

    def _of_rows(self, indices: VecEnvIndices, asked: Callable[[VecEnv, VecEnvIndices], Sequence[Any]]) -> list[Any]:
        """What each of the rows answers, which its half is asked with its number there; None asks a whole half."""
        wanted = [range(self.num_envs)[i] for i in self._get_indices(indices)]
        found: dict[int, Any] = {}
        for half in self.halves:
            rows = range(self.num_envs)[half.rows]
            own = [row for row in wanted if row in rows]
            inside = None if own == list(rows) else [row - rows.start for row in own]
            found.update(zip(own, asked(half.settled(), inside) if own else ()))
        return [found[row] for row in wanted]


def joined(parts: Sequence[Any]) -> Any:
    """Arrays, or dicts of arrays, one after the other."""
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def check_outermost(env: Any) -> None:
    """Refuse a VecHalves inside a wrapper, which would step both halves at once."""
    if isinstance(env, VecEnvWrapper) and isinstance(_innermost(env), VecHalves):
        raise ValueError(
            f"wrappers go around each half of a VecHalves, not around the whole; got {type(env).__name__} around it"
        )


def _innermost(env: VecEnv) -> VecEnv:
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def _check(half: VecEnv) -> None:
    if unwrap_vec_normalize(half) is not None:
        raise ValueError(
            "VecNormalize has statistics of one half alone; use MemoryPPO's normalize_observations=True and "
            "normalize_returns=True instead"
        )
    inner = _innermost(half)
    here = isinstance(inner, DummyVecEnv | WorldVecEnv | VecHalves)
    if here or (isinstance(inner, VectorEnvAdaptor) and not inner.steps_elsewhere):
        raise ValueError(
            "a half must step in other processes, as SubprocVecEnv or an AsyncVectorEnv does; got a "
            f"{type(inner).__name__}, which steps in this one"
        )

"""Add the previous action and reward to the observation, or keep chosen numbers of it, for each interface.

    PreviousActionReward         KeepObservations          for a gymnasium Env
    VectorPreviousActionReward   VectorKeepObservations    for a gymnasium VectorEnv
    VecPreviousActionReward      VecKeepObservations       for SB3's VecEnv

Those for SB3 are in `envs.sb3_wrappers`, imported on first use.

With the previous action and reward a player knows whether it has just tried an action, and with what result (RL², arXiv
1611.02779). Both are zero at the first observation of an episode. `envs.joined.Joined` defines the form of the new
observation, `envs.kept.Kept` that of a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from palimpsest.envs.declared import DECLARED, Hiding
from palimpsest.envs.joined import Joined
from palimpsest.envs.kept import Kept
from palimpsest.envs.observed import Observed, numbers

if TYPE_CHECKING:
    from palimpsest.envs.sb3_wrappers import VecKeepObservations, VecPreviousActionReward

__all__ = [
    "Joined",
    "KeepObservations",
    "Kept",
    "PreviousActionReward",
    "VecKeepObservations",
    "VecPreviousActionReward",
    "VectorKeepObservations",
    "VectorPreviousActionReward",
]


class PreviousActionReward(Hiding, gym.utils.RecordConstructorArgs):
    """A gymnasium environment whose observations include the previous action and reward; see `Joined`.

    Both are zero after a reset. Restoring a hidden state is a reset. The last action is itself a memory, so the
    environment's chance level and horizons are hidden.

    Args:
        env: the environment.
        antialias: whether to mark the first observation of an episode; see `Joined`.

    Raises:
        ValueError: spaces that `Joined` does not support.
    """

    def __init__(self, env: gym.Env, antialias: bool = False) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, antialias=antialias)
        gym.Wrapper.__init__(self, env)
        self.joined = Joined(env.observation_space, env.action_space, antialias)
        self.observation_space = self.joined.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self.joined.join(obs, self.joined.no_action.astype(self.joined.dtype), 0.0), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step. The observation includes `action` and the reward of this step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        encoded = self.joined.encode(np.asarray(action)[None])[0]
        return self.joined.join(obs, encoded, reward), reward, terminated, truncated, info

    @property
    def event_mask(self) -> Callable[[Any], np.ndarray]:
        """The environment's `event_mask`, which is given observations without action and reward.

        AttributeError where the environment has none.
        """
        of_part = self.env.get_wrapper_attr("event_mask")
        return lambda obs: of_part(self.joined.part(obs))


class VectorPreviousActionReward(VectorWrapper):
    """A gymnasium VectorEnv whose observations include the previous action and reward; see `Joined`.

    The first observation of an episode has zeros. In autoreset mode SAME_STEP it comes in the step that ends the last
    episode, and `final_obs` has the last action and reward. In mode NEXT_STEP it comes one step later. A reset with
    "reset_mask" sets the masked rows to zero. The environment's chance level and horizons are hidden.

    Args:
        env: the vector environment.
        antialias: whether to mark the first observation of an episode; see `Joined`.

    Raises:
        ValueError: spaces that `Joined` does not support, or no known autoreset mode in `env.metadata`.
    """

    hides = DECLARED

    def __init__(self, env: VectorEnv, antialias: bool = False) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{env} must name in metadata['autoreset_mode'] the AutoresetMode with which it resets; got {mode!r}"
            )
        self.mode = mode
        self.joined = Joined(env.single_observation_space, env.single_action_space, antialias)
        self.single_observation_space = self.joined.space
        self.observation_space = batch_space(self.joined.space, env.num_envs)
        self._action = np.zeros((env.num_envs, self.joined.action_size), self.joined.dtype)
        self._reward = np.zeros(env.num_envs)
        self._ended = np.zeros(env.num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every row, or in those of `options["reset_mask"]` [B] bool."""
        mask = (options or {}).get("reset_mask")
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._forget(slice(None) if mask is None else mask)
        return self._join(obs), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step in every row."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        just_begun = self._ended
        self._action, self._reward = self.joined.encode(actions), np.array(rewards)
        self._ended = terminated | truncated
        if self.mode == AutoresetMode.NEXT_STEP:
            self._forget(just_begun)
        elif self.mode == AutoresetMode.SAME_STEP and self._ended.any():
            final_obs = infos["final_obs"].copy()
            for row in np.flatnonzero(self._ended).tolist():
                final_obs[row] = self.joined.join(final_obs[row], self._action[row], self._reward[row])
            infos["final_obs"] = final_obs
            self._forget(self._ended)
        return self._join(obs), rewards, terminated, truncated, infos

    @property
    def event_mask(self) -> Callable[[Any], np.ndarray]:
        """The environment's `event_mask`, which is given observations without action and reward.

        AttributeError where the environment has none.
        """
        of_part = self.env.event_mask  # type: ignore[attr-defined]
        return lambda obs: of_part(self.joined.part(obs))

    def _forget(self, rows: np.ndarray | slice) -> None:
        self._action[rows] = self.joined.no_action
        self._reward[rows] = 0
        self._ended[rows] = False

    def _join(self, obs: Any) -> Any:
        return self.joined.join(obs, self._action, self._reward)


class FullyObserved(Hiding, gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A gymnasium environment whose observations include the hidden state; see `envs.observed.Observed`.

    What the environment declares of its own observations (`envs.declared.DECLARED`) is hidden: nothing must be
    remembered.

    Args:
        env: the environment; under its wrappers a `World`.

    Raises:
        ValueError: another environment.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        if not hasattr(env.unwrapped, "hidden_state"):
            raise ValueError(f"FullyObserved needs a world with hidden_state(), as those of envs.ids(); got {env}")
        self.observed = Observed(env.observation_space, env.unwrapped.hidden_state())
        self.observation_space = self.observed.space

    def observation(self, observation: Any) -> Any:
        """The observation and the hidden state."""
        return self.observed.join(observation, numbers(self.env.unwrapped.hidden_state())[0])  # type: ignore[attr-defined]


class KeepObservations(Hiding, gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A gymnasium environment of whose observations only chosen numbers are seen, such as positions without velocities.

    What the environment declares of its whole observation (`envs.declared.DECLARED`) is hidden.

    Args:
        env: the environment; its observations are a Box of one dimension.
        indices: the numbers to keep, in this order.

    Raises:
        ValueError: other observations, or indices that do not fit.
    """

    def __init__(self, env: gym.Env, indices: Sequence[int]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, indices=indices)
        gym.ObservationWrapper.__init__(self, env)
        self.kept = Kept(env.observation_space, indices)
        self.observation_space = self.kept.space

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The kept numbers."""
        return self.kept.part(observation)


class VectorKeepObservations(VectorWrapper):
    """The same for a gymnasium VectorEnv. The observations in `infos["final_obs"]` are parts too."""

    hides = DECLARED

    def __init__(self, env: VectorEnv, indices: Sequence[int]) -> None:
        super().__init__(env)
        self.kept = Kept(env.single_observation_space, indices)
        self.single_observation_space = self.kept.space
        self.observation_space = batch_space(self.kept.space, env.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every row, or in those of `options["reset_mask"]` [B] bool."""
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        return self.kept.part(obs), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step in every row."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            final_obs = infos["final_obs"].copy()
            for row in np.flatnonzero(infos["_final_obs"]).tolist():
                final_obs[row] = self.kept.part(final_obs[row])
            infos["final_obs"] = final_obs
        return self.kept.part(obs), rewards, terminated, truncated, infos


def __getattr__(name: str) -> Any:
    """The wrappers for SB3's VecEnv, imported on first use because they import SB3."""
    if name in ("VecDropText", "VecKeepObservations", "VecPreviousActionReward"):
        from palimpsest.envs import sb3_wrappers

        return getattr(sb3_wrappers, name)
    raise AttributeError(f"module 'palimpsest.envs.wrappers' has no attribute {name!r}")

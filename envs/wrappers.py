"""Add the previous action and reward to the observation, for each interface.

With them a player knows whether it has just tried an action, and with what result (RL², arXiv 1611.02779).

    PreviousActionReward           for a gymnasium Env
    VectorPreviousActionReward     for a gymnasium VectorEnv
    VecPreviousActionReward        for SB3's VecEnv (in `envs.sb3_wrappers`, imported on first use)

Both are zero at the first observation of an episode. `envs.joined.Joined` defines the form of the new observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from palimpsest.envs.joined import Joined

if TYPE_CHECKING:
    from palimpsest.envs.sb3_wrappers import VecPreviousActionReward

__all__ = ["Joined", "PreviousActionReward", "VecPreviousActionReward", "VectorPreviousActionReward"]


class PreviousActionReward(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """A gymnasium environment whose observations include the previous action and reward; see `Joined`.

    Both are zero after a reset. Restoring a hidden state is a reset.

    Args:
        env: the environment.

    Raises:
        ValueError: spaces that `Joined` does not support.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.joined = Joined(env.observation_space, env.action_space)
        self.observation_space = self.joined.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self.joined.join(obs, np.zeros(self.joined.action_size, self.joined.dtype), 0.0), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step. The observation includes `action` and the reward of this step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        encoded = self.joined.encode(np.asarray(action)[None])[0]
        return self.joined.join(obs, encoded, reward), reward, terminated, truncated, info

    def event_mask(self, obs: Any) -> np.ndarray:
        """The environment's `event_mask`, for `obs` without action and reward."""
        return self.env.get_wrapper_attr("event_mask")(self.joined.part(obs))


class VectorPreviousActionReward(VectorWrapper):
    """A gymnasium VectorEnv whose observations include the previous action and reward; see `Joined`.

    The first observation of an episode has zeros. In autoreset mode SAME_STEP it comes in the step that ends the last
    episode, and `final_obs` has the last action and reward. In mode NEXT_STEP it comes one step later. A reset with
    "reset_mask" sets the masked rows to zero.

    Args:
        env: the vector environment.

    Raises:
        ValueError: spaces that `Joined` does not support, or no known autoreset mode in `env.metadata`.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{env} must name in metadata['autoreset_mode'] the AutoresetMode with which it resets; got {mode!r}"
            )
        self.mode = mode
        self.joined = Joined(env.single_observation_space, env.single_action_space)
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

    def event_mask(self, obs: Any) -> np.ndarray:
        """The environment's `event_mask`, for `obs` without action and reward."""
        return self.env.event_mask(self.joined.part(obs))  # type: ignore[attr-defined]

    def _forget(self, rows: np.ndarray | slice) -> None:
        self._action[rows] = 0
        self._reward[rows] = 0
        self._ended[rows] = False

    def _join(self, obs: Any) -> Any:
        return self.joined.join(obs, self._action, self._reward)


def __getattr__(name: str) -> Any:
    """The wrappers for SB3's VecEnv, imported on first use because they import SB3."""
    if name in ("VecDropText", "VecPreviousActionReward"):
        from palimpsest.envs import sb3_wrappers

        return getattr(sb3_wrappers, name)
    raise AttributeError(f"module 'palimpsest.envs.wrappers' has no attribute {name!r}")

"""The previous action and reward in the observations of SB3's VecEnv. Imports SB3; `envs.wrappers` names it lazily."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.joined import Joined


class VecPreviousActionReward(VecEnvWrapper):
    """A VecEnv whose observations hold the previous action and reward; see `envs.joined.Joined`.

    The first observation of an episode has zeros, `terminal_observation` the last action and reward. Below
    VecNormalize the reward is the environment's own; the reward [B] float32 that a VecEnv gives is what is joined.

    Args:
        venv: the environment.

    Raises:
        ValueError: spaces that `Joined` refuses.
    """

    def __init__(self, venv: VecEnv) -> None:
        self.joined = Joined(venv.observation_space, venv.action_space)
        super().__init__(venv, observation_space=self.joined.space)
        self._actions: Any = None

    def reset(self) -> Any:
        """Start an episode in every row."""
        zeros = np.zeros((self.num_envs, self.joined.action_size), self.joined.dtype)
        return self.joined.join(self.venv.reset(), zeros, np.zeros(self.num_envs))

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions [B, ...] of the next `step_wait`."""
        self.venv.step_async(actions)
        self._actions = self.joined.encode(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """One step in every row: observations, rewards [B], dones [B] bool, infos."""
        obs, rewards, dones, infos = self.venv.step_wait()
        action, reward = self._actions, np.array(rewards)
        for row in np.flatnonzero(dones).tolist():
            last = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = self.joined.join(last, action[row], reward[row])
        action[dones] = 0
        reward[dones] = 0
        return self.joined.join(obs, action, reward), rewards, dones, infos

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of every row; `event_mask` is asked about the observations that these were made from."""
        if method_name == "event_mask":
            args = tuple(map(self.joined.part, args))
            kwargs = {name: self.joined.part(obs) for name, obs in kwargs.items()}
        return self.venv.env_method(method_name, *args, indices=indices, **kwargs)

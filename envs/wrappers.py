"""The previous action and reward as part of the observation, for every face.

A player that sees what it has just done and got can tell trying from not having tried (RL², arXiv 1611.02779).

    PreviousActionReward           a gymnasium Env
    VectorPreviousActionReward     a gymnasium VectorEnv
    VecPreviousActionReward        SB3's VecEnv (of `envs.sb3_wrappers`, imported when it is asked for)

At an episode's first observation both are zeros. How they join the observation is `Joined`'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

if TYPE_CHECKING:
    from envs.sb3_wrappers import VecPreviousActionReward

__all__ = ["Joined", "PreviousActionReward", "VecPreviousActionReward", "VectorPreviousActionReward"]

ACTION, REWARD, OBSERVATION = "previous_action", "previous_reward", "observation"


class Joined:
    """How actions and rewards join observations.

    | observation space | becomes |
    |---|---|
    | Box of one dimension, F | Box of F + A + 1: the observation, the action, the reward |
    | Dict | the same with the keys "previous_action" [A] and "previous_reward" [1], Boxes of float32 |
    | any other, images among them | a Dict of it under "observation" and of these two keys |

    A longer Box keeps a floating dtype; integers become the floats that hold them.

    | action space | A | the action |
    |---|---|---|
    | Discrete | n | one-hot |
    | MultiDiscrete | the sum of n over all parts | one-hot each, parts in order |
    | MultiBinary | its elements | as it is |
    | Box | its elements | as it is |

    Args:
        observation_space: of one environment.
        action_space: of one environment.

    Raises:
        ValueError: another action space, or a Dict that has one of the keys.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        low, high = _bounds(action_space)
        self.action_space = action_space
        self.action_size = len(low)
        if isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete):
            choices = np.atleast_1d(action_space.n if isinstance(action_space, spaces.Discrete) else action_space.nvec)
            parts_before = np.cumsum(choices) - choices.ravel()
            # Added to an action, this says which of the A numbers are one.
            self._offset = parts_before - np.ravel(action_space.start)
        self.inner = observation_space
        self.space: spaces.Space
        if isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1:
            dtype = np.result_type(observation_space.dtype, np.float32)
            lows = np.concatenate([observation_space.low, low, [-np.inf]]).astype(dtype)
            highs = np.concatenate([observation_space.high, high, [np.inf]]).astype(dtype)
            self.space = spaces.Box(lows, highs, dtype=dtype.type)
            self.dtype = dtype
            return
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {OBSERVATION: self.inner}
        taken = sorted({ACTION, REWARD} & parts.keys())
        if taken:
            raise ValueError(f"the observation must not have the keys {ACTION!r} and {REWARD!r} yet; it has {taken}")
        self.dtype = np.dtype(np.float32)
        reward = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.space = spaces.Dict({**parts, ACTION: spaces.Box(low, high), REWARD: reward})

    def encode(self, actions: Any) -> np.ndarray:
        """Actions [B, ...] as floats [B, A], in the dtype of the observation's part."""
        actions = np.asarray(actions)
        B = len(actions)
        if isinstance(self.action_space, spaces.Box | spaces.MultiBinary):
            return actions.reshape(B, -1).astype(self.dtype)
        encoded = np.zeros((B, self.action_size), self.dtype)
        encoded[np.arange(B)[:, None], actions.reshape(B, -1) + self._offset] = 1
        return encoded

    def join(self, obs: Any, action: np.ndarray, reward: Any) -> Any:
        """An observation, or a batch of them, with `action` [..., A] and `reward` [...]; nothing given is changed."""
        if isinstance(self.space, spaces.Dict):
            parts = obs if isinstance(self.inner, spaces.Dict) else {OBSERVATION: obs}
            return {**parts, ACTION: action.copy(), REWARD: np.array(reward, self.dtype)[..., None]}
        joined = np.empty((*action.shape[:-1], *self.space.shape), self.dtype)  # type: ignore[misc]
        joined[..., : -self.action_size - 1] = obs
        joined[..., -self.action_size - 1 : -1] = action
        joined[..., -1] = reward
        return joined

    def part(self, joined: Any) -> Any:
        """The observation that `joined`, or a batch of such, was made from; of a Dict the keys that are there."""
        if not isinstance(self.space, spaces.Dict):
            return joined[..., : -self.action_size - 1]
        if isinstance(self.inner, spaces.Dict):
            return {key: part for key, part in joined.items() if key not in (ACTION, REWARD)}
        return joined[OBSERVATION]


class PreviousActionReward(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """A gymnasium environment whose observations hold the previous action and reward; see `Joined`.

    Restoring a hidden state is a reset too: both are zeros then.

    Args:
        env: the environment.

    Raises:
        ValueError: spaces that `Joined` refuses.
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
        """One step, whose observation holds `action` and the step's own reward."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        encoded = self.joined.encode(np.asarray(action)[None])[0]
        return self.joined.join(obs, encoded, reward), reward, terminated, truncated, info

    def event_mask(self, obs: Any) -> np.ndarray:
        """The environment's own `event_mask` of the observations that `obs` was made from."""
        return self.env.get_wrapper_attr("event_mask")(self.joined.part(obs))


class VectorPreviousActionReward(VectorWrapper):
    """A gymnasium VectorEnv whose observations hold the previous action and reward; see `Joined`.

    Under SAME_STEP autoreset the first observation of the next episode has zeros, and `final_obs` the last action and
    reward; under NEXT_STEP the zeros come one step later, with that first observation; a reset by "reset_mask" sets
    the masked rows to zero.

    Args:
        env: the vector environment.

    Raises:
        ValueError: spaces that `Joined` refuses, or no known autoreset mode in `env.metadata`.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{env} must name in metadata['autoreset_mode'] the AutoresetMode in which it resets rows; got {mode!r}"
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
        """The environment's own `event_mask` of the observations that `obs` was made from."""
        return self.env.event_mask(self.joined.part(obs))  # type: ignore[attr-defined]

    def _forget(self, rows: np.ndarray | slice) -> None:
        self._action[rows] = 0
        self._reward[rows] = 0
        self._ended[rows] = False

    def _join(self, obs: Any) -> Any:
        return self.joined.join(obs, self._action, self._reward)


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of each of an action's A numbers, the zeros of an episode's start included."""
    if isinstance(space, spaces.Box):
        return np.minimum(space.low.ravel(), 0).astype(np.float32), np.maximum(space.high.ravel(), 0).astype(np.float32)
    if isinstance(space, spaces.Discrete):
        size = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        size = int(space.nvec.sum())
    elif isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
    else:
        raise ValueError(f"actions must be Discrete, MultiDiscrete, MultiBinary or Box; got {space}")
    return np.zeros(size, np.float32), np.ones(size, np.float32)


def __getattr__(name: str) -> Any:
    """`VecPreviousActionReward`, for which SB3 is imported."""
    if name == "VecPreviousActionReward":
        from envs.sb3_wrappers import VecPreviousActionReward

        return VecPreviousActionReward
    raise AttributeError(f"module 'envs.wrappers' has no attribute {name!r}")

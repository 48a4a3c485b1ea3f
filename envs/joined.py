"""An observation joined with the previous action and reward: its space, how to join, how to take apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from palimpsest.refusals import check_flag

ACTION, REWARD, OBSERVATION = "previous_action", "previous_reward", "observation"


class Joined:
    """How an action and a reward are joined to an observation.

    | observation space | joined space |
    |---|---|
    | Box of one dimension, F | Box of F + A + 1: the observation, the action, the reward |
    | Dict | the Dict with two more keys, "previous_action" [A] and "previous_reward" [1], Boxes of float32 |
    | any other, images included | a Dict with the observation under "observation", and these two keys |

    The longer Box keeps a floating dtype. An integer dtype becomes the floating dtype that can hold its values.

    | action space | A | encoding of the action |
    |---|---|---|
    | Discrete | n | one-hot |
    | MultiDiscrete | the sum of n over all parts | one-hot for each part, in order |
    | MultiBinary | number of elements | unchanged |
    | Box | number of elements | unchanged |

    Before the first action all A numbers are zero. A MultiBinary or Box action may be zero as well. With `antialias`,
    the action has one more number, the last of A, which is 1 before the first action and else 0 (POPGym's flag).

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        antialias: whether to mark the first observation of an episode.

    Raises:
        ValueError: another action space, or a Dict that already has one of the two keys.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, antialias: bool = False) -> None:
        low, high = _bounds(action_space)
        if check_flag("antialias", antialias):
            low, high = np.append(low, np.float32(0)), np.append(high, np.float32(1))
        self.no_action = np.zeros(len(low))
        """[A] float64: what stands before the first action."""
        self.no_action[-1:] = antialias
        self.action_space = action_space
        self.action_size = len(low)
        if isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete):
            choices = np.atleast_1d(action_space.n if isinstance(action_space, spaces.Discrete) else action_space.nvec)
            parts_before = np.cumsum(choices) - choices.ravel()
            # action + offset = the indices of the ones among the A numbers
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
        """Actions [B, ...] as floats [B, A], in the dtype of that part of the observation."""
        actions = np.asarray(actions)
        B = len(actions)
        encoded = np.zeros((B, self.action_size), self.dtype)
        if isinstance(self.action_space, spaces.Box | spaces.MultiBinary):
            numbers = actions.reshape(B, -1)
            encoded[:, : numbers.shape[1]] = numbers
            return encoded
        encoded[np.arange(B)[:, None], actions.reshape(B, -1) + self._offset] = 1
        return encoded

    def join(self, obs: Any, action: np.ndarray, reward: Any) -> Any:
        """Join `action` [..., A] and `reward` [...] to an observation or a batch of them. The inputs do not change."""
        if isinstance(self.space, spaces.Dict):
            parts = obs if isinstance(self.inner, spaces.Dict) else {OBSERVATION: obs}
            return {**parts, ACTION: action.copy(), REWARD: np.array(reward, self.dtype)[..., None]}
        joined = np.empty((*action.shape[:-1], *self.space.shape), self.dtype)  # type: ignore[misc]
        joined[..., : -self.action_size - 1] = obs
        joined[..., -self.action_size - 1 : -1] = action
        joined[..., -1] = reward
        return joined

    def part(self, joined: Any) -> Any:
        """The observation in `joined`, or in a batch of such. A Dict may lack some of its keys."""
        if not isinstance(self.space, spaces.Dict):
            return joined[..., : -self.action_size - 1]
        if isinstance(self.inner, spaces.Dict):
            return {key: part for key, part in joined.items() if key not in (ACTION, REWARD)}
        return joined[OBSERVATION]


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of each of an action's A numbers. They include the zeros at the start of an episode."""
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

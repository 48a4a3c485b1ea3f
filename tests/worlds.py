"""Tiny environments whose numbers can be followed by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.util import dict_to_obs

from palimpsest.agents.masks import mask_sizes


class Counter(gym.Env):
    """Observation [row, steps so far]; row r ends at step 3 + r, by truncation if `truncate`. Reward 1 a step."""

    def __init__(self, row: int = 0, truncate: bool = False) -> None:
        self.row, self.truncate = row, truncate
        self.observation_space = spaces.Box(0, 100, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any):
        self.steps += 1
        over = self.steps == 3 + self.row
        return self._observe(), 1.0, over and not self.truncate, over and self.truncate, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.row, self.steps], np.float32)


class Reusing(DummyVecEnv):
    """A VecEnv that returns the same arrays at every step, and writes the next step into them."""

    def _obs_from_buf(self):
        return dict_to_obs(self.observation_space, self.buf_obs)

    def step_wait(self):
        obs, _, _, infos = super().step_wait()
        return obs, self.buf_rews, self.buf_dones, infos


class Spaces(gym.Env):
    """Any spaces: observations are samples, episodes end after five steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), float(self.steps), self.steps == 5, False, {}


ALWAYS = 0


class Broken(Counter):
    """A Counter of which one number is replaced at one step of its life, or `ALWAYS`."""

    def __init__(self, row: int, at: int, what: str, value: float, truncate: bool = False) -> None:
        super().__init__(row, truncate)
        self.at, self.what, self.value = at, what, value
        self.lived = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.lived += 1
        if self.at in (self.lived, ALWAYS):
            if self.what == "observation":
                obs[1] = self.value
            else:
                reward = self.value
        return obs, reward, terminated, truncated, info


class Guarded(gym.Env):
    """A cue at the first step must be said at the last; at every step a part of the choices is forbidden, and fatal.

    Observation [cue (0, or 1 and -1 at the first step), whether it is asked]. The first choice answers: 0 or 1, both
    allowed when it is asked. Any other action is worth nothing.
    """

    def __init__(self, action_space: spaces.Space | None = None, last: int = 3) -> None:
        self.action_space = spaces.Discrete(4) if action_space is None else action_space
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.sizes, self.last = mask_sizes(self.action_space), last

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps, self.cue = 0, int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: Any):
        values = np.reshape(action, -1).astype(int)
        if not all(mask[value] for mask, value in zip(self.allowed, values, strict=True)):
            raise Fatal(f"{action} at step {self.steps}")
        over = self.steps == self.last
        self.steps += 1
        return self._observe(), float(over and values[0] == self.cue), over, False, {}

    def action_masks(self) -> np.ndarray:
        """What is allowed now."""
        return np.concatenate(self.allowed)

    def _observe(self) -> np.ndarray:
        asked = self.steps == self.last
        self.allowed = [self.np_random.random(size) < 0.5 for size in self.sizes]
        for mask in self.allowed:
            mask[self.np_random.integers(len(mask))] = True
        if asked:
            self.allowed[0] = np.arange(self.sizes[0]) < 2
        return np.array([(1 - 2 * self.cue) * (self.steps == 0), asked], np.float32)


class Fatal(Exception):
    """A forbidden action."""

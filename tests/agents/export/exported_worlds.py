"""Agents to export, untrained and small, and where to play them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from small import small_policy

from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.agents.masks import mask_sizes

NUMBERS = spaces.Box(-5, 5, (4,))
IMAGE = spaces.Box(0, 255, (3, 8, 8), np.uint8)
PARTS = spaces.Dict(
    {"a.b": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3, start=1), "image": IMAGE, "two": spaces.MultiBinary(2)}
)


class Noise(gym.Env):
    """Observations drawn from any space, in episodes of 7 steps; it takes only what is an action."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action).astype(self.action_space.dtype))
        self.steps += 1
        return self.observation_space.sample(), 0.0, self.steps == 7, False, {}


class Forbidding(Noise):
    """Allows the first value of each choice, and others by chance."""

    def action_masks(self):
        sizes = mask_sizes(self.action_space)
        return np.concatenate([np.r_[True, self.np_random.random(n - 1) < 0.5] for n in sizes])


CASES = {
    "ppo": (MemoryPPO, Noise, NUMBERS, spaces.Discrete(3), {"normalize_observations": True, "memory_carry_over": 0.5}),
    "ppo-dict": (MemoryPPO, Forbidding, PARTS, spaces.MultiDiscrete([2, 3]), {}),
    "ppo-switches": (MemoryPPO, Forbidding, spaces.Discrete(5), spaces.MultiBinary(3), {}),
    "ppo-box": (MemoryPPO, Noise, IMAGE, spaces.Box(-0.1, 0.1, (2, 2)), {}),
    "ppo-sde": (MemoryPPO, Noise, NUMBERS, spaces.Box(-2, 1, (2,)), {"use_sde": True}),
    "dqn": (MemoryDQN, Forbidding, NUMBERS, spaces.Discrete(3), {}),
    "sac": (MemorySAC, Noise, NUMBERS, spaces.Box(-2, 1, (2,)), {}),
}
"""Name -> algorithm, environment, its spaces, further arguments."""


def agent(case: str, memory: str = "gru", **policy_kwargs):
    """An agent and an environment of its own kind."""
    algorithm, env, observations, actions, arguments = CASES[case]
    policy = "MultiInput" if observations is PARTS else "Cnn" if observations is IMAGE else "Mlp"
    model = algorithm(
        f"{policy}MemoryPolicy",
        env(observations, actions),
        policy_kwargs=small_policy(memory, **policy_kwargs),
        seed=0,
        device="cpu",
        **arguments,
    )
    return model, env(observations, actions)

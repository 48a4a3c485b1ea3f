"""Control with masked velocities: a wrapper hides numbers of an observation, and a memory has to replace them.

Any gymnasium environment with a flat observation works. CartPole with all four numbers is the first line of the output,
CartPole with positions alone and no memory the second, with a memory the third.

    python examples/masked_control.py --total-timesteps 100000
"""

import argparse

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from palimpsest.agents import MemoryPPO, preset


def masked(env: gym.Env, kept: list[int]) -> gym.Env:
    """`env` with the numbers `kept` of its observations."""
    space = env.observation_space
    return TransformObservation(env, lambda obs: obs[kept], gym.spaces.Box(space.low[kept], space.high[kept]))


def main() -> None:
    """Train with everything in sight, then with positions alone, without and with a memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=100_000)
    parser.add_argument("--memory", default="gru", help="any name of `palimpsest list`")
    arguments = parser.parse_args()
    for kept, memory in (([0, 1, 2, 3], "none"), ([0, 2], "none"), ([0, 2], arguments.memory)):

        def make(seed: int, count: int, kept: list[int] = kept):
            return make_vec_env("CartPole-v1", count, seed, wrapper_class=masked, wrapper_kwargs={"kept": kept})

        model = MemoryPPO("MlpMemoryPolicy", make(0, 16), **preset(memory, num_envs=16), seed=0)
        model.learn(arguments.total_timesteps)
        returns, _ = evaluate_policy(model, make(1000, 8), n_eval_episodes=40, return_episode_rewards=True)
        print(f"numbers {kept}, memory {memory}: mean return {np.mean(returns):.0f} of 500")


if __name__ == "__main__":
    main()

"""Run an exported agent with numpy and onnxruntime alone: neither torch nor palimpsest is imported.

palimpsest export runs/X --out agent.onnx
python examples/run_onnx.py agent.onnx CartPole-v1    # in an environment of gymnasium
python examples/run_onnx.py agent.onnx                # on random observations
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime


class Agent:
    """One row that acts and remembers.

    Args:
        file: an ONNX file of `palimpsest export`.
    """

    def __init__(self, file: str) -> None:
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.signature = json.loads(self.session.get_modelmeta().custom_metadata_map["palimpsest-step.json"])
        # one number for all, or nested lists of the shape; where episode_start is true the state is not read at all
        self.state = {
            port["name"]: np.broadcast_to(np.array(port["initial"], port["dtype"]), (1, *port["shape"]))
            for port in self.signature["states"]
        }

    def act(self, observation: Any, episode_start: bool, action_mask: np.ndarray | None = None) -> np.ndarray:
        """The action after an observation, an array or a dict of arrays; the memory is kept for the next."""
        given = {"episode_start": np.array([episode_start]), **self.state}
        for port in self.signature["observations"]:
            part = (
                observation[port["name"].removeprefix("observation.")] if isinstance(observation, dict) else observation
            )
            part = np.asarray(part, port["dtype"])
            if part.shape != tuple(port["shape"]):  # an image of the environment has its channels last
                part = part.transpose(2, 0, 1)
            given[port["name"]] = part[None]
        if self.signature["action_mask"]:
            allowed = np.ones(self.signature["action_mask"]["shape"]) if action_mask is None else action_mask
            given["action_mask"] = np.asarray(allowed, bool)[None]
        action, *after = self.session.run(["action", *(f"next_{name}" for name in self.state)], given)
        self.state = dict(zip(self.state, after))
        return action[0]


def random_observation(agent: Agent, rng: np.random.Generator) -> Any:
    """Noise of the right shapes: an array, or a dict of arrays."""
    parts = {
        port["name"].removeprefix("observation."): (rng.random(port["shape"]) * 2).astype(port["dtype"])
        for port in agent.signature["observations"]
    }
    return parts.get("observation", parts)


def play(agent: Agent, env_id: str, episodes: int = 10) -> None:
    """Play episodes in an environment of gymnasium, and print their returns."""
    import gymnasium as gym

    env = gym.make(env_id)
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        start, done, total = True, False, 0.0
        while not done:
            mask = env.get_wrapper_attr("action_masks")() if agent.signature["action_mask"] else None
            action = agent.act(observation, start, mask).astype(env.action_space.dtype)
            observation, reward, terminated, truncated, _ = env.step(action)
            start, done, total = False, terminated or truncated, total + float(reward)
        print(f"episode {seed}: return {total:.2f}")
    env.close()


def main(file: str, env_id: str | None = None) -> None:
    """Play in an environment, or act on ten random observations."""
    agent = Agent(file)
    if env_id is not None:
        return play(agent, env_id)
    rng = np.random.default_rng(0)
    for step in range(10):
        print(agent.act(random_observation(agent, rng), episode_start=step == 0))
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])

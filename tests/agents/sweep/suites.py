"""Suites of trainings of a second, and an engine that does them one by one in this process."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym

HEAD = """
memories = ["none"]
seeds = [0]
episodes = 4
"""
TRAIN = """
[train]
num_envs = 4
n_steps = 16
n_epochs = 1
total_timesteps = 128
width = 8
eval_every = 64
eval_episodes = 4
checkpoint_every = 64
device = "cpu"
memory_args = {output_size = 8}
"""
MAZE = """
[[environments]]
env = "Palimpsest/EndlessTMaze-v0"
env_args = {corridors = 1, length = 2}
"""


class Turned(gym.ActionWrapper):
    """A wrapper that takes other actions: each is the next one."""

    def action(self, action):
        """The action of the world."""
        return (action + 1) % self.action_space.n


def write(folder: Path, text: str, name: str = "tiny") -> Path:
    """A suite's file with this text."""
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def one_by_one(runs, folder, workers, ended, tick, attempt):
    """An engine, as `processes.run_all`."""
    for run in runs:
        tick([run])
        attempt(run, folder)
        ended(run, "")

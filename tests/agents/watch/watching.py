"""Small agents to watch, and runs of them that were never trained."""

from pathlib import Path

from small import small_arguments

from palimpsest import envs
from palimpsest.agents import MemoryPPO
from palimpsest.agents.run.config import CONFIG_FILE, TrainConfig

MAZE = "Palimpsest/EndlessTMaze-v0"
ARGUMENTS = {"corridors": 3, "length": 2}


def agent(name="gru", env=None, algorithm=MemoryPPO, carry_over=0.0, **policy_kwargs):
    """An agent in the maze, or in `env`, that computes by torch's operations."""
    env = env or envs.make_vec(MAZE, 1, seed=0, **ARGUMENTS)
    policy_kwargs = {"memory": name, "memory_kwargs": small_arguments(name), "encoder_arch": [5], **policy_kwargs}
    kwargs = {"n_steps": 8, "batch_size": 8, "memory_carry_over": carry_over} if algorithm is MemoryPPO else {}
    model = algorithm("MlpMemoryPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)
    model.policy.compiled = False
    if model.policy.start_mark is not None:  # which is 0 at first
        model.policy.start_mark.data.normal_()
    return model


def write_run(folder: Path, name="gru", env=MAZE, env_args=ARGUMENTS) -> Path:
    """A run directory as a finished training leaves it, of an agent that has learned nothing."""
    folder.mkdir()
    config = TrainConfig(env=env, env_args=env_args, memory=name, memory_args=small_arguments(name), device="cpu")
    (folder / CONFIG_FILE).write_text(config.to_toml())
    agent(name, envs.make_vec(env, 1, seed=0, **env_args)).save(folder / "model.zip")
    return folder

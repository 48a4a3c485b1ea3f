"""Reinforcement-learning agents whose memory both retains and rewrites.

`palimpsest.memory` is what an agent remembers with, `palimpsest.envs` what it must remember, `palimpsest.agents` who
remembers. Importing this package registers the environments with gymnasium.

In a clone the three are the folders `memory/`, `envs/` and `agents/` beside this one, to which links here point.
"""

from pathlib import Path

__version__ = "0.1.0"

if not (_here := Path(__file__).parent).joinpath("agents").is_dir():
    # a clone whose links did not survive (Windows, some archives), or are files that hold a path: the folders and
    # train.py beside this folder come first
    __path__.insert(0, str(_here.parent))

from palimpsest import agents, envs, memory

__all__ = ["__version__", "agents", "envs", "memory"]

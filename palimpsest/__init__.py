"""Reinforcement-learning agents whose memory both retains and rewrites.

`palimpsest.memory` is what an agent remembers with, `palimpsest.envs` what it must remember, `palimpsest.agents` who
remembers. Importing this package registers the environments with gymnasium.

In a clone the three are the folders `memory/`, `envs/` and `agents/` beside this one, to which links here point.
"""

from pathlib import Path

__version__ = "0.1.0"

if not (_here := Path(__file__).parent).joinpath("agents").is_dir():
    # a clone whose symbolic links did not survive (Windows, some archives): the folders are beside this one
    __path__.append(str(_here.parent))

from palimpsest import envs

__all__ = ["__version__", "agents", "envs", "memory"]


def __getattr__(name: str) -> object:
    if name in ("agents", "memory"):
        import importlib

        return importlib.import_module(f"palimpsest.{name}")
    raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")

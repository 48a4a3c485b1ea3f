"""Environments as people usually write them: single, in plain Python and numpy. Benchmarks compare our kernels to them.

Each takes the arguments of its family that change the rules. `tests/docs/test_plain.py` tests that it equals the family
step by step. The two MiniGrid environments use the package minigrid, POPGym's games the package popgym.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from minigrid.envs.memory import MemoryEnv

from palimpsest.envs.minigrid_rewrite_env import MemoryRewriteEnv

from .ballet import PlainBallet
from .color_cubes import PlainColorCubes
from .games import GAMES
from .hide_and_seek import PlainHideAndSeek
from .key_value import PlainKeyValueRewrite
from .room_ballet import PlainRoomBalletMultiTask, PlainRoomBalletShortStay
from .rune_tmaze import PlainRuneTMaze
from .tmaze import PlainActiveTMaze, PlainEndlessTMaze

PLAIN: dict[str, Callable[..., gym.Env[Any, Any]]] = {
    "EndlessTMaze": PlainEndlessTMaze,
    "ActiveTMaze": PlainActiveTMaze,
    "RuneTMaze": PlainRuneTMaze,
    "KeyValueRewrite": PlainKeyValueRewrite,
    "ColorCubes": PlainColorCubes,
    "Ballet": PlainBallet,
    "RoomBalletShortStay": PlainRoomBalletShortStay,
    "RoomBalletMultiTask": PlainRoomBalletMultiTask,
    "HideAndSeek": PlainHideAndSeek,
    "MiniGridMemory": MemoryEnv,
    "MiniGridMemoryRewrite": MemoryRewriteEnv,
    **GAMES,
}
"""Class name of our family -> an environment with the same rules in plain Python."""

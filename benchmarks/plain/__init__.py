"""Environments as people write them: one world, plain Python and numpy. What our kernels are measured against.

Each takes the arguments of its family, those that change no rule left out, and is held equal to it in
`tests/test_plain.py`. MiniGrid's two are the package's own.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from minigrid.envs.memory import MemoryEnv

from palimpsest.envs.minigrid_rewrite_env import MemoryRewriteEnv

from .ballet import PlainBallet
from .color_cubes import PlainColorCubes
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
}
"""Class of our family -> the same rules in plain Python."""

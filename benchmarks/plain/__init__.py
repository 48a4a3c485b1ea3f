"""Environments as people usually write them: single, in plain Python and numpy. Benchmarks compare our kernels to them.

Each takes the arguments of its family that change the rules. `tests/docs/test_plain.py` tests that it equals the family
step by step. The two MiniGrid environments use the package minigrid, control tasks gymnasium's, and POPGym's
worlds the package popgym.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from minigrid.envs.memory import MemoryEnv

from palimpsest.envs.minigrid_rewrite_env import MemoryRewriteEnv
from palimpsest.envs.wrappers import KeepObservations

from .ballet import PlainBallet
from .bandit import PlainBandit
from .color_cubes import PlainColorCubes
from .games import GAMES
from .hide_and_seek import PlainHideAndSeek
from .key_value import PlainKeyValueRewrite
from .popgym_control import multiarmed_bandit, popgym_cart_pole, popgym_pendulum
from .room_ballet import PlainRoomBalletMultiTask, PlainRoomBalletShortStay
from .rune_tmaze import PlainRuneMultiCorridor, PlainRuneTMaze
from .tmaze import PlainActiveTMaze, PlainEndlessTMaze


def without_velocities(env_id: str, kept: list[int]) -> Callable[..., gym.Env[Any, Any]]:
    """One of gymnasium's own environments, seen in part."""
    return lambda: KeepObservations(gym.make(env_id), kept)


def minigrid_memory(view_size: int = 7, **kwargs: Any) -> gym.Env[Any, Any]:
    """The package's own, with our name for its `agent_view_size`."""
    return MemoryEnv(agent_view_size=view_size, **kwargs)


PLAIN: dict[str, Callable[..., gym.Env[Any, Any]]] = {
    "EndlessTMaze": PlainEndlessTMaze,
    "ActiveTMaze": PlainActiveTMaze,
    "RuneTMaze": PlainRuneTMaze,
    "RuneMultiCorridor": PlainRuneMultiCorridor,
    "KeyValueRewrite": PlainKeyValueRewrite,
    "ColorCubes": PlainColorCubes,
    "Ballet": PlainBallet,
    "RoomBalletShortStay": PlainRoomBalletShortStay,
    "RoomBalletMultiTask": PlainRoomBalletMultiTask,
    "HideAndSeek": PlainHideAndSeek,
    "CartPoleNoVel": without_velocities("CartPole-v1", [0, 2]),
    "PendulumNoVel": without_velocities("Pendulum-v1", [0, 1]),
    "MountainCarContinuousNoVel": without_velocities("MountainCarContinuous-v0", [0]),
    "Bandit": PlainBandit,
    "MultiarmedBandit": multiarmed_bandit,
    "POPGymCartPole": popgym_cart_pole,
    "POPGymPendulum": popgym_pendulum,
    "MiniGridMemory": minigrid_memory,
    "MiniGridMemoryRewrite": MemoryRewriteEnv,
    **GAMES,
}
"""Class name of our family -> an environment with the same rules in plain Python."""

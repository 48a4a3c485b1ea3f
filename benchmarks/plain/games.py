"""POPGym's games as the package `popgym` plays them, with observations flattened as ours are."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym


def flattened(game: str, **kwargs: Any) -> gym.Env:
    """The package's environment of a class name; its warnings of its own spaces are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import popgym.envs

        return gym.wrappers.FlattenObservation(getattr(popgym.envs, game)(**kwargs))


def minesweeper(board_size: int, num_mines: int) -> gym.Env:
    """The package knows three boards, by name."""
    names = {(4, 2): "easy", (6, 6): "medium", (8, 10): "hard"}
    return flattened("MineSweeper", difficulty=names[board_size, num_mines])


def labyrinth(game: str, maze_size: int) -> gym.Env:
    """The package's mazes may have two different sides."""
    return flattened(game, maze_dims=(maze_size, maze_size))


GAMES: dict[str, Callable[..., gym.Env[Any, Any]]] = {
    **{
        game: functools.partial(flattened, game)
        for game in (
            "RepeatPrevious",
            "RepeatFirst",
            "Autoencode",
            "CountRecall",
            "HigherLower",
            "Concentration",
            "Battleship",
        )
    },
    "MineSweeper": minesweeper,
    "LabyrinthEscape": functools.partial(labyrinth, "LabyrinthEscape"),
    "LabyrinthExplore": functools.partial(labyrinth, "LabyrinthExplore"),
}
"""Class name of our family -> the package's environment."""

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


GAMES: dict[str, Callable[..., gym.Env[Any, Any]]] = {
    game: functools.partial(flattened, game)
    for game in (
        "RepeatPrevious",
        "RepeatFirst",
        "Autoencode",
        "CountRecall",
        "HigherLower",
        "Concentration",
    )
}
"""Class name of our family -> the package's environment."""

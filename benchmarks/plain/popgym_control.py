"""POPGym's CartPoles, Pendulums and bandits as the package `popgym` plays them."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym


def of_package(game: str, **arguments: Any) -> gym.Env:
    """The package's environment of a class name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own spaces, and of pygame, which it imports
        import popgym.envs

        return getattr(popgym.envs, game)(**arguments)


def popgym_cart_pole(seen: str = "position", limit: int = 200, noise: float = 0.0) -> gym.Env:
    """PositionOnlyCartPole, VelocityOnlyCartPole or NoisyPositionOnlyCartPole."""
    if noise:
        return of_package("NoisyPositionOnlyCartPole", noise_sigma=noise)
    return of_package(f"{seen.capitalize()}OnlyCartPole", max_episode_length=limit)


def popgym_pendulum(limit: int = 200, noise: float = 0.0) -> gym.Env:
    """PositionOnlyPendulum or NoisyPositionOnlyPendulum."""
    if noise:
        return of_package("NoisyPositionOnlyPendulum", noise_sigma=noise)
    return of_package("PositionOnlyPendulum", max_episode_length=limit)


def multiarmed_bandit(num_bandits: int = 10, episode_length: int = 200) -> gym.Env:
    """MultiarmedBandit."""
    made = of_package("MultiarmedBandit", num_bandits=num_bandits, episode_length=episode_length)
    return gym.wrappers.FlattenObservation(made)

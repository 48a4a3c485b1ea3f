"""POPGym's CartPoles and Pendulums as the package `popgym` plays them."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym


def of_package(game: str, noise: float, limit: int) -> gym.Env:
    """The package's environment of a class name, with the one argument that the level changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own spaces, and of pygame, which it imports
        import popgym.envs

        arguments: dict[str, Any] = dict(noise_sigma=noise) if noise else dict(max_episode_length=limit)
        return getattr(popgym.envs, f"{'Noisy' if noise else ''}{game}")(**arguments)


def popgym_cart_pole(seen: str = "position", limit: int = 200, noise: float = 0.0) -> gym.Env:
    """PositionOnlyCartPole, VelocityOnlyCartPole or NoisyPositionOnlyCartPole."""
    return of_package(f"{seen.capitalize()}OnlyCartPole", noise, limit)


def popgym_pendulum(limit: int = 200, noise: float = 0.0) -> gym.Env:
    """PositionOnlyPendulum or NoisyPositionOnlyPendulum."""
    return of_package("PositionOnlyPendulum", noise, limit)

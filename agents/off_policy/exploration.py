"""Exploration that is kept up over steps: noise with a memory, and random actions that are repeated; SB3's noise.

What is drawn anew at each step cancels out over some steps: a corridor is not walked to its end, and a swing is not
pumped up.
"""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise

TIMES = 4.0, 16.0, 64.0, 256.0
"""Time constants, in steps, of the parts of pink noise, beside one part without memory."""
EXPONENT = 2.0
"""Of the zeta distribution of a repetition's length, as in arXiv 2006.01782."""


def first_parts(rows: int, numbers: int, rng: np.random.Generator) -> np.ndarray:
    """The parts of pink noise before the first step, [5, rows, numbers]."""
    return rng.standard_normal((1 + len(TIMES), rows, numbers))


def pink(parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The next pink noise [B, n], of variance 1; its parts [5, B, n] are moved on in place.

    It is the sum of processes that forget within 1, 4, 16, ... steps, so that its power falls nearly as 1 / frequency.
    Source: Pink Noise Is All You Need (ICLR 2023), there by Fourier transform for a whole episode.
    """
    kept = np.exp([-np.inf, *(-1 / time for time in TIMES)])[:, None, None]
    parts *= kept
    parts += np.sqrt(1 - kept**2) * rng.standard_normal(parts.shape)
    return parts.sum(0) / np.sqrt(len(parts))


def explored(
    actions: np.ndarray,
    chance: float,
    choices: int,
    longest: int,
    repeated: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Actions [B], replaced by random ones that are repeated for some steps (εz-greedy, arXiv 2006.01782).

    Args:
        actions: [B] int64.
        chance: that a row begins to repeat a random action in this step.
        choices: number of actions.
        longest: the most steps of a repetition; with 1 this is ε-greedy.
        repeated: [2, B] int64, the action that each row repeats and the steps that are left; changed in place.
        rng: what draws.
    """
    action, left = repeated
    begins = (left == 0) & (rng.random(len(actions)) < chance)
    action[begins] = rng.integers(choices, size=begins.sum())
    left[begins] = np.minimum(rng.zipf(EXPONENT, size=begins.sum()), longest)
    random = left > 0
    left -= random
    return np.where(random, action, actions)


def noise_of_rows(noise: ActionNoise | None, rows: int) -> ActionNoise | None:
    """SB3's action noise as one of all rows, as noise that remembers does so for one row."""
    if isinstance(noise, VectorizedActionNoise):
        return noise if noise.n_envs == rows else VectorizedActionNoise(noise.base_noise, rows)
    return noise if noise is None or rows == 1 else VectorizedActionNoise(noise, rows)


def noisy(actions: np.ndarray, noise: ActionNoise) -> np.ndarray:
    """Actions [B, ...] of -1 to 1 with SB3's noise, float32; ValueError if that is not of the shape of an action."""
    drawn = np.asarray(noise())
    shape = drawn.shape[1:] if isinstance(noise, VectorizedActionNoise) else drawn.shape
    if shape != actions.shape[1:]:
        raise ValueError(
            f"action_noise must have the shape of an action, {actions.shape[1:]}; got {shape}: make it of a mean and a "
            "sigma of that shape"
        )
    return np.clip(actions + drawn, -1, 1).astype(np.float32)

"""Success by kind of answer, for environments that declare the kinds (`envs.core.World.breakdown`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import innermost


class Answers(NamedTuple):
    """M answers, one entry each."""

    episode: np.ndarray
    """[M] int64, index of the episode"""
    kind: np.ndarray
    """[M] int64, kind of the answer, from the environment's breakdown"""
    right: np.ndarray
    """[M] bool"""


class AnswerLog:
    """Collects the answers in a batch of episodes.

    Args:
        env: the environments. Without a breakdown there are no answers.
    """

    def __init__(self, env: VecEnv) -> None:
        self._read: Callable[[], dict[str, np.ndarray]] = getattr(innermost(env), "breakdown", dict)
        self._due: dict[str, np.ndarray] = {}
        self._found: dict[str, list[Answers]] = {}

    def before_step(self) -> None:
        """Read which rows answer in the next step. After the step a row may already be in its next episode."""
        self._due = self._read()

    def after_step(self, rewards: np.ndarray, playing: np.ndarray) -> None:
        """Record the answers of the step, right if `rewards` [B] > 0. Only rows in `playing` [B] bool count."""
        for name, kinds in self._due.items():
            rows = np.flatnonzero((kinds >= 0) & playing)
            found = self._found.setdefault(name, [])
            if len(rows):
                found.append(Answers(rows, kinds[rows], rewards[rows] > 0))

    def answers(self) -> dict[str, Answers]:
        """Name of a breakdown -> all its answers; `episode` is the index of the row."""
        return {name: joined(parts) for name, parts in self._found.items()}


def joined(parts: list[Answers]) -> Answers:
    """Concatenate the parts."""
    empty = Answers(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
    return Answers(*map(np.concatenate, zip(empty, *parts, strict=True)))


def success_by(answers: dict[str, Answers]) -> dict[str, dict[str, dict[str, Any]]]:
    """Fraction of right answers by name and kind, ready for JSON.

    Returns:
        name -> kind (as a text, ascending) -> success (fraction), success_se (its standard error; it allows for
        dependent answers within an episode), answers (their number).
    """
    return {
        name: {str(kind): _fraction(given, given.kind == kind) for kind in np.unique(given.kind).tolist()}
        for name, given in answers.items()
    }


def _fraction(given: Answers, chosen: np.ndarray) -> dict[str, Any]:
    right = given.right[chosen].astype(float)
    success = right.mean()
    # Success is a ratio of sums over episodes. Its standard error comes from the sum of residuals of each episode. With
    # one answer per episode it is sqrt(p (1 - p) / M).
    residuals = np.bincount(given.episode[chosen], right - success)
    return {
        "success": float(success),
        "success_se": float(np.sqrt((residuals**2).sum()) / len(right)),
        "answers": len(right),
    }

"""Success by kind of answer, where an environment tells them apart (`envs.core.World.breakdown`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import innermost


class Answers(NamedTuple):
    """One entry per answer of M."""

    episode: np.ndarray
    """[M] int64, which episode gave it"""
    kind: np.ndarray
    """[M] int64, what the environment's breakdown said of it"""
    right: np.ndarray
    """[M] bool"""


class AnswerLog:
    """Collects the answers that a batch of episodes gives.

    Args:
        env: rows to play in; environments without a breakdown give no answers.
    """

    def __init__(self, env: VecEnv) -> None:
        self._read: Callable[[], dict[str, np.ndarray]] = getattr(innermost(env), "breakdown", dict)
        self._due: dict[str, np.ndarray] = {}
        self._found: dict[str, list[Answers]] = {}

    def before_step(self) -> None:
        """Note which rows are about to answer what; after the step the row may be in its next episode."""
        self._due = self._read()

    def after_step(self, rewards: np.ndarray, playing: np.ndarray) -> None:
        """Judge the rows that were due by `rewards` [B]; rows that are not `playing` [B] bool do not count."""
        for name, kinds in self._due.items():
            rows = np.flatnonzero((kinds >= 0) & playing)
            found = self._found.setdefault(name, [])
            if len(rows):
                found.append(Answers(rows, kinds[rows], rewards[rows] > 0))

    def answers(self) -> dict[str, Answers]:
        """All of them; `episode` is the row."""
        return {name: joined(parts) for name, parts in self._found.items()}


def joined(parts: list[Answers]) -> Answers:
    """One after the other."""
    empty = Answers(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
    return Answers(*map(np.concatenate, zip(empty, *parts, strict=True)))


def success_by(answers: dict[str, Answers]) -> dict[str, dict[str, dict[str, Any]]]:
    """Fraction of right answers by name and kind, ready for JSON.

    Returns:
        name -> kind, as a text, ascending -> success (fraction), success_se (its standard error; the answers of an
        episode are not taken for independent), answers (how many).
    """
    return {
        name: {str(kind): _fraction(given, given.kind == kind) for kind in np.unique(given.kind).tolist()}
        for name, given in answers.items()
    }


def _fraction(given: Answers, chosen: np.ndarray) -> dict[str, Any]:
    right = given.right[chosen].astype(float)
    success = right.mean()
    # A ratio of sums over episodes: its error is that of the episodes' sums of residuals, sqrt(p (1 - p) / M) where
    # each episode answers once.
    residuals = np.bincount(given.episode[chosen], right - success)
    return {
        "success": float(success),
        "success_se": float(np.sqrt((residuals**2).sum()) / len(right)),
        "answers": len(right),
    }

"""How well an agent plays: whole episodes, a fixed number of them, on seeds that training never sees."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents.answers import AnswerLog, Answers, joined, success_by
from agents.config import EVALUATION_SEED
from agents.context import describe_test
from agents.environments import make_environments
from agents.ppo import MemoryPPO
from agents.runs import Run, load_run
from agents.tree import tree_map
from agents.vec_env import chance_level

STALL_STEPS = 500
"""An agent that repeats one observation and action this often in a row has failed: nothing will change."""

MOST_ROWS = 256


class Episodes(NamedTuple):
    """One entry per episode."""

    returns: np.ndarray
    """[N] float64"""
    lengths: np.ndarray
    """[N] int64, steps"""
    successes: np.ndarray
    """[N] float64, NaN where the environment does not say."""
    stalled: np.ndarray
    """[N] bool"""
    answers: dict[str, Answers]
    """By name, what the environment's `breakdown` tells apart; empty where it says nothing."""


def evaluate(
    model_or_run: BaseAlgorithm | Run | str | Path,
    env_id: str | None = None,
    episodes: int = 200,
    deterministic: bool = True,
    env_args: dict[str, Any] | None = None,
    seed: int = EVALUATION_SEED,
    device: str = "auto",
    max_steps: int | None = None,
    previous_action_reward: bool = False,
) -> dict[str, Any]:
    """Play `episodes` whole episodes and report what came of them.

    Every episode has a seed of its own (`seed` and the ones after it) and begins with a fresh memory. Rows are not
    refilled while others still play, so short episodes are not counted more often than long ones.

    Args:
        model_or_run: a trained model, a run, or the directory of one.
        env_id: a registered id; default the one that a run was trained on.
        episodes: how many, 1 or more.
        deterministic: the likeliest actions instead of samples.
        env_args: the environment's arguments; for a run they replace those it was trained with, one by one.
        seed: of the first episode.
        device: for the model of a run's directory.
        max_steps: steps after which an episode is stopped and counted as failed; None for the environment's limit.
        previous_action_reward: the model was trained with these in its observations; a run knows this itself.

    Returns:
        env, env_args, episodes, deterministic, seed, success (fraction, None where the environment does not say),
        success_se (its standard error over episodes), return_mean, return_std, return_se, length_mean (steps), stalled
        (episodes stopped because nothing changed any more, counted as failed), success_by (right answers by kind,
        `agents.answers.success_by`), chance (success without memory, None if not known), memory (which kind of memory
        this tests, `agents.context.describe_test`).

    Raises:
        ValueError: an unknown id or argument, a number of episodes below 1, spaces that do not fit the model.
    """
    if not isinstance(episodes, int) or episodes < 1:
        raise ValueError(f"episodes must be an integer, 1 or more; got {episodes!r}")
    if isinstance(model_or_run, str | Path):
        model_or_run = load_run(Path(model_or_run), device)
    if isinstance(model_or_run, Run):
        run = model_or_run
        previous_action_reward = run.config.previous_action_reward
        if env_id is None or env_id == run.config.env:
            env_id = run.config.env
            env_args = {**run.config.env_args, **(env_args or {})}
        model: Any = run.model
    else:
        model = model_or_run
    if env_id is None:
        raise ValueError("env_id is needed with a model; only a run directory knows its environment")
    env_args = dict(env_args or {})
    rows = min(episodes, MOST_ROWS if env_id in envs.ids() else 8)
    env = MemoryPPO._wrap_env(make_environments(env_id, rows, seed, env_args, previous_action_reward))
    try:
        check_spaces(model, env)
        played = play(model, env, episodes, deterministic, seed, max_steps)
        chance, memory = chance_level(env), describe_test(model, env)
    finally:
        env.close()
    return {
        "env": env_id,
        "env_args": env_args,
        "deterministic": deterministic,
        "seed": seed,
        **summary(played),
        "chance": chance,
        "memory": memory,
    }


def summary(played: Episodes) -> dict[str, Any]:
    """Means over episodes, ready for JSON."""
    N = len(played.returns)
    known = not np.isnan(played.successes).any()
    success = float(played.successes.mean()) if known else None
    return {
        "episodes": N,
        "success": success,
        "success_se": None if success is None else math.sqrt(success * (1 - success) / N),
        "return_mean": float(played.returns.mean()),
        "return_std": float(played.returns.std()),
        "return_se": float(played.returns.std() / math.sqrt(N)),
        "length_mean": float(played.lengths.mean()),
        "stalled": int(played.stalled.sum()),
        "success_by": success_by(played.answers),
    }


def play(
    model: Any,
    env: VecEnv,
    episodes: int,
    deterministic: bool = True,
    seed: int = EVALUATION_SEED,
    max_steps: int | None = None,
) -> Episodes:
    """Play `episodes` episodes in waves: each wave resets every row and plays one episode in each.

    Args:
        model: anything with SB3's `predict(obs, state, episode_start, deterministic)`.
        env: rows to play in; any observation wrappers included.
        episodes: how many, 1 or more.
        deterministic: the likeliest actions instead of samples.
        seed: of the first row in the first wave.
        max_steps: steps after which an episode is stopped and counted as failed; None for no limit but the
            environment's.
    """
    waves = []
    for first in range(0, episodes, env.num_envs):
        env.seed(seed + first)
        waves.append(_wave(model, env, min(env.num_envs, episodes - first), deterministic, max_steps))
    return _in_a_row(waves)


def _in_a_row(waves: list[Episodes]) -> Episodes:
    """The episodes of one wave after those of the other."""
    answers: dict[str, list[Answers]] = {}
    first = 0
    for wave in waves:
        for name, given in wave.answers.items():
            answers.setdefault(name, []).append(given._replace(episode=given.episode + first))
        first += len(wave.returns)
    return Episodes(
        np.concatenate([wave.returns for wave in waves]),
        np.concatenate([wave.lengths for wave in waves]),
        np.concatenate([wave.successes for wave in waves]),
        np.concatenate([wave.stalled for wave in waves]),
        {name: joined(parts) for name, parts in answers.items()},
    )


def _wave(model: Any, env: VecEnv, count: int, deterministic: bool, max_steps: int | None) -> Episodes:
    B = env.num_envs
    returns, lengths, successes = np.zeros(B), np.zeros(B, np.int64), np.full(B, np.nan)
    stalled = np.zeros(B, bool)
    log = AnswerLog(env)
    playing = np.arange(B) < count
    repeats = np.zeros(B, np.int64)
    obs: Any = env.reset()
    last: Any = None
    state = None
    start = np.ones(B, dtype=bool)
    while playing.any():
        actions, state = model.predict(obs, state, start, deterministic)
        repeats = np.where(_same_rows((obs, actions), last, B), repeats + 1, 0)
        last = (obs, actions)
        log.before_step()
        obs, rewards, start, infos = env.step(actions)
        log.after_step(rewards, playing)
        returns[playing] += rewards[playing]
        lengths[playing] += 1
        for row in np.flatnonzero(start & playing):
            success = infos[row].get("is_success")
            if success is not None:
                successes[row] = float(success)
        stopped = playing & ~start & (repeats >= STALL_STEPS)
        stalled[stopped] = True
        if max_steps is not None:
            stopped |= playing & ~start & (lengths >= max_steps)
        successes[stopped] = 0.0
        playing &= ~start & ~stopped
    return Episodes(returns[:count], lengths[:count], successes[:count], stalled[:count], log.answers())


def _same_rows(now: Any, before: Any, batch_size: int) -> np.ndarray:
    """[B] bool, the rows in which every leaf is what it was."""
    same = np.ones(batch_size, dtype=bool)
    if before is None:
        return ~same

    def compare(a: np.ndarray, b: np.ndarray) -> None:
        np.logical_and(same, (a == b).reshape(batch_size, -1).all(axis=1), out=same)

    tree_map(compare, now, before)
    return same


def check_spaces(model: BaseAlgorithm, env: VecEnv) -> None:
    """Refuse an environment whose spaces are not those that the model was made for."""
    for name, ours, theirs in (
        ("observation", model.observation_space, env.observation_space),
        ("action", model.action_space, env.action_space),
    ):
        if ours is not None and ours != theirs:
            raise ValueError(f"the model was made for the {name} space {ours}; the environment has {theirs}")

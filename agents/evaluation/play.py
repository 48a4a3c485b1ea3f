"""Play a fixed number of whole episodes with an agent, on seeds that training never uses."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import EVALUATION_SEED, declares, longest_wait, registered_id
from palimpsest.agents.evaluation.masked import masked
from palimpsest.agents.evaluation.success import AnswerLog, Answers, joined, success_by
from palimpsest.agents.tree import tree_map
from palimpsest.agents.workers.group import here

STALL_STEPS = 500
"""An episode has stalled after this many consecutive repeats of one observation and action, and after as many as the
environment's longest horizon. Within its horizons a task may show the same for long between an event and its use, as a
corridor without positions does; beyond them nothing will change."""

UNDECLARED_STALL_STEPS = 10_000
"""The repeats where an environment declares no horizons: a delay or a bandit shows the same for long before it ends."""


LONG = 100_000
"""Steps of one wave after which a line says that the environment may have no end."""


class Episodes(NamedTuple):
    """One entry per episode."""

    returns: np.ndarray
    """[N] float64"""
    lengths: np.ndarray
    """[N] int64, steps"""
    successes: np.ndarray
    """[N] float64, NaN where the environment does not report success."""
    stalled: np.ndarray
    """[N] bool, see `STALL_STEPS`"""
    stopped: np.ndarray
    """[N] bool, whether it was stopped before its end, stalled or not."""
    answers: dict[str, Answers]
    """Name of a breakdown (`World.breakdown`) -> answers. Empty if the environment has none."""


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
    use_masking: bool = True,
    watch: Callable[[int], None] | None = None,
) -> Episodes:
    """Play `episodes` episodes in waves: each wave resets every row and plays one episode in each.

    Args:
        model: anything with SB3's `predict(obs, state, episode_start, deterministic)`, and `action_masks` for masks.
        env: the environments, with their observation wrappers.
        episodes: number of episodes, 1 or more.
        deterministic: take the most likely actions instead of samples.
        seed: seed of the first row in the first wave.
        max_steps: steps after which an episode is stopped and counted as failed; None for the environment's limit.
        use_masking: whether the environment's action masks are used, if it has them and `predict` takes them.
        watch: called after every step with the number of episodes that have ended.
    """
    model = masked(model, env, use_masking)
    waves = []
    for first in range(0, episodes, env.num_envs):
        env.seed(seed + first)
        count = min(env.num_envs, episodes - first)
        counted = itertools.count(1)

        def ended(playing: int, before: int = first + count, steps: Iterator[int] = counted) -> None:
            if next(steps) == LONG and playing and max_steps is None:
                _say_long(env)
            if watch is not None:
                watch(before - playing)

        waves.append(_wave(model, env, count, deterministic, max_steps, ended))
    return _judged(_in_a_row(waves), env)


def _say_long(env: VecEnv) -> None:
    print(
        f"an evaluation episode of {registered_id(env) or 'this environment'} has lasted {LONG:,} steps: if it has no "
        "end, train with --wrapper time-limit=N, which ends episodes after N steps",
        file=sys.stderr,
    )


def play_together(model: Any, env: VecEnv, episodes: int, watch: Callable[[int], None] | None = None) -> Episodes:
    """Greedy episodes as `play` plays them, each worker its share of them; every worker gets all results."""
    workers = here()
    first, last = (episodes * rank // workers.size for rank in (workers.rank, workers.rank + 1))
    mine = play(model, env, last - first, seed=EVALUATION_SEED + first, watch=watch) if last > first else None
    return _judged(_in_a_row([played for played in workers.objects(mine) if played is not None]), env)


def _judged(played: Episodes, env: VecEnv) -> Episodes:
    """Where the environment reports success, an episode without a report failed: it was stopped, or a wrapper ended it.

    Our environments report success, others do if an episode had it.
    """
    reports = any(declares(env, name) for name in ("expert_success", "chance_level"))
    if np.isnan(played.successes).all() and not reports:
        return played
    return played._replace(successes=np.nan_to_num(played.successes))


def _in_a_row(waves: list[Episodes]) -> Episodes:
    """Concatenate the episodes of all waves."""
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
        np.concatenate([wave.stopped for wave in waves]),
        {name: joined(parts) for name, parts in answers.items()},
    )


def _wave(
    model: Any,
    env: VecEnv,
    count: int,
    deterministic: bool,
    max_steps: int | None,
    watch: Callable[[int], None],
) -> Episodes:
    """One episode in each of the first `count` rows. `watch` gets the number of those that are not over."""
    B = env.num_envs
    returns, lengths, successes = np.zeros(B), np.zeros(B, np.int64), np.full(B, np.nan)
    stalled, over = np.zeros(B, bool), np.zeros(B, bool)
    log = AnswerLog(env)
    playing = np.arange(B) < count
    patience = _patience(env)
    repeats = np.zeros(B, np.int64)
    obs: Any = env.reset()
    last: Any = None
    state = None
    start = np.ones(B, dtype=bool)
    while playing.any():
        actions, state = model.predict(obs, state, start, deterministic)
        repeats = np.where(_same_rows((obs, actions), last, B), repeats + 1, 0)
        last = tree_map(np.array, (obs, actions))  # an environment may write the next observations into the same arrays
        log.before_step()
        obs, rewards, start, infos = env.step(actions)
        log.after_step(rewards, playing)
        returns[playing] += rewards[playing]
        lengths[playing] += 1
        for row in np.flatnonzero(start & playing):
            success = infos[row].get("is_success")
            if success is not None:
                successes[row] = float(success)
        stopped = playing & ~start & (repeats >= patience)
        stalled[stopped] = True
        if max_steps is not None:
            stopped |= playing & ~start & (lengths >= max_steps)
        over |= stopped
        playing &= ~start & ~stopped
        watch(int(playing.sum()))
    kept = slice(count)
    return Episodes(returns[kept], lengths[kept], successes[kept], stalled[kept], over[kept], log.answers())


def _patience(env: VecEnv) -> int:
    """Consecutive repeats after which an episode has stalled."""
    wait = longest_wait(env)
    return UNDECLARED_STALL_STEPS if wait is None else max(STALL_STEPS, wait)


def _same_rows(now: Any, before: Any, batch_size: int) -> np.ndarray:
    """[B] bool, true for the rows in which no leaf has changed."""
    same = np.ones(batch_size, dtype=bool)
    if before is None:
        return ~same

    def compare(a: np.ndarray, b: np.ndarray) -> None:
        np.logical_and(same, (a == b).reshape(batch_size, -1).all(axis=1), out=same)

    tree_map(compare, now, before)
    return same


def check_spaces(model: BaseAlgorithm, env: VecEnv) -> None:
    """Refuse an environment whose spaces differ from those of the model."""
    for name, ours, theirs in (
        ("observation", model.observation_space, env.observation_space),
        ("action", model.action_space, env.action_space),
    ):
        if ours is not None and ours != theirs:
            raise ValueError(f"the model was made for the {name} space {ours}; the environment has {theirs}")

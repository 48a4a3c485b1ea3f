"""Vector environments of an id: our worlds as one batch, others as rows in this process or in one process each."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palimpsest import envs
from palimpsest.agents.environments import environment_spec
from palimpsest.agents.worlds.wrappers import wrapped
from palimpsest.refusals import MOST, check, check_integer, check_keys, choice

if TYPE_CHECKING:
    import gymnasium as gym
    from stable_baselines3.common.vec_env import VecEnv

VECS = ("dummy", "subproc", "async")
"""Rows in this process (SB3's DummyVecEnv), or in one process each: SB3's SubprocVecEnv, gymnasium's AsyncVectorEnv."""


def make_environments(
    env_id: str,
    num_envs: int,
    seed: int,
    env_args: Mapping[str, Any],
    previous_action_reward: bool = False,
    keep_observations: Sequence[int] | None = None,
    antialias: bool = False,
    fully_observed: bool = False,
    wrapper: Sequence[str] = (),
    vec: str | None = None,
    overlap: bool = False,
) -> VecEnv:
    """Rows of an environment, with what a run does to the observations.

    Args:
        env_id: a registered gymnasium id.
        num_envs: B, 1 or more.
        seed: row i is reset with seed + i.
        env_args: the environment's arguments.
        previous_action_reward: add them to the observations (`envs.joined.Joined`).
        keep_observations: the numbers of an observation that are kept (`envs.kept.Kept`); None for all.
        antialias: mark the first observation of an episode, beside the previous action (`envs.joined.Joined`).
        fully_observed: show the hidden state beside the observation (`envs.observed.Observed`).
        wrapper: names of gymnasium wrappers for each row (`agents.worlds.wrappers`), the innermost first.
        vec: one of `VECS`; None for rows in this process.
        overlap: make two halves of the rows (`envs.halves.VecHalves`), which step by turns in training.

    Raises:
        ValueError: an unknown id, an argument that does not fit, spaces that do not allow it, `antialias` without
            `previous_action_reward`, `fully_observed` with an environment that is not ours, `vec` with one that is, or
            `overlap` without processes or rows for it.
    """
    if overlap:
        return _halves(
            *(env_id, num_envs, seed, env_args, previous_action_reward, keep_observations),
            *(antialias, fully_observed, wrapper, vec),
        )
    if antialias and not previous_action_reward:
        raise ValueError("antialias marks where no previous action is; it needs previous_action_reward")
    if vec is not None:
        check("vec", vec, choice(VECS))
    from palimpsest.envs.wrappers import VecKeepObservations, VecPreviousActionReward

    if vec is not None and is_one_batch(env_id, wrapper):
        raise ValueError(
            f"vec={vec!r} is for environments of others: all rows of {env_id!r} are one batch, which is faster; leave "
            "vec out"
        )
    if wrapper or vec not in (None, "dummy"):
        venv = _rows(Row(env_id, dict(env_args), tuple(wrapper), fully_observed), num_envs, vec)
        venv.seed(seed)
    else:
        venv = envs.make_vec(env_id, num_envs, seed=seed, fully_observed=fully_observed, **env_args)
    if keep_observations is not None:
        venv = VecKeepObservations(venv, keep_observations)
    return VecPreviousActionReward(venv, antialias) if previous_action_reward else venv


def _halves(env_id: str, num_envs: int, seed: int, *others: Any) -> VecEnv:
    from palimpsest.envs.halves import VecHalves

    vec = others[-1]
    if vec not in ("subproc", "async"):
        raise ValueError(
            f"overlap needs environments in other processes, vec 'subproc' or 'async'; got vec={vec!r}: rows in this "
            "process cannot step while the policy acts"
        )
    if num_envs < 2:
        raise ValueError(f"overlap needs two environments or more in each worker; got {num_envs}")
    border = (num_envs + 1) // 2
    first = make_environments(env_id, border, seed, *others)
    try:
        return VecHalves(first, make_environments(env_id, num_envs - border, seed + border, *others))
    except BaseException:
        first.close()
        raise


def close_all(*pools: VecEnv | None) -> None:
    """Close environments, all of them whatever one raises: what has failed was told where it failed."""
    for pool in pools:
        if pool is not None:
            with contextlib.suppress(Exception):
                pool.close()


def is_one_batch(env_id: str, wrapper: Sequence[str] = ()) -> bool:
    """Whether the rows are one batched world of ours, which has no single environments to wrap."""
    return env_id.rpartition(":")[2] in envs.ids() and not wrapper


def most_rows(env_id: str, wrapper: Sequence[str], vec: str | None, batch: int, others: int, processes: int) -> int:
    """The rows to play episodes in: `batch` of a batched world, `others` in this process, or `processes`."""
    if is_one_batch(env_id, wrapper):
        return batch
    return processes if vec in ("subproc", "async") else others


@dataclass(frozen=True)
class Row:
    """Makes one environment. It can be sent to another process, which imports the modules that it names."""

    env_id: str
    env_args: dict[str, Any]
    wrapper: tuple[str, ...]
    fully_observed: bool
    monitored: bool = True
    """Whether it keeps the statistics of its episodes itself."""
    parent: int | None = None
    """The process that ends the row's process, if it has one of its own. Ctrl-C in a terminal and a scheduler's
    SIGTERM, which reach all processes, are then the parent's alone."""

    def __call__(self) -> gym.Env:
        """The environment in its wrappers, without text keys."""
        if self.parent not in (None, os.getpid()):
            from palimpsest.envs.workers import leave_signals_to_parent

            leave_signals_to_parent()
        from stable_baselines3.common.monitor import Monitor

        from palimpsest.envs.declared import Hiding, undone
        from palimpsest.envs.made import made
        from palimpsest.envs.text import DropText, check_storable, has_text
        from palimpsest.envs.wrappers import FullyObserved

        environment_spec(self.env_id)  # imports its module, or says that there is none
        env = made(self.env_id, self.env_args)
        env = wrapped(FullyObserved(env) if self.fully_observed else env, self.wrapper)
        if has_text(env.observation_space):
            env = DropText(env)
        check_storable(env.observation_space)
        return Monitor(env) if self.monitored else Hiding(env, undone(env))


def _rows(row: Row, num_envs: int, vec: str | None) -> VecEnv:
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from palimpsest.envs.sb3 import VectorEnvAdaptor
    from palimpsest.envs.workers import kill_at_once

    check_integer("num_envs", num_envs, 1, MOST)
    _check_arguments(row)
    if vec in ("subproc", "async") and "forkserver" in multiprocessing.get_all_start_methods():
        # these are imported once, not in each process
        used = (SubprocVecEnv if vec == "subproc" else AsyncVectorEnv).__module__
        multiprocessing.set_forkserver_preload(["palimpsest.fork_server", used, "gymnasium.envs"])
    if vec == "async":
        row().close()  # what does not fit is said here; a worker would only die of it
        one = dataclasses.replace(row, monitored=False, parent=os.getpid())
        pool = AsyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        kill_at_once(pool)
        return VectorEnvAdaptor(pool)
    if vec == "subproc":
        row().close()  # what does not fit is said here; a worker would only die of it
        try:
            workers = SubprocVecEnv([dataclasses.replace(row, parent=os.getpid())] * num_envs)
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(
                f"a process of {row.env_id!r} ended as it began, as said above; try vec='dummy', which needs none"
            ) from error
        kill_at_once(workers)
        return workers
    return DummyVecEnv([row] * num_envs)


def _check_arguments(row: Row) -> None:
    from gymnasium.envs.registration import load_env_creator

    creator = environment_spec(row.env_id).entry_point
    if creator is not None:
        check_keys(row.env_id, row.env_args, load_env_creator(creator) if isinstance(creator, str) else creator)

"""Speed of the environments: the bare kernel, each interface, and the same rules in plain Python.

    python benchmarks/env_speed.py --quick
    python benchmarks/env_speed.py --out docs/env_speed.md

All contestants of a family play random actions in the same process. They take turns of about a millisecond, so that
noise affects all alike. The clock is the thread's CPU time, which other programs do not change. Ends and resets of
episodes are timed; compiling is not. Rows start at different steps of their episodes, so that episodes of equal length
do not all end in the same step. The plain environments of POPGym's worlds, the package popgym, are also timed in
gymnasium's SyncVectorEnv.
"""

from __future__ import annotations

import csv
import functools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from measure import markdown
from plain import PLAIN

from palimpsest import envs
from palimpsest.agents.files.versions import versions
from palimpsest.envs.actions import random_actions
from palimpsest.envs.core import World
from palimpsest.envs.kernels import STEP_AND_RESTART
from palimpsest.envs.registration import entry

Play = Callable[[int], int]
"""Plays a number of steps in all rows and returns the number of rows."""

COLUMNS = ("environment", "contestant", "rows", "million steps/s", "of the kernel", "times plain")


@dataclass(frozen=True)
class Family:
    """An id to time."""

    id: str
    plain: Callable[[], gym.Env]
    """Makes a single environment with the same rules in plain Python."""


def plain(env_id: str) -> Callable[[], gym.Env]:
    """A function that makes a single environment with the same rules in plain Python; for MiniGrid, its own package."""
    line = entry(env_id)
    rules = line.target.partition(":")[2]
    if rules not in PLAIN:
        raise ValueError(f"{env_id} has no plain Python environment to compare with; add {rules!r} to PLAIN")
    return functools.partial(PLAIN[rules], **line.presets)


FAMILIES = tuple(Family(env_id, plain(env_id)) for env_id in envs.ids())


@dataclass(frozen=True)
class Options:
    """Time the environments."""

    quick: bool = False
    """Fewer repeats."""
    rows: int = 1024
    """Rows of the kernel and of the VectorEnv."""
    sb3_rows: int = 64
    """Rows of SB3's VecEnv."""
    only: tuple[str, ...] = ()
    """Time only ids that contain one of these texts; none for all."""
    out: Path | None = None
    """A Markdown file to write as well; the figures also go to a CSV file of the same name."""


def actions(world: World, rows: int) -> np.ndarray:
    """[64, rows, ...] random actions, drawn before the timing."""
    return random_actions(world.action_space, np.random.default_rng(0), 64, rows)


def staggered(world: World, rows: int) -> dict[str, np.ndarray]:
    """A hidden state in which row i has played i mod 97 random steps."""
    script = actions(world, rows)
    world.begin(np.ones(rows, bool), list(range(rows)), lambda: world.np_random, None)
    mixed = world.hidden_state()
    for steps in range(1, 97):
        world.io.action[:] = script[steps & 63]
        world.run(STEP_AND_RESTART)
        for name, array in world.hidden_state().items():
            mixed[name][steps::97] = array[steps::97]
    return mixed


def kernel(family: Family, rows: int) -> Play:
    """Only the compiled code: actions are copied in, results stay in the kernel's arrays."""
    world = gym.make(family.id).unwrapped
    assert isinstance(world, World)
    world.allocate(rows)
    options = {"hidden_state": staggered(world, rows)}
    world.begin(np.ones(rows, bool), [None] * rows, lambda: world.np_random, options)
    io, script = world.io, actions(world, rows)

    def play(steps: int) -> int:
        for k in range(steps):
            io.action[:] = script[k & 63]
            world.run(STEP_AND_RESTART)
        return rows

    return play


def vector(family: Family, rows: int) -> Play:
    """The interface of gymnasium's VectorEnv."""
    env = gym.make_vec(family.id, rows, vectorization_mode="vector_entry_point")
    world = env.unwrapped.world  # type: ignore[attr-defined]
    env.reset(options={"hidden_state": staggered(world, rows)})
    script = actions(world, rows)

    def play(steps: int) -> int:
        for k in range(steps):
            env.step(script[k & 63])
        return rows

    return play


def sb3(family: Family, rows: int) -> Play:
    """The interface of SB3's VecEnv, with episode statistics."""
    env = envs.make_vec(family.id, rows, seed=0)
    world: World = env.world  # type: ignore[attr-defined]
    env.set_options({"hidden_state": staggered(world, rows)})
    env.reset()
    script = actions(world, rows)

    def play(steps: int) -> int:
        for k in range(steps):
            env.step(script[k & 63])
        return rows

    return play


def single(make: Callable[[], gym.Env]) -> Play:
    """A single gymnasium environment, reset at the end of every episode."""
    env = make()
    env.reset(seed=0)
    drawn = random_actions(env.action_space, np.random.default_rng(0), 4096)
    script = drawn.tolist() if drawn.ndim == 1 else list(drawn)
    at = 0

    def play(steps: int) -> int:
        nonlocal at
        for _ in range(steps):
            at = (at + 1) & 4095
            _, _, terminated, truncated, _ = env.step(script[at])
            if terminated or truncated:
                env.reset()
        return 1

    return play


def synchronous(make: Callable[[], gym.Env], rows: int) -> Play:
    """Single environments in gymnasium's SyncVectorEnv. Their resets fall in few steps, which the median leaves out."""
    env = SyncVectorEnv([make] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    script = random_actions(env.single_action_space, np.random.default_rng(0), 64, rows)

    def play(steps: int) -> int:
        for k in range(steps):
            env.step(script[k & 63])
        return rows

    return play


def side_by_side(contestants: dict[str, Play], repeats: int, chunk: float = 1e-3) -> dict[str, tuple[int, float]]:
    """Number of rows and median steps per second, over all rows, of each contestant after a warm-up.

    A contestant whose step takes longer than a turn plays in some of the turns only.
    """
    lengths: dict[str, int] = {}
    every: dict[str, int] = {}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    rows = {name: play(64) for name, play in contestants.items()}
    for name, play in contestants.items():
        began = time.thread_time()
        play(64)
        steps = 64 * chunk / (time.thread_time() - began)
        lengths[name], every[name] = max(1, round(steps)), max(1, round(1 / steps))
    for turn in range(repeats):
        for name, play in contestants.items():
            if turn % every[name]:
                continue
            began = time.thread_time()
            play(lengths[name])
            rates[name].append(rows[name] * lengths[name] / (time.thread_time() - began))
    return {name: (rows[name], statistics.median(found)) for name, found in rates.items()}


def measure(family: Family, options: Options) -> list[dict[str, Any]]:
    """The lines of the table for one family."""
    contestants = {
        "kernel": kernel(family, options.rows),
        "gymnasium VectorEnv": vector(family, options.rows),
        "SB3 VecEnv": sb3(family, options.sb3_rows),
        "gymnasium Env": single(lambda: gym.make(family.id)),
        "plain Python Env": single(family.plain),
    }
    if "/POPGym-" in family.id:
        contestants["plain SyncVectorEnv"] = synchronous(family.plain, options.rows)
    found = side_by_side(contestants, 100 if options.quick else 2000)
    bare = found["kernel"][1]
    plain = found["plain Python Env"][1]
    return [
        dict(zip(COLUMNS, (family.id, name, rows, rate / 1e6, rate / bare, rate / plain)))
        for name, (rows, rate) in found.items()
    ]


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    shown = {"million steps/s": "{:.3g}", "of the kernel": "{:.2%}", "times plain": "{:.3g}"}
    cells = [[shown.get(c, "{}").format(line[c]) for c in COLUMNS] for line in lines]
    return markdown(list(COLUMNS), cells)


def main(options: Options) -> None:
    """Measure, print, and save if `out` is given."""
    chosen = [f for f in FAMILIES if not options.only or any(part in f.id for part in options.only)]
    if not chosen:
        raise ValueError(f"no environment matches {options.only}; known: {', '.join(f.id for f in FAMILIES)}")
    lines = [line for family in chosen for line in measure(family, options)]
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    told = versions()
    origin = (
        f"Random actions; medians of {100 if options.quick else 2000} turns of about 1 ms each, in one process. "
        f"{told['machine']}, {os.cpu_count()} CPUs{load}; Python {told['python']}, numba {told.get('numba', '?')}, "
        f"gymnasium {told.get('gymnasium', '?')}; commit {told['commit']}."
    )
    text = f"# Speed of the environments\n\n{table(lines)}\n\n{origin}\n"
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
        with options.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

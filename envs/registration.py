"""Ids of environments. gymnasium, `make_vec`, the command line, the tests and the docs read this one list.

Registering and listing import no compiled code. A family's module is imported when an environment is made.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from palimpsest.imports import imported
from palimpsest.refusals import MOST, check_flag, check_integer, check_keys, closest

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


@dataclass(frozen=True)
class Entry:
    """The registry's entry for one id."""

    target: str
    """The family, as "module:Class"."""
    meaning: str
    """One sentence on the task."""
    presets: dict[str, Any]
    """The id's default arguments for the family."""


_ENTRIES: dict[str, Entry] = {}


def register(id: str, target: str, meaning: str, **presets: Any) -> None:
    """Register an id for a subclass of `World`.

    Args:
        id: "Palimpsest/Name-v0".
        target: "module:Class"; the class is a subclass of `envs.core.World`.
        meaning: one sentence on the task, for lists.
        **presets: default arguments of the class under this id.

    Raises:
        ValueError: the id is taken, or the target is not of the form "module:Class".
    """
    if id in _ENTRIES:
        raise ValueError(f"environment {id!r} is already {_ENTRIES[id].target}; choose another id")
    if target.count(":") != 1:
        raise ValueError(f'target must read "module:Class"; got {target!r}')
    _ENTRIES[id] = Entry(target, meaning, presets)
    gym.register(
        id,
        entry_point=target,
        vector_entry_point=f"palimpsest.envs.vector:{target.partition(':')[2]}",
        kwargs=presets,
        order_enforce=False,  # `World.step` itself refuses a step before reset
        disable_env_checker=True,  # the tests run the full checker; here it would slow down every step
    )


def ids() -> list[str]:
    """Our registered ids, in the order of registration."""
    return list(_ENTRIES)


def entry(id: str) -> Entry:
    """The registry's entry for one of our ids; for an unknown id a ValueError that names the closest one."""
    if id not in _ENTRIES:
        raise ValueError(f"unknown environment {id!r}{closest(id, _ENTRIES)}; envs.ids() lists all of ours")
    return _ENTRIES[id]


def describe(id: str) -> str:
    """One sentence on the task."""
    return entry(id).meaning


def families() -> dict[str, Callable[[], Any]]:
    """Class name -> a function that imports and returns the class, for every registered family."""
    return {e.target.partition(":")[2]: functools.partial(_load, e.target) for e in _ENTRIES.values()}


def family(id: str) -> Any:
    """The class behind one of our ids, imported now."""
    return _load(entry(id).target)


def make_vec(
    id: str, num_envs: int = 1, seed: int | None = None, fully_observed: bool = False, **kwargs: Any
) -> VecEnv:
    """Make an SB3 VecEnv of `num_envs` rows, with episode statistics in its infos.

    One of our ids gives a `World` of B rows (`envs.sb3.WorldVecEnv`). Any other registered gymnasium id gives SB3's
    DummyVecEnv, with one `gym.make` per row, each wrapped in a Monitor.

    Args:
        id: a registered gymnasium id; "module:id" imports the module first.
        num_envs: B, 1 or more.
        seed: row i is reset with seed + i; None for random seeds.
        fully_observed: show the hidden state beside the observation (`envs.observed.Observed`); only with our ids.
        **kwargs: arguments of the environment, `render_mode` included.

    Raises:
        ValueError: an unknown id or argument (the message names the closest known one), a value out of range, or
            `fully_observed` with an environment that is not ours.
    """
    if not isinstance(id, str):
        raise ValueError(f"an environment's id must be a string; got {id!r}")
    check_integer("num_envs", num_envs, 1, MOST)
    if seed is not None:
        check_integer("seed", seed, 0, 2**63 - 1)
    if ":" in id:
        id = imported(id, "environment")[1]
    if id in _ENTRIES:
        cls = family(id)
        check_keys(id, kwargs, cls)
        if check_flag("fully_observed", fully_observed):
            from palimpsest.envs.sb3_wrappers import FullyObservedVecEnv as Rows
        else:
            from palimpsest.envs.sb3 import WorldVecEnv as Rows  # type: ignore[assignment]

        venv: VecEnv = Rows(cls, num_envs, spec=gym.spec(id), **{**_ENTRIES[id].presets, **kwargs})
    else:
        import_owner(id)
        spec = gym.registry.get(id)
        if spec is None:
            known = [*_ENTRIES, *gym.registry]
            raise ValueError(f"unknown environment {id!r}{closest(id, known)}; envs.ids() lists all of ours")
        creator: Any = spec.entry_point
        check_keys(id, kwargs, _load(creator) if isinstance(creator, str) else creator)
        if check_flag("fully_observed", fully_observed):
            raise ValueError(
                f"fully_observed needs a hidden state, which only environments of envs.ids() have; got {id!r}"
            )
        from palimpsest.envs.sb3 import dummy_vec_env

        venv = dummy_vec_env(id, num_envs, kwargs)
    if seed is not None:
        venv.seed(seed)
    return venv


def import_owner(id: str) -> None:
    """Import minigrid if the id is one of its own: the import registers them. minigrid is a dependency of ours."""
    if id.startswith(("MiniGrid-", "BabyAI-")):
        importlib.import_module("minigrid")


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


register(
    "Palimpsest/EndlessTMaze-v0",
    "palimpsest.envs.endless_tmaze:EndlessTMaze",
    "A chain of corridors; each cue says where to turn next and replaces the last one.",
)

for _size, _random in ((7, False), (9, False), (11, False), (13, False), (13, True), (17, True)):
    register(
        f"Palimpsest/MiniGridMemory-S{_size}{'Random' if _random else ''}-v0",
        "palimpsest.envs.minigrid_memory:MiniGridMemory",
        "MiniGrid's Memory maze: an object in the first room says which way to turn at the hallway's end.",
        size=_size,
        random_length=_random,
    )
for _size in (9, 11):
    register(
        f"Palimpsest/MiniGridMemory-S{_size}-View3-v0",
        "palimpsest.envs.minigrid_memory:MiniGridMemory",
        "MiniGrid's Memory maze as in published results, seen in views of 3 × 3 cells.",
        size=_size,
        view_size=3,
    )

register(
    "Palimpsest/MiniGridMemoryRewrite-v0",
    "palimpsest.envs.minigrid_rewrite:MiniGridMemoryRewrite",
    "A MiniGrid hallway in which the cue is replaced on the way; only the last one says where to turn.",
)
# The same rules on the package minigrid, imported when the environment is made. It is no `World`, so it is not in
# `ids()`.
gym.register("Palimpsest/MiniGridMemoryRewrite-MiniGrid-v0", "palimpsest.envs.minigrid_rewrite_env:MemoryRewriteEnv")

register(
    "Palimpsest/TMaze-v0",
    "palimpsest.envs.endless_tmaze:EndlessTMaze",
    "One corridor: the cue at its start says where to turn at its end.",
    corridors=1,
)
register(
    "Palimpsest/ActiveTMaze-v0",
    "palimpsest.envs.tmaze:ActiveTMaze",
    "One corridor; only an oracle behind the start shows the cue, so the player must go there first.",
)
for _task, _kinds, _meaning in (
    ("invert", "invert", "swap the cue"),
    ("cancel", "invert invert reset cancel cancel", "swap or replace the cue, or undo the last change"),
    ("reset", "reset", "show a new cue that replaces the old one"),
    ("repeat", "invert invert reset repeat repeat", "swap or replace the cue, or repeat the last change"),
    ("mixed", "invert invert reset repeat repeat cancel cancel", "swap or replace the cue, or undo or repeat a change"),
):
    register(
        f"Palimpsest/RuneTMaze-{_task}-v0",
        "palimpsest.envs.rune_tmaze:RuneTMaze",
        f"A T-Maze in which runes on the way {_meaning}.",
        kinds=_kinds.split(),
    )
register(
    "Palimpsest/RuneMultiCorridor-v0",
    "palimpsest.envs.rune_corridors:RuneMultiCorridor",
    "A corridor with four branches at its end, in which runes on the way rotate or replace the cue, undo or repeat.",
)

register(
    "Palimpsest/HideAndSeek-v0",
    "palimpsest.envs.hide_and_seek:HideAndSeek",
    "The player sees objects put into boxes in several rooms and some moved; then it must say where one is.",
)
register(
    "Palimpsest/RoomBallet-ShortStay-v0",
    "palimpsest.envs.room_ballet:RoomBalletShortStay",
    "A walk through 25 rooms with a dancer in each; then the player must name the dance of one room.",
)
register(
    "Palimpsest/RoomBallet-MultiTask-v0",
    "palimpsest.envs.room_ballet_tasks:RoomBalletMultiTask",
    "Eighteen dances in eight rooms; a memory of nine entries must drop some, and each task needs another choice.",
)

for _name, _presets in (
    ("Trivial", dict(grid=5, cubes=1, phases=1, teleport=0.0, hide_colours=False)),
    ("Medium", dict(grid=5, cubes=3, phases=3, teleport=0.05, hide_colours=False)),
    ("Extreme", dict(grid=5, cubes=3, phases=3, teleport=0.05, hide_colours=True)),
    ("Extreme-L", dict(grid=7, cubes=5, phases=10, teleport=0.1, hide_colours=True)),
    ("Extreme-XL", dict(grid=10, cubes=8, phases=20, teleport=0.1, hide_colours=True)),
):
    register(
        f"Palimpsest/ColorCubes-{_name}-v0",
        "palimpsest.envs.color_cubes:ColorCubes",
        "Coloured cubes are shown once, then hidden; the player goes to one colour after another while cubes teleport.",
        **_presets,
    )
register(
    "Palimpsest/KeyValueRewrite-v0",
    "palimpsest.envs.key_value:KeyValueRewrite",
    "Keys get new values again and again; the player must say the last value of a key when asked.",
)
for _name, _module, _meaning in (
    ("CartPole", "cart_pole", "Balance a pole on a cart, seeing positions and no velocities."),
    ("Pendulum", "pendulum", "Swing a rod up and hold it there, seeing its angle and not its velocity."),
    ("MountainCarContinuous", "mountain_car", "Rock a weak car out of a valley, seeing its position and no velocity."),
):
    register(f"Palimpsest/{_name}NoVel-v0", f"palimpsest.envs.{_module}:{_name}NoVel", _meaning)
_STEPS, _NOISE = [dict(limit=n) for n in (200, 400, 600)], [dict(noise=sigma) for sigma in (0.1, 0.2, 0.3)]
_CONTROL: tuple[tuple[str, str, str, list[dict[str, Any]]], ...] = (
    ("PositionOnlyCartPole", "CartPole", "Balance a pole on a cart, seeing positions alone.", _STEPS),
    (
        "VelocityOnlyCartPole",
        "CartPole",
        "Balance a pole on a cart, seeing velocities alone.",
        [dict(seen="velocity", **steps) for steps in _STEPS],
    ),
    ("NoisyPositionOnlyCartPole", "CartPole", "Balance a pole on a cart, seeing positions through noise.", _NOISE),
    (
        "PositionOnlyPendulum",
        "Pendulum",
        "Swing a rod up and hold it there, seeing its angle alone.",
        [dict(limit=n) for n in (200, 150, 100)],
    ),
    ("NoisyPositionOnlyPendulum", "Pendulum", "Swing a rod up and hold it, seeing its angle through noise.", _NOISE),
)
for _game, _family, _meaning, _levels in _CONTROL:
    for _level, _presets in zip(("Easy", "Medium", "Hard"), _levels, strict=True):
        register(
            f"Palimpsest/POPGym-{_game}-{_level}-v0",
            f"palimpsest.envs.popgym.control:POPGym{_family}",
            _meaning,
            **_presets,
        )
for _level, _arms in (("Easy", 10), ("Medium", 20), ("Hard", 30)):
    register(
        f"Palimpsest/POPGym-MultiarmedBandit-{_level}-v0",
        "palimpsest.envs.popgym.multiarmed_bandit:MultiarmedBandit",
        "Find the arm of a bandit that pays most often, seeing only whether the last pull paid.",
        num_bandits=_arms,
        episode_length=20 * _arms,
    )
register(
    "Palimpsest/Bandit-v0",
    "palimpsest.envs.bandit:Bandit",
    "Find the arm of a bandit that pays most often, and pull it; each episode has new arms.",
)
for _dancers in (2, 4, 8):
    for _delay in (16, 48):
        register(
            f"Palimpsest/Ballet-{_dancers}-{_delay}-v0",
            "palimpsest.envs.ballet:Ballet",
            f"{_dancers} dancers perform with {_delay} steps between; then the player must walk to one dance's dancer.",
            dancers=_dancers,
            delay=_delay,
        )

_GAMES: tuple[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
    (
        "repeat:RepeatPrevious",
        "Cards are dealt one by one; the player must name the suit of the card k inputs ago.",
        dict(num_decks=1, k=4),
        dict(num_decks=2, k=32),
        dict(num_decks=3, k=64),
    ),
    (
        "repeat:RepeatFirst",
        "Cards are dealt one by one; the player must name the suit of the first one again and again.",
        dict(num_decks=1),
        dict(num_decks=8),
        dict(num_decks=16),
    ),
    (
        "repeat:Autoencode",
        "A deck of cards is shown one by one; then the player must name all suits backwards.",
        dict(num_decks=1),
        dict(num_decks=2),
        dict(num_decks=3),
    ),
    (
        "counting:CountRecall",
        "Cards are dealt one by one; the player must say how many of one kind it has seen so far.",
        dict(num_decks=1, deck_type="colors"),
        dict(num_decks=2, deck_type="suits"),
        dict(num_decks=4, deck_type="ranks"),
    ),
    (
        "counting:HigherLower",
        "Cards are dealt one by one; the player bets on the next one to be higher or lower, and gains by counting.",
        dict(num_decks=1),
        dict(num_decks=2),
        dict(num_decks=3),
    ),
    (
        "concentration:Concentration",
        "All cards lie face down; the player turns over two at a time, and two equal ones stay face up.",
        dict(num_decks=1, deck_type="colors"),
        dict(num_decks=2, deck_type="colors"),
        dict(num_decks=1, deck_type="ranks"),
    ),
    (
        "battleship:Battleship",
        "Four ships lie hidden on a board; the player shoots at cells and learns of each shot whether it hit.",
        dict(board_size=8),
        dict(board_size=10),
        dict(board_size=12),
    ),
    (
        "minesweeper:MineSweeper",
        "Mines lie hidden on a board; the player views cells and learns of each how many mines lie around it.",
        dict(board_size=4, num_mines=2),
        dict(board_size=6, num_mines=6),
        dict(board_size=8, num_mines=10),
    ),
    (
        "labyrinth:LabyrinthEscape",
        "The player must find the exit of a random maze, seeing only the squares around it.",
        dict(maze_size=10),
        dict(maze_size=14),
        dict(maze_size=18),
    ),
    (
        "labyrinth:LabyrinthExplore",
        "The player must visit all squares of a random maze, seeing only the squares around it.",
        dict(maze_size=10),
        dict(maze_size=14),
        dict(maze_size=18),
    ),
)
for _game, _meaning, *_levels in _GAMES:
    for _level, _arguments in zip(("Easy", "Medium", "Hard"), _levels):
        register(
            f"Palimpsest/POPGym-{_game.partition(':')[2]}-{_level}-v0",
            f"palimpsest.envs.popgym.{_game}",
            _meaning,
            **_arguments,
        )

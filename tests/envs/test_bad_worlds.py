"""Every argument of every environment, and what it must refuse on every face.

The rows are written down here and compared with the signatures, so that an argument without a row fails a test.
"""

from __future__ import annotations

import inspect

import gymnasium as gym
import pytest
from bad_values import (
    CHOICE,
    COUNT,
    FLAG,
    FRACTION,
    NO_VALUES,
    NOISE,
    RENDER,
    SIZE,
    TEXTS,
    assert_refused,
    label,
    without,
)

from palimpsest import envs
from palimpsest.envs.registration import families

pytestmark = pytest.mark.usefixtures("empty_directory")


WORLDS: dict[str, dict[str, list]] = {
    "EndlessTMaze": {
        "corridors": SIZE,
        "length": SIZE,
        "regime": [None, *CHOICE],
        "normalise_by": [None, *CHOICE],
        "position": [None, *CHOICE],
    },
    "MiniGridMemory": {"size": [*SIZE, 8, 5], "random_length": FLAG, "view_size": [*SIZE, 1, 4, 9]},
    "MiniGridMemoryRewrite": {
        "replacements": COUNT,
        "length": SIZE,
        "random_length": FLAG,
        "view_size": [*SIZE, 1, 4, 9],
    },
    "ActiveTMaze": {"length": SIZE},
    "RuneTMaze": {
        "length": [*SIZE, 8],
        "runes": SIZE,
        "kinds": [None, *TEXTS, object, 1, 1.5, [], ["x"], [1], [None], ("repeat",), ["invert"] * 17, {"a": 1}, b"1"],
        "corridors": SIZE,
    },
    "RuneMultiCorridor": {
        "length": [*SIZE, 8],
        "runes": SIZE,
        "kinds": [None, *TEXTS, object, 1, 1.5, [], ["x"], [1], [None], ("repeat",), ["rotate"] * 17, {"a": 1}, b"1"],
        "corridors": SIZE,
    },
    "HideAndSeek": {"rooms": SIZE, "boxes": SIZE, "objects": [*SIZE, 16], "moves": COUNT},
    "RoomBalletShortStay": {"views": SIZE, "dances": [*SIZE, 1], "side": [*SIZE, 1]},
    "RoomBalletMultiTask": {"dances": [*SIZE, 1], "task": [None, *CHOICE]},
    "ColorCubes": {
        "grid": [*SIZE, 1],
        "cubes": [*SIZE, 24],
        "phases": SIZE,
        "teleport": FRACTION,
        "hide_colours": FLAG,
    },
    "KeyValueRewrite": {"keys": SIZE, "values": [*SIZE, 1], "updates": SIZE, "queries": COUNT},
    **{f"{name}NoVel": {"velocities": FLAG} for name in ("CartPole", "Pendulum", "MountainCarContinuous")},
    "POPGymCartPole": {"seen": [None, *CHOICE], "limit": SIZE, "noise": NOISE},
    "POPGymPendulum": {"limit": [*SIZE, 19], "noise": NOISE},
    "Bandit": {"num_arms": [*SIZE, 1], "pulls": [*SIZE, 601]},
    "MultiarmedBandit": {"num_bandits": [*SIZE, 1], "episode_length": [*SIZE, 601], "flat": FLAG},
    "Ballet": {"dancers": [*SIZE, 1, 9], "delay": COUNT, "pixels": FLAG},
    "RepeatPrevious": {"num_decks": SIZE, "k": [*SIZE, 52], "flat": FLAG},
    "RepeatFirst": {"num_decks": SIZE, "flat": FLAG},
    "Autoencode": {"num_decks": SIZE, "flat": FLAG},
    "CountRecall": {"num_decks": SIZE, "deck_type": [None, *CHOICE], "flat": FLAG},
    "HigherLower": {"num_decks": SIZE, "flat": FLAG},
    "Battleship": {"board_size": [*SIZE, 5, 21], "flat": FLAG},
    "MineSweeper": {"board_size": [*SIZE, 2, 9], "num_mines": [*SIZE, 14], "flat": FLAG},
    "LabyrinthEscape": {"maze_size": [*SIZE, 4, 7, 42], "episode_length": [*SIZE, 1], "flat": FLAG},
    "LabyrinthExplore": {"maze_size": [*SIZE, 4, 7, 42], "episode_length": [*SIZE, 1], "flat": FLAG},
    "Concentration": {"num_decks": SIZE, "deck_type": [None, *CHOICE], "flat": FLAG},
}
for rows in WORLDS.values():
    rows["render_mode"] = RENDER


def test_every_argument_of_every_environment_has_a_row():
    assert set(WORLDS) == set(families())
    for name, rows in WORLDS.items():
        assert set(rows) == set(inspect.signature(families()[name]()).parameters), name


@pytest.mark.parametrize(("name", "argument"), [(name, key) for name, rows in WORLDS.items() for key in rows])
def test_environments_refuse_on_every_face(name, argument, tmp_path):
    id = next(id for id in envs.ids() if envs.entry(id).target.endswith(f":{name}"))
    for value in WORLDS[name][argument]:
        given = {argument: value}
        shown = argument.removesuffix("s")  # a member of `kinds` is called "each of kinds"
        assert_refused(lambda g=given: envs.family(id)(**g), shown, value, tmp_path)
        assert_refused(lambda g=given: envs.make_vec(id, 2, **g), shown, value, tmp_path)
    if argument != "render_mode":  # gymnasium warns of a wrong one itself, then passes it on
        assert_refused(lambda: gym.make(id, **given), shown, value, tmp_path)
        assert_refused(lambda: gym.make_vec(id, 2, **given), shown, value, tmp_path)


@pytest.mark.parametrize("id", [None, *TEXTS, *NO_VALUES, 3, "Palimpsest/", ":", "os:x", "x:", ":x"], ids=label)
def test_what_is_no_environments_id(id, tmp_path):
    assert_refused(lambda: envs.make_vec(id, 2), "environment|import", id, tmp_path)


@pytest.mark.parametrize(("argument", "values"), [("num_envs", SIZE), ("seed", without([*COUNT, 2**63], None, 2**31))])
def test_environments_are_counted_and_seeded_by_integers(argument, values, tmp_path):
    for value in values:
        assert_refused(lambda v=value: envs.make_vec(envs.ids()[0], **{argument: v}), argument, value, tmp_path)

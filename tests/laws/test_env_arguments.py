"""Arguments of every family, over their whole ranges: what is allowed plays, what is not is refused before it is built.

A family or an argument without a row in `FAMILIES` fails.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from faces import any_actions, mixed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legality import broken

from palimpsest import envs
from palimpsest.envs.core import World
from palimpsest.envs.room_ballet_tasks import TASKS
from palimpsest.envs.runes import KINDS

NO_INTEGER = [True, None, 1.0, math.nan, math.inf, "3", "", [3], {}, np.float64(2), 1j]
NO_FRACTION = [-1e-9, 1.0000001, math.nan, math.inf, -math.inf, True, None, "0.5", [0.5], 10**400]
NO_BOOL = [0, 1, None, "yes", "", 1.0, [True]]
NO_NAME = ["", "no such name", "Fixed\n", None, 3, True, ("fixed",), math.nan]


def integer(low: int, high: int) -> st.SearchStrategy:
    """What is no integer from `low` to `high`."""
    return st.sampled_from([*NO_INTEGER, low - 1, high + 1, -(10**30), 10**30]) | st.integers(max_value=low - 1)


BOOL, FRACTION, NAME = map(st.sampled_from, (NO_BOOL, NO_FRACTION, NO_NAME))
NO_KINDS = [None, "invert", [], (), ["invert"] * 17, {"invert"}, 3, ["cancel"], ["repeat", "cancel"]]

Wrong = dict[str, st.SearchStrategy]
FAMILIES: dict[str, tuple[Callable[..., st.SearchStrategy], Callable[[dict[str, Any]], Wrong]]] = {}
"""Family -> what may be given; what of each argument may not be given beside such others."""


def family(wrong: Callable[[dict[str, Any]], Wrong]) -> Callable:
    """Enter a strategy of keyword arguments under its name, beside what is wrong."""

    def enter(strategy: Callable) -> Callable:
        FAMILIES[strategy.__name__] = st.composite(strategy), wrong
        return strategy

    return enter


@family(
    lambda given: dict(
        corridors=integer(1, 10**6), length=integer(1, 10**6), regime=NAME, normalise_by=NAME, position=NAME
    )
)
def EndlessTMaze(draw):
    return dict(
        corridors=draw(st.integers(1, 10**6)),
        length=draw(st.integers(1, 10**6)),
        regime=draw(st.sampled_from(["fixed", "uniform"])),
        normalise_by=draw(st.sampled_from(["l_max", "length"])),
        position=draw(st.sampled_from(["shown", "none"])),
    )


@family(lambda given: dict(length=integer(1, 10**6)))
def ActiveTMaze(draw):
    return dict(length=draw(st.integers(1, 10**6)))


def runes(draw, names):
    most = draw(st.integers(2, 1000))
    kinds = draw(st.lists(st.sampled_from(names), min_size=1, max_size=15))
    return dict(
        runes=most,
        length=draw(st.integers(most + 1, 10**4)),
        corridors=draw(st.integers(1, 10**6)),
        kinds=[*kinds, draw(st.sampled_from([names[0], "reset"]))],
    )


def wrong_runes(given):
    return dict(
        runes=integer(2, 1000),
        length=integer(given["runes"] + 1, 10**6),
        corridors=integer(1, 10**6),
        kinds=st.sampled_from(NO_KINDS),
    )


@family(wrong_runes)
def RuneTMaze(draw):
    return runes(draw, KINDS)


@family(wrong_runes)
def RuneMultiCorridor(draw):
    return runes(draw, ("rotate", *KINDS[1:]))


@family(
    lambda given: dict(
        grid=integer(2, 20),
        cubes=integer(1, min(26, given["grid"] ** 2 - 2)),
        phases=integer(1, 1000),
        teleport=FRACTION,
        hide_colours=BOOL,
    )
)
def ColorCubes(draw):
    grid = draw(st.integers(2, 20))
    return dict(
        grid=grid,
        cubes=draw(st.integers(1, min(26, grid**2 - 2))),
        phases=draw(st.integers(1, 1000)),
        teleport=draw(st.floats(0, 1) | st.integers(0, 1)),
        hide_colours=draw(st.booleans()),
    )


@family(
    lambda given: dict(
        keys=integer(1, 64), values=integer(2, 64), updates=integer(1, 10_000), queries=integer(0, 100_000)
    )
)
def KeyValueRewrite(draw):
    return dict(
        keys=draw(st.integers(1, 64)),
        values=draw(st.integers(2, 64)),
        updates=draw(st.integers(1, 100) | st.integers(1, 10_000)),
        queries=draw(st.integers(0, 1_000) | st.integers(0, 100_000)),
    )


@family(
    lambda given: dict(
        rooms=integer(2, 100),
        boxes=integer(1, 100),
        objects=integer(1, given["rooms"] * given["boxes"] - 1),
        moves=integer(0, 10**6),
    )
)
def HideAndSeek(draw):
    rooms, boxes = draw(st.integers(2, 100)), draw(st.integers(1, 100))
    return dict(
        rooms=rooms,
        boxes=boxes,
        objects=draw(st.integers(1, rooms * boxes - 1)),
        moves=draw(st.integers(0, 10**6)),
    )


@family(lambda given: dict(views=integer(1, 100_000), dances=integer(2, 64), side=integer(2, 32)))
def RoomBalletShortStay(draw):
    return dict(views=draw(st.integers(1, 10_000)), dances=draw(st.integers(2, 64)), side=draw(st.integers(2, 32)))


@family(lambda given: dict(dances=integer(2, 64), task=NAME))
def RoomBalletMultiTask(draw):
    return dict(dances=draw(st.integers(2, 64)), task=draw(st.sampled_from(["all", *TASKS])))


@family(lambda given: dict(dancers=integer(2, 8), delay=integer(0, 10_000), pixels=BOOL))
def Ballet(draw):
    return dict(dancers=draw(st.integers(2, 8)), delay=draw(st.integers(0, 10_000)), pixels=draw(st.booleans()))


@family(lambda given: dict(num_decks=integer(1, 100), k=integer(1, 52 * given["num_decks"] - 1), flat=BOOL))
def RepeatPrevious(draw):
    decks = draw(st.integers(1, 4) | st.integers(1, 100))
    return dict(num_decks=decks, k=draw(st.integers(1, 52 * decks - 1)), flat=draw(st.booleans()))


@family(lambda given: dict(num_decks=integer(1, 100), flat=BOOL))
def RepeatFirst(draw):
    return dict(num_decks=draw(st.integers(1, 4) | st.integers(1, 100)), flat=draw(st.booleans()))


@family(lambda given: dict(num_decks=integer(1, 100), flat=BOOL))
def Autoencode(draw):
    return dict(num_decks=draw(st.integers(1, 4) | st.integers(1, 100)), flat=draw(st.booleans()))


@family(lambda given: dict(num_decks=integer(1, 100), deck_type=NAME, flat=BOOL))
def CountRecall(draw):
    return dict(
        num_decks=draw(st.integers(1, 4) | st.integers(1, 100)),
        deck_type=draw(st.sampled_from(["colors", "suits", "ranks"])),
        flat=draw(st.booleans()),
    )


@family(lambda given: dict(num_decks=integer(1, 100), flat=BOOL))
def HigherLower(draw):
    return dict(num_decks=draw(st.integers(1, 4) | st.integers(1, 100)), flat=draw(st.booleans()))


@family(lambda given: dict(num_decks=integer(1, 100), deck_type=NAME, flat=BOOL))
def Concentration(draw):
    return dict(
        num_decks=draw(st.integers(1, 4) | st.integers(1, 100)),
        deck_type=draw(st.sampled_from(["colors", "ranks"])),
        flat=draw(st.booleans()),
    )


@family(lambda given: dict(board_size=integer(6, 20), flat=BOOL))
def Battleship(draw):
    return dict(board_size=draw(st.integers(6, 20)), flat=draw(st.booleans()))


@family(lambda given: dict(board_size=integer(3, 8), num_mines=integer(1, given["board_size"] ** 2 - 3), flat=BOOL))
def MineSweeper(draw):
    side = draw(st.integers(3, 8))
    return dict(board_size=side, num_mines=draw(st.integers(1, side**2 - 3)), flat=draw(st.booleans()))


def mazes(draw):
    return dict(
        maze_size=2 * draw(st.integers(3, 20)),
        episode_length=draw(st.integers(2, 2000) | st.integers(2, 1 << 20)),
        flat=draw(st.booleans()),
    )


def wrong_mazes(given):
    sizes = integer(6, 40) | st.integers(2, 20).map(lambda half: 2 * half + 1)
    return dict(maze_size=sizes, episode_length=integer(2, 1 << 20), flat=BOOL)


@family(wrong_mazes)
def LabyrinthEscape(draw):
    return mazes(draw)


@family(wrong_mazes)
def LabyrinthExplore(draw):
    return mazes(draw)


@family(lambda given: dict(velocities=BOOL))
def CartPoleNoVel(draw):
    return dict(velocities=draw(st.booleans()))


@family(lambda given: dict(velocities=BOOL))
def PendulumNoVel(draw):
    return dict(velocities=draw(st.booleans()))


@family(lambda given: dict(velocities=BOOL))
def MountainCarContinuousNoVel(draw):
    return dict(velocities=draw(st.booleans()))


NO_NOISE = [*NO_FRACTION[:1], 10.1, *NO_FRACTION[2:]]


@family(
    lambda given: dict(
        seen=NAME,
        limit=integer(1, 10**6),
        noise=st.sampled_from(NO_NOISE if given["seen"] == "position" else [*NO_NOISE, 0.1]),
    )
)
def POPGymCartPole(draw):
    seen = draw(st.sampled_from(["position", "velocity"]))
    noise = draw(st.floats(0, 10) | st.integers(0, 10)) if seen == "position" else 0
    return dict(seen=seen, limit=draw(st.integers(1, 10**6)), noise=noise)


@family(lambda given: dict(limit=integer(20, 10**6), noise=st.sampled_from(NO_NOISE)))
def POPGymPendulum(draw):
    return dict(limit=draw(st.integers(20, 10**6)), noise=draw(st.floats(0, 10) | st.integers(0, 10)))


@family(lambda given: dict(num_arms=integer(2, 100), pulls=integer(1, 600)))
def Bandit(draw):
    return dict(num_arms=draw(st.integers(2, 100)), pulls=draw(st.integers(1, 12) | st.just(600)))


@family(lambda given: dict(num_bandits=integer(2, 100), episode_length=integer(1, 600), flat=BOOL))
def MultiarmedBandit(draw):
    return dict(
        num_bandits=draw(st.integers(2, 100)),
        episode_length=draw(st.integers(1, 12) | st.just(600)),
        flat=draw(st.booleans()),
    )


VIEW = integer(3, 7) | st.sampled_from([4, 6])


@family(
    lambda given: dict(
        size=integer(7, 101) | st.integers(4, 50).map(lambda half: 2 * half), random_length=BOOL, view_size=VIEW
    )
)
def MiniGridMemory(draw):
    return dict(
        size=1 + 2 * draw(st.integers(3, 50)),
        random_length=draw(st.booleans()),
        view_size=draw(st.sampled_from([3, 5, 7])),
    )


@family(lambda given: dict(replacements=integer(0, 300), length=integer(7, 100), random_length=BOOL, view_size=VIEW))
def MiniGridMemoryRewrite(draw):
    return dict(
        replacements=draw(st.integers(0, 300)),
        length=draw(st.integers(7, 100)),
        random_length=draw(st.booleans()),
        view_size=draw(st.sampled_from([3, 5, 7])),
    )


quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
every_family = pytest.mark.parametrize("name", envs.registration.families())


def id_of(name: str) -> str:
    return next(id for id in envs.ids() if envs.entry(id).target.endswith(f":{name}"))


@every_family
def test_every_argument_has_a_row(name):
    allowed, wrong = FAMILIES[name]
    arguments = set(inspect.signature(envs.family(id_of(name))).parameters) - {"render_mode"}

    @settings(max_examples=1, database=None)
    @given(allowed())
    def check(kwargs):
        assert set(kwargs) == arguments == set(wrong(kwargs))

    check()


@every_family
@quick
@given(data=st.data(), seed=st.integers(0, 2**63))
def test_what_is_allowed_plays(name, data, seed):
    kwargs = data.draw(FAMILIES[name][0]())
    vector = gym.make_vec(id_of(name), 3, vectorization_mode="vector_entry_point", **kwargs)
    obs, _ = vector.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(12):
        assert vector.observation_space.contains(obs)
        assert broken(vector.world) == []
        actions = mixed(rng.random(3) < 0.5, vector.expert_action(), any_actions(vector, rng))
        obs, *_ = vector.step(actions)
    horizons, chance = vector.memory_horizons(), vector.chance_level()
    assert 1 <= horizons[0] <= horizons[-1] <= vector.world.rules.limit + 1
    assert chance is None or 0 <= chance <= 1


@every_family
@quick
@given(data=st.data())
def test_what_is_not_allowed_is_refused_before_anything_is_built(name, data):
    allowed, wrong = FAMILIES[name]
    kwargs = data.draw(allowed())
    argument, values = data.draw(st.sampled_from([*wrong(kwargs).items()]))
    value = data.draw(values)
    kwargs[argument] = value
    id = id_of(name)
    built: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "allocate", lambda self, rows: built.append(self))
        for make in (envs.family(id), lambda **kw: gym.make(id, **kw), lambda **kw: envs.make_vec(id, 2, **kw)):
            with pytest.raises(ValueError, match=argument) as caught:
                make(**kwargs)
            told = str(caught.value)
            assert repr(value) in told or argument == "kinds"
            assert "; got " in told
            assert "must be" in told or "must hold" in told
    assert built == []


@every_family
def test_render_modes_are_refused(name):
    """Not through `gym.make`, which has words of its own for them."""
    id = id_of(name)
    for wrong in ("human", "", 3, True, ("ansi",), math.nan):
        for make in (envs.family(id), lambda **kwargs: envs.make_vec(id, 2, **kwargs)):
            with pytest.raises(ValueError, match="render_mode must be one of 'rgb_array', 'ansi'; got ") as caught:
                make(render_mode=wrong)
            assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("kinds", [["invert", "x"], ["invert", 3], ["invert", None], ["invert", ["reset"]]], ids=repr)
def test_each_kind_of_rune_is_named(kinds):
    with pytest.raises(ValueError, match="each of kinds must be one of 'invert', 'cancel', 'reset', 'repeat'; got "):
        envs.family("Palimpsest/RuneTMaze-mixed-v0")(kinds=kinds)

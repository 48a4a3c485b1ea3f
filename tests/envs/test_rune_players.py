"""Players of the mazes with runes: who keeps a list wins, and who remembers less wins as rarely as the docs say."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
from test_rune_tmaze import FORWARD, LEFT, RIGHT, TASKS, id_of, resulting, rows
from twins import first_success

from palimpsest.envs.rune_tmaze import RuneTMaze
from palimpsest.envs.runes import KINDS


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("turn", [LEFT, RIGHT, "either"])
def test_without_memory_it_is_chance(task, turn):
    """Every map from what is visible to an action that can win at all goes forward before the junction."""
    vector, obs = rows(task, 4000, corridors=2, length=9)
    rng = np.random.default_rng(0)

    def blind(obs, fresh):
        turns = rng.integers(1, 3, len(obs)) if turn == "either" else turn
        return np.where(obs[:, 2] == 1, turns, FORWARD)

    assert vector.chance_level() == 0.25
    assert abs(first_success(vector, obs, blind) - 0.25) < 0.035


class Player:
    """Sees observations alone; writes down the first cue and the runes, but those that it is `blind` to."""

    def __init__(self, blind: str | None) -> None:
        self.blind = blind

    def act(self, obs: np.ndarray) -> int:
        _, right, place, *flags = obs.tolist()
        if place == 0:
            self.first, self.runes = int(right), []
        for kind, here in zip(KINDS, flags):
            if here and kind != self.blind:
                self.runes.append((kind, int(right)))
        return FORWARD if place < 1 else (LEFT, RIGHT)[resulting(self.first, self.runes)]


def players_success(task: str, num_envs: int, blind: str | None = None, **kwargs) -> float:
    vector, obs = rows(task, num_envs, **kwargs)
    players = [Player(blind) for _ in range(num_envs)]
    return first_success(vector, obs, lambda obs, _: np.array([player.act(row) for player, row in zip(players, obs)]))


def watchers_success(task: str, latest: bool) -> float:
    """Of a player who remembers the first cue of an episode, or the latest that was shown."""
    vector, obs = rows(task, 8000)
    cue = np.zeros(len(obs), int)

    def act(obs, fresh):
        nonlocal cue
        shown = obs[:, :2].any(1) & (latest | (obs[:, 2] == 0))
        cue = np.where(shown, np.where(obs[:, 0] > 0, LEFT, RIGHT), cue)
        return np.where(obs[:, 2] == 1, cue, FORWARD)

    return first_success(vector, obs, act)


@pytest.mark.parametrize("task", TASKS)
def test_a_player_with_a_list_wins(task):
    assert players_success(task, 100, corridors=3) == 1.0


def documented() -> dict[str, list[float]]:
    """The table of the class docstring: task -> success of the first cue, the last shown, and blind to one."""
    lines = re.findall(rf"\| ({'|'.join(TASKS)}) \|[^|]*\|(.*)\|\n", RuneTMaze.__doc__.partition("Tasks,")[2])
    return {task: [float(number) for number in numbers.split("|")] for task, numbers in lines}


@pytest.mark.parametrize("task", TASKS)
def test_who_remembers_less_wins_as_rarely_as_the_docs_say(task):
    first, last, blind = documented()[task]
    level = gym.make(id_of(task)).unwrapped.first_cue_level()
    assert first == round(level, 2)
    assert 0.5 <= level < 0.61
    # 8,000 episodes: four standard errors of a fraction are 0.022 at most; 1,000: three are 0.047
    assert abs(watchers_success(task, latest=False) - first) < 0.025
    assert abs(watchers_success(task, latest=True) - last) < 0.025
    measured = max(players_success(task, 1000, kind) for kind in set(gym.spec(id_of(task)).kwargs["kinds"]))
    assert abs(measured - blind) < 0.05
    assert blind < 0.85

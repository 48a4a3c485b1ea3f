"""Color-Cubes against a twin in plain Python, and what players with memory win; see also test_color_cubes_chance."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix, assert_follows, assert_rows_follow, first_success

from palimpsest import envs
from palimpsest.envs.color_cubes import ColorCubes

STEPS = {0: (0, -1), 1: (0, 1), 2: (-1, 0), 3: (1, 0)}
LEFT, RIGHT, UP, DOWN, INTERACT = range(5)
IDS = [f"Palimpsest/ColorCubes-{name}-v0" for name in ("Trivial", "Medium", "Extreme", "Extreme-L", "Extreme-XL")]


class Twin:
    """The rules step by step, one world, plain Python; free cells by listing them. Cells are (row, column)."""

    def __init__(self, grid: int, cubes: int, phases: int, teleport: float, hide_colours: bool) -> None:
        self.G, self.N, self.K, self.p, self.hide = grid, cubes, phases, teleport, hide_colours

    def free(self, occupied: list) -> tuple[int, int]:
        cells = [(r, c) for r in range(self.G) for c in range(self.G) if (r, c) not in occupied]
        return cells[self.rng.below(len(cells))]

    def reset(self, seed: int | None = None) -> list[float]:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.t, self.passed, self.cubes = 0, 0, []
        for _ in range(self.N):
            self.cubes.append(self.free(self.cubes))
        self.agent = self.free(self.cubes)
        self.target = self.rng.below(self.N)
        return self.see("start")

    def one_hot(self, i: int, n: int) -> list[float]:
        return [float(i == k) for k in range(n)]

    def see(self, what: str) -> list[float]:
        row, column = self.agent
        obs = self.one_hot(column, self.G) + self.one_hot(row, self.G)
        obs += self.one_hot(self.target if what == "start" else -1, self.N)
        if what == "nothing":
            return obs + [0.0] * (2 + 2 * self.G * self.N)
        obs += [1.0, float(what != "positions")]
        for row, column in sorted(self.cubes) if what == "positions" else self.cubes:
            obs += self.one_hot(column, self.G) + self.one_hot(row, self.G)
        return obs

    def teleport(self, colour: int) -> None:
        self.cubes[colour] = self.free([*self.cubes, self.agent])

    def another(self) -> int:
        return [c for c in range(self.N) if c != self.target][self.rng.below(self.N - 1)]

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        self.t += 1
        late = self.t >= 8 * self.G * self.K
        if action == INTERACT and self.agent == self.cubes[self.target]:
            self.passed += 1
            if self.passed == self.K:
                return self.see("nothing"), 1.0, True, False, True
            self.teleport(self.target)
            if self.N > 1:
                self.target = self.another()
            return self.see("start"), 1.0, False, late, False
        if action in STEPS:
            row, column = (a + d for a, d in zip(self.agent, STEPS[action]))
            if 0 <= row < self.G and 0 <= column < self.G:
                self.agent = (row, column)
        what = "nothing"
        if self.N > 1 and self.p > 0 and (self.rng.bits() >> 11) / 2**53 < self.p:
            self.teleport(self.another())
            what = "positions" if self.hide else "colours"
        return self.see(what), -0.01, False, late, False


@st.composite
def arguments(draw):
    grid = draw(st.integers(2, 7))
    return dict(
        grid=grid,
        cubes=draw(st.integers(1, min(26, grid**2 - 2))),
        phases=draw(st.integers(1, 4)),
        teleport=draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        hide_colours=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**63), skill=st.sampled_from([0.0, 0.7, 0.95, 1.0]))
def test_equals_the_twin(kwargs, seed, skill):
    assert_follows(ColorCubes(**kwargs), Twin(**kwargs), seed, 120, skill)


def test_many_rows_equal_their_twins():
    kwargs = dict(grid=3, cubes=4, phases=2, teleport=0.3, hide_colours=True)
    vector = gym.make_vec(IDS[2], 8, **kwargs)
    twins = [Twin(**kwargs) for _ in range(8)]
    assert_rows_follow(vector, twins, 600)


def rows(num_envs: int, id: str = IDS[1], **kwargs):
    vector = gym.make_vec(id, num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


class Player:
    """Sees observations alone; keeps the target's colour and a dictionary from colours to cells."""

    def __init__(self, grid: int, cubes: int, heed_teleports: bool = True) -> None:
        self.G, self.N, self.heed = grid, cubes, heed_teleports
        self.where: dict[int, tuple[int, int]] = {}

    def look(self, obs: np.ndarray) -> None:
        G, N = self.G, self.N
        self.agent = (int(obs[G : 2 * G].argmax()), int(obs[:G].argmax()))
        shown, coloured = obs[2 * G + N : 2 * G + N + 2]
        slots = obs[2 * G + N + 2 :].reshape(N, 2, G)
        cells = [(int(row.argmax()), int(column.argmax())) for column, row in slots]
        starts = obs[2 * G : 2 * G + N].any()
        if starts:
            self.target = int(obs[2 * G : 2 * G + N].argmax())
        if shown and coloured and (starts or self.heed):
            self.where = dict(enumerate(cells))
        elif shown and self.heed:
            (left,) = set(self.where.values()) - set(cells)
            (reached,) = set(cells) - set(self.where.values())
            (moved,) = (colour for colour, cell in self.where.items() if cell == left)
            self.where[moved] = reached

    def act(self) -> int:
        row, column = (there - here for there, here in zip(self.where[self.target], self.agent))
        if row:
            return DOWN if row > 0 else UP
        if column:
            return RIGHT if column > 0 else LEFT
        return INTERACT


@pytest.mark.parametrize("id", IDS)
def test_a_player_with_a_dictionary_wins_and_knows_every_cube(id):
    vector, obs = rows(24, id)
    rules = vector.world.rules
    players = [Player(rules.grid, rules.cubes) for _ in range(24)]

    def act(obs, fresh):
        hidden = vector.hidden_state()
        for i, player in enumerate(players):
            player.look(obs[i])
            cells = [row * rules.grid + column for _, (row, column) in sorted(player.where.items())]
            assert cells == hidden["cell"][i].tolist()
        return np.array([player.act() for player in players])

    assert first_success(vector, obs, act) == 1.0


def test_what_teleports_show_is_not_needed():
    vector, obs = rows(60, IDS[2], teleport=0.5)
    players = [Player(5, 3, heed_teleports=False) for _ in range(60)]

    def act(obs, fresh):
        for i, player in enumerate(players):
            player.look(obs[i])
        return np.array([player.act() for player in players])

    assert first_success(vector, obs, act) == 1.0


@pytest.mark.parametrize("id", IDS)
def test_the_expert_takes_shortest_paths(id):
    env = gym.make(id).unwrapped
    G, K = env.rules.grid, env.rules.phases
    for seed in range(20):
        env.reset(seed=seed)
        rewards, distance, success = [], 0, False
        while not success:
            if env.state.shown[0] == 3:
                goal = env.state.cell[0, env.state.target[0]]
                across, down = np.abs(np.array(divmod(int(goal), G)) - (int(env.state.y[0]), int(env.state.x[0])))
                distance += across + down
            _, reward, terminated, truncated, info = env.step(env.expert_action())
            rewards.append(reward)
            assert not truncated
            success = info.get("success", False)
            assert terminated == success
        assert rewards.count(1.0) == K
        assert rewards.count(-0.01) == distance == len(rewards) - K <= 2 * (G - 1) * K


@settings(max_examples=15, deadline=None)
@given(kwargs=arguments())
def test_horizons_are_what_played_episodes_show(kwargs):
    env = ColorCubes(**kwargs)
    found = set()
    for seed in range(40):
        obs, _ = env.reset(seed=seed)
        t, over = 0, False
        while not over:
            if env.event_mask(obs):
                shown = t
            action = env.expert_action()
            if action == INTERACT:
                found.add(t - shown + 1)
            obs, _, terminated, truncated, _ = env.step(action)
            t, over = t + 1, terminated or truncated
    assert found <= set(env.memory_horizons())
    if kwargs["grid"] == 2:
        assert found == set(env.memory_horizons()) == {2, 3}


def test_what_each_preset_shows():
    for id, hides in zip(IDS, (None, False, True, True, True)):
        vector, obs = rows(64, id)
        rules = vector.world.rules
        at = 2 * rules.grid + rules.cubes
        shown = {"start": set(), "teleport": set()}
        for _ in range(60):
            for o in obs:
                if o[at]:
                    shown["start" if vector.event_mask(o) else "teleport"].add(float(o[at + 1]))
                else:
                    assert not o[2 * rules.grid :].any()
            obs, *_ = vector.step(vector.expert_action())
        assert shown["start"] == {1.0}
        assert shown["teleport"] == (set() if hides is None else {float(not hides)})


def test_interacting_in_vain_costs_no_more_than_a_step_and_the_limit_is_exact():
    env = ColorCubes(grid=3, cubes=2, phases=2, teleport=0)
    first, _ = env.reset(seed=0)
    for t in range(1, 49):
        obs, reward, terminated, truncated, info = env.step(INTERACT)
        assert (reward, terminated, truncated) == (-0.01, False, t == 48)
    assert info == reported(False)
    assert obs[:6].tolist() == first[:6].tolist()
    assert not obs[6:].any()


def test_starts_are_fair():
    vector, _ = rows(48_000, grid=2, cubes=2, phases=1)
    hidden = vector.hidden_state()
    counts = np.zeros((4, 4, 4, 2))
    agent = 2 * hidden["y"] + hidden["x"]
    np.add.at(counts, (hidden["cell"][:, 0], hidden["cell"][:, 1], agent, hidden["target"]), 1)
    possible = counts[counts > 0]
    assert len(possible) == 48
    # chi-squared with 47 degrees of freedom passes 95 once in 20,000 times
    assert ((possible - 1000) ** 2 / 1000).sum() < 95


def test_teleports_are_as_frequent_as_asked_and_fair():
    B = 20_000
    vector, _ = rows(B, grid=3, cubes=3, phases=1, teleport=0.25)
    before = vector.hidden_state()
    corner = (before["x"] == 0) & (before["y"] == 0)
    vector.step(np.full(B, UP))  # nobody interacts
    after = vector.hidden_state()
    moved = (before["cell"] != after["cell"]).sum(1)
    assert set(moved) == {0, 1}
    assert abs(moved.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / B)
    assert (np.take_along_axis(before["cell"] != after["cell"], before["target"][:, None], 1) == 0).all()
    reached = after["cell"][(before["cell"] != after["cell"]) & corner[:, None]]
    counts = np.bincount(reached, minlength=9)
    assert counts[0] == 0  # never under the agent
    expected = counts.sum() / 8
    # chi-squared with 7 degrees of freedom passes 30 once in 10,000 times
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(grid=1), "grid must be an integer, 2 to 20; got 1"),
        (dict(grid=2, cubes=3), "cubes must be an integer, 1 to 2; got 3"),
        (dict(grid=20, cubes=27), "cubes must be an integer, 1 to 26; got 27"),
        (dict(cubes=0), "cubes must be an integer, 1 to 23; got 0"),
        (dict(phases=True), "phases must be an integer, 1 to 1,000; got True"),
        (dict(teleport=1.5), "teleport must be a number, 0 to 1; got 1.5"),
        (dict(teleport=float("nan")), "teleport must be a number, 0 to 1; got nan"),
        (dict(hide_colours=1), "hide_colours must be True or False; got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    for build in (lambda: ColorCubes(**kwargs), lambda: envs.make_vec(IDS[2], 2, **kwargs)):
        with pytest.raises(ValueError, match=message):
            build()


def test_pictures_show_what_is_hidden_faded():
    env = ColorCubes(grid=4, cubes=2, phases=1000, teleport=1.0, hide_colours=True)
    env.reset(seed=2)
    start, words = env.picture(), env.text()
    assert "shown: colours and target" in words
    assert {"A", "B", "@"} <= set("".join(words.splitlines()[1:]))
    env.step(INTERACT)
    later, words = env.picture(), env.text()
    assert "shown: positions" in words
    assert {"a", "b", "@"} <= set("".join(words.splitlines()[1:]))
    assert start.shape == later.shape
    assert len(np.unique(start.reshape(-1, 3), axis=0)) > 4
    assert (start != later).any()

"""Success by kind of answer: what a single environment says before each step, in each episode, is what is counted."""

from __future__ import annotations

import io
import math
from collections import defaultdict

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import Counter

from palimpsest import envs
from palimpsest.agents import MemoryPPO, evaluate
from palimpsest.agents.evaluation.play import play, summary
from palimpsest.agents.evaluation.success import Answers, success_by
from palimpsest.agents.run.listing import show_evaluation

KEY_VALUE, HIDE = "Palimpsest/KeyValueRewrite-v0", "Palimpsest/HideAndSeek-v0"


class FirstValues:
    """Answers each key with the first value that it saw, or else 0: a memory that retains and never rewrites."""

    def __init__(self, keys: int, values: int) -> None:
        self.keys, self.values = keys, values

    def predict(self, obs, state, episode_start, deterministic=True):
        first = np.full((len(obs), self.keys), -1) if state is None else np.where(episode_start[:, None], -1, state[0])
        rows, key = np.arange(len(obs)), obs[:, : self.keys].argmax(1)
        written = obs[:, self.keys + self.values] > 0
        value = obs[:, self.keys : self.keys + self.values].argmax(1)
        first[rows, key] = np.where(written & (first[rows, key] < 0), value, first[rows, key])
        return np.maximum(first[rows, key], 0), (first,)


def counted_by_hand(env_id, player, episodes, seed, **kwargs):
    """Name -> kind -> [right answers], one environment and one episode at a time."""
    found = defaultdict(lambda: defaultdict(list))
    env = gym.make(env_id, **kwargs).unwrapped
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        state, start, over = None, np.ones(1, bool), False
        while not over:
            batch = {key: part[None] for key, part in obs.items()} if isinstance(obs, dict) else obs[None]
            action, state = player.predict(batch, state, start)
            due = {name: kinds.item() for name, kinds in env.breakdown().items()}
            obs, reward, terminated, truncated, _ = env.step(int(action[0]))
            start, over = np.zeros(1, bool), terminated or truncated
            for name, kind in due.items():
                if kind >= 0:
                    found[name][kind].append(reward > 0)
    return found


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_every_answer_of_every_episode_is_counted_once(rows):
    kwargs, player = dict(keys=3, values=4, updates=4, queries=5), FirstValues(3, 4)
    venv = MemoryPPO._wrap_env(VecNormalize(envs.make_vec(KEY_VALUE, rows, **kwargs), norm_obs=False))
    result = summary(play(player, venv, 18, seed=40))
    expected = counted_by_hand(KEY_VALUE, player, 18, seed=40, **kwargs)["overwrites"]
    found = result["success_by"]["overwrites"]
    assert list(found) == [str(kind) for kind in sorted(expected)] == ["0", "1", "2", "3"]
    for kind, right in expected.items():
        assert found[str(kind)]["answers"] == len(right)
        assert found[str(kind)]["success"] == pytest.approx(np.mean(right))
    assert sum(part["answers"] for part in found.values()) == 18 * (3 + 5)


def test_a_memory_that_never_rewrites_is_right_where_nothing_was_overwritten():
    found = summary(play(FirstValues(3, 4), envs.make_vec(KEY_VALUE, 16, keys=3, queries=9), 64))["success_by"]
    success = [part["success"] for part in found["overwrites"].values()]
    assert success[0] == 1.0
    assert success[1] == 0.0  # the second value differs from the first
    assert 0 < max(success[2:]) < 0.6


class FirstPlaces:
    """Names the box where the object asked for was first put."""

    def __init__(self, boxes: int, objects: int) -> None:
        self.boxes, self.objects = boxes, objects

    def predict(self, obs, state, episode_start, deterministic=True):
        N, seen = self.objects, obs["seen"]
        first = np.full((len(seen), N), -1) if state is None else np.where(episode_start[:, None], -1, state[0])
        rows, thing = np.arange(len(seen)), seen[:, :N].argmax(1)
        box = obs["place"] * self.boxes + seen[:, N : N + self.boxes].argmax(1)
        put = (seen[:, N + self.boxes] > 0) & (first[rows, thing] < 0)
        first[rows, thing] = np.where(put, box, first[rows, thing])
        return np.maximum(first[rows, thing], 0), (first,)


def test_objects_that_were_never_moved_are_found_by_first_places():
    kwargs = dict(rooms=3, boxes=2, objects=3, moves=3)
    player = FirstPlaces(2, 3)
    result = summary(play(player, envs.make_vec(HIDE, 32, **kwargs), 100, seed=7))
    found = result["success_by"]["times_moved"]
    expected = counted_by_hand(HIDE, player, 100, seed=7, **kwargs)["times_moved"]
    assert {kind: part["answers"] for kind, part in found.items()} == {str(k): len(v) for k, v in expected.items()}
    assert found["0"]["success"] == 1.0
    assert found["1"]["success"] == 0.0
    weighted = sum(part["success"] * part["answers"] for part in found.values())
    assert weighted / 100 == pytest.approx(result["success"])


def test_the_error_does_not_take_one_episodes_answers_for_independent():
    episode = np.repeat(np.arange(50), 4)
    right = np.repeat(np.arange(50) < 30, 4)
    (found,) = success_by({"x": Answers(episode, np.zeros(200, int), right)})["x"].values()
    assert found == {"success": 0.6, "success_se": pytest.approx(math.sqrt(0.6 * 0.4 / 50)), "answers": 200}
    (once,) = success_by({"x": Answers(np.arange(200), np.zeros(200, int), right)})["x"].values()
    assert once["success_se"] == pytest.approx(math.sqrt(0.6 * 0.4 / 200))


def test_the_error_is_the_spread_of_repeated_evaluations():
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        luck, counts = rng.random(60), rng.integers(1, 6, 60)
        episode = np.repeat(np.arange(60), counts)
        right = rng.random(len(episode)) < luck[episode]
        (found,) = success_by({"x": Answers(episode, np.zeros(len(episode), int), right)})["x"].values()
        means.append(found["success"])
        errors.append(found["success_se"])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)


def test_environments_that_tell_nothing_apart_have_no_table():
    assert summary(play(FirstValues(1, 1), DummyVecEnv([Silent]), 2))["success_by"] == {}
    env = gym.make("Palimpsest/EndlessTMaze-v0").unwrapped
    assert env.breakdown() == {}


class Silent(Counter):
    """Three numbers of which none is a breakdown."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 100, (3,), np.float32)

    def _observe(self):
        return np.zeros(3, np.float32)


def test_evaluate_reports_it():
    venv = envs.make_vec(KEY_VALUE, 4, seed=0, keys=2, updates=2, queries=1)
    model = MemoryPPO("MlpMemoryPolicy", venv, n_steps=8, batch_size=32, policy_kwargs=dict(memory="gru"), seed=0)
    result = evaluate(model, KEY_VALUE, episodes=10, env_args=dict(keys=2, updates=2, queries=1))
    assert sum(part["answers"] for part in result["success_by"]["overwrites"].values()) == 10 * 3


def test_it_is_shown_as_a_table():
    shown = io.StringIO()
    result = dict(
        env_args={"keys": 2},
        success=0.123456,
        chance=None,
        success_by={"overwrites": {"0": dict(success=1.0, success_se=0.0, answers=1234)}},
        memory=dict(K=1, K_eff=None, horizon_min=2, horizon_max=9, tests="long-term memory"),
    )
    show_evaluation(result, Console(file=shown, width=60))
    lines = shown.getvalue().splitlines()
    assert "env_args        keys=2" in lines
    assert "success         0.1235" in lines
    assert "chance          None" in lines
    assert "tests           long-term memory (K 1, K_eff unbounded, horizons 2 to 9 inputs)" in lines
    (row,) = [line for line in lines if "1,234" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["0", "1.000 ± 0.000", "1,234"]
    assert "success_by" not in shown.getvalue()

"""What SB3 tests of Monitor, where an agent trains in one: episodes are written as they went."""

from __future__ import annotations

import csv
import json

import pytest
from situations import MEMORIES, agent, assert_finite
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, get_monitor_files
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from worlds import Counter

from palimpsest import envs


def read(path) -> tuple[dict, list[dict]]:
    with path.open() as file:
        return json.loads(file.readline()[1:]), list(csv.DictReader(file))


@pytest.mark.parametrize("memory", MEMORIES)
def test_episodes_of_training_are_written(memory, tmp_path):
    env = Monitor(Counter(), str(tmp_path / "new" / "run.monitor.csv"))
    agent("Mlp", env, memory).learn(32)
    env.close()
    assert env.get_total_steps() == 32
    assert env.get_episode_lengths() == [3] * 10
    header, episodes = read(tmp_path / "new" / "run.monitor.csv")
    assert header.keys() == {"t_start", "env_id"}
    assert [(float(row["r"]), int(row["l"])) for row in episodes] == [(3, 3)] * 10


def test_each_row_has_its_file_and_training_goes_on_in_it(tmp_path):
    env = make_vec_env("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path))
    model = agent("Mlp", env).learn(64)
    before = [len(read(tmp_path / f"{row}.monitor.csv")[1]) for row in range(2)]
    model.learn(64)
    assert len(get_monitor_files(str(tmp_path))) == 2
    for row in range(2):
        episodes = read(tmp_path / f"{row}.monitor.csv")[1]
        assert len(episodes) > before[row]
        assert all(float(each["r"]) == int(each["l"]) for each in episodes)
    env.close()


def test_more_columns_from_infos(tmp_path):
    class Telling(Counter):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "place": 7}

    env = Monitor(Telling(), str(tmp_path / "run"), info_keywords=("place",))
    agent("Mlp", env).learn(16)
    env.close()
    assert {row["place"] for row in read(tmp_path / "run.monitor.csv")[1]} == {"7"}


def test_no_episode_is_cut_short_by_training():
    env = Monitor(Counter(), allow_early_resets=False)
    model = agent("Mlp", env, n_steps=8, batch_size=8).learn(8)
    model.learn(24, reset_num_timesteps=False)
    assert_finite(model)
    with pytest.raises(RuntimeError, match="before done"):
        model.get_env().reset()


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_monitor_of_all_rows(memory, tmp_path):
    env = VecMonitor(DummyVecEnv([Counter] * 2), str(tmp_path / "all"))
    model = agent("Mlp", env, memory).learn(64)
    env.close()
    assert [(each["r"], each["l"]) for each in model.ep_info_buffer] == [(3, 3)] * 20
    assert [int(row["l"]) for row in read(tmp_path / "all.monitor.csv")[1]] == [3] * 20


def test_rows_of_ours_tell_of_their_episodes_themselves():
    env = envs.make_vec("Palimpsest/EndlessTMaze-v0", 2, seed=0, corridors=1, length=1)
    model = agent("Mlp", env).learn(64)
    assert {"r", "l", "t"} <= model.ep_info_buffer[0].keys()
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(env)

"""What SB3 tests of loggers, where an agent writes to them: outputs, rates, windows and success."""

from __future__ import annotations

import csv
import functools
import itertools
import json

import numpy as np
import pytest
from situations import MEMORIES, Kept, agent, counters
from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, TensorBoardOutputFormat, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter

NAMES = {
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "time/fps",
    "time/iterations",
    "time/time_elapsed",
    "time/total_timesteps",
    "train/approx_kl",
    "train/clip_fraction",
    "train/clip_range",
    "train/entropy_loss",
    "train/explained_variance",
    "train/learning_rate",
    "train/loss",
    "train/n_updates",
    "train/policy_gradient_loss",
    "train/value_loss",
}
"""What PPO of SB3 logs."""


def kinds(model) -> list[type]:
    return [type(output) for output in model.logger.output_formats]


def test_outputs_follow_from_the_arguments(tmp_path, monkeypatch, capsys):
    assert kinds(agent("Mlp", counters()).learn(32)) == []
    model = agent("Mlp", counters(), tensorboard_log=str(tmp_path)).learn(32)
    assert kinds(model) == [TensorBoardOutputFormat]
    assert str(tmp_path) in model.logger.dir
    assert kinds(agent("Mlp", counters(), verbose=1).learn(32)) == [HumanOutputFormat]
    both = agent("Mlp", counters(), verbose=1, tensorboard_log=str(tmp_path)).learn(32)
    assert kinds(both) == [HumanOutputFormat, TensorBoardOutputFormat]
    assert "ep_rew_mean" in capsys.readouterr().out
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "elsewhere"))
    assert agent("Mlp", counters()).learn(32).logger.dir == str(tmp_path / "elsewhere")


def test_a_logger_of_ones_own_is_kept(tmp_path, capsys):
    own = configure(str(tmp_path), ["stdout", "csv", "tensorboard"])
    model = agent("Mlp", counters(), verbose=1).learn(32)
    model.set_logger(own)
    for _ in range(2):
        model.learn(32)
        assert model.logger is own
        assert kinds(model) == [HumanOutputFormat, CSVOutputFormat, TensorBoardOutputFormat]
    own.close()


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_output_gets_the_names_of_sb3(memory, tmp_path, capsys):
    model = agent("Mlp", counters(), memory)
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "json", "csv", "tensorboard"]))
    model.learn(128)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == len(lines) == 4
    assert rows[-1].keys() >= NAMES
    assert lines[-1].keys() >= NAMES
    assert [line["time/total_timesteps"] for line in lines] == [32, 64, 96, 128]
    assert [line.get("train/n_updates") for line in lines] == [None, 1, 2, 3]
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "log.txt").read_text()
    for name in NAMES:
        assert name.partition("/")[2] in printed


@pytest.mark.parametrize("interval", [1, 2])
def test_an_interval_of_rollouts(interval, tmp_path):
    model = agent("Mlp", counters())
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(128, log_interval=interval)
    model.logger.close()
    lines = (tmp_path / "progress.json").read_text().splitlines()
    assert [json.loads(line)["time/iterations"] for line in lines] == list(range(interval, 5, interval))


def test_the_rate_counts_the_steps_of_this_training_alone(monkeypatch):
    """A clock that stands still at the start, then shows one second more, tells the steps."""
    model = agent("Mlp", counters())
    model.set_logger(Kept())
    for steps in (32, 64):
        clock = itertools.chain([0], itertools.repeat(10**9))
        monkeypatch.setattr("time.time_ns", functools.partial(next, clock))
        model.num_timesteps = 20_000
        model.learn(steps, reset_num_timesteps=False)
        assert model.logger.name_to_value["time/fps"] == pytest.approx(steps, abs=1)


def test_a_clock_that_stands_still_divides_nothing_by_zero(monkeypatch):
    for clock in ("time", "time_ns", "perf_counter"):
        monkeypatch.setattr(f"time.{clock}", lambda: 42)
    model = agent("Mlp", counters())
    model.set_logger(Kept())
    model.learn(64)
    assert np.isfinite(model.logger.name_to_value["time/rollout_steps_per_s"])


@pytest.mark.parametrize("size", [1, 42])
def test_a_window_of_episodes(size):
    model = agent("Mlp", counters(), stats_window_size=size).learn(32)
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == size
    assert len(model.ep_info_buffer) == min(size, 16 // 3 + 16 // 4)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_rate_of_success(memory, tmp_path):
    """Over the last ten episodes, three of which succeed in the first rollout, five in the second and eight then."""
    script = iter([True] * 3 + [False] * 7 + [True] * 5 + [False] * 5 + [True] * 8 + [False] * 2)

    class Succeeding(Counter):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"is_success": next(script)} if self.steps == 3 else info

    env = Monitor(Succeeding(truncate=True), str(tmp_path / "monitor.csv"), info_keywords=("is_success",))
    model = agent("Mlp", env, memory, n_steps=30, batch_size=30, stats_window_size=10)
    model.set_logger(Kept())
    for rate in (0.3, 0.5, 0.8):
        model.learn(30)
        assert model.logger.name_to_value["rollout/success_rate"] == pytest.approx(rate)
    env.close()


def test_values_of_a_users_callback_are_logged_beside_ours(tmp_path):
    env = DummyVecEnv([lambda: Monitor(Counter())])
    model = agent("Mlp", env)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(32, lambda names, _globals: names["self"].logger.record_mean("own/steps", names["n_steps"]) or True)
    model.logger.close()
    lines = (tmp_path / "progress.json").read_text().splitlines()
    assert [json.loads(line)["own/steps"] for line in lines] == [7.5, 7.5]

"""What presets fill in, and what of a run's file another memory, algorithm or number of environments takes over."""

import dataclasses
import tomllib

import pytest
from test_cli import refused, trained

from palimpsest import train
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.presets import usual


def test_the_memory_that_is_named_last_brings_its_preset(started, tmp_path):
    (tmp_path / "run.toml").write_text("memory = 'gru'\nn_epochs = 2\n")
    (tmp_path / "rate.toml").write_text("memory = 'gru'\nlearning_rate = 0.01\n")
    for words, name in ((["--memory", "lstm"], "lstm"), (["--config", "run.toml"], "gru"), ([], "rewrite")):
        assert train.main([*words, "--no-progress"]) == 0
        config = started.pop()
        assert (config.learning_rate, config.share_memory) == usual(name)[:2]
    for words, name in (
        (["--config", "run.toml", "--memory", "rewrite"], "rewrite"),
        (["--memory", "gru", "--memory", "rewrite"], "rewrite"),
        (["--memory", "rewrite", "--memory=gru"], "gru"),
    ):
        assert train.main(words) == 0
        assert started.pop().learning_rate == usual(name).learning_rate
    (tmp_path / "shared.toml").write_text("share_memory = true\n")
    for words, shared in (
        ([], True),
        (["--no-share-memory"], False),
        (["--algo", "sac"], False),
        (["--algo", "sac", "--share-memory"], True),
        (["--algo", "sac", "--algo=ppo"], True),
        (["--config", "shared.toml", "--algo", "sac"], True),
        (["--config", "shared.toml", "--no-share-memory"], False),
    ):
        assert train.main([*words, "--no-progress"]) == 0
        assert started.pop().share_memory is shared
    assert train.main(["--config", "rate.toml", "--memory", "rewrite", "--num-minibatches", "8"]) == 0
    assert (started[0].learning_rate, started.pop().num_minibatches) == (0.01, 8)


@pytest.mark.parametrize("num_envs", [4, 16])
def test_a_flag_fills_in_anew_what_presets_gave_a_run(num_envs, started, tmp_path, capsys):
    """A run's file holds what nobody gave; a flag is not refused for it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(TrainConfig(memory="gru", num_envs=num_envs).to_toml())
    for words, same in (
        (["--num-envs", "8"], dict(num_envs=8)),
        (["--num_envs=64"], dict(num_envs=64)),
        (["--num-envs", "4", "--num-minibatches", "2"], dict(num_envs=4, num_minibatches=2)),
        (["--batch-size", "256"], dict(batch_size=256)),
        (["--n-steps", "1024"], dict(n_steps=1024)),
        (["--memory", "sat"], dict(memory="sat")),
        (["--algo", "dqn"], dict(algo="dqn")),
        (["--memory", "gru"], dict()),
    ):
        assert trained(["--config", "run", *words], started) == TrainConfig(
            **{"memory": "gru", "num_envs": num_envs, **same}
        )
    (tmp_path / "run" / "config.toml").write_text(TrainConfig(memory="gru", algo="dqn", num_envs=num_envs).to_toml())
    for algo in ("ppo", "sac"):
        expected = TrainConfig(memory="gru", algo=algo, num_envs=num_envs)
        assert trained(["--config", "run", "--algo", algo], started) == expected
    given = TrainConfig(memory="gru", num_envs=4, n_steps=200, batch_size=100, learning_rate=0.02)
    (tmp_path / "run" / "config.toml").write_text(given.to_toml())
    config = trained(["--config", "run", "--num-envs", "8", "--memory", "sat"], started)
    assert (config.n_steps, config.batch_size, config.learning_rate) == (200, 100, 0.02)
    assert "batch_size=100" in refused(["--config", "run", "--num-minibatches", "2"], capsys)


OLD_RUN = """algo = "dqn"
memory = "gru"
num_envs = 2
carry_over = 0.8
n_steps = 64
n_epochs = 3
learning_rate = 0.001
gae_lambda = 0.9
ent_coef = 0.5
clip_range = 0.5
min_advantage_std = 0.5
min_gae_lambda = 1.0
vf_coef = 0.9
workers = 1
"""
"""The file of a run of dqn as it once was: it holds ppo's fields, with the defaults of that day."""


def test_a_run_of_another_algorithm_neither_holds_nor_minds_the_fields_of_ppo(started, tmp_path, capsys):
    own = TrainConfig(algo="dqn", memory="gru", num_envs=2, algo_args={"burn_in": 2})
    assert not set(TrainConfig.OF_PPO).intersection(tomllib.loads(own.to_toml()))
    assert TrainConfig.from_toml(own.to_toml()) == own
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.toml").write_text(OLD_RUN)
    expected = TrainConfig(algo="dqn", memory="gru", num_envs=2, learning_rate=0.001)
    assert TrainConfig.load(tmp_path / "old") == expected
    assert train.main(["--resume", "old"]) == 0
    assert dataclasses.replace(started.pop(), resume=None) == expected
    assert trained(["--config", "old"], started) == expected
    # the rate was given: it is not dqn's by default
    assert trained(["--config", "old", "--algo", "ppo"], started) == dataclasses.replace(
        TrainConfig(memory="gru", num_envs=2), learning_rate=0.001
    )
    (tmp_path / "mine.toml").write_text('algo = "dqn"\nn_epochs = 3\n')
    assert "n_epochs is an argument of ppo; got 3" in refused(["--config", "mine.toml"], capsys)


def test_another_algorithm_does_not_take_over_the_fields_of_a_runs_own(started, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    given = TrainConfig(memory="gru", num_envs=2, n_steps=64, n_epochs=2, overlap=False, workers=2)
    (tmp_path / "run" / "config.toml").write_text(given.to_toml())
    for flag in ("--config", "--from"):
        config = trained([flag, "run", "--algo", "dqn"], started)
        assert dataclasses.replace(config, start_from=None) == TrainConfig(algo="dqn", memory="gru", num_envs=2)
    assert "n_steps is an argument of ppo; got 32" in refused(
        ["--config", "run", "--algo", "dqn", "--n-steps", "32"], capsys
    )
    given = TrainConfig(memory="gru", num_envs=2, algo="dqn", algo_args={"burn_in": 2})
    (tmp_path / "run" / "config.toml").write_text(given.to_toml())
    assert trained(["--config", "run", "--algo", "ppo"], started) == TrainConfig(memory="gru", num_envs=2)

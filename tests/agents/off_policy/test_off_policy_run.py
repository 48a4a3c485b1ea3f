"""Runs of off-policy algorithms: what the command line makes of its arguments, exact resume, evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small import small_arguments

from palimpsest import train
from palimpsest.agents import evaluate, preset
from palimpsest.agents.files.archive import read_tree
from palimpsest.agents.launch import start
from palimpsest.agents.run import callbacks, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.agents.run.presets import ALGORITHMS, algorithm_class

OFF_POLICY = sorted(set(ALGORITHMS) - {"ppo"})


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """It takes longer than these trainings and changes nothing of them."""
    monkeypatch.setattr(experiment, "_draw", lambda config, directory, env: None)


def config(directory: Path, algo: str, **kwargs) -> TrainConfig:
    small = dict(buffer_size=200, learning_starts=60, batch_size=2, sequence_length=4, burn_in=2, n_steps=2)
    defaults = dict(env="Palimpsest/TMaze-v0", env_args={"length": 3}, memory="gru", total_timesteps=240, num_envs=2)
    defaults |= dict(
        memory_args=small_arguments("gru"),
        width=8,
        eval_every=80,
        eval_episodes=4,
        checkpoint_every=80,
        closing_episodes=0,
    )
    defaults |= dict(progress=False, run_dir=directory, device="cpu", algo=algo, algo_args=small)
    return TrainConfig(**{**defaults, **kwargs})


def leaves(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, tuple | list):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, torch.Tensor | np.ndarray):
        yield path, np.asarray(tree)


@pytest.mark.parametrize("algo", OFF_POLICY)
def test_a_stopped_run_resumes_exactly(algo, tmp_path, monkeypatch):
    console = Console(quiet=True)
    experiment.train(config(tmp_path / "whole", algo), console)
    save, stopped = callbacks.CheckpointCallback.work, []

    def stop(self):
        save(self)
        if self.num_timesteps >= 160 and not stopped:
            stopped.append(self.num_timesteps)
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.CheckpointCallback, "work", stop)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(config(tmp_path / "halved", algo), console)
    assert stopped
    run = experiment.train(config(None, algo, resume=tmp_path / "halved"), console)
    for name in ("model.zip", "checkpoints/000000000240.zip"):
        trees = [dict(leaves(read_tree(tmp_path / half / name))) for half in ("whole", "halved")]
        assert trees[0].keys() == trees[1].keys()
        for path, value in trees[0].items():
            np.testing.assert_array_equal(value, trees[1][path], err_msg=path)
    rows = [(tmp_path / half / "evaluations.csv").read_text() for half in ("whole", "halved")]
    assert rows[0] == rows[1]
    assert type(run.model) is algorithm_class(algo)
    assert evaluate(tmp_path / "halved", episodes=4, device="cpu")["episodes"] == 4


@pytest.mark.parametrize("algo", OFF_POLICY)
def test_a_configuration_hands_its_arguments_over(algo, tmp_path):
    made = config(tmp_path, algo, learning_rate=0.25, gamma=0.5, anneal=False)
    env = make_env(made)
    model = make_model(made, env)
    env.close()
    assert (model.sequence_length, model.burn_in, model.n_steps, model.buffer_size) == (4, 2, 2, 200)
    assert (model.lr_schedule(0.5), model.gamma, model.normalize_observations) == (0.25, 0.5, True)
    assert TrainConfig.from_toml(made.to_toml()) == TrainConfig(**{**vars(made), "run_dir": None})
    assert preset("gru", 1, algo=algo)["policy_kwargs"]["memory"] == "gru"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--algo dqm", "algo must be one of .*'dqn'"),
        ("--algo dqn --n-epochs 3", "n_epochs is an argument of ppo"),
        ("--algo-args burn_in=2", "algorithm 'ppo'.*|whose arguments are flags"),
        ("--algo dqn --algo-args bunr_in=2", "no argument 'bunr_in'.*'burn_in'"),
        ("--algo dqn --algo-args burn_in=x", "'burn_in'.*an integer"),
        ("--algo dqn --algo-args gamma=0.9", "no argument 'gamma'"),
        ("--algo dqn --algo-args burn_in=2 --algo-args n_steps=2", "--algo-args is given twice"),
    ],
)
def test_bad_flags_are_refused_in_a_line(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(argv.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(said, err), err
    assert not list(tmp_path.iterdir())


def test_flags_reach_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(start, "train", lambda config, engine: seen.append(config))
    assert train.main(["--algo", "dqn", "--algo-args", "train_freq=1,episode", "tau=0.5", "prioritized=true"]) == 0
    assert seen[0].algo_args == {"train_freq": (1, "episode"), "tau": 0.5, "prioritized": True}
    assert seen[0].share_memory is True

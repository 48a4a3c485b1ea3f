"""A run's life: it ends with tests, is prolonged, gives its weights to another, and is evaluated at any time."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from rich.console import Console
from test_resume import assert_same_run, config, curves, parameters, quiet, train_and_die

from palimpsest import envs, train
from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC, evaluate
from palimpsest.agents.files.archive import CorruptFile
from palimpsest.agents.launch import start
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.run import closing, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.runs import Run, find, load_agent

MAZE = "Palimpsest/EndlessTMaze-v0"


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr(experiment, "_draw", lambda config, directory, env: None)


def trained(directory, **kwargs) -> TrainConfig:
    """Train a tiny run to its end."""
    run = config(directory, **kwargs)
    experiment.train(run, quiet())
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_draw", lambda config, directory, env: None)
        directory = tmp_path_factory.mktemp("life") / "run"
        trained(directory, carry_over=0.5, wrapper=("time-limit=9",))
    return directory


def test_a_prolonged_run_is_the_longer_run_where_nothing_falls(tmp_path):
    constant = dict(anneal=False, anneal_entropy=False)
    trained(tmp_path / "long", **constant, total_timesteps=10 * 64)
    short = trained(tmp_path / "short", **constant)
    longer = dataclasses.replace(short, resume=tmp_path / "short", run_dir=None, total_timesteps=10 * 64)
    experiment.train(longer, quiet())
    assert TrainConfig.load(tmp_path / "short").total_timesteps == 10 * 64
    assert_same_run(tmp_path / "long", tmp_path / "short")


def test_the_learning_rate_of_a_prolonged_run_falls_to_the_new_end(tmp_path, capsys):
    trained(tmp_path / "run", learning_rate=0.01, eval_every=0)
    flags = ["--no-progress", "--closing-episodes", "0", "--device", "cpu"]
    assert train.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "640", *flags]) == 0
    assert "prolonged from 384 to 640 steps; what falls to 0" in capsys.readouterr().out
    rates = dict(curves(tmp_path / "run")["train/learning_rate"])
    # an update is logged with the next rollout, of 64 steps
    assert rates[320] == pytest.approx(0.01 * (1 - 256 / 384))
    assert rates[512] == pytest.approx(0.01 * (1 - 448 / 640))
    assert rates[640] == pytest.approx(0.01 * (1 - 576 / 640))

    written = (tmp_path / "run" / "config.toml").read_text()
    assert train.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "639", *flags]) == 2
    assert "total_timesteps is 640 in the run to resume; got 639" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.toml").read_text() == written


def test_without_checkpoints_a_finished_run_is_not_begun_anew(tmp_path):
    done = trained(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = parameters(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds no checkpoint to continue from.*--from"):
        experiment.train(dataclasses.replace(done, resume=done.run_dir, run_dir=None, total_timesteps=999), quiet())
    assert TrainConfig.load(tmp_path / "run") == dataclasses.replace(done, run_dir=None)
    assert all(torch.equal(value, before[name]) for name, value in parameters(tmp_path / "run").items())


@pytest.mark.parametrize("which", ["", "best.zip", "model", "checkpoints/000000000384.zip"])
def test_a_new_run_starts_from_the_weights_of_another(which, run, tmp_path):
    config = dataclasses.replace(TrainConfig.load(run), start_from=run / which, seed=7)
    env = experiment.make_env(config)
    model = experiment.make_model(config, env)
    source = load_agent(run / which, "cpu").model
    for name, value in source.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], value), name
    others = experiment.make_model(dataclasses.replace(config, start_from=None), env).policy.state_dict()
    assert not all(torch.equal(value, others[name]) for name, value in model.policy.state_dict().items())
    assert model.num_timesteps == 0
    assert not model.policy.optimizer.state


def test_weights_that_do_not_fit_are_refused(run, tmp_path, capsys):
    argv = ["--from", str(run), "--width", "9", "--run-dir", str(tmp_path / "new"), "--device", "cpu"]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert "do not fit this agent: size mismatch for" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_weights_without_a_scale_of_returns_are_refused_where_it_is_wanted(tmp_path, capsys):
    unscaled = tmp_path / "unscaled"
    trained(unscaled, normalize_returns=False)
    new = dataclasses.replace(TrainConfig.load(unscaled), start_from=unscaled, run_dir=tmp_path / "new")
    experiment.make_model(new, experiment.make_env(new))
    with pytest.raises(ValueError, match="trained without a scale of returns"):
        experiment.train(dataclasses.replace(new, normalize_returns=True), quiet())
    assert not (tmp_path / "new").exists()


def test_the_other_runs_configuration_gives_the_defaults(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(start, "train", lambda config, engine: seen.append(config))
    monkeypatch.chdir(run.parent)
    for which in ("run", "run/best.zip", "run/checkpoints/000000000384.zip"):
        assert train.main(["--from", which, "--env-args", "corridors=3", "--run-dir", "new"]) == 0
        new = seen.pop()
        old = TrainConfig.load(run)
        assert new.env_args == {"corridors": 3, "length": 3}
        assert new.start_from == run.parent / which
        same = dataclasses.replace(new, env_args=old.env_args, start_from=None, run_dir=None)
        assert same == old
    shutil.copy(run / "model.zip", tmp_path / "alone.zip")
    assert train.main(["--from", str(tmp_path / "alone.zip"), "--run-dir", "new"]) == 0
    assert dataclasses.replace(seen.pop(), start_from=None, run_dir=None) == TrainConfig()


def test_an_agent_is_evaluated_wherever_it_lies(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--episodes", "6", "--json", "out.json", "--device", "cpu"]

    def result(*words: str) -> dict:
        assert train.main(["evaluate", *words, *asked]) == 0, capsys.readouterr().err
        return json.loads((tmp_path / "out.json").read_text())

    whole = result(str(run))
    assert whole["length_mean"] <= 9
    assert whole == result(str(run / "model.zip")) == result(str(run / "checkpoints" / "000000000384.zip"))
    assert whole["env"] == result(str(run / "best.zip"))["env"] == MAZE

    shutil.copy(run / "model.zip", "alone.zip")
    assert train.main(["evaluate", "alone.zip", *asked]) == 2
    assert "is in no run directory, which would name the environment; give --env" in capsys.readouterr().err
    given = ["--env", MAZE, "--env-args", "corridors=2", "length=3", "--max-steps", "9"]
    assert result("alone.zip", *given)["length_mean"] == whole["length_mean"]


def test_a_run_that_has_not_finished_is_evaluated_by_its_newest_checkpoint(tmp_path, monkeypatch, capsys):
    train_and_die(monkeypatch, 40, config(tmp_path / "young"))
    with pytest.raises(ValueError, match=r"holds neither model.zip nor an intact checkpoint"):
        evaluate(tmp_path / "young", episodes=4)
    train_and_die(monkeypatch, 330, config(tmp_path / "killed"))
    assert load_agent(tmp_path / "killed", "cpu").model.num_timesteps == 320
    assert "has not finished: its 000000000320.zip is taken" in capsys.readouterr().err
    newest = tmp_path / "killed" / "checkpoints" / "000000000320.zip"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert load_agent(tmp_path / "killed", "cpu").model.num_timesteps == 256
    assert "skipped: " in capsys.readouterr().err
    with pytest.raises((CorruptFile, ValueError)):
        load_agent(newest, "cpu")
    assert evaluate(tmp_path / "killed", episodes=4)["episodes"] == 4


@pytest.mark.parametrize("name", ["best.zip", "model.zip"])
def test_a_torn_file_is_called_torn(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(CorruptFile, match="torn, altered or not one of our"):
        load_agent(path, "cpu")


@pytest.mark.parametrize("algorithm", [MemoryPPO, MemoryDQN, MemorySAC])
def test_a_file_alone_is_read_by_its_own_algorithm(algorithm, tmp_path):
    env = envs.make_vec(MAZE, 2, corridors=2, length=3)
    small = {} if algorithm is MemoryPPO else {"buffer_size": 192}
    model: SavedAlgorithm = algorithm("MlpMemoryPolicy", env, policy_kwargs={"memory": "none"}, device="cpu", **small)
    model.save(tmp_path / "model")
    loaded = load_agent(tmp_path / "model", "cpu")
    assert type(loaded) is algorithm
    assert not isinstance(loaded, Run)
    assert find(tmp_path / "model").config is None


@pytest.mark.parametrize("episodes", [0, 3])
def test_the_closing_tests_have_as_many_episodes_as_asked_and_say_how_far_they_are(episodes, tmp_path, monkeypatch):
    monkeypatch.setattr(closing._Watch, "PLAIN_SECONDS", 0.0)
    with (tmp_path / "printed.txt").open("w") as printed:
        run = config(tmp_path / "run", total_timesteps=64, eval_every=0, closing_episodes=episodes)
        experiment.train(run, Console(file=printed, width=200))
    told = (tmp_path / "printed.txt").read_text()
    assert (
        ("seconds" in told) == ("test 1 of" in told) == (tmp_path / "run" / "closing.json").exists() == bool(episodes)
    )
    if episodes:
        results = json.loads((tmp_path / "run" / "closing.json").read_text())
        assert {result["episodes"] for result in results} == {3}
        assert f"test 1 of {len(results)}, as trained: 3 / 3 episodes" in told


def test_evaluations_are_logged_under_sb3s_names_too(tmp_path):
    trained(tmp_path / "run")
    seen = curves(tmp_path / "run")
    assert [step for step, _ in seen["eval/mean_reward"]] == [192, 320, 384]
    assert seen["eval/mean_reward"] == seen["eval/return_mean"]
    assert seen["eval/mean_ep_length"] == seen["eval/length_mean"]
    assert seen["eval/success_rate"] == seen["eval/success"]


def test_one_environment_alone_is_trained_in(tmp_path, recwarn):
    run = trained(tmp_path / "run", env="CartPole-v1", env_args={}, num_envs=1, num_minibatches=None, eval_every=0)
    assert (run.num_minibatches, run.minibatch_size) == (None, 16)
    assert not recwarn.list

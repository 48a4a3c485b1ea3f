"""Searches, over trainings that are stubs: what is tried, pruned, tried anew, refused and written; and one real one."""

from __future__ import annotations

import dataclasses
import math

import pytest
from rich.console import Console

from palimpsest import train
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import Interrupted, RunFailed
from palimpsest.agents.sweep import processes
from palimpsest.agents.tune import report, studies
from palimpsest.agents.tune.config import TuneConfig
from palimpsest.agents.tune.trial import score
from palimpsest.agents.tune.tune import tune

pytest.importorskip("optuna")

WORDS = ["--env", "Palimpsest/EndlessTMaze-v0", "--memory", "none", "--jobs", "1", "--out", "out"]
TRAINING = TrainConfig(memory="none", total_timesteps=1000)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def one_by_one(trials, folder, workers, ended, tick, attempt):
    """An engine, as `processes.run_all`, in this process."""
    for trial in trials:
        tick([trial])
        attempt(trial, folder)
        ended(trial, "")


class Trainings:
    """Stands for `experiment.train`: keeps the configurations, and reports what `play` says of them."""

    def __init__(self):
        self.configs: list[TrainConfig] = []
        self.evaluations: list[int] = []
        self.play = lambda number, config: -((math.log10(config.learning_rate) + 3) ** 2)

    def __call__(self, config, console, close, watch):
        self.configs.append(config)
        self.evaluations.append(0)
        value = self.play(len(self.configs) - 1, config)
        for step in range(config.eval_every, config.total_timesteps + 1, config.eval_every):
            self.evaluations[-1] += 1
            watch({"step": step, "success": None, "return_mean": value})


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    """Trials are done in this process and in this folder, and nothing is drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "run_all", one_by_one)
    monkeypatch.setattr(report, "_plot", lambda study, metric, folder: None)


@pytest.fixture
def trainings(monkeypatch):
    made = Trainings()
    monkeypatch.setattr(experiment, "train", made)
    return made


def search(tmp_path, training=TRAINING, fixed=frozenset(), **options):
    """Search, and return the trials and what was printed."""
    with (tmp_path / "printed").open("a+") as file:
        config = TuneConfig(**{"jobs": 1, "out": tmp_path / "out", **options})
        try:
            tune(config, training, fixed, Console(file=file, width=200))
        finally:
            file.seek(0)
            text = file.read()
    url = studies.address(config.study, tmp_path / "out")
    return studies.study(url, config.name(training), "none", 0).get_trials(), text


def states(trials):
    return [trial.state.name for trial in trials]


def test_the_first_trial_is_the_default_and_flags_are_fixed(trainings, capsys):
    given = ["--gamma", "0.97", "--no-share-memory", "--memory-args", "output_size=8", "--total-timesteps", "1000"]
    assert train.main(["tune", *WORDS, *given, "--trials", "4"]) == 0
    default = TrainConfig(memory="none", gamma=0.97, share_memory=False, memory_args={"output_size": 8})
    first, *others = trainings.configs
    for name in ("learning_rate", "n_steps", "num_envs", "num_minibatches", "n_epochs", "target_kl", "carry_over"):
        assert getattr(first, name) == getattr(default, name)
    assert len({config.learning_rate for config in trainings.configs}) == 4
    for config in (first, *others):
        assert (config.gamma, config.share_memory, config.memory_args) == (0.97, False, {"output_size": 8})
        assert (config.total_timesteps, config.eval_every, config.seed, config.threads) == (1000, 100, 0, 1)
    out = capsys.readouterr().out
    assert "4 trials, 0 of them done, 1 at a time" in out
    assert "trial 0: return" in out
    assert "train the best: palimpsest train --config" in out


def test_a_search_goes_on_where_it_was(trainings, tmp_path):
    search(tmp_path, trials=2)
    trials, text = search(tmp_path, trials=5)
    assert states(trials) == ["COMPLETE"] * 5
    assert "5 trials, 2 of them done" in text
    assert len({config.learning_rate for config in trainings.configs}) == 5, "the same numbers were drawn again"
    search(tmp_path, trials=5)
    assert len(trainings.configs) == 5


def test_the_best_is_written_as_a_configuration(trainings, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "run_all", one_by_one)
    monkeypatch.setattr(experiment, "train", trainings)
    trials, text = search(tmp_path, trials=4)
    best = max(trials, key=lambda trial: trial.value)
    lines = (tmp_path / "out" / "best.toml").read_text().splitlines()
    assert lines[0] == f"# trial {best.number} of the study EndlessTMaze-v0-none: return {best.value:.4g}"
    found = TrainConfig.load(tmp_path / "out" / "best.toml")
    assert found.learning_rate == best.params["learning_rate"]
    assert found.memory_args == {"output_size": best.params["memory_args.output_size"]}
    assert (found.checkpoint_every, found.threads) == (TRAINING.checkpoint_every, None)
    for picture in ("history.png", "importances.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert "The best of 4 trials with a value, 0 pruned, 0 died" in text


def test_trials_that_fall_behind_are_pruned(trainings, tmp_path):
    trainings.play = lambda number, config: float(number < studies.STARTUP_TRIALS)
    trials, text = search(tmp_path, trials=7)
    assert states(trials) == ["COMPLETE"] * 5 + ["PRUNED"] * 2
    assert trainings.evaluations == [10] * 5 + [studies.UNPRUNED_EVALUATIONS + 1] * 2
    assert "trial 5: pruned after evaluation 3, at return 0" in text
    trainings.play = lambda number, config: -1.0
    trials, _ = search(tmp_path, out=tmp_path / "all", study_name="all", trials=3, pruner="none")
    assert trainings.evaluations[7:] == [10] * 3


def test_halving_goes_on_with_a_third(trainings, tmp_path):
    trainings.play = lambda number, config: -float(number)
    search(tmp_path, trials=9, pruner="halving")
    assert trainings.evaluations[0] == 10
    assert trainings.evaluations[3:] == [1] * 6


def test_a_trial_that_dies_is_reported_and_ends_nothing(trainings, tmp_path):
    def play(number, config):
        if number == 1:
            raise FloatingPointError("the weights\nare NaN")
        return math.nan if number == 2 else 1.0

    trainings.play = play
    trials, text = search(tmp_path, trials=4)
    assert states(trials) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert "trial 1: DIED: FloatingPointError: the weights are NaN" in text
    assert trials[1].user_attrs["died"] == "FloatingPointError: the weights are NaN"
    assert "Traceback" in (tmp_path / "out" / "logs" / "trial-0001.log").read_text()
    search(tmp_path, trials=4)
    assert len(trainings.configs) == 4, "a trial that died is not tried again"


def test_a_search_of_which_all_trials_died_has_failed(trainings, tmp_path):
    trainings.play = lambda number, config: 1 / 0
    with pytest.raises(RunFailed, match="no trial has a value, and 2 died"):
        search(tmp_path, trials=2)
    assert not (tmp_path / "out" / "best.toml").exists()


def test_an_interrupted_trial_is_marked_and_tried_anew(trainings, tmp_path):
    def play(number, config):
        if number == 1:
            raise Killed
        return 1.0

    trainings.play = play
    with pytest.raises(Killed):
        search(tmp_path, trials=3)
    trials, text = search(tmp_path, trials=3)
    assert states(trials) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "trial 1: interrupted, to be tried anew" in text
    assert trials[2].params == trials[1].params
    assert "died" not in trials[1].user_attrs
    assert trainings.configs[2].learning_rate == trainings.configs[1].learning_rate


def test_a_signal_ends_the_search_and_its_trials_are_tried_anew(trainings, tmp_path, monkeypatch):
    def stopped(trials, folder, workers, ended, tick, attempt):
        ended(next(trials), "")
        return 2

    with monkeypatch.context() as patch:
        patch.setattr(processes, "run_all", stopped)
        with pytest.raises(Interrupted):
            search(tmp_path, trials=1)
    trials, text = search(tmp_path, trials=1)
    assert states(trials) == ["FAIL", "COMPLETE"]
    assert "the same command continues the search" in text


def test_a_trial_of_another_command_is_left_alone(trainings, tmp_path):
    search(tmp_path, trials=1, study=str(tmp_path / "shared.db"))
    url = studies.address(str(tmp_path / "shared.db"), tmp_path)
    other = studies.study(url, "EndlessTMaze-v0-none", "none", 0).ask()
    other.set_user_attr("folder", "elsewhere")
    trials, _ = search(tmp_path, trials=3, study=str(tmp_path / "shared.db"))
    assert states(trials) == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert not (tmp_path / "out" / "study.db").exists()


def test_a_trial_of_several_seeds_has_their_mean(trainings, tmp_path):
    trainings.play = lambda number, config: float(number)
    trials, _ = search(tmp_path, trials=2, seeds_per_trial=3)
    assert [config.seed for config in trainings.configs] == [0, 1, 2, 0, 1, 2]
    assert [trial.value for trial in trials] == [1.0, 4.0]
    assert trials[0].intermediate_values == {
        **dict.fromkeys(range(1, 11), 0.0),
        **dict.fromkeys(range(11, 21), 0.5),
        **dict.fromkeys(range(21, 31), 1.0),
    }
    with pytest.raises(ValueError, match="was begun with seeds_per_trial 3; got 1: give the same flags"):
        search(tmp_path, trials=2)


def test_another_search_in_the_same_study_is_refused(trainings, tmp_path):
    search(tmp_path, trials=1)
    other = TrainConfig(memory="none", total_timesteps=2000)
    with pytest.raises(ValueError, match="was begun with total_timesteps 1000; got 2000"):
        search(tmp_path, other, trials=1)
    with pytest.raises(ValueError, match="was begun with space "):
        search(tmp_path, fixed=frozenset({"gamma"}), trials=1)
    assert len(trainings.configs) == 1


def test_a_file_of_the_space_is_searched(trainings, tmp_path):
    (tmp_path / "space.toml").write_text("n_epochs = [3, 5]\nwidth = 32\ngamma = 0.9\n")
    search(tmp_path, TrainConfig(memory="none", gamma=0.8), frozenset({"gamma"}), trials=4, space="space.toml")
    assert {config.n_epochs for config in trainings.configs} <= {3, 5}
    assert {(config.width, config.gamma, config.n_steps) for config in trainings.configs} == {(32, 0.8, 128)}


def test_the_metric_is_success_where_there_is_one():
    row = {"success": 0.5, "return_mean": -3.0}
    assert score(row, "auto") == ("success", 0.5)
    assert score(row, "return") == ("return", -3.0)
    assert score({**row, "success": None}, "auto") == ("return", -3.0)
    with pytest.raises(ValueError, match="the environment does not report"):
        score({**row, "success": None}, "success")
    stalled = {**row, "success": None, "stalled": 4}  # it reports at an episode's end, which none reached
    assert score(stalled, "success") == ("success", 0.0)


def test_a_path_that_would_end_the_url_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot have '\\?' in its path"):
        search(tmp_path, out=tmp_path / "q?x")
    assert not (tmp_path / "q").exists()


def test_a_password_is_not_shown(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened") as caught:
        search(tmp_path, study="postgresql+nosuchdriver://me:secret@nowhere/x")
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


TINY = [
    *("--num-envs", "4", "--n-steps", "16", "--total-timesteps", "128", "--eval-every", "64", "--eval-episodes", "4"),
    *("--env-args", "corridors=1", "length=2", "--memory-args", "output_size=8", "--width", "8", "--device", "cpu"),
]


def test_a_training_takes_the_best_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "_draw", lambda config, directory, env: None)
    assert train.main(["tune", *WORDS, *TINY, "--trials", "2"]) == 0
    run = tmp_path / "out" / "runs" / "trial-0001" / "seed-0"
    assert (run / "model.zip").exists()
    assert "trial 1: success" in capsys.readouterr().out
    words = ["train", "--config", "out/best.toml", "--closing-episodes", "0", "--run-dir", "again"]
    assert train.main(words) == 0
    found = TrainConfig.load(tmp_path / "again")
    best = TrainConfig.load(tmp_path / "out" / "best.toml")
    assert found == dataclasses.replace(best, closing_episodes=0)
    assert (found.memory, found.env_args, found.num_envs) == ("none", {"corridors": 1, "length": 2}, 4)
    assert (tmp_path / "again" / "model.zip").exists()


@pytest.mark.learning
@pytest.mark.parametrize("engine", ["pool", "ray"])
def test_engines_with_real_processes(engine, tmp_path, monkeypatch, capsys):
    if engine == "ray":
        pytest.importorskip("ray")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    words = ["tune", *WORDS, *TINY, "--trials", "3", "--engine", engine]
    words[words.index("--jobs") + 1] = "2"
    assert train.main(words) == 0
    out = capsys.readouterr().out
    assert out.count(": success") == 3
    assert (tmp_path / "out" / "best.toml").exists()

"""Every flag of the command line, and what it must refuse: one line, exit code 2, and nothing is made.

The rows are compared with the commands' fields, so that a flag without a row fails a test. Numbers and wrong names are
in `test_cli.py`; here are texts that nobody types by chance.
"""

from __future__ import annotations

import dataclasses

import pytest

from palimpsest import train
from palimpsest.agents.command.parsing import NAMES
from palimpsest.agents.run import closing, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.sweep.config import ReportCommand
from palimpsest.agents.watch.config import InspectCommand, PlayCommand

WORDS = ["", "1\n2", "a\0b", "\x1b[31m", "ø" * 300]
INTEGER = [*WORDS, "true", "1 2", "9" * 5000]
NUMBER = [*WORDS, "true", "1e400", "9" * 5000]
SWITCH = [*WORDS, "1", "true", "None"]
NAME = [*WORDS, "../../etc/passwd", ":", "x:", "a" * 3000]
PATH = ["", " ", "1\n2", "a\0b", "\x1b[31m", "ø" * 200, "a" * 256, "a/" + "b" * 256]
PAIRS = [*WORDS, "=", "a=1", "a\n=1", "a b=1", "self=1", "input_size=3", "render_mode=human"]

TRAIN: dict[str, list[str]] = {
    "config": [*PATH, "nowhere", "file", "file/x", "/", "."],
    "zoo_config": [*PATH, "nowhere", "file", "file/x", "/", ".", "empty.toml"],
    "zoo_key": NAME,
    "env": NAME,
    "env_args": [*PAIRS, "corridors=", "corridors=nan", "corridors=1.0", "corridors=" + "9" * 5000, "regime=x"],
    "wrapper": [
        *NAME,
        "flaten",
        "frame-stack",
        "frame-stack=0",
        "frame-stack=1.5",
        "flatten=2",
        "os:nothing",
        "os:sep",
    ],
    "vec": [*NAME, "Subproc", "none", "dummy", "subproc", "async"],
    "overlap": SWITCH,
    "previous_action_reward": SWITCH,
    "antialias": SWITCH,
    "keep_observations": [*INTEGER, "3", "0 0"],
    "fully_observed": SWITCH,
    "memory": NAME,
    "memory_args": [*PAIRS, "num_layers=", "num_layers=nan", "num_layers=x", "gates", "num_layers=" + "9" * 5000],
    "algo": [*NAME, "PPO", "a2c"],
    "algo_args": [*PAIRS, "n_epochs=3", "burn_in=x"],
    "carry_over": [*NUMBER, "1.0001"],
    "share_memory": SWITCH,
    "total_timesteps": [*INTEGER, "0"],
    "num_envs": [*INTEGER, "0"],
    "seed": [*INTEGER, "999999999999"],
    "device": [*NAME, "tpu", "cuda:x", "cuda:-1", "CPU", "cuda:"],
    "threads": [*INTEGER, "0", "1025"],
    "run_dir": [*PATH, ".", "..", "/", "file", "file/x", "taken"],
    "resume": [*PATH, "nowhere", "file", "file/x", "/", ".", "empty.toml", "/dev/null"],
    "start_from": [*PATH, "nowhere", "file", "file/x", "/", ".", "empty.toml", "/dev/null", "run"],
    "n_steps": [*INTEGER, "0"],
    "n_epochs": [*INTEGER, "0"],
    "batch_size": [*INTEGER, "0"],
    "num_minibatches": [*INTEGER, "0", "3", "65"],
    "learning_rate": [*NUMBER, "-1e-9", "11"],
    "anneal": SWITCH,
    "anneal_entropy": SWITCH,
    "anneal_clip_range": SWITCH,
    "encoder_arch": [*INTEGER, "0", "65537"],
    "net_arch": [*INTEGER, "0", "65537"],
    "activation": [*NAME, "ReLU", "nn.ReLU"],
    "ortho_init": SWITCH,
    "log_std_init": [*NUMBER, "101"],
    "gamma": [*NUMBER, "1.0001"],
    "gae_lambda": [*NUMBER, "1.0001"],
    "min_gae_lambda": [*NUMBER, "1.0001"],
    "ent_coef": NUMBER,
    "clip_range": [*NUMBER, "-1e-9"],
    "target_kl": [*NUMBER],
    "min_advantage_std": [*NUMBER],
    "use_sde": SWITCH,
    "sde_sample_freq": [*INTEGER, "-2"],
    "normalize_observations": SWITCH,
    "normalize_returns": SWITCH,
    "autocast": SWITCH,
    "vf_coef": NUMBER,
    "max_grad_norm": [*WORDS, "true", "nan", "-1e-9", "-inf"],
    "width": [*INTEGER, "0", "65537"],
    "solved": [*NUMBER, "-1e-9", "1.0001"],
    "solved_return": [*NUMBER, "1e10"],
    "eval_every": INTEGER,
    "eval_episodes": [*INTEGER, "0"],
    "checkpoint_every": INTEGER,
    "keep_checkpoints": [*INTEGER, "0"],
    "closing_episodes": INTEGER,
    "progress": SWITCH,
    "workers": [*INTEGER, "0", "3", "4097"],
    "engine": [*NAME, "Ray", "threads"],
}
EVALUATE: dict[str, list[str]] = {
    "run_dir": [*PATH, "nowhere", "file", "file/x", "/", "."],
    "more": [*PATH, "nowhere", "file", "/", "."],
    "episodes": [*INTEGER, "0"],
    "env": NAME,
    "env_args": [*PAIRS, "corridors=nan", "corridors=" + "9" * 5000],
    "grid": [*PAIRS, "corridors=", "corridors=1,", "corridors=1,nan", "corridors=,", "corridors=1,x"],
    "deterministic": SWITCH,
    "seed": [*INTEGER, "1000000001"],
    "json": [*PATH, "run", "file/x.json", "file/x/y.json"],
    "device": [*NAME, "tpu", "cuda:-1"],
    "max_steps": [*INTEGER, "0"],
    "use_masking": SWITCH,
}
SWEEP: dict[str, list[str]] = {
    "suite": [*PATH, "nowhere", "file", "file/x", "/", ".", "empty.toml"],
    "out": PATH,
    "workers": [*INTEGER, "0", "1025"],
    "engine": [*NAME, "Ray", "threads"],
    "address": ["auto", "", "x"],
    "dry_run": SWITCH,
}
TUNE: dict[str, list[str]] = {
    "trials": [*INTEGER, "0"],
    "study": [*WORDS[:4], "x://y", "a" * 501, "."],
    "study_name": [*WORDS[:4], "a" * 501],
    "out": PATH,
    "space": [*PATH, "nowhere", "file", "file/x", "/", ".", "empty.toml"],
    "metric": [*NAME, "Success", "reward"],
    "seeds_per_trial": [*INTEGER, "0"],
    "pruner": [*NAME, "Median", "hyperband"],
    "jobs": [*INTEGER, "0", "1025"],
    "engine": [*NAME, "Ray", "processes"],
    "address": ["auto", "", "x"],
    "run_dir": ["x"],
    "resume": ["run"],
}
WATCHED: dict[str, list[str]] = {
    "run": [*PATH, "nowhere", "file", "file/x", "/", ".", "run"],
    "env": NAME,
    "env_args": PAIRS,
    "seed": [*INTEGER, "1000000001"],
    "deterministic": SWITCH,
    "device": [*NAME, "tpu", "cuda:-1"],
}
PLAY: dict[str, list[str]] = {
    **WATCHED,
    "out": [*PATH, "run", "x.png", "folder.gif"],
    "human": SWITCH,
    "ansi": SWITCH,
    "episodes": [*INTEGER, "0"],
    "fps": [*INTEGER, "0", "241"],
    "max_steps": [*INTEGER, "0"],
}
INSPECT: dict[str, list[str]] = {
    **WATCHED,
    "out": PATH,
    "steps": [*INTEGER, "1", "2001"],
    "episodes": [*INTEGER, "3"],
    "lags": [*INTEGER, "0", "2001"],
    "tensorboard": SWITCH,
}
REPORT: dict[str, list[str]] = {
    "source": [*PATH, "nowhere", "file", "file/x", "/", ".", "empty.toml"],
    "out": PATH,
}


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    """A working directory with a run, a file and an empty configuration; training and evaluating are not reached."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(TrainConfig().to_toml())

    def reached(*arguments):
        raise AssertionError("a bad flag reached the work")

    monkeypatch.setattr(experiment, "_learn", reached)
    for name in ("evaluate", "evaluate_grid"):
        monkeypatch.setattr(closing, name, reached)


def assert_refused(argv: list[str], name: str, value: str, capsys, tmp_path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert train.main(argv) == 2, value
    out, err = capsys.readouterr()
    assert out == "", value
    assert err.startswith("palimpsest: ")
    assert err.count("\n") == 1, err
    assert len(err) > len("palimpsest: ") + 20
    assert err.rstrip("\n").isprintable(), err
    assert sorted(tmp_path.rglob("*")) == before, value


def fields(command: type) -> set[str]:
    return {field.name for field in dataclasses.fields(command)}


def test_every_flag_has_a_row():
    assert set(TRAIN) == fields(train.TrainCommand)
    assert set(EVALUATE) == fields(train.EvaluateCommand)
    assert set(SWEEP) == fields(train.SweepCommand)
    assert set(TUNE) >= fields(train.TuneCommand) - fields(train.TrainCommand)
    assert set(REPORT) == fields(ReportCommand)
    assert set(PLAY) == fields(PlayCommand)
    assert set(INSPECT) == fields(InspectCommand)


def words(name: str, value: str) -> list[str]:
    flag = f"--{NAMES.get(name, name).replace('_', '-')}"
    if name.endswith("_args") or name == "grid":
        return [flag, value]
    return [f"{flag}={value}"]


@pytest.mark.parametrize("name", TRAIN)
def test_training_refuses(name, capsys, tmp_path):
    for value in TRAIN[name]:
        assert_refused(words(name, value), name, value, capsys, tmp_path)


@pytest.mark.parametrize("name", [name for name in TRAIN if name not in ("config", "resume", "run_dir")])
def test_resuming_refuses(name, capsys, tmp_path):
    for value in TRAIN[name][1:3]:
        assert_refused(["train", "--resume", "run", *words(name, value)], name, value, capsys, tmp_path)


@pytest.mark.parametrize("name", EVALUATE)
def test_evaluating_refuses(name, capsys, tmp_path):
    for value in EVALUATE[name]:
        argv = {"run_dir": ["evaluate", value], "more": ["evaluate", "run", value]}
        argv = argv.get(name, ["evaluate", "run", *words(name, value)])
        assert_refused(argv, name, value, capsys, tmp_path)


@pytest.mark.parametrize(("command", "rows"), [("sweep", SWEEP), ("report", REPORT)])
def test_sweeping_and_reporting_refuse(command, rows, capsys, tmp_path):
    for name, values in rows.items():
        for value in values:
            words_given = [value] if name in ("suite", "source") else ["empty.toml", *words(name, value)]
            assert_refused([command, *words_given], name, value, capsys, tmp_path)


@pytest.mark.parametrize("name", TUNE)
def test_tuning_refuses(name, capsys, tmp_path):
    pytest.importorskip("optuna")
    for value in TUNE[name]:
        assert_refused(["tune", *words(name, value)], name, value, capsys, tmp_path)


@pytest.mark.parametrize(("command", "rows"), [("play", PLAY), ("inspect", INSPECT)])
def test_watching_refuses(command, rows, capsys, tmp_path):
    (tmp_path / "folder.gif").mkdir()
    for name, values in rows.items():
        for value in values:
            words_given = [value] if name == "run" else ["run", *words(name, value)]
            assert_refused([command, *words_given], name, value, capsys, tmp_path)


@pytest.mark.parametrize("words", [["x"], [""], ["1\n2"], ["--x"], ["-x"], ["a\0b"], ["list", "list"], ["ø" * 300]])
def test_listing_takes_nothing(words, capsys, tmp_path):
    assert_refused(["list", *words], "list", words[0], capsys, tmp_path)


@pytest.mark.parametrize("word", WORDS)
def test_what_is_no_command(word, capsys, tmp_path):
    assert_refused([word], "", word, capsys, tmp_path)

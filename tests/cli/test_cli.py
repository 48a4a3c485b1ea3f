"""The command line: what it makes of good input, and that bad input gets one line, exit code 2 and no directory."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from palimpsest import train
from palimpsest.agents.command import blame
from palimpsest.agents.command.parsing import NAMES
from palimpsest.agents.files.archive import CorruptFile
from palimpsest.agents.launch import start
from palimpsest.agents.run.config import TrainConfig

ROOT = Path(train.__file__).parent
TRAIN_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
HINTS = typing.get_type_hints(TrainConfig)


def refused(argv, capsys, code=2):
    """The one line that a refused command line prints."""
    assert train.main(argv) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("palimpsest: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


BAD = [
    ("trian", "unknown command 'trian'.*did you mean 'train'"),
    ("x", "unknown command 'x'; known: train, evaluate, sweep, tune, list, report, play, inspect, export"),
    ("list all", "list takes no arguments"),
    ("--lerning-rate 1", "'--lerning-rate'.*did you mean '--learning-rate'"),
    ("train extra", "unknown argument 'extra'"),
    ("--progress yes", "unknown argument 'yes'"),
    ("--env NoSuch-v0", "unknown environment 'NoSuch-v0'"),
    ("--env CartPol-v1", "did you mean 'CartPole-v1'"),
    ("--env EndlesTMaze-v0", "did you mean 'Palimpsest/EndlessTMaze-v0'"),
    ("--env no_such_module:CartPole-v1", "module of environment .* cannot be imported"),
    ("--memory lsmt", "unknown memory 'lsmt'.*'lstm'"),
    ("--memory __import__", "unknown memory"),
    ("--memory no_such_module:mine", "module of memory .* cannot be imported: no module 'no_such_module'"),
    ("--memory os:mine", "module 'os' has no memory 'mine'"),
    ("--env os:CartPoll-v1", "did you mean 'CartPole-v1'.*'os' must call gymnasium.register"),
    ("--env nothing.py:Mine-v0", "must read module:name, .*without .py"),
    ("--wrapper", "Missing value for argument '--wrapper'"),
    ("--wrapper --seed 3", "Missing value for argument '--wrapper'"),
    ("--vec sync", "vec must be one of 'dummy', 'subproc', 'async', or None; got 'sync'"),
    ("--total-timesteps 1.5", "--total-timesteps must be an integer; got '1.5'"),
    ("--total-timesteps 1.5e0", "--total-timesteps must be an integer; got '1.5e0'"),
    ("--from nowhere", "cannot read the configuration 'nowhere'"),
    ("--from a --resume b", "cannot read the configuration 'b'"),
    ("--env-args corridors", "KEY=VALUE.*'corridors'"),
    ("--env-args corridors 10", "KEY=VALUE.*'corridors'"),
    ("--env-args corridors=1 corridors=2", "twice"),
    ("--env-args corridors=1 --env-args length=2", "--env-args is given twice"),
    ("--env-args coridors=1", "no argument 'coridors'.*did you mean 'corridors'"),
    ("--env-args corridors=ten", "'corridors'.*an integer; got 'ten'"),
    ("--env-args corridors=1.5", "'corridors'.*an integer; got '1.5'"),
    ("--env-args regime=uniformly", "'regime'.*'fixed', 'uniform'.*did you mean 'uniform'"),
    ("--env-args render_mode=human", "no argument 'render_mode'"),
    ("--memory lstm --memory-args input_size=3", "no argument 'input_size'"),
    ("--memory lstm --memory-args layers=3", "no argument 'layers'.*did you mean 'num_layers'"),
    ("--memory lstm --memory-args num_layers=many", "'num_layers'.*an integer; got 'many'"),
    ("--num-minibatches 3", "a divisor of num_envs=16, such as 1, 2, 4, .*; got 3"),
    ("--seed 1000000000", "seed.*evaluation.*1000000000"),
    ("--device tpu", "device must be 'auto', 'cpu', .*; got 'tpu'"),
    ("--config nowhere.toml", "cannot read the configuration 'nowhere.toml'"),
    ("--config .", "cannot read the configuration 'config.toml'"),
    ("--resume nowhere", "cannot read the configuration 'nowhere'"),
    ("--config", "Missing value for argument '--config'"),
    ("evaluate", "RUN_DIR"),
    ("evaluate nowhere", "cannot read the configuration 'nowhere'"),
    ("evaluate a b", "cannot read the configuration 'a'"),
    ("evaluate a --grid corridors=1 --grid length=2", "--grid is given twice"),
    ("evaluate a --grid corridors", "KEY=VALUE.*'corridors'"),
    ("evaluate a --episodes 0", "episodes must be an integer, 1 to 100,000,000; got 0"),
    ("evaluate a --episodes few", "--episodes must be an integer; got 'few'"),
    ("evaluate a --max-steps 0", "max_steps must be an integer, 1 to .*, or None; got 0"),
    ("evaluate a --seed -1", "seed must be an integer, 0 to 1,000,000,000; got -1"),
    ("evaluate a --device x", "device must be"),
    ("sweep", "SUITE.toml"),
    ("sweep nowhere.toml", "cannot read the suite 'nowhere.toml'"),
    ("sweep a --workers 0", "workers must be an integer, 1 to 1,024, or None; got 0"),
    ("sweep a --engine ry", "engine must be one of 'processes', 'ray'; got 'ry'.*did you mean 'ray'"),
    ("sweep a --address auto", "address is that of a Ray cluster; got 'auto' with engine 'processes'"),
    ("sweep a --dry-rn", "'--dry-rn'.*did you mean '--dry-run'"),
    ("report", r"FOLDER\|CSV"),
    ("report nowhere", "cannot read the table 'nowhere'"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_wrong_usage_gets_one_line_and_leaves_nothing(line, message, started, capsys, tmp_path):
    error = refused(line.split(), capsys)
    assert re.search(message, error), error
    assert started == []
    assert list(tmp_path.iterdir()) == []


def bad_values(name):
    """Values that no flag of this field's type and range takes."""
    kinds = set(typing.get_args(HINTS[name])) or {HINTS[name]}
    if name == "max_grad_norm":
        return ["x", "", "nan", "-inf", "-1e-9", "1,5", "None"]  # inf is no clipping
    if name == "solved_return":
        return ["x", "", "nan", "inf", "1e10", "-1e10", "1,5", "None"]
    if name == "log_std_init":
        return ["x", "", "nan", "inf", "101", "-101", "1,5", "None"]
    if name == "sde_sample_freq":
        return ["x", "", "1.5", "nan", "-2", "9" * 40, "None"]  # -1 is once per rollout
    if int in kinds:
        return ["x", "", "1.5", "nan", "inf", "-1", "9" * 40, "1e39", "1.5e0", "1e-3", "0x10", "None", "$(id)", "1 2"]
    if float in kinds:
        return ["x", "", "nan", "inf", "-1e-9", "1e400", "1e300", "1,5", "None", "__import__('os')"]
    return []


FLAGS = [(name, value) for name in TRAIN_FIELDS for value in bad_values(name) if (name, value) != ("threads", "None")]


@pytest.mark.parametrize(("name", "value"), FLAGS, ids=[f"{name}-{value[:9]}" for name, value in FLAGS])
def test_every_number_is_refused_where_it_does_not_fit(name, value, started, capsys, tmp_path):
    flag = f"--{name.replace('_', '-')}"
    error = refused([f"{flag}={value}"], capsys)
    assert flag in error or name in error
    assert started == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",  # --net-arch alone is no layer
    [n for n in TRAIN_FIELDS if HINTS[n] not in (bool, bool | None) and not n.endswith(("_args", "_arch"))],
)
def test_every_flag_needs_its_value(name, started, capsys):
    flag = f"--{NAMES.get(name, name).replace('_', '-')}"
    assert flag in refused([flag], capsys)
    assert started == []


def trained(argv, started):
    """The configuration that a command line trains, less its run directory."""
    assert train.main(argv) == 0
    config = started.pop()
    assert config.run_dir.parent == Path("runs")
    return dataclasses.replace(config, run_dir=None)


def test_without_arguments_the_defaults_are_trained(started):
    assert trained([], started) == trained(["train"], started) == TrainConfig()


def test_every_flag_reaches_the_configuration(started):
    line = (
        "train --env Palimpsest/EndlessTMaze-v0 --env-args corridors=10 regime=uniform --memory rewrite "
        "--memory-args num_layers=1 --carry-over 0.25 --total-timesteps 1000 --num_envs 8 --seed 3 --device cpu "
        "--no-share-memory --no-anneal --no-anneal-entropy --no-progress --threads 2 --n-steps 16 --learning-rate 3e-4"
    )
    assert trained(line.split(), started) == TrainConfig(
        env_args={"corridors": 10, "regime": "uniform"},
        memory_args={"num_layers": 1},
        carry_over=0.25,
        total_timesteps=1000,
        num_envs=8,
        seed=3,
        device="cpu",
        share_memory=False,
        anneal=False,
        anneal_entropy=False,
        progress=False,
        threads=2,
        n_steps=16,
        learning_rate=3e-4,
    )


def test_integers_may_be_written_as_people_write_them(started):
    for word in ("1e6", "1E6", "1_000_000", "1000000", "1.0e6", "0.001e+9"):
        assert trained(["--total-timesteps", word], started).total_timesteps == 1_000_000
    assert trained(["--env-args", "corridors=2e1"], started).env_args == {"corridors": 20}


def test_environments_of_others(started):
    assert trained(["--env", "CartPole-v1"], started).env == "CartPole-v1"
    config = trained(["--env", "FrozenLake-v1", "--env-args", "is_slippery=no", "map_name=8x8"], started)
    assert config.env_args == {"is_slippery": False, "map_name": "8x8"}
    config = trained(["--env", "minigrid:MiniGrid-MemoryS13-v0", "--env-args", "size=11", "max_steps=99"], started)
    assert config.env_args == {"size": 11, "max_steps": 99}


def test_a_saved_configuration_gives_the_defaults(started, tmp_path):
    saved = TrainConfig(env_args={"corridors": 10, "length": 7}, memory="lstm", memory_args={"num_layers": 2}, seed=5)
    (tmp_path / "run.toml").write_text(saved.to_toml())
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "config.toml").write_text(saved.to_toml())
    for source in ("run.toml", "done"):
        assert trained(["--config", source], started) == saved
        assert trained([f"--config={source}", "--seed", "6"], started) == dataclasses.replace(saved, seed=6)
    config = trained(["--config", "run.toml", "--env-args", "corridors=3"], started)
    assert config.env_args == {"corridors": 3, "length": 7}
    config = trained(["--config", "run.toml", "--memory", "gru", "--env", "CartPole-v1"], started)
    assert (config.env_args, config.memory_args) == ({}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "run.toml: not a TOML document"),
        ("lerning_rate = 1", "run.toml: unknown key 'lerning_rate'.*did you mean 'learning_rate'"),
        ("run_dir = 'a'", "unknown key 'run_dir'"),
        ("seed = 'x'", "seed must be an integer, 0 to 1,000,000,006; got 'x'"),
        ("seed = true", "seed must be an integer, 0 to 1,000,000,006; got True"),
        ("progress = 1", "progress must be True or False; got 1"),
        ("env_args = 3", "env_args must be a dict of arguments by name; got 3"),
        ("env_args = {coridors = 3}", "no argument 'coridors'.*did you mean 'corridors'"),
        ("memory = 'lsmt'", "unknown memory 'lsmt'"),
        ("gamma = 2.0", "gamma must be a number, 0 to 1, or None; got 2.0"),
        ("\x00", "not a TOML document"),
    ],
)
def test_a_bad_configuration_file(text, message, started, capsys, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    error = refused(["--config", "run.toml"], capsys)
    assert re.search(message, error), error
    assert started == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_configuration_file_that_is_no_text(started, capsys, tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    assert "run.toml" in refused(["--config", "run.toml"], capsys)


def test_a_resumed_run_keeps_its_configuration(started, capsys, tmp_path):
    saved = TrainConfig(env_args={"corridors": 10}, seed=5)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.toml").write_text(saved.to_toml())
    assert train.main(["--resume", "old", "--no-progress", "--device", "cpu"]) == 0
    expected = dataclasses.replace(saved, resume=Path("old"), progress=False, device="cpu")
    assert started.pop() == expected
    assert "seed is 5 in the run to resume; got 6" in refused(["--resume", "old", "--seed", "6"], capsys)
    assert "env_args" in refused(["--resume", "old", "--env-args", "corridors=9"], capsys)
    assert "leave out --config" in refused(["--resume", "old", "--config", "old"], capsys)
    assert "leave run_dir out" in refused(["--resume", "old", "--run-dir", "new"], capsys)
    assert started == []


def test_an_existing_run_directory_is_refused_and_left_alone(started, capsys, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("taken", "taken/file", "link"):
        assert "exists" in refused(["--run-dir", name], capsys)
    assert started == []
    assert (tmp_path / "taken" / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [ValueError("a\nproblem"), OSError("a problem"), CorruptFile("a problem")])
def test_the_exit_code_tells_whether_the_run_had_begun(error, started, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(blame, "_is_ours", lambda file: True)

    def before(config, engine):
        raise error

    def after(config, engine):
        config.run_dir.mkdir()
        raise error

    monkeypatch.setattr(start, "train", before)
    assert "a problem" in refused(["--run-dir", "new"], capsys, code=2)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(start, "train", after)
    assert "a problem" in refused(["--run-dir", "new"], capsys, code=1)
    assert (tmp_path / "new").is_dir()


def test_interrupted(started, capsys, monkeypatch):
    def interrupt(config, engine):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "train", interrupt)
    assert "interrupted" in refused([], capsys, code=130)


def test_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--env", "CartPol-v1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("train.py: ")
    assert "did you mean 'CartPole-v1'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

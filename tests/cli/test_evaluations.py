"""The command `evaluate`: what it makes of good input, and that bad input evaluates nothing."""

import re
from pathlib import Path

import pytest
from test_cli import refused

from palimpsest import train
from palimpsest.agents.command import blame
from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.files.archive import CorruptFile
from palimpsest.agents.run import closing
from palimpsest.agents.run.config import EvaluateConfig, TrainConfig


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A working directory with a run; the configurations that would have been evaluated."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(closing, "evaluate", lambda config, show: seen.append(config) or show({"success": 0.5}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(TrainConfig(env_args={"corridors": 10}).to_toml())
    return seen


def test_evaluation_is_configured(finished, capsys):
    line = (
        "evaluate run --episodes 20 --env-args corridors=100 --json out.json --seed 4 --no-deterministic --max-steps 9 "
        "--no-use-masking"
    )
    assert train.main(line.split()) == 0
    assert finished == [
        EvaluateConfig(
            run_dir=Path("run"),
            episodes=20,
            env_args={"corridors": 100},
            json=Path("out.json"),
            seed=4,
            deterministic=False,
            max_steps=9,
            use_masking=False,
        )
    ]
    assert finished[0].first_seed == EVALUATION_SEED + 4
    assert "success" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate run --env-args coridors=1", "did you mean 'corridors'"),
        ("evaluate run --env CartPol-v1", "did you mean 'CartPole-v1'"),
        ("evaluate run --env CartPole-v1 --env-args corridors=1", "CartPole-v1 has no argument 'corridors'"),
        ("evaluate run --json run/config.toml/out.json", "'.*config.toml' is not a folder"),
        ("evaluate run --json run", "--json 'run' is a folder"),
        ("evaluate run --env-args corridors", "KEY=VALUE.*'corridors'"),
    ],
)
def test_wrong_evaluations(line, message, finished, capsys, tmp_path):
    error = refused(line.split(), capsys)
    assert re.search(message, error), error
    assert finished == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("no model"), 2), (CorruptFile("torn"), 1), (OSError("disk"), 1)]
)
def test_exit_codes_of_evaluation(error, code, finished, capsys, monkeypatch):
    monkeypatch.setattr(blame, "_is_ours", lambda file: True)

    def fail(config, show):
        raise error

    monkeypatch.setattr(closing, "evaluate", fail)
    assert str(error) in refused(["evaluate", "run"], capsys, code=code)


def test_a_place_that_cannot_be_written_is_refused_before_the_evaluation(finished, capsys, monkeypatch):
    def fail(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(train.tempfile, "TemporaryFile", fail)
    error = refused(["evaluate", "run", "--json", "new/out.json"], capsys)
    assert re.search("--json 'new/out.json' cannot be made, .*Permission denied.*choose another path", error)
    assert finished == []

"""The page on searches: its commands are allowed, its space can be searched, and its statements are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from palimpsest import train
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.tune import space as spaces
from palimpsest.agents.tune import studies, tune
from palimpsest.agents.tune.config import TuneConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
(SPACE,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in text.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_the_commands_are_allowed(line, tmp_path, monkeypatch):
    called = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "tune", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(experiment, "train", lambda *arguments: called.append(arguments))
    Path("space.toml").write_text(SPACE)
    zoo = "policy: MlpLstmPolicy"
    Path("ppo_lstm.yml").write_text(f"CartPoleNoVel-v1:\n  {zoo}\nPendulumNoVel-v1:\n  {zoo}\n")
    best = Path("runs/tune/EndlessTMaze-v0-lstm/best.toml")
    best.parent.mkdir(parents=True)
    best.write_text(TrainConfig(memory="lstm").to_toml())
    program, *words = shlex.split(line, comments=True)
    assert program == "palimpsest"
    assert train.main(words) == 0
    ((first, *rest),) = called
    if words[0] == "tune":
        training, fixed = rest
        _, space = tune._prepared(first, training, fixed)
        assert "learning_rate" in space
        assert not set(space) & fixed
        assert str(first.folder(training)).startswith("runs/tune/")


def test_the_space_is_what_the_page_says(tmp_path):
    (tmp_path / "space.toml").write_text(SPACE)
    training = TrainConfig()
    space, fixed = spaces.load(tmp_path / "space.toml", training)
    assert fixed == {"gamma": 0.99, "memory_args.num_layers": 1}
    assert set(space) == set(spaces.usual(training)) - set(fixed)
    spaces.searched(space, training, fixed)
    for name in spaces.USUAL | spaces.USUAL_PPO:
        assert name.replace("learning_rate", "learning rate") in PAGE


def test_the_numbers_are_true():
    assert f"first {studies.STARTUP_TRIALS} trials and the first {studies.UNPRUNED_EVALUATIONS} evaluations" in PAGE
    assert tune.EVALUATIONS == 10
    assert TuneConfig().pruner == "median"

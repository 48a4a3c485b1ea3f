"""What a command says of errors: ours in a sentence, others with where they were raised."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from palimpsest import train
from palimpsest.agents.command import blame
from palimpsest.agents.command.blame import is_of_user, told
from palimpsest.agents.launch import start
from palimpsest.agents.run.config import TrainConfig
from palimpsest.refusals import check_integer

BROKEN = """
import numpy

def look_up():
    return [1, 2].index(9)

def read():
    return open("/no/such/level.txt")

def broadcast():
    return numpy.zeros(3) + numpy.zeros(4)
"""


def raised(call):
    try:
        call()
    except Exception as error:
        return told(error)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("name", ["look_up", "read", "broadcast"])
def test_what_others_raise_is_told_with_its_place(name, tmp_path, monkeypatch):
    (tmp_path / "faulty_module.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    broken = importlib.import_module("faulty_module")
    first, *lines = raised(getattr(broken, name)).splitlines()
    assert first.startswith(("ValueError: ", "FileNotFoundError: "))
    assert any('faulty_module.py", line' in line and name in line for line in lines)


def test_a_refusal_of_ours_is_one_line(monkeypatch):
    monkeypatch.setattr(blame, "_is_theirs", lambda file: False)  # this file is the caller
    assert raised(lambda: check_integer("n", 0, 1, 9)) == "n must be an integer, 1 to 9; got 0"
    assert "\n" not in raised(lambda: TrainConfig(gamma=2.0))


FAULTY = """
import gymnasium
import numpy

class Faulty(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    left = 40

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return numpy.zeros(2, numpy.float32), {}

    def step(self, action):
        Faulty.left -= 1
        if not Faulty.left:
            raise RuntimeError("sensor lost" + chr(10) + "second line")
        return numpy.zeros(2, numpy.float32), 0.0, False, False, {}

gymnasium.register("Faulty-v0", entry_point="faulty_env:Faulty")
"""


def test_what_a_users_environment_raises_is_told_with_the_remedy(tmp_path, monkeypatch, capsys):
    (tmp_path / "faulty_env.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    words = "--env faulty_env:Faulty-v0 --memory none --num-envs 2 --n-steps 8 --checkpoint-every 16 --eval-every 0"
    assert train.main([*words.split(), "--device", "cpu", "--no-progress", "--run-dir", "run"]) == 1
    first, *lines, last = capsys.readouterr().err.strip().splitlines()
    assert first == "palimpsest: RuntimeError: sensor lost second line"
    assert 'faulty_env.py", line' in lines[0]
    assert len(lines) < 5
    assert last.startswith(f"The last checkpoint, {Path('run/checkpoints')}")
    assert last.endswith("continue with: palimpsest --resume run")


def test_an_error_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fails(config, engine):
        return check_integer(*[])  # as an oversight of ours would

    monkeypatch.setattr(blame, "_is_theirs", lambda file: False)
    monkeypatch.setattr(start, "train", fails)
    with pytest.raises(TypeError):
        train.main(["--run-dir", "run"])


def test_whose_an_error_is(tmp_path, monkeypatch):
    (tmp_path / "whose_module.py").write_text("import json\ndef read():\n    json.loads('{')\n")
    monkeypatch.syspath_prepend(tmp_path)
    read = importlib.import_module("whose_module").read
    for call, theirs in ((read, True), (lambda: check_integer("n", "x", 1), False)):
        with pytest.raises(ValueError, match=r"^Expecting|^n must") as met:
            call()
        frames = met.value.__traceback__.tb_next  # without this file, which is a user's too
        assert is_of_user(met.value.with_traceback(frames)) is theirs


def test_words_are_told_as_they_are():
    assert told("interrupted") == "interrupted"

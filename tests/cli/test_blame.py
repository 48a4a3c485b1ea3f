"""What a command says of errors: ours in a sentence, others with where they were raised."""

from __future__ import annotations

import importlib

import pytest

from palimpsest.agents.command import blame
from palimpsest.agents.command.blame import told
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


def test_words_are_told_as_they_are():
    assert told("interrupted") == "interrupted"

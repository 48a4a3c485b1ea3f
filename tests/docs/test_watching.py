"""The page on watching: its commands are allowed, its code runs, its table names memories."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from palimpsest import memory, train
from palimpsest.agents.command.parsing import parse

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
sys.path.append(str(ROOT / "tests" / "agents" / "watch"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def _run(tmp_path, monkeypatch):
    from watching import write_run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    write_run(tmp_path / "runs" / "maze", "gru")


@pytest.mark.usefixtures("_run")
def test_the_commands_are_allowed():
    lines = "".join(blocks("bash")).replace("\\\n", "").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    assert {words[0] for words in commands} == {"palimpsest"}
    for _, command, *words in commands:
        if command in train.ROOMS:
            parsed = parse(train._named(train.ROOMS[command]), words)
            assert parsed.run == Path("runs/maze")
    assert [words[1] for words in commands].count("play") == 6


@pytest.mark.usefixtures("_run")
def test_the_code_runs(capsys):
    (code,) = blocks("python")
    made: dict = {}
    exec(compile(code, "docs/watching.md", "exec"), made)
    assert capsys.readouterr().out.startswith("0 [")
    assert made["picture"].shape[2] == 3


def test_the_table_names_memories():
    rows = re.findall(r"^\| (`[^|]+`) \| ", PAGE, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    assert len(named) == 7
    assert set(named) <= set(memory.names())


def test_the_pictures_are_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) == 2
    assert sum((ROOT / "docs" / name).stat().st_size for name in pictures) < 300_000

"""What the command line says of itself: its lists, its help, and what they import."""

import subprocess
import sys

import gymnasium
import pytest
from test_cli import ROOT, TRAIN_FIELDS

import palimpsest
from palimpsest import envs, memory, train
from palimpsest.agents.command.parsing import NAMES
from palimpsest.agents.files import shelf


def test_list_shows_every_name_once_with_computed_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert train.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert set(rows) == {*envs.ids(), *memory.names(), *(f"shelf:{name}" for name in shelf.entries())}
    lstm = memory.make("lstm", 128)
    assert f"{sum(p.numel() for p in lstm.parameters()):,}" in rows["lstm"]
    assert memory.entry("lstm").meaning in rows["lstm"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['train.py']\n"
        "import train\n"
        "for line in ('--help', 'train --help', 'evaluate --help', 'sweep --help', 'report --help', '-h', "
        "'list --help', '--version'):\n"
        "    try:\n"
        "        assert train.main(line.split()) == 0\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code\n"
        "print(*(name in sys.modules for name in "
        "('torch', 'numba', 'stable_baselines3', 'matplotlib', 'palimpsest.envs.core', 'ray')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"palimpsest {palimpsest.__version__}", "False " * 5 + "False"]
    assert done.stdout.count("usage: train.py") == 7


def test_help_names_every_field_with_its_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert not stop.value.code
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in [*TRAIN_FIELDS, "config"]:
        assert f"--{NAMES.get(name, name).replace('_', '-')}" in shown
    for meaning in ("Discount factor per step.", "Minibatches per pass", "KEY=VALUE", "evaluate --help"):
        assert meaning in shown


def test_our_ids_are_registered():
    assert set(envs.ids()) <= set(gymnasium.registry)

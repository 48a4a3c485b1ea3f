"""What the README says is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from palimpsest import memory
from palimpsest.memory import registry
from palimpsest.memory.base import Memory

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_tables_are_those_of_the_registries():
    done = subprocess.run([sys.executable, "docs/build.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run python docs/build.py {done.stderr}"


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists() or target.startswith("http"), target


@pytest.mark.learning
def test_the_twenty_lines_run(tmp_path, monkeypatch, capsys):
    """As printed, but for a shorter training."""
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[0].replace("300_000", "8_192")
    assert code != BLOCKS[0]
    exec(compile(code, "README", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_memory_of_ones_own_obeys_the_contract(monkeypatch):
    module = types.ModuleType("my_module")
    monkeypatch.setitem(sys.modules, "my_module", module)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    exec(compile(BLOCKS[1], "README", "exec"), vars(module))
    made = memory.make("trace", 3, output_size=4)
    x, start = torch.randn(6, 2, 3), torch.rand(6, 2) < 0.3
    y, state = made.scan(x, start, made.initial_state(2))
    assert y.shape == (6, 2, 4)
    twice, _ = Memory.scan(made, x, start, made.initial_state(2))
    torch.testing.assert_close(y, twice)
    torch.testing.assert_close(y[-1], state.trace)

"""What the README says is what the code does."""

from __future__ import annotations

import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

from palimpsest import envs, memory
from palimpsest.memory import registry
from palimpsest.memory.base import Memory

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENTS = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_tables_are_those_of_the_registries():
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert build["main"](build["Options"](check=True)) == 0, "run python docs/build.py"


def names(page: str) -> list[str]:
    """Environments in the first column of a table, braces written out."""
    found = []
    for stem, forms, rest in re.findall(r"^\| (Palimpsest/[^{ ]+)(?:\{([^}]+)\})?(\S*) \|", page, re.MULTILINE):
        found += [f"{stem}{form}{rest}" for form in forms.split(", ")]
    return found


def test_every_environment_is_in_a_row_of_the_readme_and_in_one_of_its_own_in_the_docs():
    assert sorted(names(README)) == sorted(names(ENVIRONMENTS)) == sorted(envs.ids())
    assert "{" not in ENVIRONMENTS


def test_pictures_and_links_are_there():
    for page, folder in ((README, ROOT), (ENVIRONMENTS, ROOT / "docs")):
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            assert (folder / target).exists() or target.startswith("http"), target


def test_environments_are_made_as_the_docs_say():
    (code,) = re.findall(r"```python\n(.*?)```", ENVIRONMENTS, re.DOTALL)
    made: dict = {}
    exec(compile(code, "docs/environments.md", "exec"), made)
    assert made["single"].unwrapped.rules.corridors == 10
    assert [made["rows"].num_envs, made["venv"].num_envs] == [1024, 64]


@pytest.mark.learning
def test_the_environment_with_masks_is_learned(capsys):
    page = (ROOT / "docs" / "action-masks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    made: dict = {}
    exec(compile(code, "docs/action-masks.md", "exec"), made)
    assert capsys.readouterr().out.strip() == "1.0"
    assert made["reward"] == 1


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

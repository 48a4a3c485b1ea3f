"""What the README says is what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from palimpsest import envs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENTS = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_registries():
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert build["main"](build["Options"](check=True)) == 0, "run python docs/build.py"


def names(page: str) -> list[str]:
    """Environments in the first column of a table."""
    return re.findall(r"^\| (Palimpsest/\S+) \|", page, re.MULTILINE)


def test_every_environment_has_a_row_in_the_docs_and_is_counted_in_the_readme():
    assert sorted(names(ENVIRONMENTS)) == sorted(envs.ids())
    counts = re.findall(r"^\| [^|]+ \| (\d+) \| [^|]+ \|$", README, re.MULTILINE)
    assert sum(map(int, counts)) == len(envs.ids())


def test_the_table_against_sb3_contrib_has_the_figures_of_its_pages():
    speed = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    training = r"^\| training, defaults, (\d+) environments \| ([\d,]+) env steps/s \| ([\d,]+) with `lstm`, ([\d,]+) "
    rows = re.findall(training, README, re.MULTILINE)
    assert len(rows) == 2
    for count, theirs, lstm, ffm in rows:
        for agent, figure in (("sb3-contrib, default", theirs), ("ours, lstm (default", lstm), ("ours, ffm", ffm)):
            row = rf"^\| {count} \| {re.escape(agent)}[^|]*\| {figure} \|"
            assert re.search(row, speed, re.MULTILINE), row
    assert re.search(r"^\| sb3-contrib \| 2.15 \|", speed, re.MULTILINE)
    assert re.search(r"^\| lstm \| 0.48 \|", speed, re.MULTILINE)
    assert "| 490 | 485 | 477 |" in (ROOT / "docs" / "from-recurrent-ppo.md").read_text(encoding="utf-8")


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

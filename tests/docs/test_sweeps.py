"""The page on sweeps: its suite is allowed, its code runs, its columns are those of the table."""

from __future__ import annotations

import re
from pathlib import Path

from palimpsest import train
from palimpsest.agents.sweep import table
from palimpsest.agents.sweep.suite import Environment, Suite

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_suite_unfolds(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    (text,) = blocks("toml")
    Path("page.toml").write_text(text)
    assert train.main(["sweep", "page.toml", "--dry-run"]) == 0
    # tasks × settings × (memories and twins) × seeds
    assert f"{3 * 2 * 3 * 3} runs, into runs/sweeps/page" in capsys.readouterr().out
    for cls in (Suite, Environment):
        assert all(re.search(rf"\b{name}\b", text) for name in cls.__dataclass_fields__)


def test_the_commands_are_allowed(tmp_path, monkeypatch, capsys):
    (text,) = blocks("bash")
    for line in text.splitlines():
        words = line.split("#")[0].split()
        assert words[0] == "palimpsest"
        if words[1] == "sweep":
            assert train.main([*words[1:2], str(ROOT / words[2]), "--dry-run", "--out", str(tmp_path)]) == 0
            assert f"{3 * 5 * 3} runs, into {tmp_path}" in capsys.readouterr().out


def test_the_code_runs(capsys):
    (code,) = blocks("python")
    exec(compile(code, "docs/sweeps.md", "exec"), {})
    estimate, improvement = capsys.readouterr().out.splitlines()
    assert estimate.startswith("Estimate(value=0.8")
    assert float(improvement) == float(re.search(r"# ([\d.]+)", code)[1])


def test_every_column_is_explained():
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| .*\|$", PAGE, re.MULTILINE)
    named = [name for row in rows for name in row.split(", ")]
    assert [name for name in named if name in table.COLUMNS] == named[-len(table.COLUMNS) :]
    assert sorted(set(named) & set(table.COLUMNS)) == sorted(table.COLUMNS)

"""The code of docs/export.md runs, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs/export.md").read_text(encoding="utf-8")


@pytest.mark.programs
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made: dict = {}
    for code in re.findall(r"```python[^\n]*\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/export.md", "exec"), made)
    assert capsys.readouterr().out.startswith("['observation', 'state.h', 'episode_start']")
    assert made["action"].shape == (1,)

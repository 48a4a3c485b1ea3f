"""Tables are whole at any width."""

import io

from rich.console import Console

from palimpsest.agents import printing


def test_a_cell_is_broken_not_cut():
    word = "Palimpsest/POPGym-NoisyPositionOnlyCartPole-Medium-v0"
    table = printing.table("environment", "meaning")
    table.add_row(word, "a pole whose velocity is hidden")
    file = io.StringIO()
    Console(width=40, file=file).print(table)
    lines = [line.split("│")[1].strip() for line in file.getvalue().splitlines() if line.startswith("│")]
    assert "".join(lines) == word


def test_what_is_no_terminal_has_wide_lines(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert printing.output().width == printing.WIDE
    monkeypatch.setenv("COLUMNS", "90")
    assert printing.output().width == 90

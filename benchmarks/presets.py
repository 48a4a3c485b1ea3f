"""The table of the presets: for each memory and setting its score on each task, and the setting with the best mean.

    palimpsest sweep benchmarks/suites/presets.toml --out runs/presets
    cp runs/presets/results.csv docs/results/presets.csv
    python benchmarks/presets.py

A task's score is the mean over its tests, training's own setting included; a score over tasks is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import tyro
from measure import markdown

from palimpsest.agents.sweep import table
from palimpsest.agents.sweep.report import grouped
from palimpsest.agents.sweep.table import Row

TABLE = Path(__file__).resolve().parent.parent / "docs" / "results" / "presets.csv"


def scores(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Memory -> setting -> task -> mean score; settings without a score on every task are left out."""
    tasks = {_env(row) for row in rows}
    found = {
        memory: {
            setting: {env: fmean(row["score"] for row in each) for env, each in grouped(runs, _env).items()}
            for setting, runs in grouped(of_memory, lambda row: row["setting"]).items()
        }
        for memory, of_memory in grouped(rows, lambda row: row["memory"]).items()
    }
    return {
        memory: {setting: each for setting, each in settings.items() if each.keys() == tasks}
        for memory, settings in found.items()
    }


def best(settings: dict[str, dict[str, float]]) -> str:
    """The setting with the highest mean over tasks."""
    return max(settings, key=lambda name: fmean(settings[name].values()))


def _env(row: Row) -> str:
    return str(row["env"].removeprefix("Palimpsest/"))


def main(path: Path = TABLE) -> None:
    """Print the table."""
    rows = table.read(path)
    tasks = list(dict.fromkeys(_env(row) for row in rows))
    lines = []
    for memory, settings in scores(rows).items():
        for name, each in settings.items():
            mark = "**" if name == best(settings) else ""
            figures = [f"{each[task]:.2f}" for task in tasks]
            lines.append([memory, f"{mark}{name}{mark}", *figures, f"{mark}{fmean(each.values()):.2f}{mark}"])
    print(markdown(["memory", "setting", *tasks, "mean"], lines))


if __name__ == "__main__":
    tyro.cli(main)

"""docs/results.md: the tables of sweeps that lie in docs/results/, with published figures beside them.

    palimpsest sweep benchmarks/suites/novel.toml --out runs/novel
    cp runs/novel/results.csv docs/results/novel.csv
    python benchmarks/results.py

The page's words stand in docs/results/page.md. A line `<!-- novel -->` there becomes the tables of novel.csv.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import tyro

from palimpsest.agents.evaluation.statistics import mean_and_error
from palimpsest.agents.sweep import table
from palimpsest.agents.sweep.report import grouped
from palimpsest.agents.sweep.suite import label
from palimpsest.agents.sweep.table import Row

DOCS = Path(__file__).resolve().parent.parent / "docs"
LINES = DOCS / "results"
PAGE = DOCS / "results.md"


def page(folder: Path = LINES) -> str:
    """The whole page, from the files of a folder.

    Raises:
        ValueError: the words name a table that is not there.
    """
    published = tomllib.loads((folder / "published.toml").read_text(encoding="utf-8"))

    def tables(found: re.Match[str]) -> str:
        rows = table.read(folder / f"{found[1]}.csv")
        return f"{_made_by(found[1], rows)}\n\n{_tables(rows, published)}"

    return re.sub(r"<!-- ([\w-]+) -->", tables, (folder / "page.md").read_text(encoding="utf-8"))


def _made_by(name: str, rows: Sequence[Row]) -> str:
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    versions = f"torch {rows[0]['torch']}, SB3 {rows[0]['stable_baselines3']}, numba {rows[0]['numba']}"
    return f"    palimpsest sweep benchmarks/suites/{name}.toml\n\nCommit {commits}; {versions}."


def _tables(rows: Sequence[Row], published: dict[str, list[dict[str, str]]]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    head = ["player", *(f"seed {seed}" for seed in seeds), "mean return", "success", "best", "steps"]
    parts = []
    for task, group in grouped(rows, _task).items():
        lines = [_line(name, runs, seeds) for name, runs in grouped(group, _player).items()]
        if group[0]["expert_return"] is not None:
            reached = _number(group[0]["expert_return"])
            lines.append(["expert", *[""] * len(seeds), reached, _number(group[0]["expert_success"]), "", ""])
        for each in published.get(group[0]["env"], []) if not group[0]["test"] else []:
            lines.append(
                [f"{each['who']} [{each['source']}]", *[""] * len(seeds), each["figure"], "", "", each["budget"]]
            )
        parts.append("\n".join([f"**{task}**", "", _row(head), _row(["---"] * len(head)), *map(_row, lines)]))
    return "\n\n".join(parts)


def _task(row: Row) -> str:
    task = label(row["env"].removeprefix("Palimpsest/"), row["env_args"])
    return f"{task}, tested with {label('', row['test']).strip()}" if row["test"] else task


def _player(row: Row) -> str:
    setting = "" if row["setting"] == "default" else f", {row['setting']}"
    return row["memory"] + setting + (", hidden state shown" if row["fully_observed"] else "")


def _line(name: str, runs: Sequence[Row], seeds: Sequence[int]) -> list[str]:
    by_seed = {row["seed"]: row for row in runs}
    each = [_number(by_seed[seed]["return_mean"]) if seed in by_seed else "" for seed in seeds]
    best = [row["best_return"] for row in runs if row["best_return"] is not None and not row["test"]]
    steps = sum(row["steps"] for row in runs) / len(runs)
    return [
        name,
        *each,
        _mean(runs, "return_mean"),
        _mean(runs, "success"),
        _number(max(best, default=None)),
        f"{steps:,.0f}",
    ]


def _mean(runs: Sequence[Row], column: str) -> str:
    values = [row[column] for row in runs]
    if None in values:
        return ""
    mean, error = mean_and_error(values)
    return _number(mean) if error is None else f"{_number(mean)} ± {error:.{_digits(mean)}f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(out: Path = PAGE) -> None:
    """Write the page."""
    out.write_text(page(), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    tyro.cli(main)

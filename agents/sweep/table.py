"""The table of a sweep: a row per run and test, as one CSV file that any tool reads."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest.agents.files.archive import write_atomically

FILE = "results.csv"
"""The table's file name in a sweep's folder."""

Row = dict[str, Any]
"""Column -> value; None if it is not known."""

JSON_COLUMNS = frozenset({"env_args", "test", "success_by"})
TRUTHS = frozenset({"fully_observed"})
INTEGERS = frozenset({"seed", "budget", "steps", "solved_step", "episodes", "first_seed"})
TEXTS = frozenset({"suite", "run", "env", "setting", "memory"})
VERSIONS = ("commit", "palimpsest_rl", "python", "torch", "stable_baselines3", "gymnasium", "numba", "numpy")

COLUMNS = (
    *("suite", "run", "env", "env_args", "setting", "memory", "fully_observed", "seed", "test"),
    *("budget", "steps", "wall_seconds", "episodes", "first_seed"),
    *("success", "success_se", "return_mean", "return_se", "score", "chance", "expert_success", "expert_return"),
    *("solved_step", "worst_after_solved", "best_return", "success_by"),
    *VERSIONS,
)
"""The columns, in order; docs/sweeps.md says what they hold."""


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the whole file at once. Dicts become JSON, None an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _shown(name, row[name]) for name in COLUMNS})
    write_atomically(path, text.getvalue().encode())


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` wrote.

    Raises:
        ValueError: the file cannot be read, is no such table, or holds no row. The message names the file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"it lacks the columns {', '.join(lacking)}; give the results.csv of a sweep")
            rows = [{name: _value(name, row[name]) for name in COLUMNS} for row in reader]
    except OSError as error:
        raise ValueError(f"cannot read the table {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no table of a sweep: {error}") from None
    if not rows:
        raise ValueError(f"{path} holds no row: no run of the sweep has finished")
    return rows


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if name in JSON_COLUMNS else str(value)


def _value(name: str, text: str) -> Any:
    if name in JSON_COLUMNS:
        return json.loads(text)
    if name in TRUTHS:
        return {"True": True, "False": False}.get(text)
    if name in TEXTS or name in VERSIONS:
        return text
    if text == "":
        return None
    return int(text) if name in INTEGERS else float(text)

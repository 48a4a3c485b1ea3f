"""The report on a sweep: tables with what a figure must be read beside, statistics over runs and tasks, plots.

Everything is computed from the rows of results.csv. Only the learning curves read the run directories.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from palimpsest.agents import printing
from palimpsest.agents.evaluation.statistics import (
    Estimate,
    estimate_gap,
    estimate_improvement,
    estimate_iqm,
    estimate_mean,
    mean_and_error,
)
from palimpsest.agents.files.archive import write_atomically
from palimpsest.agents.run.listing import plus_minus, spanned
from palimpsest.agents.sweep import plots, table
from palimpsest.agents.sweep.config import ReportCommand
from palimpsest.agents.sweep.suite import PLAIN, label
from palimpsest.agents.sweep.table import Row

Groups = dict[str, list[Row]]
Means = tuple[float, float | None]
UNKNOWN = (None, None)


class Shown(NamedTuple):
    """A table, before it is printed or written."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str


def report(config: ReportCommand, console: Console | None = None) -> None:
    """Report on the folder of a sweep, or on its CSV file.

    Raises:
        ValueError: there is no table, it is not that of a sweep, or `config.out` is no folder.
    """
    source = config.source / table.FILE if config.source.is_dir() else config.source
    rows, out = table.read(source), config.out or source.parent
    make_folder(out)
    write(rows, out, console or printing.output(), source.parent / "runs")


def make_folder(path: Path) -> None:
    """Make a folder where there is none; ValueError if a file has its name."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out must name a folder; {str(path)!r} is a file: choose another name")
    path.mkdir(parents=True, exist_ok=True)


def write(rows: Sequence[Row], out: Path, console: Console, runs: Path) -> None:
    """Print the tables, and write them and the plots to a folder.

    Args:
        rows: of results.csv, one or more.
        out: folder for report.md, profiles.png and, where `runs` exists, curves.png.
        console: where to print.
        runs: the folder of the run directories.
    """
    found = tables(rows)
    for each in found:
        printed = printing.table(
            *each.head, title=each.title, caption=each.note, title_justify="left", caption_justify="left"
        )
        for row in each.rows:
            printed.add_row(*row)
        console.print(printed, markup=False)
    pictures = [plots.profiles(scores_by_player(rows), out / "profiles.png")] if scores_by_player(rows) else []
    if runs.is_dir():
        pictures += plots.curves(grouped(rows, _task), runs, out / "curves.png", _player)
    page = [f"# {rows[0]['suite']}", *map(_markdown, found), *(f"![{p.stem}]({p.name})" for p in pictures)]
    write_atomically(out / "report.md", ("\n\n".join(page) + "\n").encode())
    console.print(f"report: {out / 'report.md'}", highlight=False, soft_wrap=True)


def tables(rows: Sequence[Row]) -> list[Shown]:
    """All tables of a report."""
    found = [_of_task(name, group, rows) for name, group in grouped(rows, _task).items()]
    scores = scores_by_player(rows)
    if scores:
        found.append(_over_tasks(scores, rows))
    if len(scores) > 1:
        found.append(_improvement(scores, rows))
    kinds = dict.fromkeys(kind for row in rows for kind in row["success_by"])
    return [*found, *(_by_kind(kind, rows) for kind in kinds)]


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> Groups:
    """Rows by a key, in the order of the first row of each group."""
    groups: Groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def scores_by_player(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Player -> task -> the scores of its runs, as trained: without further tests and without fully observed twins.

    Only tasks in which every player has a score count, so that all are compared on the same ones.
    """
    chosen = [row for row in rows if not row["test"] and not row["fully_observed"]]
    players = {
        player: {
            task: [row["score"] for row in part if row["score"] is not None]
            for task, part in grouped(group, _task).items()
        }
        for player, group in grouped(chosen, _player).items()
    }
    common = [t for t in grouped(chosen, _task) if all(tasks.get(t) for tasks in players.values())]
    return {player: {task: tasks[task] for task in common} for player, tasks in players.items()} if common else {}


def _task(row: Row) -> str:
    return label(row["env"], row["env_args"])


def _player(row: Row) -> str:
    return row["memory"] if row["setting"] == PLAIN else f"{row['memory']}, {row['setting']}"


def _mean(rows: Sequence[Row], column: str) -> Means | tuple[None, None]:
    """Mean and standard error over runs; None where a run does not know the value."""
    values = [row[column] for row in rows]
    return UNKNOWN if not values or None in values else mean_and_error(values)


def _of_task(name: str, group: Sequence[Row], rows: Sequence[Row]) -> Shown:
    """What every player reached in one task, beside chance, the expert and the fully observed twin."""
    lines = []
    for test, here in grouped(
        group, lambda row: label("as trained", row["test"]) if row["test"] else "as trained"
    ).items():
        shown = test.removeprefix("as trained ")
        for player, runs in grouped([row for row in here if not row["fully_observed"]], _player).items():
            twins = [row for row in here if row["fully_observed"] and row["setting"] == runs[0]["setting"]]
            successes = [row["success"] for row in runs]
            iqm = estimate_iqm({name: successes}) if len(runs) > 1 and None not in successes else None
            lines.append(
                [
                    shown,
                    player,
                    str(len(runs)),
                    plus_minus(*_mean(runs, "success")),
                    spanned(iqm),
                    _known(runs[0]["chance"]),
                    _known(runs[0]["expert_success"]),
                    plus_minus(*_mean(twins, "success")),
                    _plain(*_mean(runs, "return_mean")),
                    _known(runs[0]["expert_return"]),
                    _plain(*_mean(twins, "return_mean")),
                    f"{sum(row['steps'] for row in runs) / len(runs):,.0f}",
                    _known(
                        min(
                            (r["worst_after_solved"] for r in runs if r["worst_after_solved"] is not None), default=None
                        )
                    ),
                ]
            )
    shown_state = sorted({row["memory"] for row in group if row["fully_observed"]})
    note = (
        f"Mean ± standard error over runs (seeds). {_unseen(group)} IQM: interquartile mean over runs and its 95 % "
        "bootstrap interval. Chance: the best player without memory. Twin, to which the hidden state is shown: "
        f"{', '.join(shown_state) or 'none trained'}. Worst: the lowest success of any evaluation after a run first "
        "reached the suite's goal."
    )
    head = ["test", "memory", "runs", "success", "IQM", "chance", "expert", "twin", "return", "expert's return"]
    return Shown(name, [*head, "twin's return", "steps", "worst"], lines, note)


def _over_tasks(scores: Mapping[str, Mapping[str, list[float]]], rows: Sequence[Row]) -> Shown:
    def of(tasks: Mapping[str, list[float]]) -> list[str]:
        return [_with_interval(estimate(tasks), tasks) for estimate in (estimate_mean, estimate_iqm, estimate_gap)]

    lines = [[player, *_counts(tasks), *of(tasks)] for player, tasks in scores.items()]
    note = (
        f"Scores as trained, 0 to 1: success, or the mean return on the suite's scale. {_unseen(rows)} Intervals: "
        "95 %, stratified bootstrap over runs, none with one run per task. Optimality gap: how far scores stay below 1."
    )
    return Shown("Over all tasks", ["memory", "tasks", "runs", "mean", "IQM", "optimality gap"], lines, note)


def _counts(tasks: Mapping[str, list[float]]) -> list[str]:
    return [str(len(tasks)), str(sum(map(len, tasks.values())))]


def _improvement(scores: Mapping[str, Mapping[str, list[float]]], rows: Sequence[Row]) -> Shown:
    lines = [
        [first, *("-" if first == second else _wins(ours, scores[second]) for second in scores)]
        for first, ours in scores.items()
    ]
    tasks = len(next(iter(scores.values())))
    over = f"{tasks} {'task' if tasks == 1 else 'tasks'}"
    note = (
        f"How probably a run of the row's memory has a higher score than one of the column's, averaged over {over}; "
        f"equal scores count half. {_unseen(rows)} Intervals: 95 %, stratified bootstrap over runs, none with one run "
        "per task."
    )
    return Shown("Probability of improvement", ["", *scores], lines, note)


def _wins(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> str:
    return _with_interval(estimate_improvement(ours, theirs), ours, theirs)


def _with_interval(estimate: Estimate, *scores: Mapping[str, list[float]]) -> str:
    """An estimate, without its interval where no task has two runs: a bootstrap of one run says nothing."""
    several = any(len(runs) > 1 for tasks in scores for runs in tasks.values())
    return spanned(estimate) if several else f"{estimate.value:.3f}"


def _by_kind(name: str, rows: Sequence[Row]) -> Shown:
    """Right answers by a kind that the world declares, such as age or overwrites."""
    having = [row for row in rows if name in row["success_by"]]
    kinds = sorted({kind for row in having for kind in row["success_by"][name]}, key=int)
    lines = []
    for task, group in grouped(having, lambda row: label(_task(row), row["test"])).items():
        for player, runs in grouped(group, _seen_as).items():
            cells = []
            for kind in kinds:
                found = [row["success_by"][name][kind]["success"] for row in runs if kind in row["success_by"][name]]
                cells.append(plus_minus(*(mean_and_error(found) if found else UNKNOWN)))
            lines.append([task, player, str(len(runs)), *cells])
    note = f"Fraction of right answers, mean ± standard error over runs. {_unseen(having)}"
    return Shown(f"Success by {name.replace('_', ' ')}", ["task", "memory", "runs", *kinds], lines, note)


def _seen_as(row: Row) -> str:
    return _player(row) + (" (hidden state shown)" if row["fully_observed"] else "")


def _unseen(rows: Sequence[Row]) -> str:
    """How many episodes a figure rests on, and which."""
    episodes = sorted({row["episodes"] for row in rows})
    first = sorted({row["first_seed"] for row in rows})
    count = " to ".join(f"{n:,}" for n in dict.fromkeys((episodes[0], episodes[-1])))
    return f"{count} episodes per run, from seed {first[0]} on, which training never uses."


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(mean: float | None, error: float | None) -> str:
    """A mean return and its standard error, with as many digits as its size asks for."""
    if mean is None:
        return "-"
    digits = 1 if abs(mean) >= 100 else 3
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _markdown(shown: Shown) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    return "\n".join(
        [
            f"## {shown.title}",
            "",
            line(shown.head),
            line(["---"] * len(shown.head)),
            *map(line, shown.rows),
            "",
            shown.note,
        ]
    )

"""Plots of a sweep: performance profiles and learning curves."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from palimpsest.agents.evaluation.statistics import performance_profile, profile_band
from palimpsest.agents.run.callbacks import read_evaluations
from palimpsest.agents.sweep.table import Row

THRESHOLDS = 51
"""Points of a profile."""


def profiles(scores: Mapping[str, Mapping[str, Sequence[float]]], picture: Path) -> Path:
    """Plot, for each player, the fraction of runs whose score is above each threshold, with 95 % bands.

    Args:
        scores: player -> task -> scores of its runs.
        picture: PNG file to write.
    """
    pooled = [score for tasks in scores.values() for part in tasks.values() for score in part]
    thresholds = np.linspace(min(0.0, *pooled), max(1.0, *pooled), THRESHOLDS)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for player, tasks in scores.items():
        (line,) = axes.plot(thresholds, performance_profile(tasks, thresholds), label=player)
        axes.fill_between(thresholds, *profile_band(tasks, thresholds), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("score τ")
    axes.set_ylabel("fraction of runs with a score above τ")
    axes.set_ylim(-0.03, 1.03)
    axes.legend()
    figure.savefig(picture, dpi=120)
    return picture


def curve_column(rows: Sequence[Row]) -> str:
    """The column of evaluations that a task's curves show: success where it is the score of every run, else the return.

    One run alone does not tell: the best return has score 1 too, and often success 1.
    """
    is_score = all(row["success"] is not None and row["score"] == row["success"] for row in rows)
    return "success" if is_score else "return_mean"


def curves(tasks: Mapping[str, Sequence[Row]], runs: Path, picture: Path, player: Callable[[Row], str]) -> list[Path]:
    """Plot the evaluations of every run over environment steps, a panel per task: success, or return without success.

    Args:
        tasks: name -> rows of its runs.
        runs: the folder of the run directories.
        picture: PNG file to write; it is returned, in a list, if there was something to plot.
        player: name of a row's player, by which lines are coloured. Fully observed twins are dashed.
    """
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    colours: dict[str, str] = {}
    for axes, (task, rows) in zip(panels, tasks.items()):
        axes.set_title(textwrap.fill(task, 45), fontsize=7)
        axes.tick_params(labelsize=7)
        trained = [row for row in rows if not row["test"]]
        column = curve_column(trained)
        axes.set_ylabel("success" if column == "success" else "mean return", fontsize=7)
        for row in trained:
            evaluations = read_evaluations(runs / row["run"] / "evaluations.csv")
            name = player(row)
            colour = colours.setdefault(name, f"C{len(colours)}")
            axes.plot(
                [int(each["step"]) for each in evaluations],
                [float(each[column]) for each in evaluations],
                color=colour,
                linestyle="--" if row["fully_observed"] else "-",
                linewidth=1,
            )
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", fontsize=7)
    handles = [panels[0].plot([], [], color=colour, label=name)[0] for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns + columns // 2, fontsize=7)
    figure.savefig(picture, dpi=120)
    return [picture]

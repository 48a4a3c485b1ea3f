"""Plot the learning curve of a run: success and return over environment steps."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def learning_curve(evaluations: Path, picture: Path, title: str, chance: float | None = None) -> None:
    """Plot a run's evaluations.

    Args:
        evaluations: CSV file with the columns step, success, return_mean.
        picture: PNG file to write; its directory must exist.
        title: the title above the curve.
        chance: success of the best player without memory, drawn as a dashed line; None to leave it out.
    """
    with evaluations.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    returns = figure.subplots()
    returns.set_xlabel("environment steps")
    returns.set_title(title)
    has_success = bool(rows) and all(row["success"] for row in rows)
    if has_success:
        success = returns
        returns = success.twinx()
        success.plot(steps, [float(row["success"]) for row in rows], color="tab:blue", marker=".", label="success")
        success.set_ylim(-0.03, 1.03)
        success.set_ylabel("success", color="tab:blue")
        if chance is not None:
            success.axhline(chance, color="grey", linestyle="--", linewidth=1)
            success.annotate("no memory", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    returns.plot(steps, [float(row["return_mean"]) for row in rows], color="tab:orange", alpha=0.7)
    returns.set_ylabel("mean return", color="tab:orange")
    figure.savefig(picture, dpi=120)

"""What a search found: a table of the best trials, two plots, and the best configuration as a file."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console

from palimpsest.agents import printing
from palimpsest.agents.files.archive import write_atomically
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.program import COMMAND
from palimpsest.agents.tune import studies
from palimpsest.agents.tune.space import configured

SHOWN = 10
"""Trials in the table."""


def write(study: Any, training: TrainConfig, fixed: Collection[str], folder: Path, console: Console) -> None:
    """Print the best trials, and write best.toml, history.png and importances.png to a folder.

    Args:
        study: the study. Without a trial that has a value nothing is written.
        training: the first trial.
        fixed: names that were not searched.
        folder: where to write.
        console: where to print.
    """
    trials = study.get_trials(deepcopy=False)
    states = [trial.state.name for trial in trials]
    died = sum("died" in trial.user_attrs for trial in trials)
    found = studies.ranked(study)
    counts = f"{len(found)} trials with a value, {states.count('PRUNED')} pruned, {died} died"
    if not found:
        console.print(counts, highlight=False)
        return
    best = found[0]
    metric = best.user_attrs.get("metric", "value")
    table = printing.table("trial", metric, "seconds", "hyperparameters", title=f"The best of {counts}")
    for trial in found[:SHOWN]:
        seconds = trial.user_attrs.get("seconds")
        table.add_row(
            str(trial.number),
            f"{trial.value:.4g}",
            "-" if seconds is None else f"{seconds:.0f}",
            "  ".join(f"{name.partition('.')[2] or name}={_word(value)}" for name, value in trial.params.items()),
        )
    console.print(table)
    path = folder / "best.toml"
    comment = f"# trial {best.number} of the study {study.study_name}: {metric} {best.value:.4g}\n"
    write_atomically(path, (comment + configured(training, best.params, fixed).to_toml()).encode())
    _plot(study, metric, folder)
    console.print(
        f"train the best: {COMMAND} train --config {shlex.quote(str(path))}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _plot(study: Any, metric: str, folder: Path) -> None:
    """Draw the values over the trials, and how much of them each hyperparameter explains."""
    import matplotlib.pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    with warnings.catch_warnings(), plt.rc_context():
        warnings.simplefilter("ignore")  # Optuna calls these plots experimental
        axes = {"history": plots.plot_optimization_history(study, target_name=metric)}
        if len(studies.ranked(study)) > 2:
            axes["importances"] = plots.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        for name, drawn in axes.items():
            drawn.figure.set_size_inches(7, 4.5)
            drawn.figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            plt.close(drawn.figure)


def _word(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""Compare learning with compiled kernels and with torch's operations: training success by seed.

    python benchmarks/curves.py train --out docs/results/curves.jsonl
    python benchmarks/curves.py plot --files docs/results/curves.jsonl --out docs/curves.png

Trainings are those of `retention.py` on a corridor of length 5, which every memory learns. Each runs once in each form.
A training that is already in the file is not repeated.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import retention
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from trainings import Options, Row, append, read

from palimpsest.agents.files.versions import versions
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.memory.kernels import torch_only

Form = Literal["torch", "compiled"]


@dataclass(frozen=True)
class Train(Options):
    """Train. Each training gives one line of JSON."""

    memories: tuple[str, ...] = ("lstm", "ffm", "rewrite")
    """Registered names."""
    forms: tuple[Form, ...] = ("torch", "compiled")
    """Forms to compare: torch's operations alone, or numba kernels where there are some."""
    out: Path = Path("runs/curves.jsonl")


@dataclass(frozen=True)
class Plot:
    """Draw the curves of several files: a panel per memory, a line per training."""

    files: tuple[Path, ...]
    """Files that `train` wrote."""
    out: Path
    """The picture file."""


@dataclass
class Curve(BaseCallback):
    """Records the success of the last 100 training episodes after every rollout."""

    steps: list[int] = field(default_factory=list)
    success: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        recent = self.model.ep_success_buffer
        if recent:
            self.steps.append(self.num_timesteps)
            self.success.append(round(float(np.mean(recent)), 4))


def train(options: Train) -> None:
    """Run the trainings that are not in the file yet, one after the other."""
    done = {(row["form"], row["key"]) for row in read(options.out)}
    asked = retention.Train(memories=options.memories, seeds=options.seeds, lengths=(5,))
    for training, form in itertools.product(retention.trainings(asked), options.forms):
        config = training.config
        if (form, training.key) in done:
            continue
        began = time.perf_counter()
        with torch_only() if form == "torch" else contextlib.nullcontext():
            env, curve = make_env(config), Curve()
            make_model(config, env).learn(config.total_timesteps, curve)
            env.close()
        row = {"key": training.key, "form": form, "memory": config.memory, "seed": config.seed, "steps": curve.steps}
        row |= {"success": curve.success, "seconds": round(time.perf_counter() - began, 1), "versions": versions()}
        append(options.out, row)
        print(form, config.memory, config.seed, curve.success[-1], f"{row['seconds']} s", flush=True)


def plot(options: Plot) -> None:
    """Draw the picture."""
    rows: list[Row] = [row for path in options.files for row in read(path)]
    memories = list(dict.fromkeys(row["memory"] for row in rows))
    figure = Figure(figsize=(4 * len(memories), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(memories), sharey=True, squeeze=False)[0], memories):
        for row in (row for row in rows if row["memory"] == name):
            thousands = np.array(row["steps"]) / 1e3
            dashes = {"ls": "--", "lw": 2, "alpha": 0.6} if row["form"] == "torch" else {"lw": 1}
            label = f"seed {row['seed']}, {row['form']}"
            panel.plot(thousands, row["success"], color=f"C{row['seed']}", label=label, **dashes)
        panel.set(title=name, xlabel="thousand steps", ylim=(-0.02, 1.02))
    figure.axes[0].set_ylabel("training success")
    figure.axes[0].legend(fontsize="x-small")
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    command = tyro.cli(Train | Plot)
    if isinstance(command, Train):
        train(command)
    else:
        plot(command)

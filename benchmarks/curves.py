"""Whether learning is the same before and after a change that only adds speed: training success by seed, side by side.

    python benchmarks/curves.py train --label after --out runs/after.jsonl
    PYTHONPATH=OLDER_CHECKOUT python benchmarks/curves.py train --label before --out runs/before.jsonl
    python benchmarks/curves.py plot --files runs/before.jsonl runs/after.jsonl --out docs/curves.png

The default job of `train.py`, with every memory and seed asked for; each call trains with the packages that it finds
first, so that one script serves two checkouts.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from trainings import Options, Row, append

from agents.config import TrainConfig
from agents.experiment import make_env, make_model, versions


@dataclass(frozen=True)
class Train(Options):
    """Train and write a line of JSON per training."""

    memories: tuple[str, ...] = ("lstm", "ffm", "rewrite")
    """Registered names."""
    total_timesteps: int = TrainConfig.total_timesteps
    """Environment steps of each training."""
    min_advantage_std: float = 0.0
    """As in `train.py`; left out where the packages do not know it yet, which is as 0."""
    label: str = "after"
    """What the plot calls these trainings."""
    out: Path = Path("runs/curves.jsonl")


@dataclass(frozen=True)
class Plot:
    """Draw the curves of several files, a panel per memory, a line per training."""

    files: tuple[Path, ...]
    """What `train` wrote."""
    out: Path
    """The picture."""


@dataclass
class Curve(BaseCallback):
    """Notes the success of the last 100 training episodes after every rollout."""

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
    """Do the trainings, one after the other."""
    known = {each.name for each in fields(TrainConfig)}
    floor: dict[str, Any] = {name: options.min_advantage_std for name in ("min_advantage_std",) if name in known}
    for memory, seed in itertools.product(options.memories, options.seeds):
        config = TrainConfig(memory=memory, seed=seed, total_timesteps=options.total_timesteps, **floor)
        env, curve = make_env(config), Curve()
        make_model(config, env).learn(config.total_timesteps, curve)
        env.close()
        row = {"label": options.label, "memory": memory, "seed": seed, "steps": curve.steps}
        append(options.out, row | {"success": curve.success, "versions": versions()})
        print(options.label, memory, seed, curve.success[-1], flush=True)


def plot(options: Plot) -> None:
    """Draw the picture."""
    rows: list[Row] = [json.loads(line) for path in options.files for line in path.read_text().splitlines()]
    memories, labels = (list(dict.fromkeys(row[name] for row in rows)) for name in ("memory", "label"))
    figure = Figure(figsize=(4 * len(memories), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(memories), sharey=True, squeeze=False)[0], memories):
        for row in (row for row in rows if row["memory"] == name):
            number = labels.index(row["label"])
            thousands = np.array(row["steps"]) / 1e3
            legend = row["label"] if row["seed"] == 0 else None
            panel.plot(thousands, row["success"], color=f"C{number}", ls=("-", "--")[number % 2], lw=1, label=legend)
        panel.set(title=name, xlabel="thousand steps", ylim=(-0.02, 1.02))
    figure.axes[0].set_ylabel("training success")
    figure.axes[0].legend()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    command = tyro.cli(Train | Plot)
    if isinstance(command, Train):
        train(command)
    else:
        plot(command)

"""The options of `palimpsest tune` beside those of a training. Importing this module imports no torch and no Optuna."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from palimpsest.agents.run.config import Checked, TrainConfig
from palimpsest.refusals import Allowed, choice, integer

ENGINES = ("pool", "ray")
PRUNERS = ("median", "halving", "none")
METRICS = ("auto", "success", "return")
NAME = Allowed(
    "1 to 500 printable characters",
    lambda value: isinstance(value, str) and bool(value.strip()) and value.isprintable() and len(value) <= 500,
)


@dataclass(frozen=True)
class TuneConfig(Checked):
    """How hyperparameters are searched."""

    trials: Annotated[int, integer(1, 10**6)] = 50
    """Trials of the study in all, those of earlier commands included."""
    study: Annotated[str | None, NAME] = None
    """Where Optuna keeps the study: a file, or the URL of a database. Default: study.db in the search's folder."""
    study_name: Annotated[str | None, NAME] = None
    """The study's name. Default: that of the environment and the memory."""
    out: Path | None = None
    """The search's folder. Default: runs/tune/ and the study's name."""
    space: Path | None = None
    """A TOML file that says what is searched; docs/tuning.md. Default: the usual ranges of the algorithm and memory."""
    metric: Annotated[str, choice(METRICS)] = "auto"
    """What the last evaluation must maximise: success, return, or auto for success where the environment reports it."""
    seeds_per_trial: Annotated[int, integer(1, 1000)] = 1
    """Trainings of a trial, with seeds from `seed` on. A trial's value is the mean over them."""
    pruner: Annotated[str, choice(PRUNERS)] = "median"
    """Which trials end early: median, worse than the median of the others at the same evaluation; halving, successive
    halving, of which a third goes on after 1, 3, 9, ... evaluations; none."""
    jobs: Annotated[int | None, integer(1, 1024)] = None
    """Trials at a time, each with one thread of torch. Default: the number of cores."""
    engine: Annotated[str, choice(ENGINES)] = "pool"
    """pool for processes on this machine, or ray for a Ray cluster (the extra "cluster")."""
    address: str | None = None
    """Address of a Ray cluster that runs already, such as auto. Default: Ray starts on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address is that of a Ray cluster; got {self.address!r} with engine {self.engine!r}")

    def name(self, training: TrainConfig) -> str:
        """The study's name."""
        return self.study_name or "-".join(
            name.rpartition("/")[2].rpartition(":")[2] for name in (training.env, training.memory)
        )

    def folder(self, training: TrainConfig) -> Path:
        """The folder of the search."""
        return self.out or Path("runs/tune") / re.sub(r"[^A-Za-z0-9.]+", "-", self.name(training))

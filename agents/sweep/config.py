"""The options of `palimpsest sweep` and `palimpsest report`. Importing this module imports no torch and no ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from palimpsest.agents.run.config import Checked
from palimpsest.agents.run.presets import ENGINES
from palimpsest.refusals import choice, integer


@dataclass(frozen=True)
class SweepConfig(Checked):
    """How a suite is run."""

    suite: Path
    """The suite's TOML file."""
    out: Path | None = None
    """The sweep's folder. Default: runs/sweeps/ and the suite's name. A folder that exists is continued."""
    workers: Annotated[int | None, integer(1, 1024)] = None
    """Runs at a time, each with one thread of torch. Default: the number of cores."""
    engine: Annotated[str, choice(ENGINES)] = "processes"
    """processes, or ray for a Ray cluster (the extra "cluster")."""
    address: str | None = None
    """Address of a Ray cluster that runs already, such as auto. Default: Ray starts on this machine."""
    dry_run: bool = False
    """List the runs and what is left to do, and start none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address is that of a Ray cluster; got {self.address!r} with engine {self.engine!r}")

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return self.out or Path("runs/sweeps") / self.suite.stem


@dataclass(frozen=True)
class ReportCommand(Checked):
    """Compare the runs of a sweep: tables, statistics over runs and tasks, plots."""

    done_by: ClassVar[str] = "palimpsest.agents.sweep.report:report"

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|CSV")]
    """The folder of a sweep, or its results.csv."""
    out: Path | None = None
    """Folder for report.md and the plots. Default: the sweep's folder, or that of the CSV file."""

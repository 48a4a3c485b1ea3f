"""The options of `palimpsest export`. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from palimpsest.agents.run.config import EPISODES, Checked
from palimpsest.refusals import choice, integer

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Format -> how its files end."""


@dataclass(frozen=True)
class ExportCommand(Checked):
    """Write the agent of a run as a file that acts without this package, and check it against the agent."""

    done_by: ClassVar[str] = "palimpsest.agents.export.exporting:export"
    """The function that does the command, as "module:function"."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """A run directory, a model of one (best.zip, a checkpoint), or shelf:NAME."""
    format: Annotated[str, choice(FORMATS)] = "onnx"
    """onnx (the extra "export"), or torch for a program of torch.export."""
    out: Path | None = None
    """The file. Default: policy.onnx or policy.pt2 beside the model."""
    episodes: Annotated[int, integer(1, EPISODES)] = 10
    """Episodes over which the file is checked against the agent."""

    @property
    def file(self) -> Path:
        """The file to write."""
        folder = self.run_dir if self.run_dir.is_dir() else self.run_dir.parent
        return self.out or folder / f"policy{FORMATS[self.format]}"

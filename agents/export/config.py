"""The options of `palimpsest export`. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from palimpsest.agents.run.config import EPISODES, Checked
from palimpsest.refusals import choice, integer

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Format -> how its files end."""


@dataclass(frozen=True)
class ExportConfig(Checked):
    """Write the agent of a run as a file that acts without this package, and check it against the agent."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """The directory of the run."""
    format: Annotated[str, choice(FORMATS)] = "onnx"
    """onnx (the extra "export"), or torch for a program of torch.export."""
    out: Path | None = None
    """The file. Default: policy.onnx or policy.pt2 in the run's directory."""
    episodes: Annotated[int, integer(1, EPISODES)] = 10
    """Episodes over which the file is checked against the agent."""

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out or self.run_dir / f"policy{FORMATS[self.format]}"

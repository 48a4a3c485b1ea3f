"""A finished run, read back from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.config import TrainConfig
from agents.ppo import MemoryPPO


@dataclass(frozen=True)
class Run:
    """A run directory, read back."""

    directory: Path
    config: TrainConfig
    model: MemoryPPO


def load_run(directory: Path, device: str = "auto") -> Run:
    """A run directory's configuration and final model; ValueError where there is none."""
    config = TrainConfig.load(directory)
    path = directory / "model.zip"
    if not path.exists():
        raise ValueError(f"{str(directory)!r} holds no model.zip: its training has not finished")
    return Run(directory, config, MemoryPPO.load(path, device=device))

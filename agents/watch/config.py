"""The commands `play` and `inspect`, as they are written on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.run.config import DEVICE, EPISODES, STEPS, Arguments, Checked, integer


@dataclass(frozen=True)
class Watched(Checked):
    """What `play` and `inspect` share."""

    done_by: ClassVar[str]
    """The function that does the command, as "module:function"."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory, a model of one (best.zip, a checkpoint), or shelf:NAME."""
    env: str | None = None
    """Any registered gymnasium id. Default: the environment of the run."""
    env_args: Arguments = field(default_factory=dict)
    """Arguments of the environment. In the run's own environment they replace its arguments one by one."""
    seed: Annotated[int, integer(0, 10**9)] = 0
    """Selects the episodes to play. Training never uses the seeds of evaluation."""
    deterministic: bool = True
    """Take the most likely action instead of sampling one."""
    device: Annotated[str, DEVICE] = "auto"
    """auto, cpu, mps, cuda or cuda:N."""

    @property
    def first_seed(self) -> int:
        """The seed of the first episode."""
        return EVALUATION_SEED + self.seed


@dataclass(frozen=True)
class PlayCommand(Watched):
    """Play episodes of a trained agent: the world, its memory beside it, the actions and the value under both."""

    done_by: ClassVar[str] = "palimpsest.agents.watch.play:play"

    out: Path | None = None
    """File to write, .gif or .mp4 (the latter needs the extra "video"). Default: episode.gif in the run's directory, or
    no file with --human or --ansi."""
    human: bool = False
    """Show the frames in a window."""
    ansi: bool = False
    """Print the steps in the terminal."""
    episodes: Annotated[int, integer(1, EPISODES)] = 1
    """Episodes to play."""
    fps: Annotated[int, integer(1, 240)] = 3
    """Steps per second."""
    max_steps: Annotated[int, integer(1, STEPS)] = 500
    """Steps after which an episode is stopped."""


@dataclass(frozen=True)
class InspectCommand(Watched):
    """Look inside a trained agent: which past step moves an action, what a read weighs, what the state holds of events.

    Writes pictures, influence.png, read_weights.png and probes.png, and says in one table what it found. A picture
    that the memory or the environment does not allow is left out, and a line says why.
    """

    done_by: ClassVar[str] = "palimpsest.agents.watch.look_inside:inspect"

    out: Path | None = None
    """Folder for the pictures. Default: inspect in the run's directory."""
    steps: Annotated[int, integer(2, 2000)] = 100
    """Steps of the episode that influence and weights are drawn for; the time taken grows with the square."""
    episodes: Annotated[int, integer(4, EPISODES)] = 200
    """Episodes that the probes are trained and tested on, half each."""
    lags: Annotated[int, integer(1, 2000)] = 40
    """Steps since an event up to which the probes look."""
    tensorboard: bool = False
    """Also write the pictures to the TensorBoard events in the folder of the run."""

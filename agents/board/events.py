"""Writers of TensorBoard's event files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter


def wait_for_its_turn(directory: Path) -> bool:
    """Wait until a new event file is the last one of a directory; whether there are earlier ones.

    TensorBoard reads the files of a directory in the order of their names. A name begins with the second in which the
    file was made, so two files must not share a second. A file with a later time, from another clock, is ignored.
    """
    earlier = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")]
    while str(int(time.time())) in earlier:
        time.sleep(0.05)
    return bool(earlier)


def run_logger(directory: Path, step: int) -> Logger:
    """A logger that writes TensorBoard events to `directory` and hides older events after `step` (`purge_step`)."""
    later = wait_for_its_turn(directory)
    board = TensorBoardOutputFormat(str(directory))
    if later:
        board.writer.close()
        board.writer = SummaryWriter(str(directory), purge_step=step + 1)
    return Logger(str(directory), [board])


def writer_of(logger: Logger) -> SummaryWriter | None:
    """The writer of a logger's TensorBoard output; None if it has none."""
    found = (output.writer for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat))
    return next(found, None)


def write_closing(directory: Path, results: list[dict[str, Any]], settings: list[str], step: int) -> None:
    """Add the tests of a finished agent as scalars under `closing/`, which HPARAMS compares runs by.

    Args:
        directory: of the run.
        results: of `agents.evaluate`, that of the training's setting first.
        settings: what each of them tests, in words.
        step: environment steps of the training.
    """
    wait_for_its_turn(directory)
    successes = [result["success"] for result in results]
    with SummaryWriter(str(directory)) as writer:
        for name in ("success", "return_mean", "length_mean"):
            for result, setting in zip(results, settings):
                if result[name] is not None:
                    tag = f"closing/{name}" if result is results[0] else f"closing_harder/{name} {setting}"
                    writer.add_scalar(tag, result[name], step)
        if None not in successes:
            writer.add_scalar("closing/success_lowest", min(successes), step)

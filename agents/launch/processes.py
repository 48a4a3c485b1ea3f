"""Workers as processes of this machine. This process is the first of them, and ends the others when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console

from palimpsest.agents import printing
from palimpsest.agents.launch.follow import follow, on_device, remedy
from palimpsest.agents.run import closing, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import Interrupted, RunFailed
from palimpsest.agents.run.runs import Run
from palimpsest.agents.workers.group import WorkerLost, joined

GRACE_SECONDS = 10.0
"""How long the other workers may take to end once this one has ended, or once one of them is lost."""

DESERTED = 3
"""Exit code of a worker that ends because another is lost."""


class Follower:
    """A worker in a process of its own."""

    def __init__(self, config: TrainConfig, rank: int, meeting: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["palimpsest.fork_server", "palimpsest.agents.launch.follow", "torch._dynamo"])
        self.rank = rank
        self._receiver, sender = context.Pipe(duplex=False)
        self.process: ForkServerProcess = context.Process(target=work, args=(config, rank, meeting, sender))
        self.process.start()
        sender.close()

    def fault(self) -> str:
        """Why it has ended, in words; "" if it runs, if it was told to, or if it misses another one."""
        code = self.process.exitcode
        if self._receiver.poll():
            with contextlib.suppress(EOFError):
                return f"worker {self.rank}: {self._receiver.recv()}"
        if code in (None, 0, DESERTED):
            return ""
        if code < 0:
            return f"worker {self.rank} was killed by {signal.Signals(-code).name}"
        return f"worker {self.rank} ended with code {code}"


def train(config: TrainConfig, console: Console | None = None, close: bool = True) -> Run:
    """Train with `config.workers` processes of this machine; see `start.train`."""
    with tempfile.TemporaryDirectory() as folder, followed(config, Path(folder) / "meeting") as followers:
        try:
            with joined(0, config.workers, Path(folder) / "meeting"):
                run = experiment.train(on_device(config, 0), console, close=False)
        except WorkerLost as error:
            raise RunFailed(f"{_fault(followers) or error}. {remedy(config)}") from error
    if close:
        closing.close(run, console or printing.output())
    return run


@contextlib.contextmanager
def followed(config: TrainConfig, meeting: Path) -> Iterator[list[Follower]]:
    """Start the other workers, and end them at last, whatever happened here."""
    followers: list[Follower] = []
    try:
        for rank in range(1, config.workers):
            followers.append(Follower(config, rank, meeting))
        yield followers
        for follower in followers:
            follower.process.join(GRACE_SECONDS)
    finally:
        for follower in followers:
            follower.process.kill()
            follower.process.join()


def _fault(followers: list[Follower]) -> str:
    """What has ended the first worker that is lost, in words; "" if none says."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until:
        if faults := [fault for follower in followers if (fault := follower.fault())]:
            return faults[0]
        running = [follower.process.sentinel for follower in followers if follower.process.exitcode is None]
        if not running:
            break
        connection.wait(running, until - time.monotonic())
    return ""


def work(config: TrainConfig, rank: int, meeting: Path, sender: connection.Connection) -> None:
    """Be worker `rank`. The process ends with that of the first worker."""
    os.setsid()  # Ctrl-C in the terminal reaches the first worker alone, which tells the others
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    warnings.simplefilter("ignore")  # the first worker says the same
    try:
        with joined(rank, config.workers, meeting):
            follow(dataclasses.replace(on_device(config, rank), progress=False))
    except WorkerLost:
        sys.exit(DESERTED)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except (ValueError, OSError, ArithmeticError, ChildProcessError, RunFailed) as error:
        sender.send(str(error))
        sys.exit(1)


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    assert first is not None
    connection.wait([first.sentinel])
    os._exit(DESERTED)

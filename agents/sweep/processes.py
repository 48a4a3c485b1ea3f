"""The engine of one machine: as many runs at a time as workers, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from palimpsest.agents.run.resume import Interrupted, StopSignals
from palimpsest.agents.sweep.suite import Named

POLL_SECONDS = 0.5
"""How often the sweep looks at signals and progress."""

GRACE_SECONDS = 60.0
"""How long a run that has lost the sweep's process may take to save itself."""

FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()
"""Whether the system can fork the runs from a process that has made the imports. Windows cannot."""

Ended = Callable[[Any, str], None]
"""Called with a run that has ended, and with words on how its process died; "" if it ended by itself or was stopped."""

Attempt = Callable[[Any, Path], None]
"""Does a run in a folder. It is a function of a module, which a process or a worker imports."""


def run_all(
    runs: Iterable[Named],
    folder: Path,
    workers: int,
    ended: Ended,
    tick: Callable[[list[Any]], None],
    attempt: Attempt,
) -> int | None:
    """Do all runs. After a signal the running ones save themselves, and the others are not started.

    Args:
        runs: those that are left to do. The next one is asked for when a worker is free.
        folder: the sweep's.
        workers: the most runs at a time.
        ended: called after each run, in this process.
        tick: called about twice a second with the runs under way.
        attempt: does a run, in its process. It writes errors to the run's files, and raises only `Interrupted`.

    Returns:
        The number of the signal that stopped it, if one did.

    Raises:
        Interrupted: a second signal came. All runs were killed.
    """
    context: Any = multiprocessing.get_context("forkserver" if FORKSERVER else "spawn")
    if FORKSERVER:
        context.set_forkserver_preload(["palimpsest.fork_server", "palimpsest.agents.sweep.work", "torch._dynamo"])
    waiting, running = iter(runs), dict[BaseProcess, Named]()
    told = False
    with StopSignals() as signals:
        try:
            while True:
                if signals.number is None:
                    for run in islice(waiting, workers - len(running)):
                        process = context.Process(target=work_alone, args=(run, folder, attempt), name=run.name)
                        process.start()
                        running[process] = run
                if not running:
                    break
                if signals.number is not None and not told:
                    told = True
                    for process in running:
                        process.terminate()
                connection.wait([process.sentinel for process in running], POLL_SECONDS)
                for process in [process for process in running if process.exitcode is not None]:
                    process.join()
                    ended(running.pop(process), "" if told else _words(process.exitcode or 0))
                tick(list(running.values()))
        finally:
            for process in running:
                process.kill()
                process.join()
        return signals.number


def work_alone(run: Named, folder: Path, attempt: Attempt) -> None:
    """Do a run in this process, which ends when the sweep's process is gone."""
    if hasattr(os, "setsid"):  # Ctrl-C in the terminal reaches the sweep alone, which tells its runs once
        os.setsid()
    threading.Thread(target=_follow_the_sweep, daemon=True).start()
    from palimpsest.agents.sweep.work import Places

    places = Places(folder, run)
    places.make()
    log = os.open(places.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        attempt(run, folder)
    except Interrupted as stop:
        sys.exit(stop.exit_code)


def _follow_the_sweep() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _words(code: int) -> str:
    """How a process with this exit code ended."""
    if code >= 0:
        return "" if code == 0 else f"its process ended with code {code}"
    return f"its process was killed by {signal.Signals(-code).name}"

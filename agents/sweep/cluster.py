"""The engine of a Ray cluster (the extra "cluster"). A run whose worker dies is retried by Ray from its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from palimpsest.agents.run.resume import Interrupted, StopSignals
from palimpsest.agents.sweep.processes import POLL_SECONDS, Attempt, Ended
from palimpsest.agents.sweep.suite import Named

RETRIES = 3
"""How often Ray starts a run again whose worker has died."""


def run_all(
    runs: Iterable[Named],
    folder: Path,
    workers: int,
    ended: Ended,
    tick: Callable[[list[Any]], None],
    attempt: Attempt,
    address: str | None = None,
    most_at_once: int | None = None,
) -> int | None:
    """Do all runs, as `processes.run_all` does.

    On a cluster every machine must see the sweep's folder under the same path and have the same installation.

    Args:
        runs: those that are left to do.
        folder: the sweep's.
        workers: the most runs at a time on this machine. A cluster runs as many as it has CPUs.
        ended: called after each run, in this process.
        tick: called about twice a second with the runs that have not ended.
        attempt: does a run, on a worker.
        address: of a cluster that runs already; None starts Ray on this machine.
        most_at_once: the most runs that Ray is given at a time; None for all, so that a cluster can grow.

    Raises:
        ValueError: Ray is not installed.
        Interrupted: a second signal came. All runs were killed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("engine 'ray' needs Ray; install it with: pip install 'palimpsest-rl[cluster]'") from None
    local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_quiet)
        left, waiting = iter(runs), dict[Any, Named]()
        told = False
        with StopSignals() as signals:
            while True:
                if signals.number is None:
                    for run in islice(left, None if most_at_once is None else most_at_once - len(waiting)):
                        waiting[task.options(name=run.name).remote(run, folder.absolute(), attempt)] = run
                if not waiting:
                    break
                done, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
                for reference in done:
                    run = waiting.pop(reference)
                    try:
                        ray.get(reference)
                        words = ""
                    except ray.exceptions.RayError as error:
                        words = "" if told else f"Ray gave it up: {type(error).__name__}"
                    ended(run, words)
                if signals.number is not None and not told:
                    told = True
                    for reference in waiting:
                        ray.cancel(reference, force=False)
                tick(list(waiting.values()))
            return signals.number
    finally:
        ray.shutdown()


def _quiet(run: Named, folder: Path, attempt: Attempt) -> None:
    try:
        attempt(run, folder)
    except Interrupted:  # the sweep asked for it
        return

"""Run a suite: what is left to do, an engine that does it, progress, and the table and report at the end.

The sweep's folder holds `runs/` (a run directory each), `logs/`, `results/`, results.csv, report.md and plots.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from palimpsest.agents import printing
from palimpsest.agents.device import check_device
from palimpsest.agents.files.lock import locked
from palimpsest.agents.run.config import CONFIG_FILE, TrainConfig
from palimpsest.agents.run.program import COMMAND
from palimpsest.agents.run.resume import Interrupted, RunFailed
from palimpsest.agents.sweep import report, table
from palimpsest.agents.sweep.config import SweepConfig
from palimpsest.agents.sweep.suite import PlannedRun, check_runs, load
from palimpsest.agents.sweep.work import Places, attempt, finished, steps_done


def sweep(config: SweepConfig, console: Console | None = None) -> None:
    """Do what is left of a suite, or list it (`config.dry_run`).

    Raises:
        ValueError: the suite is not allowed, the folder holds other runs under these names, or another process uses it.
        Interrupted: a signal stopped the sweep. The same command continues it.
        RunFailed: all runs have ended, some of them by an error. The same command tries those again.
    """
    console = console or printing.output()
    runs, folder = load(config.suite), config.folder
    check_runs(runs)
    if config.engine == "processes":
        for device in {run.config.device for run in runs}:
            check_device(device)
    _check_same(runs, folder)
    if config.dry_run:
        _list(runs, folder, console)
        return
    report.make_folder(folder)
    with locked(folder):
        watch = _Watch(runs, folder, console)
        try:
            number = _run(config, watch)
        finally:
            watch.close()
            rows = watch.write()
        if rows:
            report.write(rows, folder, console, folder / "runs")
    chosen = {"--out": config.out, "--workers": config.workers, "--address": config.address}
    if config.engine != "processes":
        chosen["--engine"] = config.engine
    words = ["sweep", config.suite, *(word for pair in chosen.items() if pair[1] is not None for word in pair)]
    again = f"{COMMAND} {shlex.join(map(str, words))}"
    if number is not None:
        console.print(f"continue with: {again}", highlight=False, soft_wrap=True)
        raise Interrupted(number)
    if watch.failed:
        raise RunFailed(
            f"{len(watch.failed)} of {len(runs)} runs died, as said above; logs are in {folder / 'logs'}; "
            f"try them again with: {again}"
        )


def _run(config: SweepConfig, watch: _Watch) -> int | None:
    left = [run for run in watch.runs if finished(run, Places(watch.folder, run)) is None]
    workers = config.workers or os.cpu_count() or 1
    watch.console.print(
        f"{len(watch.runs)} runs, {len(left)} of them left to do, {workers} at a time, into {watch.folder}",
        highlight=False,
        soft_wrap=True,
    )
    if not left:
        return None
    if config.engine == "ray":
        from palimpsest.agents.sweep import cluster

        return cluster.run_all(left, watch.folder, workers, watch.ended, watch.tick, attempt, config.address)
    from palimpsest.agents.sweep import processes

    return processes.run_all(left, watch.folder, workers, watch.ended, watch.tick, attempt)


class _Watch:
    """Shows how far a sweep is, and keeps its table up to date.

    Args:
        runs: all runs of the suite.
        folder: the sweep's.
        console: where to print. On a terminal there is a live bar, elsewhere a line per run.
    """

    def __init__(self, runs: Sequence[PlannedRun], folder: Path, console: Console) -> None:
        self.runs, self.folder, self.console = runs, folder, console
        self.failed: list[PlannedRun] = []
        self._budget = {run.name: run.config.whole_timesteps for run in runs}
        self._steps = {run.name: self._steps_of(run) for run in runs}
        self._done = sum(finished(run, Places(folder, run)) is not None for run in runs)
        self._progress = Progress(
            TextColumn("{task.fields[done]} / {task.fields[runs]} runs"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} / {task.total:,.0f} steps"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "",
            total=sum(self._budget.values()),
            completed=sum(self._steps.values()),
            runs=len(runs),
            done=self._done,
            now="",
        )

    def _steps_of(self, run: PlannedRun) -> int:
        places = Places(self.folder, run)
        return self._budget[run.name] if finished(run, places) is not None else steps_done(places)

    def tick(self, running: list[PlannedRun]) -> None:
        """Look at the runs under way."""
        for run in running:
            self._steps[run.name] = max(self._steps[run.name], steps_done(Places(self.folder, run)))
        names = ", ".join(run.name for run in running[:2]) + (", ..." if len(running) > 2 else "")
        self._progress.update(self._task, completed=sum(self._steps.values()), done=self._done, now=names)

    def ended(self, run: PlannedRun, words: str) -> None:
        """Take note of a run that has ended, and say how."""
        places = Places(self.folder, run)
        rows = finished(run, places)
        if rows is not None:
            self._done += 1
            self._steps[run.name] = self._budget[run.name]
            first = rows[0]
            success = "-" if first["success"] is None else f"{first['success']:.3f}"
            said = f"success {success}, return {first['return_mean']:.2f} after {first['steps']:,} steps"
            self.write()
        elif places.error.exists():
            self.failed.append(run)
            said = f"DIED: {places.error.read_text().strip()}"
        elif words:
            self.failed.append(run)
            said = f"DIED: {words}"
        else:
            said = "stopped"
        self.console.print(f"{run.name}: {said}", highlight=False, soft_wrap=True, markup=False)

    def write(self) -> list[table.Row]:
        """Write the table of all finished runs and return its rows."""
        rows = [row for run in self.runs for row in finished(run, Places(self.folder, run)) or ()]
        if rows:
            table.write(rows, self.folder / table.FILE)
        return rows

    def close(self) -> None:
        """Stop the live bar and restore the terminal."""
        self._progress.stop()


def _check_same(runs: Sequence[PlannedRun], folder: Path) -> None:
    """Refuse a folder with results of other runs, which its table would lose, or with a run configured otherwise."""
    known = {run.name for run in runs}
    if others := sorted(path.stem for path in (folder / "results").glob("*.json") if path.stem not in known):
        raise ValueError(
            f"{str(folder)!r} holds results of {len(others)} runs that are not in the suite, as {others[0]!r}; choose "
            "another --out, or change the suite back"
        )
    for run in runs:
        directory = Places(folder, run).directory
        if not (directory / CONFIG_FILE).exists():
            continue
        there = TrainConfig.load(directory)
        for name, planned in vars(run.config).items():
            if name not in TrainConfig.FREE_ON_RESUME and getattr(there, name) != planned:
                raise ValueError(
                    f"{str(directory)!r} was trained with {name} {getattr(there, name)!r}, and the suite says "
                    f"{planned!r}; choose another --out, or change the suite back"
                )


def _list(runs: Sequence[PlannedRun], folder: Path, console: Console) -> None:
    # a title would be cut into lines as wide as the table
    console.print(f"{len(runs)} runs, into {folder}", soft_wrap=True)
    shown = printing.table("run", "steps", "tests", "state")
    for run in runs:
        places = Places(folder, run)
        done: Any = steps_done(places)
        state = "finished" if finished(run, places) is not None else f"{done:,} steps done" if done else "new"
        shown.add_row(run.name, f"{run.config.total_timesteps:,}", str(1 + len(run.tests)), state)
    console.print(shown)

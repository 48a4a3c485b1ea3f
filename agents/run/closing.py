"""Test agents as a configuration says: at the end of a training, and for the command `evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from palimpsest.agents import printing
from palimpsest.agents.board.events import write_closing
from palimpsest.agents.environments import closing_settings
from palimpsest.agents.files.archive import write_atomically
from palimpsest.agents.files.model_card import write_model_card
from palimpsest.agents.run.config import EvaluateConfig
from palimpsest.agents.run.grids import grid
from palimpsest.agents.run.listing import plus_minus, reach
from palimpsest.agents.run.program import COMMAND
from palimpsest.agents.run.runs import Run, environments
from palimpsest.agents.run.runs import evaluate as evaluate_model


def close(run: Run, console: Console) -> None:
    """Test the finished agent in its training setting and in the harder settings that the environment declares.

    Each test has `closing_episodes` episodes; there is none where that is 0. The model card then shows the tests.
    """
    episodes = run.config.closing_episodes
    if episodes:
        try:
            _test(run, console, episodes)
        except KeyboardInterrupt:
            console.print(
                f"the tests were stopped; the run has finished: {COMMAND} evaluate {run.directory}",
                highlight=False,
                soft_wrap=True,
            )
            raise
        write_model_card(run.directory)
    console.print(f"watch: tensorboard --logdir {run.directory}", highlight=False, soft_wrap=True)


def _test(run: Run, console: Console, episodes: int) -> None:
    env = environments(run.config, 1)
    settings: list[dict[str, Any]] = [{}, *closing_settings(env)]
    env.close()
    table = printing.table("setting", "success", "chance", "mean return", "episodes", "seconds")
    table.title = "Greedy actions, episodes unseen in training"
    results: list[dict[str, Any]] = []
    labels = [" ".join(f"{key}={value}" for key, value in setting.items()) or "as trained" for setting in settings]
    for setting, label in zip(settings, labels):
        with _Watch(console, f"test {len(results) + 1} of {len(settings)}, {label}", episodes) as watch:
            result = evaluate_model(run, episodes=episodes, env_args=setting, watch=watch.see)
        results.append(result)
        table.add_row(
            label,
            plus_minus(result["success"], result["success_se"]),
            "-" if result["chance"] is None else f"{result['chance']:.3g}",
            f"{result['return_mean']:.2f}",
            str(result["episodes"]),
            f"{watch.seconds:.1f}",
        )
    write_atomically(run.directory / "closing.json", (json.dumps(results, indent=2) + "\n").encode())
    write_closing(run.directory, results, labels, run.model.num_timesteps)
    console.print(table)
    for result, label in zip(results, labels):
        if result["stalled"]:
            console.print(
                f"{label}: {result['stalled']} of {result['episodes']} episodes were stopped, because observation and "
                "action had not changed for long; they count as failed, with the return they had",
                highlight=False,
                soft_wrap=True,
            )
    if results[0]["memory"] is not None:
        console.print(f"the training setting tests {reach(results[0]['memory'])}", highlight=False, soft_wrap=True)


class _Watch:
    """Shows how many episodes of a test have ended, on a terminal as one live line, else every ten seconds.

    Args:
        console: where to print.
        label: the test, in words.
        episodes: their number.
    """

    PLAIN_SECONDS = 10.0

    def __init__(self, console: Console, label: str, episodes: int) -> None:
        self.console, self.label, self.episodes = console, label, episodes
        self.progress = Progress(
            TextColumn(f"{label}: {{task.completed}} / {{task.total}} episodes"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=episodes)

    def __enter__(self) -> _Watch:
        self.progress.start()
        self.began = self.spoke = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    @property
    def seconds(self) -> float:
        """Since the test began."""
        return time.monotonic() - self.began

    def see(self, ended: int) -> None:
        """Take note of the number of episodes that have ended."""
        self.progress.update(self.task, completed=ended)
        if not self.console.is_terminal and time.monotonic() - self.spoke >= self.PLAIN_SECONDS:
            self.spoke = time.monotonic()
            said = f"{self.label}: {ended} / {self.episodes} episodes  {self.seconds:.0f} s"
            self.console.print(said, highlight=False, soft_wrap=True)


def evaluate(config: EvaluateConfig, show: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Evaluate a run as configured. If `config.json` is set, the result is also written there.

    `show` is given the result before it is written, so that a disk that fails does not lose it.
    """
    result = evaluate_model(
        config.run_dir,
        config.env,
        config.episodes,
        config.deterministic,
        config.env_args,
        seed=config.first_seed,
        device=config.device,
        max_steps=config.max_steps,
        use_masking=config.use_masking,
    )
    if show is not None:
        show(result)
    _write_json(config.json, result)
    return result


def evaluate_grid(
    config: EvaluateConfig,
    run_dirs: Sequence[Path],
    axes: Mapping[str, Sequence[Any]],
    show: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate several runs in every setting of a grid. If `config.json` is set, the result is also written there.

    Args:
        config: the options of every evaluation; its `run_dir` is not used.
        run_dirs: one or more.
        axes: argument of the environment -> values. Empty for one cell, the training setting.
        show: given the cells before they are written.

    Returns:
        The cells, see `agents.run.grids.grid`. The file holds {"runs": directories, "cells": cells}.
    """
    cells = grid(
        run_dirs,
        axes,
        config.env,
        config.env_args,
        config.device,
        episodes=config.episodes,
        deterministic=config.deterministic,
        seed=config.first_seed,
        max_steps=config.max_steps,
        use_masking=config.use_masking,
    )
    if show is not None:
        show(cells)
    _write_json(config.json, {"runs": list(map(str, run_dirs)), "cells": cells})
    return cells


def _write_json(path: Path | None, result: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())

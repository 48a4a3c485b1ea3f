"""Callbacks of a training: evaluations, checkpoints and the progress bar."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from palimpsest.agents.evaluation.intervals import BetweenIterations
from palimpsest.agents.files.archive import write_atomically
from palimpsest.agents.run.resume import EvaluationStopped, Interrupted, StopSignals
from palimpsest.agents.workers.group import here

EVALUATION_FIELDS = ("step", "success", "return_mean", "return_std", "length_mean", "episodes", "stalled")

Watch = Callable[[dict[str, Any]], None]
"""Called with the row of an evaluation. An exception that it raises ends the training."""

LOGGED = {
    "success": ("success", "success_rate"),
    "return_mean": ("return_mean", "mean_reward"),
    "length_mean": ("length_mean", "mean_ep_length"),
}
"""What is logged of an evaluation -> names under `eval/`, ours and SB3's."""

IN_A_ROW = 3
"""Evaluations that must reach the goals one after the other until a run counts as solved."""


class EvaluationCallback(BetweenIterations):
    """Evaluates greedily at intervals. An evaluation adds a row to a CSV file and values under `eval/` to the logger.

    Args:
        evaluate: returns a result like that of `agents.evaluate`. With `EvaluationStopped` it is dropped; a resumed
            run makes up for it.
        path: the CSV file.
        every: environment steps between evaluations; 0 for never.
        on_best: called after an evaluation that beats all earlier ones, by success, then by return.
        success: training ends when `IN_A_ROW` evaluations in a row reach this success; None to go on.
        mean_return: the same for the mean return. With both, both must be reached.
        watch: called after each evaluation with its row.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]],
        path: Path,
        every: int,
        on_best: Callable[[dict[str, Any]], None] | None = None,
        success: float | None = None,
        mean_return: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(every)
        self.watch = watch
        self.evaluate = evaluate
        self.path = path
        self.on_best = on_best
        self.goals = {"success": success, "return_mean": mean_return}
        rows = read_evaluations(path)
        self.best = max((_score(row) for row in rows), default=None)
        self.solved, self.noted = here().of_first((self._is_solved(rows), int(rows[-1]["step"]) if rows else 0))

    def lacks_last(self, step: int) -> bool:
        """Whether a run that ended at `step` was stopped before its last evaluation."""
        return bool(self.every) and self.noted < step

    def _on_training_start(self) -> None:
        self._last = min(self.num_timesteps, self.noted)

    def work(self) -> None:
        """Evaluate now. All workers do; worker 0 notes what all have found."""
        try:
            result = self.evaluate()
        except EvaluationStopped:
            return
        if here().rank == 0:
            self._note(result)
        self.solved = here().of_first(self.solved)

    def _note(self, result: Mapping[str, Any]) -> None:
        row = {"step": self.num_timesteps, **{name: result[name] for name in EVALUATION_FIELDS[1:]}}
        shown = {name: "" if value is None else str(value) for name, value in row.items()}
        rows = [*read_evaluations(self.path), shown]
        write_evaluations(self.path, rows)
        self.solved = self._is_solved(rows)
        for name, logged in LOGGED.items():
            if result[name] is not None:
                for each in logged:
                    self.logger.record(f"eval/{each}", result[name])
        score = _score(row)
        if self.best is None or score > self.best:
            self.best = score
            if self.on_best is not None:
                self.on_best(row)
        if self.watch is not None:
            self.watch(row)

    def _on_step(self) -> bool:
        return not self.solved

    def _on_training_end(self) -> None:
        super()._on_training_end()
        if not self.every:
            return
        # No rollout follows that would write the last evaluation. What the last update recorded is left out: its curves
        # have a point at this step, of the update before.
        for store in (self.logger.name_to_value, self.logger.name_to_count, self.logger.name_to_excluded):
            for name in [name for name in store if not name.startswith("eval/")]:
                del store[name]
        self.logger.dump(self.num_timesteps)

    def _is_solved(self, rows: list[dict[str, str]]) -> bool:
        return len(rows) >= IN_A_ROW and reached(self.goals, rows[-IN_A_ROW:])


def reached(goals: Mapping[str, float | None], rows: list[dict[str, str]]) -> bool:
    """Whether all `rows` of an evaluations file reach every goal (column -> value); false if all goals are None."""
    wanted = {name: goal for name, goal in goals.items() if goal is not None}
    if not wanted:
        return False
    return all(row[name] != "" and float(row[name]) >= goal for row in rows for name, goal in wanted.items())


def read_evaluations(path: Path) -> list[dict[str, str]]:
    """The rows of an evaluations file; an empty list if there is no file.

    Raises:
        ValueError: a line is none of ours, as a spreadsheet or an editor leaves it; the message names file and line.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        found: list[dict[str, str]] = []
        try:
            known = set(reader.fieldnames or ())
            if not known.issuperset(EVALUATION_FIELDS[:3]):
                raise ValueError("no such columns")
            for row in reader:
                int(row["step"])
                float(row["return_mean"])
                for name in EVALUATION_FIELDS:
                    if name in known and row[name] != "":
                        float(row[name])
                if None in row:
                    raise ValueError("more fields than columns")
                found.append(row)
        except (ValueError, TypeError, csv.Error):
            raise ValueError(
                f"line {max(reader.line_num, 1)} of {str(path)!r} must be {','.join(EVALUATION_FIELDS)} as the run "
                "wrote it, with commas between; put it back, or remove the line, or the file: a resumed run needs none "
                "of it, but its curve then lacks these evaluations"
            ) from None
    return found


def write_evaluations(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the whole file at once: a reader never sees half a row, even after the run was killed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, EVALUATION_FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def cut_evaluations(path: Path, step: int) -> None:
    """Drop the rows after `step`. A resumed run writes them again."""
    if path.exists():
        write_evaluations(path, [row for row in read_evaluations(path) if int(row["step"]) <= step])


def _score(row: Mapping[str, Any]) -> tuple[float, float]:
    """The order of evaluations: by success, then by return."""
    return float(row["success"] or 0.0), float(row["return_mean"])


class CheckpointCallback(BetweenIterations):
    """Saves at intervals and at the end. After a signal to stop it saves and raises `Interrupted`.

    Args:
        save: writes a checkpoint.
        every: environment steps between checkpoints; 0 writes only the last one.
        signals: the signal that was received, if any.
    """

    def __init__(self, save: Callable[[], None], every: int, signals: StopSignals) -> None:
        super().__init__(every)
        self.save = save
        self.signals = signals

    def work(self) -> None:
        """Save now."""
        self.save()

    def _on_rollout_start(self) -> None:
        # a signal that one worker got stops all, before the same rollout
        number = max(here().objects(self.signals.number or 0))
        if number:
            self.save()
            raise Interrupted(number)
        super()._on_rollout_start()

    def _on_training_end(self) -> None:
        self.save()
        if self.signals.number and here().size == 1:
            raise Interrupted(self.signals.number)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:,.0f} steps/s" if task.fields["rate"] else "- steps/s")


class LogCallback(BetweenIterations):
    """Writes what an off-policy algorithm recorded, every 2,000 environment steps; PPO writes after each rollout.

    It comes before the callback that saves checkpoints, so that what these hold was not written yet.
    """

    def __init__(self) -> None:
        super().__init__(2_000)

    def work(self) -> None:
        """Write now."""
        self.model.dump_logs()


class ProgressCallback(BaseCallback):
    """Shows steps, steps/s, return, success rate and time left.

    On a terminal it is one live line. On other streams it prints a line every ten seconds.

    Args:
        total: environment steps in the whole run.
        console: where to print.
    """

    PLAIN_SECONDS = 10.0

    def __init__(self, total: int, console: Console) -> None:
        super().__init__()
        self.total = total
        self.console = console
        self.progress: Progress | None = None
        self._began = self._spoke = 0.0
        self._first = 0

    def _on_training_start(self) -> None:
        self._began = self._spoke = time.monotonic()
        self._first = self.num_timesteps
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("{task.completed:>11,.0f} / {task.total:,.0f} steps"),
            BarColumn(),
            _Rate(),
            TextColumn("{task.fields[scores]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.progress.start()
        self._task = self.progress.add_task("", total=self.total, completed=self.num_timesteps, rate=0, scores="")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        now = time.monotonic()
        rate = (self.num_timesteps - self._first) / max(now - self._began, 1e-9)
        if self.progress is not None:
            self.progress.update(self._task, completed=self.num_timesteps, rate=rate, scores=self._scores())
        elif now - self._spoke >= self.PLAIN_SECONDS:
            self._spoke = now
            left = max(self.total - self.num_timesteps, 0) / max(rate, 1e-9)
            self.console.print(
                f"{self.num_timesteps:,} / {self.total:,} steps  {rate:,.0f} steps/s  {self._scores()}  "
                f"{left:,.0f} s left",
                highlight=False,
            )

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live line and restore the terminal. A second call does nothing."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _scores(self) -> str:
        parts = []
        episodes, successes = self.model.ep_info_buffer, self.model.ep_success_buffer
        if episodes:
            parts.append(f"return {safe_mean([episode['r'] for episode in episodes]):.2f}")
        if successes:
            parts.append(f"success {safe_mean(list(successes)):.0%}")
        return "  ".join(parts)

"""What happens beside training: evaluations, checkpoints, the progress bar."""

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

from palimpsest.agents.files.archive import write_atomically
from palimpsest.agents.run.resume import Interrupted, StopSignals

EVALUATION_FIELDS = ("step", "success", "return_mean", "return_std", "length_mean", "episodes", "stalled")


class BetweenIterations(BaseCallback):
    """Calls `work` between an update and the next rollout, whenever a multiple of `every` was passed, and at the end.

    Args:
        every: environment steps; 0 for never.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._last = 0

    def work(self) -> None:
        """What is to be done."""
        raise NotImplementedError

    def _on_training_start(self) -> None:
        self._last = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.every and self.num_timesteps // self.every > self._last // self.every:
            self.work()
        self._last = self.num_timesteps

    def _on_training_end(self) -> None:
        if self.every:
            self.work()

    def _on_step(self) -> bool:
        return True


class EvaluationCallback(BetweenIterations):
    """Greedy evaluation at intervals: a row of a CSV file, and `eval/` in the logger.

    Args:
        evaluate: gives a result as `agents.evaluate` does.
        path: the CSV file; a row is added each time.
        every: environment steps between evaluations; 0 for never.
        on_best: called after an evaluation that is the best so far, by success, then by return.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]],
        path: Path,
        every: int,
        on_best: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(every)
        self.evaluate = evaluate
        self.path = path
        self.on_best = on_best
        self.best = max((_score(row) for row in read_evaluations(path)), default=None)

    def work(self) -> None:
        """Evaluate now."""
        result = self.evaluate()
        row = {"step": self.num_timesteps, **{name: result[name] for name in EVALUATION_FIELDS[1:]}}
        shown = {name: "" if value is None else str(value) for name, value in row.items()}
        write_evaluations(self.path, [*read_evaluations(self.path), shown])
        for name in ("success", "return_mean", "length_mean"):
            if result[name] is not None:
                self.logger.record(f"eval/{name}", result[name])
        score = _score(row)
        if self.best is None or score > self.best:
            self.best = score
            if self.on_best is not None:
                self.on_best(row)


def read_evaluations(path: Path) -> list[dict[str, str]]:
    """The rows of an evaluations file; none where it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_evaluations(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the whole file; a reader, and a run that is killed, never sees half a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, EVALUATION_FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def cut_evaluations(path: Path, step: int) -> None:
    """Drop the rows after `step`, so that a resumed run writes them once."""
    if path.exists():
        write_evaluations(path, [row for row in read_evaluations(path) if int(row["step"]) <= step])


def _score(row: Mapping[str, Any]) -> tuple[float, float]:
    """What makes an evaluation the best: success, then return."""
    return float(row["success"] or 0.0), float(row["return_mean"])


class CheckpointCallback(BetweenIterations):
    """Saves at intervals, and, when a signal asks the run to stop, saves and raises `Interrupted`.

    Args:
        save: writes a checkpoint.
        every: environment steps between checkpoints; 0 for none but the last.
        signals: what was asked.
    """

    def __init__(self, save: Callable[[], None], every: int, signals: StopSignals) -> None:
        super().__init__(every)
        self.save = save
        self.signals = signals

    def work(self) -> None:
        """Save now."""
        self.save()

    def _on_rollout_start(self) -> None:
        if self.signals.number is not None:
            self.save()
            raise Interrupted(self.signals.number)
        super()._on_rollout_start()

    def _on_training_end(self) -> None:
        self.save()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['rate']:,.0f} steps/s" if task.fields["rate"] else "- steps/s")


class ProgressCallback(BaseCallback):
    """A live line: steps, steps/s, return, success rate, time left; on a plain stream one line every ten seconds.

    Args:
        total: environment steps in the whole run.
        console: where it is drawn.
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
        """Leave the terminal as it was; safe to call twice."""
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

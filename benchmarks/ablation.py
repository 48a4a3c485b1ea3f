"""Compare forms of the rewrite-aware memory with each other and with LSTM: the effect of each option on an agent.

    python benchmarks/ablation.py train --forms rewrite lstm --seeds 0 1 2 --carry-over 0.9 0
    python benchmarks/ablation.py train --seeds 0
    python benchmarks/ablation.py table

Trainings and tests are those of `generalisation.py` (n = 10, l = 10, Fixed and Uniform). Like them they can be stopped
and continued.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import generalisation
from measure import markdown
from trainings import Options, Row, Training, by_seed, cell_names, command_line, grouped, per_row


class Form(NamedTuple):
    """A form of a memory to train."""

    memory: str
    """A registered name."""
    arguments: tuple[str, ...] = ()
    """KEY=VALUE arguments that differ from the defaults."""
    shared: bool = True
    """Whether actor and critic share one memory."""


FORMS = {
    "rewrite": Form("rewrite"),
    "lstm": Form("lstm"),
    "rewrite, critic apart": Form("rewrite", shared=False),
    "lstm, critic apart": Form("lstm", shared=False),
    "no clock": Form("rewrite", ("clock=false",)),
    "lstm, torch's initial biases": Form("lstm", ("horizon=2",)),
    "one layer": Form("rewrite", ("num_layers=1",)),
}


@dataclass(frozen=True)
class Train(Options):
    """Train and test. Each training gives one line of JSON."""

    forms: tuple[str, ...] = tuple(FORMS)
    """Names of `FORMS`."""
    carry_over: tuple[float, ...] = (0.9,)
    """Probabilities of keeping the memory after a training episode."""
    total_timesteps: int = 800_000
    """Environment steps of each training."""
    out: Path = Path("runs/ablation.jsonl")


def trainings(options: Train) -> Iterator[Training]:
    """Seed by seed."""
    for form in options.forms:
        if form not in FORMS:
            raise SystemExit(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    for seed, form in itertools.product(options.seeds, options.forms):
        memory, arguments, shared = FORMS[form]
        yield from generalisation.trainings(
            generalisation.Train(
                memories=(memory,),
                memory_args=arguments,
                share_memory=shared,
                label=form,
                seeds=(seed,),
                carry_over=options.carry_over,
                total_timesteps=options.total_timesteps,
                num_envs=16,
            )
        )


def table(rows: list[Row]) -> str:
    """One line per form, regime and carry-over, with one figure per seed, in order."""
    rows = by_seed(rows)
    names = cell_names(rows)
    lines = []
    for (carry_over, regime, label), own in grouped(rows, "carry_over", "regime", "label").items():
        steps = ", ".join("-" if row["steps_to_95"] is None else f"{row['steps_to_95'] / 1e3:.0f} k" for row in own)
        cells = [per_row(own, name).replace("0.", ".") for name in names]
        lines.append([label, regime, str(carry_over), steps, *cells])
    return markdown(["memory", "regime", "carry-over", "steps to .95", *names], lines)


if __name__ == "__main__":
    command_line(Train, trainings, table)

"""Forms of the rewrite-aware memory side by side, with LSTM beside them: what each option does to an agent.

    python benchmarks/ablation.py train --forms rewrite lstm --seeds 0 1 2 --carry-over 0.9 0
    python benchmarks/ablation.py train --seeds 0
    python benchmarks/ablation.py table

Trainings and tests are those of `generalisation.py` (n = 10, l = 10, Fixed and Uniform), resumable as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from generalisation import Table as Results
from generalisation import Train as Training
from generalisation import table
from generalisation import train as run

FORMS = {
    "rewrite": ("rewrite", ()),
    "lstm": ("lstm", ()),
    "lstm, torch's initial biases": ("lstm", ("horizon=2",)),
    "one layer": ("rewrite", ("num_layers=1",)),
    "normalised reads": ("rewrite", ("read=norm",)),
    "hard gates": ("rewrite", ("gates=hard",)),
    "hard gates, normalised reads": ("rewrite", ("gates=hard", "read=norm")),
    "bounded values": ("rewrite", ("bound_values=true",)),
    "controller": ("rewrite", ("controller=lstm",)),
    "convolution": ("rewrite", ("conv_size=4",)),
}
"""Name -> memory and its arguments, where they are not the defaults."""


@dataclass(frozen=True)
class Train:
    """Train and test; one line of JSON per training."""

    forms: tuple[str, ...] = tuple(FORMS)
    """Names of `FORMS`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    carry_over: tuple[float, ...] = (0.9,)
    """Chances that a memory outlives its episode in training."""
    total_timesteps: int = 800_000
    """Environment steps of each training."""
    out: Path = Path("runs/ablation.jsonl")
    """Where the lines go."""


@dataclass(frozen=True)
class Table:
    """Print the table of a file as Markdown."""

    out: Path = Path("runs/ablation.jsonl")
    """What `train` wrote."""


def train(options: Train) -> None:
    """Do every training that the file does not hold yet, seed by seed."""
    for form in options.forms:
        if form not in FORMS:
            raise SystemExit(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    for seed in options.seeds:
        for form in options.forms:
            memory, arguments = FORMS[form]
            run(
                Training(
                    memories=(memory,),
                    memory_args=arguments,
                    label=form,
                    seeds=(seed,),
                    carry_over=options.carry_over,
                    total_timesteps=options.total_timesteps,
                    num_envs=16,
                    out=options.out,
                )
            )


if __name__ == "__main__":
    command = tyro.cli(Train | Table)
    if isinstance(command, Train):
        train(command)
    else:
        print(table(Results(command.out)))

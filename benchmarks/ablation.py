"""Forms of the rewrite-aware memory side by side, with LSTM beside them: what each option does to an agent.

    python benchmarks/ablation.py train --forms rewrite lstm --seeds 0 1 2 --carry-over 0.9 0
    python benchmarks/ablation.py train --seeds 0
    python benchmarks/ablation.py table

Trainings and tests are those of `generalisation.py` (n = 10, l = 10, Fixed and Uniform), resumable as they are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from generalisation import Train as Training
from generalisation import read
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


def table(options: Table) -> str:
    """Markdown: a row per form, regime and carry-over; one figure per seed, in order."""
    groups: dict[tuple[float, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(read(options.out), key=lambda row: row["config"]["seed"]):
        groups[row["carry_over"], row["regime"], row["label"]].append(row)
    names = list(dict.fromkeys(name for rows in groups.values() for row in rows for name in row["cells"]))
    lines = ["| memory | regime | carry-over | steps to .95 | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for (carry_over, regime, label), rows in groups.items():
        steps = ", ".join("-" if row["steps_to_95"] is None else f"{row['steps_to_95'] / 1e3:.0f} k" for row in rows)
        cells = [", ".join(f"{row['cells'][name]:.2f}".removeprefix("0") for row in rows) for name in names]
        lines.append(f"| {label} | {regime} | {carry_over} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command = tyro.cli(Train | Table)
    if isinstance(command, Train):
        train(command)
    else:
        print(table(command))

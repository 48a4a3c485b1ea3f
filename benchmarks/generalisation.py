"""Train memories in one setting of Endless T-Maze and test them in many: corridors, lengths, greedy and sampled.

    python benchmarks/generalisation.py train --memories lstm rewrite --seeds 0 1 2 --out runs/generalisation.jsonl
    python benchmarks/generalisation.py table --out runs/generalisation.jsonl

Each training gives one line of JSON in the file. A training that is already there is not repeated, so the script can
be stopped and continued. The table has the mean over seeds and, in brackets, the lowest seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from measure import markdown
from trainings import Cell, Options, Row, Training, command_line, grouped, steps_to_95

from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.key_values import parse_key_values
from palimpsest.memory import memory_class

ENV = "Palimpsest/EndlessTMaze-v0"


@dataclass(frozen=True)
class Train(Options):
    """Train and test. Each training gives one line of JSON."""

    memories: tuple[str, ...] = ("rewrite", "lstm")
    """Registered names."""
    memory_args: tuple[str, ...] = ()
    """KEY=VALUE arguments for every memory in the list."""
    corridors: int = 10
    """n, the number of corridors in training."""
    length: int = 10
    """l, the length of a corridor in training."""
    regimes: tuple[Literal["fixed", "uniform"], ...] = ("fixed", "uniform")
    """Regimes to train and test in."""
    carry_over: tuple[float, ...] = (0.5, 0.0)
    """Probabilities of keeping the memory after a training episode."""
    total_timesteps: int = 1_500_000
    """Environment steps of each training."""
    share_memory: bool = True
    """Whether actor and critic share one memory."""
    num_envs: int = 64
    """Number of environments (rows)."""
    num_minibatches: int = 4
    """Minibatches per pass over a rollout."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, annealed to 0."""
    ent_coef: float = TrainConfig.ent_coef
    """Weight of the entropy."""
    anneal_entropy: bool = TrainConfig.anneal_entropy
    """Whether the weight of the entropy is annealed to 0 like the learning rate."""
    min_advantage_std: float = TrainConfig.min_advantage_std
    """Smallest standard deviation that advantages are divided by."""
    test_corridors: tuple[int, ...] = (100, 1000)
    """Numbers of corridors to test, with the length of training."""
    test_lengths: tuple[int, ...] = (5, 15, 20, 50)
    """Lengths to test, with the number of corridors of training."""
    episodes: int = 100
    """Test episodes in each cell."""
    label: str = ""
    """A name for this form of the memory in the table; by default its name and arguments."""
    out: Path = Path("runs/generalisation.jsonl")


def trainings(options: Train) -> Iterator[Training]:
    """All trainings, ordered by memory, then by seed."""
    for memory in options.memories:
        arguments = parse_key_values(list(options.memory_args), memory_class(memory), skip={"input_size"})
        label = options.label or " ".join([memory, *options.memory_args])
        label += "" if options.label or options.share_memory else ", critic apart"
        for seed, regime, carry_over in itertools.product(options.seeds, options.regimes, options.carry_over):
            config = TrainConfig(
                env=ENV,
                env_args={"corridors": options.corridors, "length": options.length, "regime": regime},
                memory=memory,
                memory_args=arguments,
                share_memory=options.share_memory,
                carry_over=carry_over,
                total_timesteps=options.total_timesteps,
                num_envs=options.num_envs,
                num_minibatches=options.num_minibatches,
                learning_rate=options.learning_rate,
                ent_coef=options.ent_coef,
                anneal_entropy=options.anneal_entropy,
                min_advantage_std=options.min_advantage_std,
                seed=seed,
            )
            names = ("memory", "memory_args", "share_memory", "carry_over", "seed")
            told = {name: value for name, value in asdict(config).items() if name in names}
            about = {"label": label, "config": told, "regime": regime, "carry_over": carry_over}
            yield Training(config, cells(options), about, options.episodes)


def cells(options: Train) -> dict[str, Cell]:
    """Test cells: the training setting, more corridors, other lengths."""
    found = {"train": Cell({}), "train sampled": Cell({}, greedy=False)}
    found |= {f"n {corridors}": Cell({"corridors": corridors}) for corridors in options.test_corridors}
    for length in options.test_lengths:
        found |= {
            f"l {length}": Cell({"length": length}),
            f"l {length} sampled": Cell({"length": length}, greedy=False),
        }
    return found


def table(rows: list[Row]) -> str:
    """One line per memory, regime and carry-over: mean over seeds (lowest seed)."""
    if not rows:
        return "no results"
    names = list(rows[0]["cells"])
    lines = []
    groups = grouped(rows, "label", "regime", "carry_over")
    for (label, regime, carry_over), own in sorted(groups.items(), key=lambda item: item[0][1:]):
        reached = steps_to_95(own)
        steps = f"{np.median(reached) / 1e6:.2f} M" if len(reached) == len(own) else f"{len(reached)} of {len(own)}"
        line = [label, regime, str(carry_over), str(len(own)), steps]
        for name in names:
            found = [row["cells"][name] for row in own if name in row["cells"]]
            line.append(f"{np.mean(found):.2f} ({min(found):.2f})" if found else "-")
        lines.append(line)
    return markdown(["memory", "regime", "carry-over", "seeds", "steps to .95", *names], lines)


if __name__ == "__main__":
    command_line(Train, trainings, table)

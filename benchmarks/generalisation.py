"""Train memories on one setting of Endless T-Maze and test them on many: corridors, lengths, greedy and sampled.

    python benchmarks/generalisation.py train --memories lstm rewrite --seeds 0 1 2 --out runs/generalisation.jsonl
    python benchmarks/generalisation.py table --out runs/generalisation.jsonl

Every training is one line of JSON in the file; a training that is already there is not repeated, so the script can
be stopped and started again. The table gives the mean over seeds and, in brackets, the lowest seed.
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
from palimpsest.agents.run.presets import DEFAULT
from palimpsest.memory import memory_class

ENV = "Palimpsest/EndlessTMaze-v0"


@dataclass(frozen=True)
class Train(Options):
    """Train and test; one line of JSON per training."""

    memories: tuple[str, ...] = ("rewrite", "lstm")
    """Registered names."""
    memory_args: tuple[str, ...] = ()
    """KEY=VALUE arguments of every memory in the list."""
    corridors: int = 10
    """n of the training setting."""
    length: int = 10
    """l of the training setting."""
    regimes: tuple[Literal["fixed", "uniform"], ...] = ("fixed", "uniform")
    """Regimes to train and test in."""
    carry_over: tuple[float, ...] = (0.5, 0.0)
    """Chances that a memory outlives its episode in training."""
    total_timesteps: int = 1_500_000
    """Environment steps of each training."""
    share_memory: bool = True
    """Whether actor and critic read one memory."""
    num_envs: int = TrainConfig.num_envs
    """Environments stepped together."""
    num_minibatches: int = DEFAULT.num_minibatches
    """Minibatches per pass over a rollout."""
    learning_rate: float = 1e-3
    """Of Adam, annealed to 0."""
    ent_coef: float = TrainConfig.ent_coef
    """Weight of the entropy."""
    anneal_entropy: bool = TrainConfig.anneal_entropy
    """Whether that weight falls to 0 with the rate."""
    min_advantage_std: float = TrainConfig.min_advantage_std
    """Smallest standard deviation that advantages are divided by."""
    test_corridors: tuple[int, ...] = (100, 1000)
    """Numbers of corridors to test on, at the training length."""
    test_lengths: tuple[int, ...] = (5, 15, 20, 50)
    """Lengths to test on, at the training number of corridors."""
    episodes: int = 100
    """Test episodes in each cell."""
    label: str = ""
    """A name for this form of the memory in the table; default its name and arguments."""
    out: Path = Path("runs/generalisation.jsonl")


def trainings(options: Train) -> Iterator[Training]:
    """Memory by memory, seed by seed."""
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
    """The training setting, more corridors, other lengths."""
    found = {"train": Cell({}), "train sampled": Cell({}, greedy=False)}
    found |= {f"n {corridors}": Cell({"corridors": corridors}) for corridors in options.test_corridors}
    for length in options.test_lengths:
        found |= {
            f"l {length}": Cell({"length": length}),
            f"l {length} sampled": Cell({"length": length}, greedy=False),
        }
    return found


def table(rows: list[Row]) -> str:
    """A row per memory, regime and carry-over; mean over seeds (lowest seed)."""
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

"""Tables of what there is to choose from, computed from the registries."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import envs
import memory

WIDTH = 128
"""Features that each listed memory reads, F."""


def show(console: Console | None = None) -> None:
    """Print the environments and the memories, one line of meaning each."""
    console = console or Console()
    table = Table("environment", "meaning", title="Environments (any other gymnasium id works too)")
    for row in environment_rows():
        table.add_row(*row)
    console.print(table)
    title = f"Memories (with their defaults, reading {WIDTH} features)"
    table = Table("memory", "meaning", "source", "erases", "state", "parameters", title=title)
    for row in memory_rows():
        table.add_row(*row)
    console.print(table)


def environment_rows() -> list[list[str]]:
    """Id and meaning of each of our environments."""
    return [[env_id, envs.describe(env_id)] for env_id in envs.ids()]


def memory_rows() -> list[list[str]]:
    """Name, meaning, source, whether it erases on demand, numbers of state per environment, parameters.

    Numbers are those of the default arguments, reading `WIDTH` features.
    """
    rows = []
    for name in memory.names():
        entry = memory.entry(name)
        made = memory.make(name, WIDTH)
        state = sum(part.numel() for part in made.initial_state(1))
        parameters = sum(part.numel() for part in made.parameters())
        erases = "yes" if entry.erases else "no"
        rows.append([name, entry.meaning, entry.source or "-", erases, f"{state:,}", f"{parameters:,}"])
    return rows

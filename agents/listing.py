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
    console.print(environments())
    console.print(memories())


def environments() -> Table:
    """Our ids and what each asks of a memory."""
    table = Table("environment", "meaning", title="Environments (any other gymnasium id works too)")
    for env_id in envs.ids():
        table.add_row(env_id, envs.describe(env_id))
    return table


def memories() -> Table:
    """The registered memories with their default arguments.

    State is counted in numbers per environment, parameters for `WIDTH` features.
    """
    table = Table(
        "memory", "meaning", "source", "erases", title=f"Memories (with their defaults, reading {WIDTH} features)"
    )
    table.add_column("state", justify="right")
    table.add_column("parameters", justify="right")
    for name in memory.names():
        entry = memory.entry(name)
        made = memory.make(name, WIDTH)
        state = sum(part.numel() for part in made.initial_state(1))
        parameters = sum(part.numel() for part in made.parameters())
        table.add_row(
            name, entry.meaning, entry.source or "-", "yes" if entry.erases else "no", f"{state:,}", f"{parameters:,}"
        )
    return table

"""Tables of the environments and memories in the registries, and of the results of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from palimpsest import envs, memory
from palimpsest.agents import printing
from palimpsest.agents.files import shelf
from palimpsest.agents.run.program import PROGRAM

WIDTH = 128
"""F, features per input of each listed memory."""


def show(console: Console | None = None) -> None:
    """Print the environments, the memories and the trained agents, each with one line of explanation."""
    console = console or printing.output()
    table = printing.table("environment", "meaning", title="Environments (any other gymnasium id works too)")
    for row in environment_rows():
        table.add_row(*row)
    console.print(table)
    title = f"Memories (with their defaults, reading {WIDTH} features)"
    table = printing.table("memory", "meaning", "source", "erases", "state", "cost per step", "parameters", title=title)
    for row in memory_rows():
        table.add_row(*row)
    console.print(table)
    title = f"Trained agents ({PROGRAM} play shelf:NAME)"
    table = printing.table("agent", "environment", "memory", "steps", "success", "mean return", title=title)
    for row in shelf_rows():
        table.add_row(*row)
    console.print(table)


def environment_rows() -> list[list[str]]:
    """Id and meaning of each of our environments."""
    return [[env_id, envs.describe(env_id)] for env_id in envs.ids()]


def memory_rows() -> list[list[str]]:
    """Name, meaning, source, whether it erases on demand, numbers in the state of a row, cost of a step, parameters.

    The figures hold for the default arguments and `WIDTH` features.
    """
    rows = []
    for name in memory.names():
        entry = memory.entry(name)
        made = memory.make(name, WIDTH)
        state = sum(part.numel() for part in made.initial_state(1))
        parameters = sum(part.numel() for part in made.parameters())
        erases = "yes" if entry.erases else "no"
        rows.append([name, entry.meaning, entry.source or "-", erases, f"{state:,}", entry.cost, f"{parameters:,}"])
    return rows


def shelf_rows() -> list[list[str]]:
    """Name, environment, memory, steps of training, success and mean return of each agent of the shelf."""
    rows = []
    for name, entry in shelf.entries().items():
        figure = entry["figures"][0]
        reached = [plus_minus(figure.get("success"), None), f"{figure['return_mean']:.2f}"]
        rows.append([f"shelf:{name}", entry["task"], entry["memory"], f"{entry['steps']:,}", *reached])
    return rows


def show_evaluation(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a result of `agents.evaluate`: a line per figure, and a table per breakdown of the answers."""
    console = console or printing.output()
    for name, value in result.items():
        if name == "success_by":
            continue
        if name == "memory" and value is not None:
            name, value = "tests", reach(value)
        elif isinstance(value, Mapping):
            value = " ".join(f"{key}={part}" for key, part in value.items()) or "-"
        shown = format(value, ".4g") if isinstance(value, float) else value
        console.print(f"{name:<15} {shown}", highlight=False, soft_wrap=True)
    for name, kinds in result.get("success_by", {}).items():
        table = printing.table(name, "success", "answers", title=f"Right answers by {name.replace('_', ' ')}")
        for kind, found in kinds.items():
            table.add_row(kind, plus_minus(found["success"], found["success_se"]), f"{found['answers']:,}")
        console.print(table)


def show_grid(cells: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print the cells of `agents.run.grids.grid`, one line each."""
    console = console or printing.output()
    runs, episodes = cells[0]["runs"], cells[0]["results"][0]["episodes"]
    over = f"{runs} runs" if runs > 1 else f"{episodes} episodes"
    title = f"Mean ± standard error over {over}" + (f" of {episodes} episodes" if runs > 1 else "")
    middle = ["success, IQM"] if runs > 1 else []
    table = printing.table(*cells[0]["setting"], "success", *middle, "chance", "return", "tests", title=title)
    for cell in cells:
        memory, chance = cell["results"][0]["memory"], cell["chance"]
        table.add_row(
            *map(str, cell["setting"].values()),
            plus_minus(cell["success"], cell["success_se"]),
            *([spanned(cell["success_iqm"])] if runs > 1 else []),
            "-" if chance is None else f"{chance:.3g}",
            plus_minus(cell["return_mean"], cell["return_se"]),
            "-" if memory is None else memory["tests"],
        )
    if runs > 1:
        table.caption = (
            "IQM: the interquartile mean over runs and its 95 % bootstrap interval. Episodes unseen in training."
        )
    console.print(table)


def plus_minus(mean: float | None, error: float | None) -> str:
    """A mean and its standard error; "-" if they are not known."""
    if mean is None:
        return "-"
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def spanned(estimate: Sequence[float] | None) -> str:
    """A value and its interval, given as value, low, high; "-" if they are not known."""
    return "-" if estimate is None else "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)


def reach(memory: Mapping[str, Any]) -> str:
    """The kind of memory that is tested, with the numbers behind it, in one line."""
    reached = "unbounded" if memory["K_eff"] is None else memory["K_eff"]
    horizons = f"{memory['horizon_min']} to {memory['horizon_max']}"
    return f"{memory['tests']} (K {memory['K']}, K_eff {reached}, horizons {horizons} inputs)"

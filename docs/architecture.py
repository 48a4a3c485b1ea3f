"""Draw docs/architecture.png: the folders of the package on their floors, and the imports between them.

python docs/architecture.py

Rooms and their floors are listed here. The arrows are read from the code, so the picture shows only real imports.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent

ROOMS: dict[str, tuple[float, float, str]] = {
    "train.py": (5.0, 8, "command line"),
    "agents/sweep": (5.0, 7, "suites, engines,\ntable, report"),
    "agents/tune": (2.8, 7.5, "searches with Optuna:\nspace, study, trials"),
    "agents/zoo": (0.9, 7.5, "rl-zoo3's files"),
    "agents/launch": (7.2, 6.5, "workers by processes,\ntorchrun, Ray Train"),
    "agents/command": (7.2, 7.5, "words of the\ncommand line"),
    "agents/watch": (2.8, 6.2, "an episode as pictures,\ninfluence, probes"),
    "agents/export": (0.9, 6.2, "a step as a file,\nchecked against predict"),
    "agents/run": (5.0, 6, "configuration, run directory,\nresume, evaluation, tables"),
    "agents/board": (2.8, 5.3, "TensorBoard's first page,\nhistograms, pictures"),
    "agents/off_policy": (7.2, 5.5, "MemoryDQN, MemorySAC,\nreplay of sequences"),
    "agents/learn": (5.0, 5, "MemoryPPO, rollout, loss,\nmodel file, failures"),
    "agents/policy": (3.9, 4, "encoder, memory pair,\nheads, distributions"),
    "agents/evaluation": (6.1, 4, "whole episodes,\nsuccess, horizons"),
    "agents/workers": (4.5, 3, "what workers add up,\ngather, draw"),
    "agents/files": (2.8, 3, "values as JSON,\nZIP archive"),
    "agents/worlds": (8.3, 4, "wrappers by name,\nrows in processes"),
    "agents": (6.1, 3, "tree of observations,\nenvironments by name"),
    "memory": (1.0, 4, "one file per memory,\ncontract, registry"),
    "memory/parts": (1.0, 3, "allocation, chunk plans,\nwindows"),
    "memory/kernels/diagonal": (-1.2, 2, "h = a h + b"),
    "memory/kernels/outer": (0.4, 2, "S = a S + k vᵀ"),
    "memory/kernels/delta": (2.0, 2, "erase, then write"),
    "memory/kernels/cells": (3.6, 2, "LSTM, GRU, RNN"),
    "memory/kernels/attention": (5.2, 2, "windows, chunks"),
    "memory/kernels/arithmetic": (1.8, 1, "products, elementwise, compiling,\nthreads, dispatch"),
    "envs": (8.4, 3, "one batched world per task,\nthree faces, wrappers"),
    "palimpsest": (
        3.65,
        0.1,
        "what all of them stand on: refusals of arguments, where machine code is kept, the version",
    ),
}
"""Room -> horizontal place, floor, contents."""

WIDER = {"palimpsest": 7.3, "memory/kernels/arithmetic": 1.9}
"""Room -> factor on the width of a box."""

COLOURS = {"agents": "#dbe9f6", "memory": "#fde5cf", "envs": "#dff0d8", "train.py": "#eeeeee", "palimpsest": "#eeeeee"}


def room_of(path: Path) -> str:
    """The room of a file."""
    folder = path.relative_to(ROOT).parent.as_posix()
    return "train.py" if path.name == "train.py" else folder


def imported_room(module: str) -> str | None:
    """The room of an imported module; None if it is outside the package."""
    parts = module.split(".")
    if parts[0] != "palimpsest":
        return None
    for end in range(len(parts), 1, -1):
        name = "/".join(parts[1:end])
        if name in ROOMS:
            return name
    return "palimpsest"


def imports() -> Counter[tuple[str, str]]:
    """(importing room, imported room) -> number of import lines."""
    found: Counter[tuple[str, str]] = Counter()
    files = [ROOT / "train.py"]
    for folder in ("agents", "envs", "memory", "palimpsest"):
        files += [path for path in (ROOT / folder).rglob("*.py") if not path.is_symlink()]
    for path in files:
        importer = room_of(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            rooms = {imported_room(name) for name in names} - {None, importer}
            found.update((importer, room) for room in rooms if room is not None)
    return found


def draw(path: Path) -> None:
    """Write the picture."""
    matplotlib.use("Agg")
    figure, axis = pyplot.subplots(figsize=(13, 10.5), layout="constrained")
    width, height = 1.42, 0.56
    for (importer, imported), lines in sorted(imports().items()):
        if "palimpsest" in (importer, imported) or importer not in ROOMS:
            continue  # all rooms import it
        (x0, y0, _), (x1, y1, _) = ROOMS[importer], ROOMS[imported]
        axis.annotate(
            "",
            xy=(x1, y1 + height / 2),
            xytext=(x0, y0 - height / 2),
            arrowprops=dict(
                arrowstyle="-|>",
                color="#7a7a7a",
                alpha=0.75,
                linewidth=0.6 + min(lines, 20) / 10,
                connectionstyle="arc3,rad=0.04",
            ),
            zorder=1,
        )
    for name, (x, y, content) in ROOMS.items():
        wide = width * WIDER.get(name, 1)
        colour = COLOURS[name.partition("/")[0]]
        box = FancyBboxPatch(
            (x - wide / 2, y - height / 2),
            wide,
            height,
            "round,pad=0.03",
            facecolor=colour,
            edgecolor="#555555",
            zorder=2,
        )
        axis.add_patch(box)
        axis.text(
            x, y + 0.16, name.replace("memory/kernels", "kernels"), ha="center", va="center", weight="bold", size=9
        )
        axis.text(x, y - 0.1, content, ha="center", va="center", size=7.5)
    axis.set_xlim(-2.1, 9.4)
    axis.set_ylim(-0.3, 8.4)
    axis.axis("off")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "architecture.png")

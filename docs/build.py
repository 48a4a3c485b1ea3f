"""Write the generated parts of README.md, docs/memories.md and docs/environments.md: tables, pictures, a curve.

python docs/build.py                 # tables between the markers of the pages, environments.png, pictures/learned.png
python docs/build.py --run runs/X    # also docs/learning_curve.png, from a finished run
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib import pyplot

from palimpsest import envs, memory
from palimpsest.agents.run.listing import memory_rows
from palimpsest.agents.sweep import table as results

ROOT = Path(__file__).resolve().parent.parent

WORLDS: dict[str, tuple[tuple[str, ...], str]] = {
    "T-Mazes": (("EndlessTMaze", "TMaze", "ActiveTMaze"), "hold a cue through a corridor; replace it by the next"),
    "Rune mazes": (("Rune",), "follow runes that swap, rotate, undo or repeat a cue"),
    "MiniGrid": (("MiniGridMemory",), "MiniGrid's Memory maze, and one whose cue is replaced"),
    "Rooms": (("HideAndSeek", "RoomBallet", "Ballet"), "say where an object is now, or what was danced where"),
    "Color-Cubes": (("ColorCubes",), "keep a map of cubes that teleport"),
    "Key and value": (("KeyValue",), "say the last value of a key"),
    "Control": (("CartPole", "Pendulum", "MountainCar"), "balance and swing without seeing velocities"),
    "Bandits": (("Bandit",), "find the best arm within an episode"),
    "POPGym": (("POPGym-",), "cards, boards, mazes, bandits and control of POPGym, at three levels"),
}
"""Row of the README -> the starts of its ids, and what its worlds ask. An id is in the first row that fits."""


LEARNED = ROOT / "docs" / "results" / "memories.csv"

QUESTIONS: dict[str, tuple[str, dict[str, int], dict[str, int]]] = {
    "holds, 5 cells": ("TMaze-v0", {"length": 5}, {}),
    "holds, 40 cells": ("TMaze-v0", {"length": 40}, {}),
    "order": ("POPGym-RepeatPrevious-Easy-v0", {}, {}),
    "four keys, 4 updates": ("KeyValueRewrite-v0", {}, {}),
    "16 updates": ("KeyValueRewrite-v0", {}, {"updates": 16}),
    "64 updates": ("KeyValueRewrite-v0", {}, {"updates": 64}),
    "rewrites, 5 corridors": ("EndlessTMaze-v0", {}, {}),
    "100 corridors": ("EndlessTMaze-v0", {}, {"corridors": 100}),
    "1,000 corridors": ("EndlessTMaze-v0", {}, {"corridors": 1000}),
}
"""Column of the table of what each memory learned -> environment, arguments by which it is found, and tested with."""

ANSWERS = frozenset({"POPGym-RepeatPrevious-Easy-v0", "KeyValueRewrite-v0"})
"""Environments of many questions an episode."""


@dataclass(frozen=True)
class Options:
    """Build the generated parts of README.md, docs/memories.md and docs/environments.md."""

    run: Path | None = None
    """A finished run; its learning curve is copied."""
    check: bool = False
    """Change nothing; exit with 1 if a table is out of date."""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def tables() -> dict[str, dict[str, str]]:
    """Page -> name of a pair of markers in it -> the text between them."""
    memories = ["memory", "what it is", "source", "erases on demand", "state (numbers)", "cost per step", "parameters"]
    environments = ["environment", "what it asks", "preset arguments", "horizons Ξ", "step limit", "without memory"]
    return {
        "README.md": {"worlds": table(["worlds", "ids", "what they ask"], world_rows())},
        "docs/memories.md": {
            "learned": table(["memory", *asked()], learned_rows()),
            "memories": table(memories, memory_rows()),
        },
        "docs/environments.md": {"environments": table(environments, environment_rows())},
    }


def filled(page: str, text: str, parts: dict[str, str]) -> str:
    """`text` of a page with new tables between its markers."""
    for name, content in parts.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise ValueError(f"{page} has no {opening} ... {closing}; put these markers back")
        text = f"{before}{opening}\n{content}\n{closing}{after}"
    return text


def learned() -> dict[str, dict[str, list[results.Row]]]:
    """Memory -> question -> the rows of its seeds, in `LEARNED`."""
    found: dict[str, dict[str, list[results.Row]]] = {}
    for row in results.read(LEARNED):
        for question, (env, args, test) in QUESTIONS.items():
            same = row["env"] == f"Palimpsest/{env}" and args.items() <= row["env_args"].items()
            if same and row["test"] == test:
                found.setdefault(row["memory"], {}).setdefault(question, []).append(row)
    return found


def asked() -> list[str]:
    """The questions that memories were asked so far."""
    answered = {question for answers in learned().values() for question in answers}
    return [question for question in QUESTIONS if question in answered]


def score(rows: list[results.Row]) -> float:
    """Mean success of some seeds; where an episode asks many questions, the share of right answers.

    There a right answer adds as much to the return, which is -1 to 1, as a wrong one takes away.
    """
    if rows[0]["env"].removeprefix("Palimpsest/") in ANSWERS:
        return float(np.mean([(1 + row["return_mean"]) / 2 for row in rows]))
    return float(np.mean([row["success"] for row in rows]))


def learned_rows() -> list[list[str]]:
    """Name of each memory, and by question its score and the steps after which training ended."""
    rows = []
    for name, answers in sorted(learned().items(), key=lambda item: memory.names().index(item[0])):
        cells = []
        for question in asked():
            answer, (*_, test) = answers.get(question), QUESTIONS[question]
            steps = "" if test or not answer else f" ({np.mean([row['steps'] for row in answer]) / 1000:,.0f} k)"
            cells.append(f"{score(answer):.2f}{steps}" if answer else "")
        rows.append([name, *cells])
    return rows


def heat_map(path: Path) -> None:
    """Draw what each memory learned."""
    matplotlib.use("Agg")
    answers, questions = learned(), asked()
    names = [name for name in memory.names() if name in answers]
    grid = np.array([[score(answers[n][q]) if q in answers[n] else np.nan for q in questions] for n in names])
    figure, axis = pyplot.subplots(figsize=(1.6 + 0.7 * len(questions), 0.6 + 0.24 * len(names)), layout="constrained")
    axis.imshow(np.clip(grid, 0, 1), cmap="YlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if value > 0.6 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(questions)), questions, rotation=30, ha="left", fontsize=8)
    axis.xaxis.tick_top()
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def world_rows() -> list[list[str]]:
    """Name, number of ids and meaning of each of `WORLDS`.

    Raises:
        ValueError: an id belongs to none of them.
    """
    members: dict[str, int] = dict.fromkeys(WORLDS, 0)
    for env_id in envs.ids():
        found = [name for name, (stems, _) in WORLDS.items() if short(env_id).startswith(stems)]
        if not found:
            raise ValueError(f"{env_id} is in no row of README.md; add the start of its name to docs/build.py, WORLDS")
        members[found[0]] += 1
    return [[name, str(members[name]), meaning] for name, (_, meaning) in WORLDS.items()]


def environment_rows() -> list[list[str]]:
    """Id, meaning, preset arguments, horizons, step limit and chance level of each id."""
    rows = []
    for env_id in envs.ids():
        presets = envs.entry(env_id).presets
        world = envs.family(env_id)(**presets)
        arguments = [f"{key}={','.join(v) if isinstance(v, list) else v}" for key, v in presets.items()]
        horizons = " to ".join(map(str, sorted({min(world.memory_horizons()), max(world.memory_horizons())})))
        figures = [horizons, f"{world.rules.limit:,}", f"{world.chance_level():.3g}"]
        rows.append([env_id, envs.describe(env_id), " ".join(arguments) or "-", *figures])
    return rows


def short(env_id: str) -> str:
    """The name of an id without namespace and version."""
    return env_id.removeprefix("Palimpsest/").removesuffix("-v0")


def contact_sheet(path: Path) -> None:
    """Draw one picture of every environment, of POPGym's levels only the easy one, after a few steps of the expert."""
    matplotlib.use("Agg")
    names = [env_id for env_id in envs.ids() if "/POPGym-" not in env_id or "-Easy-" in env_id]
    columns = 4
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    for axis in np.ravel(axes):
        axis.axis("off")
    for axis, name in zip(np.ravel(axes), names):
        axis.imshow(frame(name))
        axis.set_title(short(name), fontsize=9)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def frame(env_id: str, steps: int = 4) -> np.ndarray:
    """[H, W, 3] uint8 after `steps` steps of the expert."""
    world = envs.family(env_id)(**envs.entry(env_id).presets, render_mode="rgb_array")
    world.reset(seed=3)
    for _ in range(steps):
        _, _, terminated, truncated, _ = world.step(world.expert_action())
        if terminated or truncated:
            world.reset(seed=4)
    return world.render()


def main(options: Options) -> int:
    """Build or check."""
    changed = False
    for page, parts in tables().items():
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = filled(page, before, parts)
        changed |= before != after
        if not options.check:
            path.write_text(after, encoding="utf-8")
    if options.check:
        return int(changed)
    contact_sheet(ROOT / "docs" / "environments.png")
    heat_map(ROOT / "docs" / "pictures" / "learned.png")
    if options.run is not None:
        shutil.copy(options.run / "learning_curve.png", ROOT / "docs" / "learning_curve.png")
    print(f"{len(memory.names())} memories, {len(envs.ids())} environments")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))

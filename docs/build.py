"""Write the generated parts of the README: tables of memories and environments, pictures, and a learning curve.

python docs/build.py                 # tables between the markers in README.md, docs/environments.png
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
from palimpsest.agents.run.listing import environment_rows, memory_rows

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """Build the README's generated parts."""

    run: Path | None = None
    """A finished run; its learning curve is copied."""
    check: bool = False
    """Change nothing; exit with 1 if a table is out of date."""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def tables() -> dict[str, str]:
    """Name of a pair of markers -> the text between them."""
    return {
        "memories": table(
            ["memory", "what it is", "source", "erases on demand", "state (numbers)", "cost per step", "parameters"],
            memory_rows(),
        ),
        "environments": table(["environment", "what it asks"], environment_rows()),
    }


def filled(text: str) -> str:
    """`text` with new tables between the markers."""
    for name, content in tables().items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise ValueError(f"README.md has no {opening} ... {closing}; put these markers back")
        text = f"{before}{opening}\n{content}\n{closing}{after}"
    return text


def contact_sheet(path: Path) -> None:
    """Draw one picture of every environment, after a few steps of the expert."""
    matplotlib.use("Agg")
    names = envs.ids()
    columns = 4
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    for axis in np.ravel(axes):
        axis.axis("off")
    for axis, name in zip(np.ravel(axes), names):
        axis.imshow(frame(name))
        axis.set_title(name.removeprefix("Palimpsest/").removesuffix("-v0"), fontsize=9)
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
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = filled(before)
    if options.check:
        return int(before != after)
    readme.write_text(after)
    contact_sheet(ROOT / "docs" / "environments.png")
    if options.run is not None:
        shutil.copy(options.run / "learning_curve.png", ROOT / "docs" / "learning_curve.png")
    print(f"{len(memory.names())} memories, {len(envs.ids())} environments")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))

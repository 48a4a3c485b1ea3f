"""`palimpsest inspect`: the pictures of what `inside` and `probes` compute, as arrays, files and TensorBoard images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from palimpsest import envs
from palimpsest.agents import printing
from palimpsest.agents.watch.config import InspectCommand
from palimpsest.agents.watch.inside import influence, read_weights, record
from palimpsest.agents.watch.player import load_watched, make_watched
from palimpsest.agents.watch.probes import Curve, Probed, can_probe, collect, probe

ROWS = 32
"""Rows in which the episodes of probes are played."""
DPI = 110
EVENT = "tab:orange"
COLOURS = {
    "state: the last event's": "#9ecae1",
    "state: the one before": "#f4a582",
    "given out: the last event's": "#08519c",
    "given out: the one before": "#b2182b",
}
"""What each of a fact's curves tells, in their order, and its colour."""


def inspect(command: InspectCommand, console: Console | None = None) -> dict[str, np.ndarray]:
    """Look inside as the command says.

    Args:
        command: what to do.
        console: where the findings are printed.

    Returns:
        The pictures [H, W, 3] uint8 by name: influence, read_weights, probes; those that could be made.

    Raises:
        ValueError: no such run, or an environment or argument that does not fit.
        OSError: a file cannot be written.
    """
    console = console or printing.output()
    run = load_watched(command.run, command.device)
    folder = command.run if command.run.is_dir() else command.run.parent
    policy = run.model.policy
    policy.compiled = False
    env, name, _ = make_watched(run, command.env, command.env_args)
    try:
        recording = record(run.model, env, command.first_seed, command.steps, command.deterministic)
    finally:
        env.close()
    pictures = {"influence": influence_picture(influence(policy, recording), recording.events)}
    weights = read_weights(policy, recording)
    if weights is None:
        console.print(f"read_weights: {policy.memory_name} does not read a sum of what was written", highlight=False)
    else:
        layers = len(getattr(policy.memory, "layers", [policy.memory]))
        pictures["read_weights"] = read_weights_picture(weights, recording.events, len(weights) // layers)

    env, _, _ = make_watched(
        run, command.env, command.env_args, min(ROWS, command.episodes) if name in envs.ids() else 1
    )
    try:
        if can_probe(env):
            samples = collect(run.model, env, command.episodes, command.first_seed, command.lags, command.deterministic)
            found = probe(samples)
            if found:
                pictures["probes"] = probes_picture(found)
                console.print(findings(found))
            else:
                console.print(
                    "probes: too few different histories of events; more --episodes, or longer ones, have more"
                )
        else:
            console.print(
                f"probes: {name} has no event_mask() and hidden_state() for what this agent sees",
                highlight=False,
                soft_wrap=True,
            )
    finally:
        env.close()

    out = command.out or folder / "inspect"
    out.mkdir(parents=True, exist_ok=True)
    for title, picture in pictures.items():
        Image.fromarray(picture).save(out / f"{title}.png", optimize=True)
        console.print(f"{out / title}.png", highlight=False, soft_wrap=True)
    if command.tensorboard:
        write_images(folder, pictures, run.model.num_timesteps)
    return pictures


def write_images(folder: Path, pictures: dict[str, np.ndarray], step: int) -> None:
    """Add pictures to the TensorBoard events in a folder, as inside/<name>."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, picture in pictures.items():
            writer.add_image(f"inside/{name}", picture, step, dataformats="HWC")


def influence_picture(moved: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Draw `inside.influence` [T, T]: past inputs in shares of the largest of a row. Returns [H, W, 3] uint8."""
    past = np.tri(len(moved), k=-1, dtype=bool)
    share = moved / np.where(past, moved, 0).max(1, keepdims=True).clip(min=1e-30)
    figure = _figure(6.8, 5.2)
    axes, beside = figure.subplots(1, 2, width_ratios=(7, 1), sharey=True)
    image = axes.imshow(
        np.where(past, share, np.nan), cmap="YlGnBu", vmin=0, vmax=1, interpolation="nearest", aspect="auto"
    )
    figure.colorbar(image, ax=[axes, beside], label="gradient's length, of the row's largest", shrink=0.85)
    axes.set_title("Which past input moves each action")
    axes.set_ylabel("step of the action")
    _mark(axes, events)
    axes.set_xlabel(_inputs("step of the input", events))
    now = moved.diagonal() / moved.sum(1).clip(min=1e-30)
    beside.barh(np.arange(len(now)), 1 - now, color="tab:blue", height=0.8)
    beside.set_xlim(0, 1)
    beside.set_title("past", fontsize=10)
    beside.set_xlabel("share of all")
    return _array(figure)


def read_weights_picture(weights: np.ndarray, events: np.ndarray, heads: int) -> np.ndarray:
    """Draw `inside.read_weights` [N, T, T], a map per head, `heads` to a line. Returns [H, W, 3] uint8."""
    layers = math.ceil(len(weights) / heads)
    figure = _figure(2.3 * heads + 0.9, 2.35 * layers + 0.7)
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    below = np.tri(weights.shape[1], dtype=bool)
    for i, (axes, head) in enumerate(zip(grid.flat, weights)):
        most = np.abs(head).max() or 1.0
        image = axes.imshow(
            np.where(below, head / most, np.nan), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        axes.set_title(f"layer {i // heads + 1}, head {i % heads + 1} (1 = {most:.2g})", fontsize=9)
        _mark(axes, events)
    figure.supylabel("step of the read", fontsize=10)
    figure.supxlabel(_inputs("step of the write", events), fontsize=10)
    figure.suptitle("How much of what was written at a step is read at a later one", fontsize=11)
    figure.colorbar(image, ax=grid, label="weight, of the head's largest", shrink=0.7)
    return _array(figure)


def probes_picture(found: Sequence[Probed]) -> np.ndarray:
    """Draw the curves of probes, a panel per fact. Returns [H, W, 3] uint8."""
    figure = _figure(6.8, 2.5 * len(found) + 1.0)
    grid = figure.subplots(len(found), squeeze=False, sharex=True)[:, 0]
    for axes, fact in zip(grid, found):
        # lines that lie on each other are told apart by their widths
        for width, (label, curve) in zip((7, 4.5, 2.5, 1), _told(fact).items()):
            _curve(axes, curve, COLOURS[label], label, width)
        axes.set_ylim(0, 1.04)
        axes.set_ylabel("held-out accuracy")
        axes.set_title(f"Fact “{fact.name}”", fontsize=11)
        axes.grid(alpha=0.25)
    grid[-1].set_xlabel("steps since the event (dashed: the best guess without the memory)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return _array(figure)


def findings(found: Sequence[Probed]) -> Table:
    """The accuracies at the event and at the last lag, which is in brackets, beside chance."""
    table = printing.table(
        "fact", "in the", "at the event", "at the last lag", "chance", title="Accuracy of probes on held-out histories"
    )
    for fact in found:
        for label, curve in _told(fact).items():
            if len(curve.lags):
                shown = [f"{curve.accuracy[i]:.2f} ± {curve.error[i]:.2f} ({curve.lags[i]:.0f})" for i in (0, -1)]
                table.add_row(fact.name, label, *shown, f"{curve.chance.mean():.2f}")
    return table


def _told(fact: Probed) -> dict[str, Curve]:
    return dict(zip(COLOURS, fact[1:]))


def _curve(axes: Axes, curve: Curve, colour: str, label: str, width: float) -> None:
    axes.plot(curve.lags, curve.accuracy, color=colour, linewidth=width, marker="o", markersize=width + 2, label=label)
    low, high = curve.accuracy - curve.error, curve.accuracy + curve.error
    axes.fill_between(curve.lags, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(curve.lags, curve.chance, color=colour, linestyle="--", linewidth=1, alpha=0.7)


def _inputs(label: str, events: np.ndarray) -> str:
    return f"{label} (▼: it shows an event)" if events.any() else label


def _mark(axes: Axes, events: np.ndarray) -> None:
    """Mark the steps that show an event along the upper edge."""
    steps = np.flatnonzero(events)
    if len(steps) == 0:
        return  # an empty line has no box, and the layout collapses around it
    axes.plot(steps, np.full(len(steps), -0.5), linestyle="", marker="v", color=EVENT, markersize=5, clip_on=False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _array(figure: Figure) -> np.ndarray:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""Draw the pictures of docs/concepts.md: retention, rewriting, capacity, order. Everything drawn is computed here.

python docs/concepts.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot

from palimpsest import memory

FOLDER = Path(__file__).resolve().parent / "pictures"
FEATURES = 32
COLOURS = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"]


def influence(name: str, steps: int, rows: int = 8, **arguments: int) -> np.ndarray:
    """[steps] How strongly the first input of a sequence of noise still moves the output t steps later, untrained.

    The root mean square of the change of the output when the first input changes a little, over that at t = 0.
    """
    torch.manual_seed(0)
    made = memory.make(name, FEATURES, output_size=64, **arguments).double()
    x = torch.randn(steps, rows, FEATURES, dtype=torch.float64)
    x[1:] *= 0.3
    start = torch.zeros(steps, rows, dtype=torch.bool)
    moved = x.clone()
    moved[0] += 1e-3 * torch.randn(rows, FEATURES, dtype=torch.float64)
    with torch.no_grad(), memory.kernels.torch_only():
        first, second = (made.scan(each, start, made.initial_state(rows))[0] for each in (x, moved))
    change = (first - second).pow(2).mean((1, 2)).sqrt().numpy()
    return change / change[0]


def retention(path: Path, steps: int = 160) -> None:
    """What of the first input is left, by memory."""
    figure, axis = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    shown = [("lstm", {}), ("gru", {}), ("rewrite", {}), ("ffm", {}), ("gtrxl", {"memory_length": 64}), ("none", {})]
    for colour, (name, arguments) in zip(COLOURS, shown):
        line = np.maximum(influence(name, steps, **arguments), 1e-9)
        label = name if not arguments else f"{name}, window 64"
        axis.plot(np.arange(steps), line, color=colour, label=label, linewidth=1.8)
    axis.set_yscale("log")
    axis.set_ylim(1e-6, 3)
    axis.set_xlabel("steps since the input")
    axis.set_ylabel("what is left of its effect")
    axis.set_title("Retention: the effect of one input on later outputs, before any training", fontsize=10)
    axis.legend(ncols=3, frameon=False, fontsize=8, loc="lower left")
    axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def tables(writes: list[tuple[np.ndarray, np.ndarray]], rule: str) -> np.ndarray:
    """[K, V] A table after `writes` of (key, value) by a rule: "add", "decay" or "delta"."""
    table = np.zeros((len(writes[0][0]), len(writes[0][1])))
    for key, value in writes:
        if rule == "decay":
            table = 0.8 * table
        old = key @ table if rule == "delta" else 0.0
        table = table + np.outer(key, value - old)
    return table


def rewriting(path: Path) -> None:
    """The value read under one key, which was written three times, by three rules."""
    rng = np.random.default_rng(0)
    keys = [key / np.linalg.norm(key) for key in rng.normal(size=(3, 16))]
    values = np.eye(4)[:3]
    places = [("key 1 gets A", 0), ("key 2 gets B", 1), ("key 1 gets C", 0)]
    story = [(text, keys[place], values[n]) for n, (text, place) in enumerate(places)]
    figure, axes = pyplot.subplots(1, 3, figsize=(9.2, 3.2), layout="constrained", sharey=True)
    titles = {
        "add": "add (linear)",
        "decay": "forget a little, then add (gla)",
        "delta": "erase under the key, then add (rewrite)",
    }
    for axis, (rule, title) in zip(axes, titles.items()):
        reads = [keys[0] @ tables([(key, value) for _, key, value in story[: n + 1]], rule) for n in range(3)]
        for index, letter in enumerate("ABC"):
            heights = [read[index] for read in reads]
            axis.bar(np.arange(3) + 0.25 * (index - 1), heights, 0.23, color=COLOURS[index], label=letter)
        axis.set_xticks(range(3), [text for text, _, _ in story], fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("what is read under key 1")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right", title="value")
    axes[0].set_ylim(0, 1.1)
    figure.suptitle("Rewriting: key 1 is written twice. Only the last value should be read.", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def right_answers(pairs: int, key_size: int, rule: str, slots: int = 0, repeats: int = 40) -> float:
    """The share of `pairs` of random keys and letters (of 32) that are read back rightly."""
    rng = np.random.default_rng(pairs)
    right = 0
    for _ in range(repeats):
        keys = rng.normal(size=(pairs, key_size))
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        letters = rng.integers(32, size=pairs)
        if slots:  # the oldest entry is dropped
            right += sum(1 if n >= pairs - slots else rng.integers(32) == letters[n] for n in range(pairs))
            continue
        table = tables([(key, np.eye(32)[letter]) for key, letter in zip(keys, letters)], rule)
        right += int(((keys @ table).argmax(1) == letters).sum())
    return right / (repeats * pairs)


def capacity(path: Path) -> None:
    """How many pairs of key and value are held."""
    counts = [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    figure, axis = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    lines = {
        "a table with keys of 16, delta rule (rewrite)": dict(key_size=16, rule="delta"),
        "the same, added (linear)": dict(key_size=16, rule="add"),
        "keys of 64, delta rule": dict(key_size=64, rule="delta"),
        "64 slots, the oldest dropped (sat)": dict(key_size=16, rule="", slots=64),
    }
    for colour, (label, arguments) in zip(COLOURS, lines.items()):
        axis.plot(counts, [right_answers(n, **arguments) for n in counts], "o-", ms=3.5, color=colour, label=label)
    axis.axhline(1 / 32, color="black", linewidth=0.8, linestyle=":")
    axis.text(1, 1 / 32 + 0.015, "chance", fontsize=8)
    axis.set_xscale("log", base=2)
    axis.set_xticks([1, 2, 4, 8, 16, 32, 64, 128], ["1", "2", "4", "8", "16", "32", "64", "128"])
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("pairs written, each once")
    axis.set_ylabel("share read back rightly")
    axis.set_title("Capacity: a table fades, slots end", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.08))
    axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def order(path: Path) -> None:
    """How a query that is turned by time finds what was written a number of steps ago."""
    lags = np.arange(0, 129)
    figure, axis = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
    axis.plot(lags, np.ones(len(lags)), color=COLOURS[5], label="no sense of order: every lag alike", linewidth=1.6)
    periods = np.array([32, 64, 128, 256])
    for colour, aim in zip(COLOURS, (4, 16, 48)):
        match = np.cos(2 * np.pi * (lags[:, None] - aim) / periods).mean(1)
        axis.plot(lags, match, color=colour, label=f"a query turned to {aim} steps ago", linewidth=1.6)
        axis.axvline(aim, color=colour, linewidth=0.8, linestyle=":")
    axis.set_xlabel("steps since the write")
    axis.set_ylabel("match of query and key")
    axis.set_title("Order: keys that turn with time let a query point at a lag (rewrite)", fontsize=10)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Draw all four."""
    matplotlib.use("Agg")
    FOLDER.mkdir(exist_ok=True)
    for draw in (retention, rewriting, capacity, order):
        draw(FOLDER / f"{draw.__name__}.png")


if __name__ == "__main__":
    main()

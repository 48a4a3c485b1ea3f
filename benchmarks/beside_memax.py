"""Our memories beside memax's JAX implementations: are the values equal, and how many tokens per second on a CPU.

    pip install "memax[equinox]"
    python benchmarks/beside_memax.py --quick
    python benchmarks/beside_memax.py --out docs/beside_memax.md

memax is nothing that this package needs; only this script does.
"""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measure import machine, markdown, side_by_side

from palimpsest.agents.files.versions import versions

T, B, D = 256, 64, 128
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Compare with memax."""

    quick: bool = False
    """Short sequences, one repeat."""
    only: tuple[str, ...] = ()
    """Classes of memax to compare with; all by default."""
    seed: int = 0
    """Seed of weights, inputs and starts."""
    out: Path | None = None
    """A Markdown file to write as well; the figures also go to a JSONL file of its name in `results/` beside it."""


def values(make: Any, exact: bool, seed: int) -> Row:
    """Both layers have memax's parameters and one sequence of 40 steps and 3 rows, with episodes that start inside it.

    "Equal" comes with the largest difference of two numbers, in float64 (`ffm` in float32, as memax's complex numbers
    are; so is a part of `s5`, and the softmax of JAX attention). Where memax defines a layer in another way, the first
    number is the difference of the layers as they are, and the second one that of ours and memax's with that one thing
    changed: so there is no other difference.
    """
    import jax

    rng = np.random.default_rng(seed)
    x, start = rng.standard_normal((40, 3, 16)), rng.random((40, 3)) < 1 / 8
    start[:, 2] = False
    # a layer norm, as `trxl` has one before its attention, leaves it as it is
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * np.sqrt(1 - 1e-5)
    x = x if exact else x.astype(np.float32)
    with jax.enable_x64(exact), default_dtype(torch.float64 if exact else torch.float32):
        torch.manual_seed(seed)
        pair = make(16, jax.random.key(seed))
        with torch.no_grad():
            mine = (pair.read or pair.scan)(torch.from_numpy(x), torch.from_numpy(start)).numpy()
        layers = {"as published": pair.theirs, "with our definition": pair.alike}
        found = {name: largest(pair, layer, x, start, mine) for name, layer in layers.items() if layer is not None}
    return {**found, "difference": pair.difference, "around": pair.around}


def largest(pair: Any, layer: Any, x: np.ndarray, start: np.ndarray, mine: np.ndarray) -> float:
    """The largest difference of what this layer of memax gives and of what ours gave."""
    import jax.numpy as jnp

    xs, starts = jnp.asarray(x.swapaxes(0, 1)), jnp.asarray(start.T)
    h, y = rows_of(layer)(xs, starts)
    return float(np.abs(np.asarray(pair.seen(h, y, xs)).swapaxes(0, 1) - mine).max())


def rows_of(layer: Any) -> Callable[[Any, Any], Any]:
    """A layer of memax, which has no batch axis, over rows: x [B, T, D] and start [B, T] to states and outputs."""
    import equinox as eqx

    return eqx.filter_jit(eqx.filter_vmap(lambda x, start: layer(layer.initialize_carry(), (x, start))))


def speeds(make: Any, options: Options) -> Row:
    """Tokens per CPU second of one layer, one thread each, in turns. Medians of three after a warm-up, which compiles.

    A layer has as many features out as in, as all of memax's have. "Forward" wants no gradient, "and backward" the
    gradient of all parameters.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    length, batch = (64, 8) if options.quick else (T, B)
    rng = np.random.default_rng(options.seed)
    x, start = rng.standard_normal((length, batch, D), np.float32), rng.random((length, batch)) < 1 / 50
    x_t, start_t = torch.from_numpy(x), torch.from_numpy(start)
    x_j, start_j = jnp.asarray(x.swapaxes(0, 1)), jnp.asarray(start.T)
    torch.manual_seed(options.seed)
    pair = make(D, jax.random.key(options.seed))

    def of_rows(layer: Any, x: Any, start: Any) -> Any:
        return eqx.filter_vmap(lambda x, start: layer(layer.initialize_carry(), (x, start))[1])(x, start)

    forward = eqx.filter_jit(of_rows)
    gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda *given: jnp.square(of_rows(*given)).mean()))

    def our_forward() -> None:
        with torch.no_grad():
            pair.scan(x_t, start_t)

    def our_both() -> None:
        pair.ours.zero_grad()
        pair.scan(x_t, start_t).square().mean().backward()

    calls: dict[str, Callable[[], Any]] = {
        "ours": our_forward,
        "memax": partial(wait_for, forward, pair.theirs, x_j, start_j),
        "ours, both": our_both,
        "memax, both": partial(wait_for, gradient, pair.theirs, x_j, start_j),
    }
    seconds = side_by_side(calls, 1 if options.quick else 3, time.process_time)
    jax.clear_caches()
    return {name: length * batch / found for name, found in seconds.items()}


def wait_for(compiled: Callable[..., Any], *given: Any) -> Any:
    """Call what JAX has compiled, and return when its results are there."""
    import jax

    return jax.block_until_ready(compiled(*given))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make modules of this type inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def values_table(rows: list[Row]) -> str:
    """One line per pair."""
    return markdown(["ours", "memax", "values"], [[row["ours"], row["memax"], in_words(row)] for row in rows])


def in_words(row: Row) -> str:
    """What came out for a pair."""
    around = f" ({row['around']})" if row["around"] else ""
    if "with our definition" not in row:
        return f"equal, {row['as published']:.0e}{around}"
    return (
        f"{row['as published']:.0e}: {row['difference']}. Without that equal, {row['with our definition']:.0e}{around}"
    )


def speeds_table(rows: list[Row]) -> str:
    """One line per pair."""
    lines: list[list[Any]] = []
    for row in rows:
        tokens = row["tokens/s"]
        figures = [[tokens[f"ours{kind}"], tokens[f"memax{kind}"]] for kind in ("", ", both")]
        lines.append([row["ours"], row["memax"], *(cell for a, b in figures for cell in (a, b, a / b))])
    kinds = [f"{kind}: {of}" for kind in ("forward", "and backward") for of in ("ours", "memax", "ratio")]
    return markdown(["ours", "memax", *kinds], lines)


INTRODUCTION = """
memax has recurrent layers in JAX (Equinox). Here are those that this package has too, one layer of each: a memory that
is a stack is compared by its layer, without the stack around it. Made by

    python benchmarks/beside_memax.py --out docs/beside_memax.md

Other work ran on the machine, so times are CPU times. Compare the two of a line, not lines.

Tables have 32 x 32 numbers, `s5` 128 complex traces, `ffm` 32 x 4, `trxl` a window of 16 inputs and one head, all else
128 units. memax has none of the other memories. No memory here is like its MGU, NMax, DLSE, Spherical, PSpherical,
LinearRecurrent or Stack.
"""


def page(rows: list[Row]) -> str:
    """The page of these lines, one per pair."""
    last = max(rows, key=lambda row: row["at"])["record"]
    commits = {row["record"]["commit"] for row in rows}
    record = {**last, "commit": sorted(commits) if len(commits) > 1 else last["commit"]}
    parts = [f"# Beside memax\n\n{inspect.cleandoc(INTRODUCTION)}\n\n{json.dumps(record)}"]
    for title, measure, table in (("Values", values, values_table), ("Speed", speeds, speeds_table)):
        parts.append(f"## {title}\n\n{inspect.getdoc(measure)}\n\n{table(rows)}")
    return "\n\n".join(parts) + "\n"


def main(options: Options) -> None:
    """Compare pair by pair. Each replaces its line in the file, if there is one, and the page is made anew."""
    os.environ["XLA_FLAGS"] = ONE_THREAD  # read when JAX first computes
    torch.set_num_threads(1)
    from memax_pairs import PAIRS

    packages = {name: metadata.version(name) for name in ("memax", "jax", "equinox")}
    record = {**machine(), **versions(), **packages, "seed": options.seed, "T": T, "B": B, "D": D}
    lines = None if options.out is None else options.out.parent / "results" / f"{options.out.stem}.jsonl"
    found: dict[str, Row] = {}
    if lines is not None and lines.exists():
        found = {row["memax"]: row for row in map(json.loads, lines.read_text().splitlines())}
    for (ours, theirs), make in PAIRS.items():
        if options.only and theirs not in options.only:
            continue
        # FFM makes numbers of both precisions, which JAX does not join
        row = {"ours": ours, "memax": theirs, **values(make, theirs != "FFM", options.seed)}
        row["tokens/s"] = speeds(make, options)
        found[theirs] = {**row, "at": time.time(), "record": record}
        rows = [found[theirs] for _, theirs in PAIRS if theirs in found]
        print(f"{values_table([row])}\n\n{speeds_table([row])}\n", flush=True)
        if options.out is not None and lines is not None:
            lines.parent.mkdir(parents=True, exist_ok=True)
            lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
            options.out.write_text(page(rows))


if __name__ == "__main__":
    main(tyro.cli(Options))

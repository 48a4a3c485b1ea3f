"""Run every part of the GPU's measurements, each in a process with a time limit; and make a page of the figures.

    benchmarks/gpu.sh FOLDER                 # says what must be installed
    python benchmarks/gpu.py FOLDER --page   # the page again, from the figures that are there

The parts are in `gpu_parts`. This file imports the standard library alone, so that what fails there is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WHOLE = 350
"""Seconds for all parts together."""

TOGETHER: tuple[tuple[str, ...], ...] = (
    ("machine",),
    ("tests", "compile lstm", "compile ffm", "compile rewrite"),
    ("scans",),
    ("loops",),
    ("loops cpu",),
)
"""The parts, in order. Those of one line run side by side: the CPU compiles its kernels while the GPU is tested."""

SECONDS = {"machine": 60, "tests": 130, "compile": 130, "scans": 120, "loops": 60, "loops cpu": 130}
"""Time limits of the parts."""


def started(part: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The process of a part. What it prints goes to the log."""
    script = Path(__file__).with_name("gpu_parts.py")
    command = [sys.executable, str(script), *part.split(), "--folder", str(options.folder), "--device", options.device]
    with (options.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command + ["--tiny"] * options.tiny, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )


def finished(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, at most so long; how it ended, in words."""
    try:
        code = process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return "stopped, as it took too long"
    return "done" if code == 0 else f"ended with code {code}; see log.txt"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def note(folder: Path, **figures: Any) -> None:
    """Write a line of figures."""
    with (folder / "figures.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
    print(json.dumps(figures), flush=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of figures that are there. A last line may be cut short."""
    found = []
    for line in (folder / "figures.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def page(lines: list[dict[str, Any]]) -> str:
    """The figures as a page in Markdown."""
    machine = next((line for line in lines if line["part"] == "machine" and "card" in line), None)
    if machine is None:
        return "# On a GPU\n\nNothing was measured: the machine did not answer.\n"
    about = [[name, value] for name, value in machine.items() if name not in ("part", "card")]
    parts = [
        "# On a GPU",
        f"Measured by `benchmarks/gpu.sh` on {machine['card']}.",
        table(["machine", "and versions"], about),
        *_tests([line for line in lines if line["part"] == "tests" and "test" in line]),
        *_scans([line for line in lines if line["part"] == "scans" and "T" in line]),
        *_loops([line for line in lines if line["part"] == "loops" and "memory" in line]),
    ]
    notes = [line["note"] for line in lines if "note" in line]
    if notes:
        parts += ["## Since then", *notes]
    ended = [f"- {line['of']}: {line['ended']}" for line in lines if line["part"] == "run" and line["ended"] != "done"]
    ended += [f"- {line['part']}: {line['error']}" for line in lines if line.keys() == {"part", "error"}]
    if ended:
        parts += ["## Parts that did not end", "\n".join(ended)]
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown; None is a dash."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
        return "–" if value is None else str(value)

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tests(lines: list[dict[str, Any]]) -> list[str]:
    outcomes = [line["outcome"] for line in lines]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in sorted(set(outcomes))) or "none ran"
    failed = [f"- `{line['test']}`: {line['error']}" for line in lines if line["outcome"] == "failed"]
    text = (
        "Each memory's scan and its gradients equal those of the CPU, float32 and float64, with episodes that start "
        "inside; steps equal the scan; agents train, save, load and act."
    )
    return ["## Tests", f"{text} Of the tests marked `cuda`: {counts}.", *(["\n".join(failed)] if failed else [])]


def _scans(lines: list[dict[str, Any]]) -> list[str]:
    if not lines:
        return []
    first = lines[0]
    text = (
        f"Forward and backward over T steps of {first['B']} rows, {first['B']} × {first['H']} numbers in and out a "
        "step, medians; episodes start with probability 0.03, but not for nn.LSTM, which has no resets (one cuDNN "
        "call). Every memory has its default layers at this width. A peak is all that torch had allocated. Matrix "
        "products in float32 are not TF32; those inside cuDNN's recurrences are, as torch has it by default."
    )
    by = {(line["T"], line["memory"], line["autocast"]): line for line in lines}
    rows, noted = [], []
    for T, memory in dict.fromkeys((line["T"], line["memory"]) for line in sorted(lines, key=lambda line: line["T"])):
        row: list[Any] = [T, memory]
        for autocast in (False, True):
            line = by.get((T, memory, autocast), {})
            base = by.get((T, "nn.LSTM, no resets", autocast), {}).get("tokens_per_s")
            speed = line.get("tokens_per_s")
            row += [speed, speed / base if speed and base else None, line.get("peak_gib")]
            if "error" in line:
                noted.append(f"- {memory}, T = {T}{', bfloat16' if autocast else ''}: {line['error']}")
        rows.append(row)
    head = [
        "T",
        "memory",
        "tokens/s, float32",
        "x nn.LSTM",
        "peak, GiB",
        "tokens/s, bfloat16",
        "x nn.LSTM",
        "peak, GiB",
    ]
    return ["## Scans", text, table(head, rows), *(["Not measured:", "\n".join(noted)] if noted else [])]


def _loops(lines: list[dict[str, Any]]) -> list[str]:
    if not lines:
        return []
    first = lines[0]
    text = (
        f"Whole iterations of `MemoryPPO` as `palimpsest train` sets it, on Endless T-Maze: {first['envs']:,} "
        f"environments, {first['n_steps']} steps each, {first['n_epochs']} passes in {first['minibatches']} "
        "minibatches, float32, without a limit on the KL divergence, so that each does the same work. The environments "
        "are compiled and step on the CPU. Seconds are those of one iteration."
    )
    rows, noted = [], []
    for line in sorted(lines, key=lambda line: line["memory"]):
        if "error" in line:
            noted.append(f"- {line['memory']}, {line['on']}: {line['error']}")
        else:
            measured = (line[name] for name in ("steps_per_s", "acting_s", "updating_s", "iterations"))
            rows.append([line["memory"], line["on"], *measured])
    head = ["memory", "on", "env steps/s", "acting, s", "updating, s", "iterations"]
    return ["## Training", text, table(head, rows), *(["Not measured:", "\n".join(noted)] if noted else [])]


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where figures, log and page go")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help="sizes at which nothing is measured")
    parser.add_argument("--only", nargs="*", default=None, help="parts to run; by default all")
    parser.add_argument("--page", action="store_true", help="only make the page")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for names in () if options.page else TOGETHER:
        chosen = [name for name in names if options.only is None or name in options.only]
        left = WHOLE - (time.monotonic() - began)
        processes = {name: started(name, options) for name in chosen if left > 5}
        since = time.monotonic()
        try:
            for name in chosen:
                ended = "left out: no time was left"
                if name in processes:
                    seconds = SECONDS["compile" if name.startswith("compile") else name]
                    ended = finished(processes[name], min(seconds, left) - (time.monotonic() - since))
                note(options.folder, part="run", of=name, ended=ended, seconds=round(time.monotonic() - since, 1))
        finally:
            for process in processes.values():
                end(process)
    (options.folder / "gpu.md").write_text(page(read(options.folder)))


if __name__ == "__main__":
    main()

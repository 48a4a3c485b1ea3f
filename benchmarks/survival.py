"""Kill real runs of train.py with SIGKILL at random times, resume them, and compare them with uninterrupted runs.

    python benchmarks/survival.py --out docs/survival.json
    python benchmarks/survival.py --memories gru --kills 3

For every memory, one run is not interrupted. Other runs are killed and resumed until they finish. The time of a kill is
uniform between the start of the process and the duration of the first run. A finished run must equal the first one:
every parameter and optimiser moment bit for bit, `evaluations.csv` byte for byte, and every scalar curve of TensorBoard
except those of the clock. No partly written file may be left. The exit code is 1 if a run differs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palimpsest import memory
from palimpsest.agents.files.archive import PART, read_tree
from palimpsest.agents.files.versions import versions
from palimpsest.agents.run.config import CONFIG_FILE

PROGRAM = Path(__file__).resolve().parent.parent / "train.py"
FLAGS = (
    *("--env", "Palimpsest/ActiveTMaze-v0", "--env-args", "length=4", "--memory-args", "output_size=16"),
    *("--total-timesteps", "16384", "--num-envs", "4", "--num-minibatches", "2", "--n-steps", "32", "--n-epochs", "2"),
    *("--width", "16", "--eval-every", "2048", "--eval-episodes", "8", "--checkpoint-every", "256"),
    *("--threads", "1", "--device", "cpu"),
)


@dataclass(frozen=True)
class Options:
    """Kill and resume."""

    memories: tuple[str, ...] = ()
    """Memories to train; none for all."""
    kills: int = 10
    """Number of SIGKILLs for each memory."""
    seed: int = 0
    """Seed of the times of the kills."""
    out: Path | None = None
    """A JSON file for the figures."""


@dataclass
class Count:
    """Counts for the runs of one memory."""

    memory: str
    runs: int = 0
    """Runs that finished after one kill or more, and were compared."""
    kills: int = 0
    before_configuration: int = 0
    """Kills before the configuration was written to the run's directory. Such a run starts again; nothing was lost."""
    before_checkpoint: int = 0
    """Kills after that and before the first checkpoint."""
    while_writing: int = 0
    """Kills that left a partly written file."""
    resumes: int = 0
    different: int = 0
    """Finished runs that differ from the uninterrupted run."""


def command(memory_name: str, directory: Path) -> list[str]:
    """The command that starts the run, or resumes it."""
    words = [sys.executable, str(PROGRAM), "train"]
    if (directory / CONFIG_FILE).exists():
        return [*words, "--resume", str(directory)]
    shutil.rmtree(directory, ignore_errors=True)
    return [*words, *FLAGS, "--memory", memory_name, "--run-dir", str(directory)]


def finish(memory_name: str, directory: Path, patience: float | None = None) -> bool:
    """Run to the end, or kill the run after `patience` seconds. Returns whether it finished.

    Raises:
        RuntimeError: the run failed without a kill.
    """
    process = subprocess.Popen(
        command(memory_name, directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        _, error = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args)} ended with {process.returncode}: {error.decode()}")  # type: ignore
    return True


def ending(directory: Path) -> dict[str, object]:
    """The result of a run: tensors by name, the bytes of the evaluations, the curves."""
    parameters = read_tree(directory / "model.zip")["parameters"]
    found: dict[str, object] = {f"policy.{name}": tensor for name, tensor in parameters["policy"].items()}
    for number, state in parameters["policy.optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    found["evaluations.csv"] = (directory / "evaluations.csv").read_bytes()
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    for name in events.Tags()["scalars"]:
        if not name.startswith("time/"):
            found[f"curve {name}"] = [(event.step, event.value) for event in events.Scalars(name)]
    found["half written"] = sorted(path.name for path in directory.rglob(f"*{PART}"))
    return found


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of the entries that differ in any bit."""

    def same(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return sorted(
        name for name in {*one, *other} if name not in one or name not in other or not same(one[name], other[name])
    )


def survive(memory_name: str, kills: int, rng: np.random.Generator, place: Path) -> Count:
    """Kill and resume runs of one memory until `kills` is reached; then let the last run finish."""
    count = Count(memory_name)
    whole, killed = place / "whole", place / "killed"
    began = time.monotonic()
    finish(memory_name, whole)
    seconds = time.monotonic() - began
    expected, hit = ending(whole), False
    while count.kills < kills or hit:
        count.resumes += (killed / CONFIG_FILE).exists()
        patience = float(rng.uniform(0, seconds)) if count.kills < kills else None
        if not finish(memory_name, killed, patience):
            hit = True
            count.kills += 1
            configured, saved = (killed / CONFIG_FILE).exists(), any((killed / "checkpoints").glob("*.zip"))
            count.before_configuration += not configured
            count.before_checkpoint += configured and not saved
            count.while_writing += any(killed.rglob(f"*{PART}")) if killed.exists() else False
            continue
        if hit:
            count.runs += 1
            if wrong := differences(expected, ending(killed)):
                count.different += 1
                print(f"{memory_name}: {', '.join(wrong[:5])} differ", file=sys.stderr)
        shutil.rmtree(killed)
        hit = False
    return count


def main(options: Options) -> int:
    """Run, print a table and save the figures. Returns 1 if a run differs."""
    rng = np.random.default_rng(options.seed)
    columns = list(asdict(Count("")))
    print("| " + " | ".join(columns).replace("_", " ") + " |\n" + "|---" * len(columns) + "|", flush=True)
    counts = []
    for name in options.memories or memory.names():
        with tempfile.TemporaryDirectory() as place:
            counts.append(survive(name, options.kills, rng, Path(place)))
        print("| " + " | ".join(map(str, asdict(counts[-1]).values())) + " |", flush=True)
    total = {column: sum(getattr(count, column) for count in counts) for column in columns[1:]}
    print("| all | " + " | ".join(map(str, total.values())) + " |")
    told = versions()
    print(f"commit {told['commit']}, Python {told['python']}, torch {told['torch']}, seed {options.seed}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        lines = [asdict(count) for count in counts]
        options.out.write_text(json.dumps({"versions": told, "seed": options.seed, "memories": lines}) + "\n")
    return int(total["different"] > 0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

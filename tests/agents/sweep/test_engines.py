"""The engines, with real processes: runs side by side, a killed worker, a signal to the sweep, its sudden end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from program import Program
from suites import HEAD, MAZE, TRAIN, write

from palimpsest.agents.sweep import table

LONG = TRAIN.replace("total_timesteps = 128", "total_timesteps = 1_000_000_000").replace(
    "eval_every = 64", "eval_every = 0"
)
"""Trainings of hours, with a checkpoint four times a second or so."""

pytestmark = pytest.mark.learning


def holders(folder: Path) -> list[int]:
    """The processes of the runs under way, by the locks of their directories."""
    found = [path.read_text().strip() for path in folder.glob("runs/*/lock")]
    return [int(text) for text in found if text and alive(int(text))]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def checkpoints(folder: Path) -> set[str]:
    """The runs that have one."""
    return {path.parents[1].name for path in folder.glob("runs/*/checkpoints/*.zip")}


@pytest.fixture
def two_runs(tmp_path):
    """A sweep of two long runs that have written checkpoints."""
    suite = write(tmp_path, HEAD.replace("[0]", "[0, 1, 2]") + LONG + MAZE)
    out = tmp_path / "out"
    program = Program(tmp_path / "printed", "sweep", str(suite), "--out", str(out), "--workers", "2")
    try:
        program.wait_until(lambda: len(checkpoints(out)) == 2)
        yield program, out
    finally:
        for pid in [program.pid, *holders(out)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        program.wait()


def gone(pids: list[int], seconds: float = 60) -> bool:
    """Whether the processes end in time."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_killed_run_is_reported_and_a_signal_stops_the_others_with_checkpoints(two_runs):
    program, out = two_runs
    first, second = holders(out)
    os.kill(first, signal.SIGKILL)
    program.wait_until(lambda: len(checkpoints(out)) == 3)  # the next run took its place
    assert program.printed.count("DIED: its process was killed by SIGKILL") == 1
    pids = holders(out)
    assert len(pids) == 2
    assert second in pids
    before = {path.name for path in out.glob("runs/*/checkpoints/*.zip")}
    os.kill(program.pid, signal.SIGINT)
    code, printed, err = program.wait()
    assert code == 130, err
    assert gone(pids, 0)
    assert "palimpsest: stopped by SIGINT" in err
    assert "continue with: palimpsest sweep" in printed
    assert printed.count(": stopped") == 2
    assert printed.count("DIED") == 1
    assert "Traceback" not in err
    assert {path.name for path in out.glob("runs/*/checkpoints/*.zip")} != before


def test_a_killed_sweep_leaves_no_orphans(two_runs):
    program, out = two_runs
    pids = holders(out)
    assert len(pids) == 2
    os.kill(program.pid, signal.SIGKILL)
    assert gone(pids)


def test_ray_retries_a_killed_run_from_its_checkpoint(tmp_path):
    pytest.importorskip("ray")
    text = HEAD + LONG.replace("1_000_000_000", "12_800") + MAZE
    out = tmp_path / "out"
    words = ["sweep", str(write(tmp_path, text)), "--out", str(out), "--workers", "1", "--engine", "ray"]
    program = Program(tmp_path / "printed", *words)
    try:
        program.wait_until(lambda: checkpoints(out))
        (pid,) = holders(out)
        os.kill(pid, signal.SIGKILL)
        code, printed, err = program.wait()
    finally:
        program.kill()
    assert code == 0, err
    assert "success" in printed
    log = next((out / "logs").glob("*.log")).read_text()
    assert "continues from step" in log
    assert "continues from step 0" not in log
    (row,) = table.read(out / "results.csv")
    assert row["steps"] == 12_800

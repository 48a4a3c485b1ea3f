"""Workers that die, signals, and what is left behind: nothing but the last checkpoint."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from program import Program

LONG = [
    *("--env-args", "corridors=2", "length=3", "--memory", "none", "--memory-args", "output_size=8"),
    *("--num-envs", "8", "--num-minibatches", "1", "--n-epochs", "1", "--threads", "1", "--width", "8"),
    *("--total-timesteps", "1000000000", "--eval-every", "0", "--eval-episodes", "1", "--device", "cpu"),
    *("--n-steps", "256", "--checkpoint-every", "2048", "--workers", "2"),
]
"""Iterations of a fraction of a second, a checkpoint after each, for hours."""

pytestmark = pytest.mark.learning


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.zip"))


def session(pid: int) -> list[str]:
    """The fields of a process after its name: state, parent, group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def alive(pid: int) -> bool:
    try:
        return session(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def second_worker(first: int) -> int:
    """The worker that leads a session of its own, below the first worker's forkserver."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = session(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    servers = [pid for pid, fields in parents.items() if int(fields[1]) == first]
    (found,) = [pid for pid, f in parents.items() if int(f[1]) in servers and int(f[3]) == pid and f[0] != "Z"]
    return found


def listening(pids: list[int]) -> set[str]:
    """Addresses, in hexadecimal, at which processes accept connections."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pids[0]}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found


def gone(pid: int, seconds: float = 60) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.fixture
def running(tmp_path):
    """A training of two workers that has written its first checkpoint: the program, its second worker, the run."""
    run = tmp_path / "run"
    program = Program(tmp_path / "printed", "train", *LONG, "--run-dir", str(run))
    second = None
    try:
        program.wait_until(lambda: checkpoints(run))
        second = second_worker(program.pid)
        yield program, second, run
    finally:
        program.kill()
        if second is not None and not gone(second):
            os.kill(second, signal.SIGKILL)
            raise AssertionError("the second worker outlived the first")


def test_a_killed_worker_ends_the_run_with_its_last_checkpoint(running):
    program, second, run = running
    os.kill(second, signal.SIGKILL)
    code, _, err = program.wait()
    assert code == 1
    assert "palimpsest: worker 1 was killed by SIGKILL. The last checkpoint, " in err
    assert f"continue with: palimpsest --resume {run}" in err
    assert "Traceback" not in err
    assert checkpoints(run)
    assert not (run / "model.zip").exists()


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_signal_to_any_worker_stops_all_with_a_checkpoint(which, running):
    program, second, run = running
    before = checkpoints(run)[-1].name
    assert listening([program.pid, second]) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1
    os.kill(program.pid if which == "first" else second, signal.SIGTERM)
    code, out, err = program.wait()
    assert code == 143, err
    assert "palimpsest: stopped by SIGTERM" in err
    assert "continue with: palimpsest" in out
    assert "Traceback" not in err
    assert gone(second, 0)
    assert checkpoints(run)[-1].name >= before


def test_the_other_workers_end_with_the_first(running):
    program, second, _ = running
    os.kill(program.pid, signal.SIGKILL)
    assert gone(second)

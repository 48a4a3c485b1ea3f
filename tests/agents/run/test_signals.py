"""The running program: what signals do to it, and its exit codes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from program import Program

from palimpsest import train
from palimpsest.agents.files.archive import read_tree

LONG = [
    *("--env-args", "corridors=2", "length=3", "--memory", "none", "--memory-args", "output_size=8"),
    *("--num-envs", "8", "--num-minibatches", "1", "--n-epochs", "1", "--threads", "1", "--width", "8"),
    *("--total-timesteps", "1000000000", "--eval-every", "0", "--eval-episodes", "1", "--device", "cpu"),
    *("--n-steps", "512", "--checkpoint-every", "4096"),
]
"""Iterations of a fraction of a second, a checkpoint after each, for hours."""

pytestmark = pytest.mark.learning


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.zip"))


def newest(run: Path) -> str:
    return max((path.name for path in checkpoints(run)), default="")


@pytest.fixture
def running(tmp_path):
    """A training that has written its first checkpoint."""
    run = tmp_path / "run"
    program = Program(tmp_path / "printed", "train", *LONG, "--run-dir", str(run))
    try:
        program.wait_until(lambda: checkpoints(run))
        yield program, run
    finally:
        program.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number, code, running):
    program, run = running
    before = newest(run)
    os.kill(program.pid, number)
    ended, out, err = program.wait()
    assert ended == code, err
    assert f"palimpsest --resume {run}" in "".join(out.split("\n")).replace("palimpsest--", "palimpsest --")
    assert f"{number.name}: the run stops after this iteration" in err
    assert f"palimpsest: stopped by {number.name}" in err
    assert "Traceback" not in err
    last = checkpoints(run)[-1]
    assert last.name >= before
    assert read_tree(last)["num_timesteps"] == int(last.stem)
    assert not (run / "model.zip").exists()


def test_going_on_as_it_was_said_works(running, tmp_path):
    program, run = running
    os.kill(program.pid, signal.SIGINT)
    program.wait()
    last = newest(run)
    again = Program(tmp_path / "printed", "--resume", str(run))
    try:
        again.wait_until(lambda: newest(run) > last)
    finally:
        again.kill()
    _, out, _ = again.wait()
    assert f"continues from step {int(Path(last).stem):,}" in "".join(out.split("\n"))


def test_a_second_signal_stops_at_once(running):
    """Both signals come one right after the other, wherever the run is, in a write of a checkpoint too."""
    program, run = running
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        os.kill(program.pid, number)
    code, _, err = program.wait()
    assert code in (130, 143), err
    assert "the run stops after this iteration; a second signal stops it at once" in err
    assert "Traceback" not in err
    last = checkpoints(run)[-1]
    assert read_tree(last)["num_timesteps"] == int(last.stem)
    assert [path.name for path in (run / "checkpoints").iterdir() if path.suffix != ".zip"] == []
    assert not (run / "model.zip").exists()


INT, TERM = (signal.SIGINT, 130), (signal.SIGTERM, 143)


@pytest.mark.parametrize(
    ("vec", "number", "code"),
    [
        ("subproc", *INT),
        ("async", *INT),
        ("subproc", *TERM),
        ("async --overlap", *TERM),
        ("subproc --workers 2", *TERM),
    ],
)
def test_a_signal_to_all_processes_reaches_the_first_one_alone(vec, number, code, tmp_path):
    """Ctrl-C in a terminal and a scheduler's SIGTERM come to the processes of the environments too."""
    run, (vec, *more) = tmp_path / "run", vec.split()
    words = ["--env", "CartPole-v1", "--vec", vec, "--memory", "none", "--num-envs", "4", "--n-steps", "64"]
    words += more
    words += ["--total-timesteps", "1000000000", "--eval-every", "0", "--device", "cpu", "--threads", "1"]
    words += ["--checkpoint-every", "128", "--run-dir", str(run)]
    program = Program(tmp_path / "printed", "train", *words, before=os.setsid)
    try:
        program.wait_until(lambda: checkpoints(run))
        os.killpg(program.pid, number)
        ended, out, err = program.wait()
    finally:
        program.kill()
    assert ended == code, err
    assert "continue with:" in out
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while group_lives(program.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group_lives(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_exit_codes(tmp_path, capsys):
    short = "--total-timesteps 16 --n-steps 4 --num-envs 4 --num-minibatches 1 --eval-episodes 1 --memory none"
    run = tmp_path / "run"
    words = [*short.split(), "--device", "cpu", "--no-progress", "--threads", "1", "--env", "CartPole-v1"]
    words += ["--run-dir", str(run)]
    assert train.main(words) == 0
    assert (run / "model.zip").exists()
    capsys.readouterr()
    assert train.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    content = (run / "model.zip").read_bytes()
    (run / "model.zip").write_bytes(content[: len(content) // 2])
    assert train.main(["evaluate", str(run), "--episodes", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "torn, altered" in err

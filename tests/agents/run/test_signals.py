"""The real program: exit codes, and what signals do to a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsest.agents.files.archive import read_tree

ROOT = Path(__file__).resolve().parents[3]
LONG = [
    *("--env-args", "corridors=2", "length=3", "--memory", "none", "--memory-args", "output_size=8"),
    *("--num-envs", "8", "--num-minibatches", "1", "--n-epochs", "1", "--threads", "1", "--width", "8"),
    *("--total-timesteps", "1000000000", "--eval-every", "0", "--eval-episodes", "1", "--device", "cpu"),
    *("--n-steps", "512", "--checkpoint-every", "4096"),
]
"""Iterations of a fraction of a second, a checkpoint after each, for hours."""

pytestmark = pytest.mark.learning


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.zip"))


def wait_for_a_checkpoint(process: subprocess.Popen[str], run: Path, newer_than: str = "") -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if any(path.name > newer_than for path in checkpoints(run)):
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint came")


@pytest.fixture
def running(tmp_path):
    """A training that has written its first checkpoint."""
    run = tmp_path / "run"
    process = start("train", *LONG, "--run-dir", str(run))
    try:
        wait_for_a_checkpoint(process, run)
        yield process, run
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_go_on_and_that_works(number, code, running):
    process, run = running
    newest = checkpoints(run)[-1].name
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    assert f"python train.py --resume {run}" in "".join(out.split("\n")).replace("train.py--", "train.py --")
    assert f"{number.name}: the run stops after this iteration" in err
    assert f"train.py: stopped by {number.name}" in err
    assert "Traceback" not in err
    last = checkpoints(run)[-1]
    assert last.name >= newest
    assert read_tree(last)["num_timesteps"] == int(last.stem)
    assert not (run / "model.zip").exists()
    again = start("--resume", str(run))
    try:
        wait_for_a_checkpoint(again, run, newer_than=last.name)
    finally:
        again.kill()
        out, err = again.communicate()
    assert f"continues from step {int(last.stem):,}" in "".join(out.split("\n"))


def test_a_second_signal_stops_at_once(tmp_path):
    """Both signals come one right after the other, wherever the run is, in a write of a checkpoint too."""
    run = tmp_path / "run"
    process = start("train", *LONG, "--run-dir", str(run))
    try:
        wait_for_a_checkpoint(process, run)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode in (130, 143), err
    assert "the run stops after this iteration; a second signal stops it at once" in err
    assert "Traceback" not in err
    last = checkpoints(run)[-1]
    assert read_tree(last)["num_timesteps"] == int(last.stem)
    assert [path.name for path in (run / "checkpoints").iterdir() if path.suffix != ".zip"] == []
    assert not (run / "model.zip").exists()


def test_exit_codes(tmp_path):
    short = "--total-timesteps 16 --n-steps 4 --num-envs 4 --num-minibatches 1 --eval-episodes 1 --memory none"
    words = [*short.split(), "--device", "cpu", "--no-progress", "--threads", "1", "--env", "CartPole-v1"]
    run = tmp_path / "run"
    done = start(*words, "--run-dir", str(run))
    _, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    assert (run / "model.zip").exists()
    taken = start(*words, "--run-dir", str(run))
    _, err = taken.communicate(timeout=240)
    assert (taken.returncode, err.count("\n")) == (2, 1)
    content = (run / "model.zip").read_bytes()
    (run / "model.zip").write_bytes(content[: len(content) // 2])
    torn = start("evaluate", str(run), "--episodes", "1")
    _, err = torn.communicate(timeout=240)
    assert (torn.returncode, err.count("\n")) == (1, 1)
    assert "torn, altered" in err

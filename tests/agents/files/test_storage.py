"""A disk that is full or gone ends a run in one clear line, with the last good checkpoint as it was."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from palimpsest.agents.files.archive import read_tree, write_atomically, write_tree
from palimpsest.agents.files.lock import locked
from palimpsest.agents.run import callbacks, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import Checkpoints, RunFailed

ROOT = Path(__file__).resolve().parents[3]


def config(directory: Path, **kwargs) -> TrainConfig:
    defaults = dict(
        env_args={"corridors": 2, "length": 3},
        memory="gru",
        memory_args={"output_size": 6},
        total_timesteps=6 * 64,
        num_envs=4,
        num_minibatches=2,
        n_steps=16,
        n_epochs=1,
        width=8,
        eval_every=0,
        checkpoint_every=64,
        closing_episodes=0,
        progress=False,
        run_dir=directory,
        device="cpu",
    )
    return TrainConfig(**{**defaults, **kwargs})


def train_with(monkeypatch, at: int, trouble, run: TrainConfig) -> None:
    """Train; `trouble` is called once, in the rollout after step `at`."""
    original = callbacks.CheckpointCallback._on_step
    called = []

    def step(self) -> bool:
        if self.num_timesteps > at and not called:
            called.append(True)
            trouble()
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.CheckpointCallback, "_on_step", step)
        experiment.train(run, Console(quiet=True))


@pytest.fixture
def largest_file():
    """Sets the largest size of a file. Beyond it the system refuses to write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_refused_write_names_the_file_and_leaves_the_one_before(tmp_path, largest_file):
    path = tmp_path / "model.zip"
    write_tree(path, {"x": 1})
    before = path.read_bytes()
    largest_file(4096)
    with pytest.raises(OSError, match=r"model\.zip") as refused:
        write_atomically(path, b"x" * 10_000)
    largest_file(resource.RLIM_INFINITY)  # before pytest writes its report, perhaps to a file
    assert refused.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_stops_the_run_and_the_checkpoints_stay(tmp_path, monkeypatch, largest_file):
    run = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"File too large.*000000000256\.zip.*000000000192\.zip, is kept.*--resume"):
        train_with(monkeypatch, 200, lambda: largest_file(16_000), config(run))
    largest_file(resource.RLIM_INFINITY)
    found = Checkpoints(run / "checkpoints", 3).paths()
    assert [path.stem for path in found] == ["000000000064", "000000000128", "000000000192"]
    assert [read_tree(path)["num_timesteps"] for path in found] == [64, 128, 192]
    assert not list(run.rglob("*.part"))
    experiment.train(config(run, resume=run, run_dir=None), Console(quiet=True))
    experiment.train(config(tmp_path / "whole"), Console(quiet=True))
    assert (run / "model.zip").read_bytes() != b""
    one, other = (read_tree(path / "model.zip")["parameters"]["policy"] for path in (run, tmp_path / "whole"))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's thread raises it too
def test_a_lost_run_directory_stops_the_run(tmp_path, monkeypatch):
    run, others = tmp_path / "run", set(threading.enumerate())
    with pytest.raises(RunFailed, match=r"No such file or directory.*run directory .* is gone: start a new run"):
        train_with(monkeypatch, 200, lambda: shutil.rmtree(run), config(run))
    assert not run.exists()
    for thread in set(threading.enumerate()) - others:  # so that it warns here, not in a later test
        if type(thread).__name__ == "_AsyncWriterThread":
            thread.join(10)
    gc.collect()


def test_a_directory_that_became_a_file_stops_the_run(tmp_path, monkeypatch):
    run = tmp_path / "run"
    kept = tmp_path / "kept"

    def trouble() -> None:
        (run / "checkpoints").rename(kept)
        (run / "checkpoints").write_text("")

    with pytest.raises(RunFailed, match=r"File exists.*checkpoints"):
        train_with(monkeypatch, 200, trouble, config(run))
    assert [read_tree(path)["num_timesteps"] for path in sorted(kept.iterdir())] == [64, 128, 192]


def test_what_killed_writers_left_is_removed(tmp_path):
    run = tmp_path / "run"
    experiment.train(config(run), Console(quiet=True))
    for place in (run / ".best.zip.77.part", run / "checkpoints" / ".000000000448.zip.77.part"):
        place.write_bytes(b"half")
    experiment.train(config(run, resume=run, run_dir=None), Console(quiet=True))
    assert not list(run.rglob("*.part"))


HOLDER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths}
from palimpsest.agents.files.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
    run = tmp_path / "run"
    experiment.train(config(run, eval_every=64, eval_episodes=2), Console(quiet=True))
    evaluations = (run / "evaluations.csv").read_bytes()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(paths=[str(ROOT)]), str(run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        cut = run / "checkpoints" / "000000000384.zip"
        cut.rename(tmp_path / "aside.zip")
        with pytest.raises(ValueError, match=f"in use by another process, {holder.pid};"):
            experiment.train(config(run, resume=run, run_dir=None), Console(quiet=True))
        assert (run / "evaluations.csv").read_bytes() == evaluations
        (tmp_path / "aside.zip").rename(cut)
    finally:
        holder.kill()
        holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    with locked(run):
        assert (run / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.learning
def test_the_program_says_it_in_one_line(tmp_path):
    """The whole program in a shell that forbids files above 32 KiB, which is too small for a checkpoint."""
    run = tmp_path / "run"
    flags = "--memory gru --n-steps 16 --num-envs 4 --num-minibatches 2 --eval-every 0 --checkpoint-every 64"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 32; exec {sys.executable} {ROOT / 'train.py'} {flags} --device cpu --run-dir {run}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train.py: [Errno 27] File too large: ")
    assert last.endswith(f"fix the cause and continue with: python train.py --resume {run}")
    assert "Traceback" not in done.stderr
    assert not list(run.rglob("*.part"))

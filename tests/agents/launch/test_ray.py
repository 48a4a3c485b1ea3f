"""Workers of Ray Train: after the loss of one all start again from the last checkpoint."""

from __future__ import annotations

import os
import signal

import pytest
from program import Program

from palimpsest.agents.files.archive import read_tree

pytestmark = pytest.mark.learning


def test_ray_starts_lost_workers_again_from_the_last_checkpoint(tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    run = tmp_path / "run"
    program = Program(
        tmp_path / "printed",
        *("train", "--env-args", "corridors=2", "length=3", "--memory", "none", "--memory-args", "output_size=8"),
        *("--num-envs", "8", "--num-minibatches", "1", "--n-epochs", "1", "--threads", "1", "--width", "8"),
        *("--total-timesteps", "61440", "--eval-every", "0", "--eval-episodes", "2", "--device", "cpu"),
        *("--n-steps", "256", "--checkpoint-every", "2048", "--workers", "2", "--engine", "ray", "--run-dir", str(run)),
    )
    try:
        program.wait_until(lambda: list((run / "checkpoints").glob("*.zip")))
        os.kill(int((run / "lock").read_text()), signal.SIGKILL)
        assert not (run / "model.zip").exists()
        code, _, err = program.wait()
    finally:
        program.kill()
    assert code == 0, err
    assert read_tree(run / "model.zip")["num_timesteps"] == 61440
    assert (run / "closing.json").exists()

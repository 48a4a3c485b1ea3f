"""A run that was killed and resumed ends as if it had never stopped."""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from program import Program
from rich.console import Console
from small import small_arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from palimpsest import envs, memory
from palimpsest.agents.board.events import run_logger
from palimpsest.agents.files.archive import read_tree, write_tree
from palimpsest.agents.files.lock import locked
from palimpsest.agents.run import callbacks, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.resume import Checkpoints, Interrupted, StopSignals


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    """It takes longer than these trainings and changes nothing of them."""
    monkeypatch.setattr(experiment, "_draw", lambda config, directory, env: None)


def config(directory: Path, name: str = "gru", **kwargs) -> TrainConfig:
    defaults = dict(
        env_args={"corridors": 2, "length": 3},
        memory=name,
        memory_args=small_arguments(name),
        total_timesteps=6 * 64,
        num_envs=4,
        num_minibatches=2,
        n_steps=16,
        n_epochs=2,
        width=8,
        eval_every=128,
        eval_episodes=4,
        checkpoint_every=64,
        closing_episodes=0,
        progress=False,
        run_dir=directory,
        device="cpu",
    )
    return TrainConfig(**{**defaults, **kwargs})


def quiet() -> Console:
    return Console(quiet=True)


def parameters(directory: Path) -> dict[str, torch.Tensor]:
    tree = read_tree(directory / "model.zip")
    found = dict(tree["parameters"]["policy"])
    for number, state in tree["parameters"]["policy.optimizer"]["state"].items():
        found |= {f"{number}.{name}": value for name, value in state.items()}
    return found


def assert_same_run(one: Path, other: Path) -> None:
    mine, its = parameters(one), parameters(other)
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert torch.equal(value, its[name]), name
    assert (one / "evaluations.csv").read_text() == (other / "evaluations.csv").read_text()


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) of every scalar that no clock is in."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if not name.startswith("time/")
    }


def assert_same_curves(one: Path, other: Path) -> None:
    mine, its = curves(one), curves(other)
    assert mine.keys() == its.keys()
    assert "eval/success" in mine
    for name, points in mine.items():
        assert points == its[name], name


def test_a_logger_that_goes_on_in_the_same_second_is_read_last(tmp_path):
    """TensorBoard reads files by name, and in one second the tenth writer of a process comes before the ninth."""
    before = tmp_path / f"events.out.tfevents.{int(time.time())}.zzz.1.0"
    before.touch()
    run_logger(tmp_path, 3).close()
    assert len(list(tmp_path.iterdir())) > 1
    assert min(tmp_path.iterdir()) == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def train_and_die(monkeypatch, steps: int, run: TrainConfig) -> None:
    """Train, and die in the middle of the rollout that passes `steps`."""
    original = callbacks.CheckpointCallback._on_step

    def step(self) -> bool:
        if self.num_timesteps > steps:
            raise Killed
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.CheckpointCallback, "_on_step", step)
        with pytest.raises(Killed):
            experiment.train(run, quiet())


@pytest.mark.parametrize("name", memory.names())
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(name, tmp_path, monkeypatch):
    short = dict(total_timesteps=5 * 64, n_epochs=1)
    experiment.train(config(tmp_path / "whole", name, **short), quiet())
    train_and_die(monkeypatch, 200, config(tmp_path / "killed", name, **short))
    saved = TrainConfig.load(tmp_path / "killed")
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert not (tmp_path / "killed" / "model.zip").exists()
    experiment.train(config(tmp_path / "killed", name, resume=tmp_path / "killed", run_dir=None, **short), quiet())
    assert saved.memory == name
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert_same_curves(tmp_path / "whole", tmp_path / "killed")


def test_a_killed_and_resumed_run_keeps_to_the_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(envs.registration, "_ENTRIES", dict(envs.registration._ENTRIES))
    monkeypatch.setattr(gym, "registry", dict(gym.registry))
    envs.register("Test/Masked-v0", "tiny_world:Masked", "Tiny, of whose items one is forbidden.", limit=10)
    arguments = dict(env="Test/Masked-v0", env_args={}, carry_over=0.5)
    whole = experiment.train(config(tmp_path / "whole", **arguments), quiet())
    train_and_die(monkeypatch, 200, config(tmp_path / "killed", **arguments))
    torch.manual_seed(99)
    killed = config(tmp_path / "killed", **arguments, resume=tmp_path / "killed", run_dir=None)
    resumed = experiment.train(killed, quiet())
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    masks = resumed.model.rollout_buffer.action_masks
    assert not masks.all()
    np.testing.assert_array_equal(masks, whole.model.rollout_buffer.action_masks)
    assert np.take_along_axis(masks, resumed.model.rollout_buffer.actions[..., None], 2).all()


def test_a_torn_checkpoint_is_passed_over(tmp_path, monkeypatch, capsys):
    experiment.train(config(tmp_path / "whole"), quiet())
    train_and_die(monkeypatch, 330, config(tmp_path / "killed"))
    newest = Checkpoints(tmp_path / "killed" / "checkpoints", 3).paths()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    experiment.train(config(tmp_path / "killed", resume=tmp_path / "killed", run_dir=None), quiet())
    assert "skipped: " in capsys.readouterr().err
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_no_whole_checkpoint_is_told(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000000000064.zip").write_bytes(b"torn")
    with pytest.raises(ValueError, match="holds no intact checkpoint"):
        experiment.train(config(tmp_path, resume=tmp_path, run_dir=None), quiet())


def test_a_memory_state_of_other_parts_is_refused(tmp_path, monkeypatch):
    """As in a checkpoint of a version whose memory kept more."""
    run = tmp_path / "killed"
    train_and_die(monkeypatch, 330, config(run))
    for path in Checkpoints(run / "checkpoints", 3).paths():
        tree = read_tree(path)
        tree["_last_state"] = (*tree["_last_state"], torch.zeros(4, 1))
        write_tree(path, tree)
    with pytest.raises(
        ValueError, match="holds a memory state that does not fit this version's memory; start a new run"
    ):
        experiment.train(config(run, resume=run, run_dir=None), quiet())


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch):
    experiment.train(config(tmp_path / "whole"), quiet())
    train_and_die(monkeypatch, 40, config(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "checkpoints").exists()
    experiment.train(config(tmp_path / "killed", resume=tmp_path / "killed", run_dir=None), quiet())
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert_same_curves(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("left", [None, "", '{"python": "3.1', "[]"])
def test_a_run_killed_before_its_versions_were_written_ends_with_its_card(left, tmp_path, monkeypatch):
    train_and_die(monkeypatch, 40, config(tmp_path / "run"))
    (tmp_path / "run" / "versions.json").unlink()
    if left is not None:
        (tmp_path / "run" / "versions.json").write_text(left)
    experiment.train(config(tmp_path / "run", resume=tmp_path / "run", run_dir=None), quiet())
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["torch"]
    assert (tmp_path / "run" / "README.md").exists()


HEADER = "step,success,return_mean,return_std,length_mean,episodes,stalled\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("step;success;return_mean\n128;;1.0\n", 1),
        (HEADER + "128,,1.0,0.5,4.0,4,0\ngarbage\n", 3),
        (HEADER + "128,,1.0,0.5,4.0,4,0,9\n", 2),
        (HEADER + "128,,\ufffd,0.5,4.0,4,0\n", 2),
        ("", 1),
    ],
)
def test_damaged_evaluations_are_refused_by_file_and_line(text, line, tmp_path):
    path = tmp_path / "evaluations.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"line {line} of '.*evaluations.csv' must be step,success.*remove the line"):
        callbacks.cut_evaluations(path, 128)
    path.write_text(HEADER + "128,,1.0,0.5,4.0,4,0\n256,0.5,1.0,0.5,4.0,4,0\n")
    callbacks.cut_evaluations(path, 128)
    assert [row["step"] for row in callbacks.read_evaluations(path)] == ["128"]


def test_a_directory_with_a_configuration_has_versions(tmp_path, monkeypatch):
    """Whatever is killed then can be resumed."""
    written = []
    monkeypatch.setattr(experiment, "note_versions", lambda directory: written.append("versions"))
    monkeypatch.setattr(experiment, "write_atomically", lambda path, content: written.append(path.name))
    experiment._write_origin(config(tmp_path), tmp_path)
    assert written == ["versions", "config.toml"]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    experiment.train(config(tmp_path / "run"), quiet())
    before = parameters(tmp_path / "run")
    experiment.train(config(tmp_path / "run", resume=tmp_path / "run", run_dir=None), quiet())
    after = parameters(tmp_path / "run")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", ["gru", "shm"])
def test_other_environments_are_reset_and_that_is_said(name, tmp_path, monkeypatch, capsys):
    """The resumed run is the one whose environments were reset, with seed + iteration, where it was taken up."""
    foreign = dict(env="CartPole-v1", env_args={}, seed=5)
    train_and_die(monkeypatch, 200, config(tmp_path / "killed", name, **foreign))
    experiment.train(config(tmp_path / "killed", name, resume=tmp_path / "killed", run_dir=None, **foreign), quiet())
    assert "reset with seeds from 8 on" in capsys.readouterr().err

    original = callbacks.CheckpointCallback._on_rollout_start

    def rollout_start(self) -> None:
        original(self)
        if self.num_timesteps == 3 * 64:
            model = self.model
            model.env.seed(5 + 3)
            model._last_obs = model.env.reset()
            model._last_episode_starts = model._last_memory_starts = np.ones(4, bool)

    monkeypatch.setattr(callbacks.CheckpointCallback, "_on_rollout_start", rollout_start)
    experiment.train(config(tmp_path / "reset", name, **foreign), quiet())
    assert_same_run(tmp_path / "reset", tmp_path / "killed")
    monkeypatch.setattr(callbacks.CheckpointCallback, "_on_rollout_start", original)
    experiment.train(config(tmp_path / "whole", name, **foreign), quiet())
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_checkpoints_keep_the_last_few(tmp_path):
    experiment.train(config(tmp_path / "run", keep_checkpoints=2), quiet())
    names = [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints", 2).paths()]
    assert names == ["000000000320.zip", "000000000384.zip"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_iteration_and_saves(number, tmp_path, monkeypatch):
    original = callbacks.CheckpointCallback._on_step

    def step(self) -> bool:
        if self.num_timesteps == 100:
            signal.raise_signal(number)
        return original(self)

    monkeypatch.setattr(callbacks.CheckpointCallback, "_on_step", step)
    with pytest.raises(Interrupted) as stopped:
        experiment.train(config(tmp_path / "run", checkpoint_every=0), quiet())
    assert stopped.value.exit_code == 128 + number
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*")] == ["000000000128.zip"]
    monkeypatch.setattr(callbacks.CheckpointCallback, "_on_step", original)
    experiment.train(config(tmp_path / "run", resume=tmp_path / "run", run_dir=None, checkpoint_every=0), quiet())
    experiment.train(config(tmp_path / "whole", checkpoint_every=0), quiet())
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("step", [128, 384], ids=["between", "last"])
def test_a_signal_drops_an_evaluation_and_the_resumed_run_makes_up_for_it(step, tmp_path, monkeypatch):
    original = StopSignals.check
    steps = []

    def check(self, ended: int = 0) -> None:
        steps.append(ended)
        if len(callbacks.read_evaluations(tmp_path / "run" / "evaluations.csv")) == step // 128 - 1:
            signal.raise_signal(signal.SIGTERM)
        original(self, ended)

    shown = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "check", check)
        with pytest.raises(Interrupted) as stopped:
            experiment.train(config(tmp_path / "run", closing_episodes=1), Console(file=shown, width=400))
    assert stopped.value.exit_code == 143
    assert ("closing tests are left out" in shown.getvalue()) == (step == 384)
    assert f"continue with: palimpsest --resume {tmp_path / 'run'}" in shown.getvalue()
    assert steps[-1] < 4
    evaluated = [int(row["step"]) for row in callbacks.read_evaluations(tmp_path / "run" / "evaluations.csv")]
    assert evaluated == list(range(128, step, 128))
    assert not (tmp_path / "run" / "closing.json").exists()
    experiment.train(config(tmp_path / "run", resume=tmp_path / "run", run_dir=None), quiet())
    experiment.train(config(tmp_path / "whole"), quiet())
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    mine, its = curves(tmp_path / "whole"), curves(tmp_path / "run")
    assert mine.keys() == its.keys()
    for name, points in mine.items():
        # a run that had stopped after all its steps draws its memory's curves once more
        assert points == (its[name] if step == 128 or name.startswith("eval/") else sorted(set(its[name]))), name


def test_a_signal_after_the_last_iteration_leaves_the_tests_out(tmp_path, monkeypatch):
    original = experiment._draw

    def draw(*arguments) -> None:
        signal.raise_signal(signal.SIGINT)
        original(*arguments)

    monkeypatch.setattr(experiment, "_draw", draw)
    shown = io.StringIO()
    with pytest.raises(Interrupted) as stopped:
        experiment.train(config(tmp_path / "run", closing_episodes=1), Console(file=shown, width=400))
    assert stopped.value.exit_code == 130
    assert f"tests are left out: palimpsest evaluate {tmp_path / 'run'}" in shown.getvalue()
    assert (tmp_path / "run" / "model.zip").exists()
    assert not (tmp_path / "run" / "closing.json").exists()


def test_a_directory_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.learning
def test_sigkill_and_resume_from_the_command_line(tmp_path):
    """The whole program, killed where it happens to be, twice."""
    flags = [
        *("--env-args", "corridors=2", "length=3", "--memory", "gru", "--memory-args", "output_size=8"),
        *("--total-timesteps", "8192", "--num-envs", "4", "--num-minibatches", "2", "--n-steps", "64"),
        *("--eval-every", "2048", "--eval-episodes", "4", "--checkpoint-every", "512", "--threads", "1"),
        *("--width", "8", "--device", "cpu"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def newest() -> str:
        return max((path.name for path in (killed / "checkpoints").glob("*.zip")), default="")

    code, _, err = Program(tmp_path / "printed", "train", *flags, "--run-dir", str(whole)).wait()
    assert code == 0, err
    words = ["train", *flags, "--run-dir", str(killed)]
    for _ in range(2):
        program, last = Program(tmp_path / "printed", *words), newest()
        try:
            program.wait_until(lambda last=last: newest() > last)
            time.sleep(0.1)
        finally:
            program.kill()
        assert program.code == -signal.SIGKILL
        words = ["train", "--resume", str(killed)]
    code, _, err = Program(tmp_path / "printed", *words).wait()
    assert code == 0, err
    assert_same_run(whole, killed)
    assert json.loads((killed / "closing.json").read_text())

"""Runs of several workers: files, resuming, and refusals. What ends them suddenly is in `test_faults`."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from palimpsest.agents.files.archive import read_tree
from palimpsest.agents.launch import start
from palimpsest.agents.run.config import TrainConfig

pytestmark = pytest.mark.learning


def config(directory: Path, **given) -> TrainConfig:
    defaults = dict(
        env_args={"corridors": 2, "length": 3},
        memory="gru",
        memory_args={"output_size": 6},
        total_timesteps=256,
        num_envs=4,
        num_minibatches=2,
        n_steps=16,
        n_epochs=2,
        width=8,
        eval_every=128,
        eval_episodes=5,
        checkpoint_every=64,
        keep_checkpoints=9,
        progress=False,
        run_dir=directory,
        device="cpu",
        workers=2,
    )
    return TrainConfig(**defaults | given)


def train(asked: TrainConfig) -> None:
    start.train(asked, Console(quiet=True), close=False)


def parameters(directory: Path) -> dict[str, torch.Tensor]:
    tree = read_tree(directory / "model.zip")
    found = dict(tree["parameters"]["policy"])
    for number, state in tree["parameters"]["policy.optimizer"]["state"].items():
        found |= {f"{number}.{name}": value for name, value in state.items()}
    return found


def killed(whole: Path, directory: Path, step: int) -> Path:
    """A copy of a run as it was after `step` steps, if it was killed there."""
    shutil.copytree(whole, directory)
    (directory / "model.zip").unlink()
    for path in (directory / "checkpoints").glob("*.zip"):
        if int(path.stem) > step:
            path.unlink()
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of one worker and of two, to the end."""
    folder = tmp_path_factory.mktemp("whole")
    for workers in (1, 2):
        train(config(folder / str(workers), workers=workers))
    return folder


def evaluations(directory: Path) -> list[dict[str, str]]:
    with (directory / "evaluations.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_workers_write_what_one_writes(whole):
    names = [sorted(path.name.split(".")[0] for path in (whole / n).iterdir()) for n in "12"]
    assert names[0] == names[1]
    one, two = parameters(whole / "1"), parameters(whole / "2")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert [row["step"] for row in evaluations(whole / "2")] == ["128", "256"]
    assert [row["episodes"] for row in evaluations(whole / "2")] == ["5", "5"]
    assert evaluations(whole / "1") == evaluations(whole / "2")
    checkpoints = [read_tree(whole / n / "checkpoints" / "000000000192.zip") for n in "12"]
    assert [tree["n_envs"] for tree in checkpoints] == [4, 4]
    for tree in checkpoints:
        assert len(tree["_last_obs"]) == len(tree["_last_memory_starts"]) == 4
        assert len(tree["alive"]["env"]["returns"]) == 4
    assert read_tree(whole / "2" / "model.zip")["n_envs"] == 4


def test_two_workers_go_on_bit_for_bit(whole, tmp_path):
    resumed = killed(whole / "2", tmp_path / "run", 128)
    train(config(resumed, resume=resumed, run_dir=None))
    one, other = parameters(whole / "2"), parameters(resumed)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert evaluations(resumed) == evaluations(whole / "2")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_workers_goes_on_to_rounding(before, after, whole, tmp_path):
    resumed = killed(whole / str(before), tmp_path / "run", 128)
    train(config(resumed, resume=resumed, run_dir=None, workers=after))
    one, other = parameters(whole / "1"), parameters(resumed)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_number_that_does_not_divide_the_environments_is_refused():
    with pytest.raises(ValueError, match="workers must be a divisor of num_envs=4, such as 1, 2, 4; got 3"):
        config(Path("none"), workers=3)


def test_workers_are_ppo_s():
    with pytest.raises(ValueError, match="workers is an argument of ppo"):
        TrainConfig(algo="dqn", workers=2, num_envs=4)


def test_the_card_of_two_workers_shows_the_closing_test(tmp_path):
    asked = config(tmp_path / "run", total_timesteps=64, closing_episodes=3)
    start.train(asked, Console(quiet=True))
    assert "`closing.json`" in (tmp_path / "run" / "README.md").read_text()

"""Trained agents that come with the package: they are small, reach their figures, and go wherever a run goes."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch

from palimpsest import train
from palimpsest.agents import evaluate
from palimpsest.agents.files import shelf
from palimpsest.agents.files.archive import read_contents
from palimpsest.agents.learn.model_file import CLASSES
from palimpsest.agents.run import listing
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.agents.run.runs import find, load_run

ROOT = Path(__file__).resolve().parents[3]
ENTRIES = shelf.entries()


def reached(name: str, figure: dict, episodes: int) -> None:
    """The first episodes of a figure's test are as good as all of them were."""
    result = evaluate(f"shelf:{name}", episodes=episodes, env_args=figure["env_args"], device="cpu")
    # a machine's rounding may change an episode; the mean of a few spreads more than that of all
    slack = 4 * figure["return_std"] / math.sqrt(episodes) + 0.02 * abs(figure["return_mean"])
    assert result["return_mean"] >= figure["return_mean"] - slack
    if "success" in figure:
        assert result["success"] >= figure["success"] - 4 * math.sqrt(0.02 / episodes)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_agent_reaches_its_figure(name):
    reached(name, ENTRIES[name]["figures"][0], 8)


@pytest.mark.learning
@pytest.mark.parametrize("name", ENTRIES)
def test_an_agent_reaches_all_its_figures(name):
    for figure in ENTRIES[name]["figures"]:
        reached(name, figure, figure["episodes"])


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_says_what_the_files_hold(name):
    entry, place = ENTRIES[name], find(Path(f"shelf:{name}"))
    assert place.finished
    assert place.config == TrainConfig.load(shelf.folder() / name)
    assert (entry["task"], entry["memory"], entry["seed"]) == (place.config.env, place.config.memory, place.config.seed)
    assert entry["steps"] == place.config.whole_timesteps
    assert entry["command"].startswith("palimpsest train")
    parameters = read_contents(place.files[0], classes=CLASSES).tree["parameters"]
    assert parameters["policy.optimizer"]["state"] == {}
    halves = {value.data_ptr(): value for value in parameters["policy"].values() if value.dtype == torch.float16}
    assert sum(value.numel() for value in halves.values()) == entry["parameters"], "each once, where two share it"
    assert all(
        value.dtype == torch.float32 for value in load_run(shelf.folder() / name, "cpu").model.policy.parameters()
    )


def test_the_shelf_is_small_and_holds_nothing_else():
    files = [path for path in shelf.folder().rglob("*") if path.is_file()]
    assert {path.relative_to(shelf.folder()).as_posix() for path in files} == {
        shelf.MANIFEST,
        *(f"{name}/{file}" for name in ENTRIES for file in ("config.toml", "model.zip")),
    }
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"the shelf has no agent 'endless-tmase'.*endless-tmaze"):
        find(Path("shelf:endless-tmase"))


def test_commands_take_an_agent_of_the_shelf(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["evaluate", "shelf:endless-tmaze", "--episodes", "2"]) == 0
    assert "success" in capsys.readouterr().out
    assert train.main(["play", "shelf:endless-tmaze", "--ansi", "--max-steps", "3"]) == 0
    assert train.main(["inspect", "shelf:endless-tmaze", "--steps", "4", "--episodes", "4", "--lags", "2"]) == 0
    assert (tmp_path / "inspect" / "influence.png").is_file(), "into the folder that one stands in"
    assert train.main(["evaluate", "shelf:none"]) == 2


def test_a_training_starts_from_an_agent_of_the_shelf():
    kept = TrainConfig.load(Path("shelf:endless-tmaze"))
    config = TrainConfig(**{**vars(kept), "start_from": Path("shelf:endless-tmaze"), "device": "cpu"})
    assert str(config.start_from) == "shelf:endless-tmaze"
    env = make_env(config)
    model = make_model(config, env)
    env.close()
    own = load_run(shelf.folder() / "endless-tmaze", "cpu").model.policy.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.policy.state_dict().items())


def test_the_page_shows_them():
    table = runpy.run_path(str(ROOT / "benchmarks" / "shelf.py"))["table"]()
    assert table in (ROOT / "docs" / "shelf.md").read_text(encoding="utf-8")


def test_the_list_shows_them():
    rows = listing.shelf_rows()
    assert [row[0] for row in rows] == [f"shelf:{name}" for name in ENTRIES]

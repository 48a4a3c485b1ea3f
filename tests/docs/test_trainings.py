"""The trainings of benchmarks/: done once each, and the tables in docs/ are those of the lines beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from palimpsest.agents.run.config import TrainConfig

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import ablation
import generalisation
import retention
import rewriting
import trainings

DOCS = Path(trainings.__file__).parent.parent / "docs"


@pytest.fixture
def done(monkeypatch):
    """The trainings that would have been done."""
    seen = []
    monkeypatch.setattr(trainings, "train_and_test", lambda training: seen.append(training) or {"cells": {}})
    return seen


@pytest.mark.parametrize(
    ("script", "options", "count"),
    [
        (generalisation, generalisation.Train(memories=("lstm", "none")), 24),
        (ablation, ablation.Train(forms=("rewrite", "no clock"), carry_over=(0.9, 0.0)), 24),
        (retention, retention.Train(memories=("ffm",)), 6),
        (rewriting, rewriting.Train(envs=("Palimpsest/EndlessTMaze-v0",)), 6),
    ],
    ids=["generalisation", "ablation", "retention", "rewriting"],
)
def test_a_training_that_the_file_holds_is_not_repeated(script, options, count, done, tmp_path):
    out = tmp_path / "new" / "lines.jsonl"
    asked = list(script.trainings(options))
    trainings.do(asked[:2], out)
    assert done == asked[:2]
    trainings.do(asked, out)
    trainings.do(script.trainings(options), out)
    assert done == asked
    assert [row["key"] for row in trainings.read(out)] == [training.key for training in asked]
    assert len({training.key for training in asked}) == count


def test_a_label_tells_trainings_of_one_configuration_apart():
    config = TrainConfig()
    keys = {trainings.Training(config, {}, about).key for about in ({}, {"label": "a"}, {"label": "b"})}
    assert len(keys) == 3
    assert config.to_toml() in keys


@pytest.mark.parametrize(
    ("script", "name", "page"),
    [
        (retention, "retention", "memories.md"),
        (ablation, "ablation", "notebook/memories.md"),
        (ablation, "ablation_no_clock", "notebook/memories.md"),
        (rewriting, "rewriting", "memories.md"),
        (rewriting, "rewriting_no_clock", "notebook/memories.md"),
    ],
    ids=["retention", "ablation", "ablation before", "rewriting", "rewriting before"],
)
def test_the_tables_in_the_documents_are_those_of_the_lines(script, name, page):
    rows = trainings.read(DOCS / "results" / f"{name}.jsonl")
    assert script.table(rows) in (DOCS / page).read_text(encoding="utf-8")


def test_the_table_over_seeds_tells_the_mean_and_the_lowest():
    def row(seed, success, steps):
        told = {"label": "lstm", "regime": "fixed", "carry_over": 0.5, "config": {"seed": seed}}
        return told | {"steps_to_95": steps, "cells": {"train": success}}

    assert generalisation.table([]) == "no results"
    *_, line = generalisation.table([row(0, 1.0, 100_000), row(1, 0.5, 300_000)]).splitlines()
    assert line == "| lstm | fixed | 0.5 | 2 | 0.20 M | 0.75 (0.50) |"
    *_, line = generalisation.table([row(0, 1.0, 100_000), row(1, 0.5, None)]).splitlines()
    assert line == "| lstm | fixed | 0.5 | 2 | 1 of 2 | 0.75 (0.50) |"

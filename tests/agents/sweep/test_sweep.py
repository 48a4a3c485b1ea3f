"""Sweeps: what they write, that they go on where they stopped, and that a run that dies does not end them."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest
from rich.console import Console
from suites import HEAD, MAZE, TRAIN, one_by_one, write

from palimpsest import train
from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.run import callbacks, experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.runs import evaluate
from palimpsest.agents.sweep import processes, table
from palimpsest.agents.sweep.config import SweepConfig
from palimpsest.agents.sweep.report import scores_by_player, tables
from palimpsest.agents.sweep.suite import load
from palimpsest.agents.sweep.sweep import sweep
from palimpsest.agents.sweep.work import Places, _expert, after_solved, attempt, finished, steps_done

QUIET = Console(quiet=True)
STREAM = '\n[[environments]]\nenv = "Palimpsest/KeyValueRewrite-v0"\nenv_args = {keys = 1}\nreturns = [-1, 1]\n'


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Runs are done in this process, and no learning curves are drawn."""
    monkeypatch.setattr(processes, "run_all", one_by_one)
    monkeypatch.setattr(experiment, "_draw", lambda config, directory, env: None)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    head = HEAD.replace("[0]", "[0, 1]").replace("episodes", 'twins = ["none"]\nepisodes')
    suite = write(folder, head + TRAIN + MAZE + "tests = [{corridors = 2}]" + STREAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "run_all", one_by_one)
        sweep(SweepConfig(suite, folder / "out"), QUIET)
    return folder / "out"


def test_the_table_has_a_row_per_run_and_test(swept):
    rows = table.read(swept / "results.csv")
    assert (swept / "results.csv").read_text().splitlines()[0] == ",".join(table.COLUMNS)
    assert len(rows) == 2 * 2 * 2 + 2 * 2  # mazes have a test more
    runs = {run.name: run for run in load(swept.parent / "tiny.toml")}
    assert {row["run"] for row in rows} == set(runs)
    for row in rows:
        run, directory = runs[row["run"]], swept / "runs" / row["run"]
        assert TrainConfig.load(directory) == run.config
        result = evaluate(directory, env_args=row["test"], episodes=4)
        for name in ("success", "success_se", "return_mean", "return_se", "chance", "success_by"):
            assert row[name] == result[name]
        assert (row["env"], row["env_args"], row["memory"]) == (run.config.env, run.config.env_args, "none")
        assert (row["seed"], row["fully_observed"]) == (run.config.seed, run.config.fully_observed)
        assert (row["budget"], row["steps"], row["episodes"], row["first_seed"]) == (128, 128, 4, EVALUATION_SEED)
        assert row["wall_seconds"] > 0
        assert row["chance"] is None if row["fully_observed"] else 0 < row["chance"] <= 0.5
        assert row["expert_success"] == 1.0
        versions = json.loads((directory / "versions.json").read_text())
        assert [row["commit"], row["torch"]] == [versions["commit"] or "", versions["torch"]]
        if run.config.env == "Palimpsest/KeyValueRewrite-v0":
            assert row["score"] == pytest.approx((row["return_mean"] + 1) / 2)
            assert set(row["success_by"]["overwrites"]) <= {"0", "1", "2", "3"}
        else:
            assert row["score"] == row["success"]


def test_the_report_says_what_a_figure_must_be_read_beside(swept, tmp_path, capsys, monkeypatch):
    page = (swept / "report.md").read_text()
    assert page.count("4 episodes per run, from seed 1000000007 on, which training never uses") == 4
    for words in ("## EndlessTMaze-v0 corridors=1 length=2", "| corridors=2 | none | 2 |", "## Over all tasks"):
        assert words in page
    assert "## Success by overwrites\n\n| task | memory | runs | 0 | 1 | 2 | 3 |" in page
    assert "| none (hidden state shown) | 2 |" in page
    head, _, line = page.split("## EndlessTMaze-v0 corridors=1 length=2\n\n")[1].splitlines()[:3]
    cells = dict(zip(head.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
    rows = table.read(swept / "results.csv")
    mine, twins = (
        [r for r in rows if r["run"].startswith("Endless") and not r["test"] and r["fully_observed"] is twin]
        for twin in (False, True)
    )
    for group, name in ((mine, "success"), (twins, "twin")):
        assert cells[name].startswith(f"{sum(row['success'] for row in group) / 2:.3f} ± ")
    assert (cells["chance"], cells["expert"], cells["steps"]) == ("0.5", "1", "128")
    for picture in ("profiles.png", "curves.png"):
        assert (swept / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in page
    monkeypatch.setenv("COLUMNS", "200")
    assert train.main(["report", str(swept), "--out", str(tmp_path / "of folder")]) == 0
    assert "Over all tasks" in capsys.readouterr().out
    assert (tmp_path / "of folder" / "report.md").read_text() == page
    (tmp_path / "alone.csv").write_bytes((swept / "results.csv").read_bytes())
    assert train.main(["report", str(tmp_path / "alone.csv")]) == 0
    assert (tmp_path / "report.md").read_text() == page.replace("\n\n![curves](curves.png)", "")


def test_one_seed_has_no_error_and_no_interval(swept):
    rows = [row for row in table.read(swept / "results.csv") if row["seed"] == 0]
    for shown in tables(rows):
        assert not any("±" in cell or "[" in cell for row in shown.rows for cell in row), shown.title


def test_players_are_compared_on_the_tasks_that_all_of_them_have_finished(swept):
    rows = table.read(swept / "results.csv")
    (maze,) = {task for task in scores_by_player(rows)["none"] if task.startswith("Endless")}
    others = [{**row, "memory": "lstm", "score": 1.0} for row in rows if row["env"] == "Palimpsest/EndlessTMaze-v0"]
    scores = scores_by_player([*rows, *others])
    assert scores == {"none": {maze: scores_by_player(rows)["none"][maze]}, "lstm": {maze: [1.0, 1.0]}}
    (improvement,) = [shown for shown in tables([*rows, *others]) if shown.title == "Probability of improvement"]
    assert [row[0] for row in improvement.rows] == ["none", "lstm"]
    assert improvement.rows[1][1].startswith("1.000 [")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns suite, run, "),
        ("suite,run\na,b\n", "lacks the columns env, "),
        (",".join(table.COLUMNS) + "\n", "holds no row"),
        (",".join(table.COLUMNS) + "\n" + ",".join("x" * len(table.COLUMNS)) + "\n", "is no table of a sweep"),
    ],
)
def test_other_tables_are_refused(text, message, tmp_path, capsys):
    (tmp_path / "results.csv").write_text(text)
    assert train.main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("wrapper", "success"),
    [((), 1.0), (("frame-stack=2",), 1.0), (("time-limit=3",), 0.0), (("suites:Turned",), None)],
)
def test_the_expert_plays_in_the_wrappers_of_the_run(wrapper, success):
    config = TrainConfig(env="Palimpsest/EndlessTMaze-v0", wrapper=wrapper)
    assert _expert(config, {"corridors": 1, "length": 10}, 4).get("success") == success


def test_what_is_finished_is_not_done_again(swept, monkeypatch, capsys):
    def never(*arguments):
        raise AssertionError("there was nothing to do")

    before = {path: path.stat().st_mtime_ns for path in (swept / "runs").rglob("*")}
    monkeypatch.setattr(processes, "run_all", never)
    line = ["sweep", str(swept.parent / "tiny.toml"), "--out", str(swept)]
    assert train.main(line) == 0
    assert "8 runs, 0 of them left to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (swept / "runs").rglob("*")} == before
    assert train.main([*line, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("finished") == 8


def test_a_folder_with_results_of_other_runs_is_refused(swept, tmp_path, capsys):
    before = (swept / "results.csv").read_bytes()
    suite = write(tmp_path, HEAD.replace("none", "gru") + TRAIN + MAZE)
    assert train.main(["sweep", str(suite), "--out", str(swept)]) == 2
    assert "holds results of 8 runs that are not in the suite, as 'EndlessTMaze" in capsys.readouterr().err
    assert (swept / "results.csv").read_bytes() == before


def test_a_dry_run_lists_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    path = write(tmp_path, HEAD + TRAIN + MAZE)
    assert train.main(["sweep", str(path), "--dry-run"]) == 0
    assert "EndlessTMaze-v0-corridors=1-length=2-none-0 │ 128" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_no_folder_to_write_to(swept, tmp_path, capsys):
    suite = write(tmp_path, HEAD + TRAIN + MAZE)
    for line in (["sweep", str(suite)], ["report", str(swept)]):
        assert train.main([*line, "--out", str(suite)]) == 2
        assert "--out must name a folder" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_the_same(tmp_path, monkeypatch):
    (run,) = load(write(tmp_path, HEAD + TRAIN + MAZE))
    original = callbacks.CheckpointCallback._on_step

    def step(self):
        if self.num_timesteps > 100:
            raise Killed
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.CheckpointCallback, "_on_step", step)
        with pytest.raises(Killed):
            attempt(run, tmp_path / "out")
    places = Places(tmp_path / "out", run)
    assert steps_done(places) == 64
    assert finished(run, places) is None
    sweep(SweepConfig(tmp_path / "tiny.toml", tmp_path / "out"), QUIET)
    assert "continues from step 64" in places.log.read_text()
    attempt(run, tmp_path / "whole")
    rows, whole = finished(run, places), finished(run, Places(tmp_path / "whole", run))
    for row in (*rows, *whole):
        row.pop("wall_seconds")
    assert rows == whole


def test_a_run_that_was_killed_before_it_wrote_anything_starts_anew(tmp_path):
    (run,) = load(write(tmp_path, HEAD + TRAIN + MAZE))
    places = Places(tmp_path / "out", run)
    places.directory.mkdir(parents=True)
    for name in ("lock", "versions.json", ".config.toml.1.part"):
        (places.directory / name).write_text("1\n")
    attempt(run, tmp_path / "out")
    assert finished(run, places) is not None


def test_other_tests_are_done_without_another_training(tmp_path):
    path = write(tmp_path, HEAD + TRAIN + MAZE)
    sweep(SweepConfig(path, tmp_path / "out"), QUIET)
    (model,) = (tmp_path / "out" / "runs").glob("*/model.zip")
    before = model.stat().st_mtime_ns
    write(tmp_path, HEAD.replace("4", "6") + TRAIN + MAZE + "tests = [{corridors = 3}]")
    sweep(SweepConfig(path, tmp_path / "out"), QUIET)
    rows = table.read(tmp_path / "out" / "results.csv")
    assert [(row["episodes"], row["test"]) for row in rows] == [(6, {}), (6, {"corridors": 3})]
    assert model.stat().st_mtime_ns == before
    write(tmp_path, HEAD + TRAIN.replace("128", "192") + MAZE)
    with pytest.raises(ValueError, match="was trained with total_timesteps 128, and the suite says 192"):
        sweep(SweepConfig(path, tmp_path / "out"), QUIET)


def test_a_run_that_dies_is_reported_and_tried_again(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, HEAD.replace("[0]", "[0, 1]") + TRAIN + MAZE)
    original = experiment.make_model

    def dying(config, env, **kwargs):
        if config.seed == 0:
            raise FloatingPointError("the weights\nare NaN")
        return original(config, env, **kwargs)

    out = tmp_path / "o ut"
    line = ["sweep", str(path), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "make_model", dying)
        assert train.main(line) == 1
    printed, err = capsys.readouterr()
    assert "none-0: DIED: FloatingPointError: the weights are NaN" in printed
    assert "none-1: success" in printed
    assert "1 of 2 runs died" in err
    assert err.count("\n") == 1
    again = shlex.split(err.partition("try them again with: ")[2])[1:]
    assert again == line
    assert "Traceback" in next((out / "logs").glob("*none-0.log")).read_text()
    assert [row["seed"] for row in table.read(out / "results.csv")] == [1]
    assert train.main(again) == 0
    assert [row["seed"] for row in table.read(out / "results.csv")] == [0, 1]


def test_a_solved_run_stops_after_three_evaluations_in_a_row(tmp_path):
    text = HEAD + TRAIN.replace("128", "100_000") + "solved_return = -100\nsolved = 0.0\n" + MAZE
    (run,) = load(write(tmp_path, text))
    attempt(run, tmp_path / "out")
    (row,) = finished(run, Places(tmp_path / "out", run))
    assert 3 * 64 <= row["steps"] < 4 * 64
    assert row["solved_step"] == 64
    assert row["worst_after_solved"] is not None
    never = dataclasses.replace(run, config=dataclasses.replace(run.config, solved_return=100.0, total_timesteps=256))
    attempt(never, tmp_path / "never")
    (row,) = finished(never, Places(tmp_path / "never", never))
    assert (row["steps"], row["solved_step"], row["worst_after_solved"]) == (256, None, None)


def test_the_worst_after_a_task_was_solved_by_hand():
    rows = [
        {"step": str(step), "success": success, "return_mean": "0"}
        for step, success in ((1, "0.2"), (2, "0.95"), (3, "0.4"), (4, "0.99"))
    ]
    assert after_solved({"success": 0.9, "return_mean": None}, rows) == (2, 0.4)
    assert after_solved({"success": 0.99, "return_mean": None}, rows) == (4, 0.99)
    assert after_solved({"success": 0.9, "return_mean": 1.0}, rows) == (None, None)
    assert after_solved({"success": None, "return_mean": None}, rows) == (None, None)
    unknown = [{**row, "success": ""} for row in rows]
    assert after_solved({"success": None, "return_mean": -1.0}, unknown) == (1, None)

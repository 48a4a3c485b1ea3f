"""Generalisation grids: every cell is the evaluation that it says, errors are over runs, which must be alike."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from palimpsest import train
from palimpsest.agents import evaluate
from palimpsest.agents.evaluation.statistics import estimate_iqm
from palimpsest.agents.run import experiment
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.grids import grid, over_runs
from palimpsest.agents.run.key_values import GRIDS
from palimpsest.agents.run.runs import Run, load_run


def config(directory: Path, **kwargs) -> TrainConfig:
    defaults = dict(
        env_args={"corridors": 1, "length": 2},
        memory="gru",
        memory_args={"output_size": 8},
        total_timesteps=512,
        num_envs=8,
        n_steps=32,
        eval_every=0,
        closing_episodes=0,
        run_dir=directory,
        device="cpu",
        progress=False,
    )
    return TrainConfig(**{**defaults, **kwargs})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    for seed in (0, 1, 2):
        experiment.train(config(root / f"seed{seed}", seed=seed), Console(quiet=True))
    return [root / f"seed{seed}" for seed in (0, 1, 2)]


def test_every_cell_is_its_own_evaluation(runs):
    options = dict(episodes=6, deterministic=False, seed=2_000_000_000)
    cells = grid(runs, {"corridors": [1, 2], "length": [2, 3, 4]}, env_args={"regime": "uniform"}, **options)
    settings = [(cell["setting"]["corridors"], cell["setting"]["length"]) for cell in cells]
    assert settings == [(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4)]
    for cell in cells:
        env_args = {"regime": "uniform", **cell["setting"]}
        assert [result["env_args"] for result in cell["results"]] == [env_args] * 3
        assert cell["runs"] == 3
        assert cell["chance"] == 0.5 ** cell["setting"]["corridors"]
    options["deterministic"] = True
    (cell,) = grid(runs[:1], {"length": [4]}, **options)
    assert cell["results"] == [evaluate(runs[0], env_args={"length": 4}, **options)]


def test_errors_are_over_runs_and_over_episodes_where_there_is_one_run():
    results = [
        {"success": success, "success_se": 0.1, "return_mean": 2 * success, "return_se": 0.3, "chance": 0.25}
        for success in (0.2, 0.5, 0.8)
    ]
    means = over_runs(results)
    assert (means.pop("success_iqm"), means.pop("return_iqm")) == (
        list(estimate_iqm({"success": [0.2, 0.5, 0.8]})),
        list(estimate_iqm({"return_mean": [0.4, 1.0, 1.6]})),
    )
    assert means == {
        "runs": 3,
        "success": pytest.approx(0.5),
        "success_se": pytest.approx(0.3 / np.sqrt(3)),
        "return_mean": pytest.approx(1.0),
        "return_se": pytest.approx(0.6 / np.sqrt(3)),
        "chance": 0.25,
    }
    one = over_runs(results[:1])
    assert (one["success"], one["success_se"], one["return_se"]) == (0.2, 0.1, 0.3)
    assert one["success_iqm"] is one["return_iqm"] is None
    unknown = over_runs([{**result, "success": None, "success_se": None} for result in results])
    assert unknown["success"] is unknown["success_se"] is unknown["success_iqm"] is None
    with pytest.raises(ValueError, match="one evaluation or more"):
        over_runs([])


def test_runs_that_cannot_be_averaged_are_refused(runs):
    first = load_run(runs[0], "cpu")
    with pytest.raises(ValueError, match=r"different seeds; .*seed0.* and .*seed0.* have seed 0"):
        grid([runs[0], runs[0]], {})
    with pytest.raises(ValueError, match=r"different seeds; .*seed0.* and .*seed0.* have seed 0"):
        grid([first, first], {})
    for change in (dict(memory_args={"output_size": 4}), dict(gamma=0.5), dict(env_args={})):
        other = Run(Path("other"), dataclasses.replace(first.config, seed=7, **change), first.model)
        with pytest.raises(ValueError, match=f"differ only in their seed; {next(iter(change))} is .* in 'other'"):
            grid([first, other], {})


@pytest.mark.parametrize("values", [[], "1,2", 3, None])
def test_axes_need_values(runs, values):
    with pytest.raises(ValueError, match="'length' must be a list of one value or more"):
        grid(runs[:1], {"length": values})


def test_the_command_line_shows_and_writes_it(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    out = tmp_path / "grid.json"
    line = ["evaluate", *map(str, runs), "--episodes", "4", "--grid", "corridors=1,3", "length=2", "--json", str(out)]
    assert train.main(line) == 0
    shown = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["runs"] == list(map(str, runs))
    assert written["cells"] == grid(runs, {"corridors": [1, 3], "length": [2]}, episodes=4)
    for cell in written["cells"]:
        assert f"{cell['success']:.3f} ± {cell['success_se']:.3f}" in shown
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*cell["success_iqm"]) in shown
    assert "over 3 runs of 4 episodes" in shown
    assert "long-term memory" in shown
    assert train.main(["evaluate", *map(str, runs[:2]), "--episodes", "4"]) == 0
    assert "over 2 runs of 4 episodes" in capsys.readouterr().out


def test_a_grid_has_a_name(runs, tmp_path, capsys, monkeypatch):
    assert GRIDS["lengths"]["length"][:7] == (9, 30, 90, 150, 300, 600, 900)
    assert GRIDS["lengths"]["length"][-1] == 9600
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setitem(GRIDS, "lengths", {"length": (2, 5)})
    out = tmp_path / "grid.json"
    line = ["evaluate", str(runs[0]), "--episodes", "4", "--grid", "corridors=1,2", "lengths", "--json", str(out)]
    assert train.main(line) == 0
    cells = json.loads(out.read_text())["cells"]
    assert cells == grid(runs[:1], {"corridors": [1, 2], **GRIDS["lengths"]}, episodes=4)
    assert [cell["results"][0]["memory"]["horizon_max"] for cell in cells] == [3, 6, 3, 6]
    assert capsys.readouterr().out.count("long-term memory") == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "lengts"], "arguments must read KEY=VALUE.*got 'lengts'"),
        (["--grid", "lengths", "length=3"], "argument 'length' is given twice"),
        (["--grid", "corridrs=1,2"], "did you mean 'corridors'"),
        (["--grid", "corridors=1,x"], "'corridors'.*an integer; got 'x'"),
        (["--grid", "corridors=1,"], "'corridors'.*an integer; got ''"),
        (["--grid", "corridors=1,0"], "corridors must be an integer, 1 to "),
        (
            ["--grid", "corridors=1", "--env-args", "corridors=2"],
            "'corridors' is an axis of the grid and is also fixed",
        ),
        (["nowhere"], "cannot read the configuration 'nowhere'"),
    ],
)
def test_wrong_grids_get_one_line(runs, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["evaluate", str(runs[0]), *words, "--episodes", "2", "--json", "out.json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_previous_action_and_reward_are_part_of_a_run(tmp_path, monkeypatch):
    run = experiment.train(
        config(tmp_path / "run", previous_action_reward=True, closing_episodes=2), Console(quiet=True)
    )
    assert TrainConfig.load(run.directory).previous_action_reward
    assert run.model.observation_space.shape == (3 + 3 + 1,)
    result = evaluate(run.directory, episodes=8)
    assert result["episodes"] == 8
    maze, env_args = run.config.env, run.config.env_args
    assert result == evaluate(run.model, maze, episodes=8, env_args=env_args, previous_action_reward=True)
    assert result == evaluate(run, episodes=8)
    assert len(json.loads((run.directory / "closing.json").read_text())) == 3
    with pytest.raises(ValueError, match="observation space"):
        evaluate(run.model, maze, episodes=8, env_args=env_args)


def test_the_mark_of_the_first_observation_is_part_of_a_run(tmp_path):
    run = experiment.train(config(tmp_path / "run", previous_action_reward=True, antialias=True), Console(quiet=True))
    assert TrainConfig.load(run.directory).antialias
    assert run.model.observation_space.shape == (3 + 3 + 1 + 1,)
    result, maze = evaluate(run.directory, episodes=8), run.config.env
    options = dict(episodes=8, env_args=run.config.env_args, previous_action_reward=True)
    assert result == evaluate(run.model, maze, **options, antialias=True)
    with pytest.raises(ValueError, match="observation space"):
        evaluate(run.model, maze, **options)
    with pytest.raises(ValueError, match=r"antialias .* needs previous_action_reward"):
        experiment.train(config(tmp_path / "other", antialias=True), Console(quiet=True))
    assert not (tmp_path / "other").exists()


def test_the_shown_hidden_state_is_part_of_a_run(tmp_path):
    run = experiment.train(config(tmp_path / "run", fully_observed=True), Console(quiet=True))
    assert TrainConfig.load(run.directory).fully_observed
    assert run.model.observation_space.shape == (3 + 5,)  # steps, corridor, length, x, cue
    result, maze = evaluate(run.directory, episodes=8), run.config.env
    assert result == evaluate(run.model, maze, episodes=8, env_args=run.config.env_args, fully_observed=True)
    assert result["chance"] is result["memory"] is None
    with pytest.raises(ValueError, match="observation space"):
        evaluate(run.model, maze, episodes=8, env_args=run.config.env_args)


def test_kept_observations_are_part_of_a_run(tmp_path):
    run = experiment.train(config(tmp_path / "run", keep_observations=(0, 1)), Console(quiet=True))
    assert TrainConfig.load(run.directory).keep_observations == (0, 1)
    assert run.model.observation_space.shape == (2,)
    result = evaluate(run.directory, episodes=8)
    maze, env_args = run.config.env, run.config.env_args
    assert result == evaluate(run.model, maze, episodes=8, env_args=env_args, keep_observations=[0, 1])
    assert result["chance"] is None  # the maze's own is that of its whole observation
    with pytest.raises(ValueError, match="observation space"):
        evaluate(run.model, maze, episodes=8, env_args=env_args)
    with pytest.raises(ValueError, match=r"each of keep_observations must be an integer, 0 to 2; got 3"):
        experiment.train(config(tmp_path / "other", keep_observations=(3,)), Console(quiet=True))
    assert not (tmp_path / "other").exists()
    for wrong in (3, "02", (-1,), (0.0,)):
        with pytest.raises(ValueError, match="keep_observations must be"):
            config(tmp_path / "other", keep_observations=wrong)


@pytest.mark.parametrize(
    "seen", [dict(previous_action_reward=True), dict(keep_observations=(2, 0)), dict(fully_observed=True)], ids=str
)
def test_a_run_with_other_observations_resumes_as_if_it_had_never_stopped(seen, tmp_path, monkeypatch):
    from test_resume import assert_same_run, train_and_die
    from test_resume import config as tiny

    quiet = Console(quiet=True)
    experiment.train(tiny(tmp_path / "whole", **seen), quiet)
    train_and_die(monkeypatch, 200, tiny(tmp_path / "killed", **seen))
    experiment.train(tiny(tmp_path / "killed", **seen, resume=tmp_path / "killed", run_dir=None), quiet)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")

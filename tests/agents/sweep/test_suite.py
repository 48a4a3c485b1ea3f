"""Suite files: what they unfold to, and that a wrong one is refused with words before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from suites import HEAD, MAZE, TRAIN, write

from palimpsest import envs, train
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.sweep.plots import curve_column
from palimpsest.agents.sweep.suite import check_runs, load

SUITES = sorted((Path(__file__).resolve().parents[3] / "benchmarks" / "suites").glob("*.toml"))


def test_a_suite_unfolds_to_the_product(tmp_path):
    text = """
    memories = ["lstm", "gru"]
    seeds = [3, 4]
    twins = ["none"]
    episodes = 50
    [train]
    num_envs = 8
    gamma = 0.9
    [settings.default]
    [settings."no carry-over"]
    carry_over = 0.0
    [memory.gru]
    memory_args = {output_size = 16}
    gamma = 0.8
    [[environments]]
    env = "Palimpsest/EndlessTMaze-v0"
    env_args = {regime = "uniform"}
    grid = {corridors = [1, 5], length = [2, 3]}
    tests = [{corridors = 7}]
    test_grid = {corridors = [10, 20], regime = ["fixed"]}
    [[environments]]
    env = "CartPole-v1"
    train = {total_timesteps = 99, keep_observations = [0, 2]}
    returns = [0, 500]
    """
    with pytest.raises(ValueError, match="fully_observed needs a hidden state"):
        check_runs(load(write(tmp_path, text)))
    runs = load(write(tmp_path, text.replace('twins = ["none"]', "")))
    check_runs(runs)
    assert len(runs) == (4 + 1) * 2 * 2 * 2
    assert len({run.name for run in runs}) == len(runs)
    first, *_, last = runs
    assert first.name == "EndlessTMaze-v0-regime=uniform-corridors=1-length=2-lstm-3"
    assert first.config == TrainConfig(
        env_args={"regime": "uniform", "corridors": 1, "length": 2},
        memory="lstm",
        seed=3,
        num_envs=8,
        gamma=0.9,
        threads=1,
        progress=False,
    )
    assert first.tests == ({"corridors": 7}, {"corridors": 10, "regime": "fixed"}, {"corridors": 20, "regime": "fixed"})
    assert (first.suite, first.setting, first.episodes, first.returns) == ("tiny", "default", 50, None)
    assert last.name == "CartPole-v1-no-carry-over-gru-4"
    assert last.config == TrainConfig(
        env="CartPole-v1",
        memory="gru",
        memory_args={"output_size": 16},
        carry_over=0.0,
        total_timesteps=99,
        keep_observations=(0, 2),
        seed=4,
        num_envs=8,
        gamma=0.8,
        threads=1,
        progress=False,
    )
    assert (last.setting, last.tests, last.returns) == ("no carry-over", (), (0.0, 500.0))


def test_twins_see_the_hidden_state(tmp_path):
    runs = load(write(tmp_path, HEAD.replace("episodes", 'twins = ["none"]\nepisodes') + TRAIN + MAZE))
    assert [run.config.fully_observed for run in runs] == [False, True]
    assert runs[1].name == "EndlessTMaze-v0-corridors=1-length=2-none-fully-observed-0"


WRONG = [
    ("x", "not a TOML document"),
    ("memory = 3", "the key 'environments' is missing; needed: environments, memories"),
    (HEAD.replace("seeds", "sedes") + MAZE, "unknown key 'sedes'.*did you mean 'seeds'.*; known: environments, mem"),
    (HEAD.replace("[0]", "[0, 0]") + MAZE, r"seeds must be different entries; got \[0, 0\]"),
    (HEAD.replace("[0]", "[-1]") + MAZE, "seeds must be an integer, 0 to .*; got -1"),
    (HEAD.replace("[0]", "[]") + MAZE, r"seeds must be a list of one entry or more; got \[\]"),
    (HEAD.replace("[0]", "0") + MAZE, "seeds must be a sequence of values; got 0"),
    (HEAD.replace("4", "0") + MAZE, "episodes must be an integer, 1 to .*; got 0"),
    (HEAD.replace("none", "nnoe") + MAZE, "unknown memory 'nnoe'"),
    (HEAD + "environments = []", "environments must be a list of one entry or more"),
    (HEAD + "[environments]\nenv = 'x'", "environments must be a sequence of values"),
    (HEAD + "[[environments]]", r"environments\[0\]: the key 'env' is missing"),
    (HEAD + MAZE + "gird = {}", r"environments\[0\]: unknown key 'gird'.*did you mean 'grid'"),
    (HEAD + MAZE + "grid = {length = 3}", r"environments\[0\]: grid.length must be a list of one value or more; got 3"),
    (HEAD + MAZE + "grid = {length = []}", "grid.length must be a list of one value or more"),
    (HEAD + MAZE + "returns = [1, 0]", r"returns must be the mean returns .*; got \[1.0, 0.0\]"),
    (HEAD + MAZE + "returns = [1]", "returns must be the mean returns"),
    (HEAD + MAZE + "tests = {length = 3}", "tests must be a sequence of values"),
    (HEAD + MAZE + "tests = [{}]", r"environments\[0\]: tests must be tables of one argument or more: .*; got {}"),
    (
        HEAD + MAZE + "tests = [{length = 3}]\ntest_grid = {length = [3, 4]}",
        "tests and test_grid must be different settings",
    ),
    (HEAD + '[memory.none]\nmemory_args = {output_size = "x"}\n' + MAZE, "none-0: output_size must be an integer"),
    (
        HEAD + '[train]\nstart_from = "nowhere"\n' + MAZE,
        "none-0: .*nowhere",
    ),
    (HEAD + '[train]\ndevice = "cuda:77"\n' + MAZE, "device 'cuda:77' is not there"),
    (HEAD + MAZE + "tests = [{lenght = 3}]", "no argument 'lenght'.*did you mean 'length'"),
    (HEAD + MAZE + "tests = [{length = 0}]", "corridors=1-length=2-none-0: length must be an integer, 1 to "),
    (HEAD + MAZE.replace("EndlessT", "EndlesT"), "unknown environment .*did you mean 'Palimpsest/EndlessTMaze-v0'"),
    (HEAD + MAZE + "train = {lerning_rate = 1}", "unknown key 'lerning_rate'.*did you mean 'learning_rate'"),
    (HEAD + MAZE + "train = {seed = 1}", r"environments\[0\].train: the sweep sets 'seed' itself"),
    (
        HEAD + MAZE + "train = {gamma = 2.0}",
        r"environments\[0\], none: gamma must be a number, 0 to 1, or None; got 2.0",
    ),
    (HEAD + "[settings.a]\nthreads = 4\n" + MAZE, "settings.a: the sweep sets 'threads' itself"),
    (HEAD + "[settings]\na = 4\n" + MAZE, "settings.a must be a dict of arguments by name; got 4"),
    (HEAD + "[memory.lstm]\n" + MAZE, "memory.lstm is for a memory of the suite: none"),
    (HEAD + "[train]\nmemory_args = {size = 4}\n" + MAZE, "memory 'none' has no argument 'size'"),
    (HEAD + MAZE + MAZE, r"environments\[1\]: the run 'EndlessTMaze.*' is there twice"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_suite_gets_one_line_and_leaves_nothing(text, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, text)
    assert train.main(["sweep", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("palimpsest: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == [path]


def test_the_suites_are_found():
    assert {path.stem for path in SUITES} >= {"novel", "popgym_easy", "popgym_twelve", "endless_tmaze", "key_value"}


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_suites_of_the_repository_are_allowed(path):
    runs = load(path)
    assert runs
    assert all(run.config.total_timesteps >= 100_000 for run in runs)
    if {run.config.env for run in runs} <= set(envs.ids()):
        check_runs(runs)


def test_a_panel_shows_one_quantity():
    """A run with the best return has score 1 and often success 1; others of the task tell that returns are scored."""
    best, other = dict(success=1.0, score=1.0), dict(success=0.94, score=0.93)
    assert curve_column([best, best]) == "success"
    assert curve_column([best, other]) == "return_mean"
    assert curve_column([dict(success=None, score=0.3), best]) == "return_mean"

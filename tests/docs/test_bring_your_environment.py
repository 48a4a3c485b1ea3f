"""docs/bring-your-environment.md: the module is imported from the folder one stands in, and each command works."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from palimpsest import memory, train
from palimpsest.agents import MemoryPPO, evaluate
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.worlds.wrappers import NAMED
from palimpsest.memory import registry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bring-your-environment.md").read_text(encoding="utf-8")
MODULE, ADAPTED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", "").strip().split("\n")
]
SUITE = """
memories = ["my_module:Trace"]
seeds = [0]
episodes = 4
train = {total_timesteps = 256, num_envs = 4, n_steps = 32, eval_every = 0, wrapper = ["my_module:Doubled"]}
[[environments]]
env = "my_module:Recall-v0"
"""
SHORTER = {"50_000": "2_048", "1e5": "4096"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the page's module, in which one stands; nothing knows of it yet."""
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(gym, "registry", dict(gym.registry))
    monkeypatch.setattr(gym.envs.registration, "registry", gym.registry)
    yield tmp_path
    sys.modules.pop("my_module", None)


def test_the_page_names_every_wrapper():
    rows = re.findall(r"^\| `([a-z-]+)(?:=([N,]+))?` \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [(name, named.takes, named.meaning) for name, named in NAMED.items()]


def test_a_vector_environment_of_gymnasium_is_trained_in():
    assert "learn(10_000)" in ADAPTED
    names: dict = {}
    try:
        exec(ADAPTED.replace("10_000", "64"), names)
        assert names["model"].num_timesteps >= 64
    finally:
        names["model"].env.close()


@pytest.mark.learning
def test_the_commands_work(here, capsys):
    path = list(sys.path)
    for words in COMMANDS:
        assert train.main([SHORTER.get(word, word) for word in words]) == 0, (words, capsys.readouterr().err)
    assert sys.path == path
    told = capsys.readouterr().out
    assert "prolonged from 2,048 to 4,096 steps" in told
    assert {path.name for path in (here / "runs").iterdir()} == {"recall", "trace", "longer"}

    trace = TrainConfig.load(here / "runs" / "trace")
    assert (trace.memory, trace.wrapper) == ("my_module:Trace", ("flatten", "my_module:Doubled"))
    assert TrainConfig.load(here / "runs" / "recall").total_timesteps == 4096
    closing = json.loads((here / "runs" / "trace" / "closing.json").read_text())
    assert closing[0]["return_mean"] == 2 * closing[0]["success"]
    assert evaluate("runs/trace", episodes=20)["length_mean"] == 11

    (here / "suite.toml").write_text(SUITE)
    assert train.main(["sweep", "suite.toml", "--out", "swept"]) == 0, capsys.readouterr().out
    (row,) = csv.DictReader((here / "swept" / "results.csv").read_text().splitlines())
    assert (row["env"], row["memory"], row["episodes"]) == ("my_module:Recall-v0", "my_module:Trace", "4")

    registry._ENTRIES.pop("my_module:Trace")
    with pytest.raises(ValueError, match=r"of a module that is not imported.*register_from\('my_module:Trace'\)"):
        MemoryPPO.load("runs/trace/model")
    memory.register_from("my_module:Trace")
    assert MemoryPPO.load("runs/trace/model").policy.memory.output_size == 32

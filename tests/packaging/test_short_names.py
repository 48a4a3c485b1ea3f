"""From a clone's root `agents`, `envs` and `memory` are `palimpsest.agents` and so on: the very same objects."""

from __future__ import annotations

import pytest
from builds import ROOT, python

pytestmark = pytest.mark.programs

SHORT_FIRST = """
import agents.run.config, envs, memory.kernels
from agents import MemoryPPO
"""
PALIMPSEST_FIRST = """
import palimpsest.agents.run.config, palimpsest.memory.kernels
"""
MODELS = """
import memory.rewrite
from agents.learn import ppo
import palimpsest.agents

assert agents.MemoryPPO is MemoryPPO is palimpsest.agents.MemoryPPO is ppo.MemoryPPO
assert memory.rewrite is palimpsest.memory.rewrite
"""
SAME = """
import importlib, importlib.resources, importlib.util, pickle, pkgutil, sys
import gymnasium
import agents.tree, envs, memory.kernels
import agents.run.config as config
from envs.registration import Entry
import palimpsest

assert agents is palimpsest.agents and envs is palimpsest.envs and memory is palimpsest.memory
assert memory.kernels is palimpsest.memory.kernels
assert config is palimpsest.agents.run.config is agents.run.config
assert Entry is palimpsest.envs.Entry

short = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("agents", "envs", "memory")}
assert len(short) >= 8
for name, module in short.items():
    assert module is sys.modules[f"palimpsest.{name}"] and module.__name__ == f"palimpsest.{name}", name

short, whole = (gymnasium.make(f"{name}:Palimpsest/EndlessTMaze-v0").unwrapped for name in ("envs", "palimpsest"))
assert type(short) is type(whole) and envs.ids() == palimpsest.envs.ids()

assert importlib.reload(agents) is agents is sys.modules["agents"] is sys.modules["palimpsest.agents"]
assert importlib.reload(sys.modules["agents.tree"]) is palimpsest.agents.tree

assert pickle.loads(pickle.dumps(config.TrainConfig())) == config.TrainConfig()
assert type(pickle.loads(pickle.dumps(config.TrainConfig()))) is config.TrainConfig
assert pickle.loads(b"cagents.run.config\\nTrainConfig\\n.") is config.TrainConfig
assert config.TrainConfig.__module__ == "palimpsest.agents.run.config"

assert importlib.resources.files("memory").joinpath("registry.py").is_file()
assert importlib.resources.files("agents.run").joinpath("config.py").is_file()
assert {module.name for module in pkgutil.iter_modules(agents.__path__)} >= {"learn", "policy", "tree"}

assert importlib.util.find_spec("memory.nothing") is None
assert importlib.util.find_spec("memory.sat").origin.endswith("memory/sat.py")
for name in ("agents.nothing", "agents.tree.nothing", "memory.kernels.nothing"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert name in str(error), error
    else:
        raise AssertionError(name)
try:
    memory.nothing
except AttributeError as error:
    assert "nothing" in str(error)
print("same")
"""


@pytest.mark.parametrize("code", [SHORT_FIRST + MODELS, PALIMPSEST_FIRST], ids=["short first", "palimpsest first"])
def test_the_short_names_give_the_same_objects(code):
    assert python("-c", code + SAME, cwd=ROOT) == "same\n"


def test_a_module_runs_under_its_short_name():
    """`python -m` asks for the code of a module instead of importing it."""
    code = (
        "import runpy, palimpsest.agents.run.presets\n"
        "ran = runpy.run_module('agents.run.presets', run_name='__main__', alter_sys=True)\n"
        "print(ran['__name__'], ran['usual']('lstm') == palimpsest.agents.run.presets.usual('lstm'))"
    )
    assert python("-W", "error", "-c", code, cwd=ROOT).split() == ["__main__", "True"]
    assert python("-m", "memory.registry", cwd=ROOT) == ""


def test_palimpsest_alone_brings_no_short_name():
    code = (
        "import sys, palimpsest.agents.run.config, palimpsest.memory.registry\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('agents', 'envs', 'memory')])\n"
        "print([finder for finder in sys.meta_path if 'short' in str(finder).lower()])"
    )
    assert python("-c", code, cwd=ROOT).split() == ["[]", "[]"]

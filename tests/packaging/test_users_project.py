"""A project of somebody else's, with its own `agents`, `envs`, `memory` and `train`, beside the installed package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from builds import python, run

import palimpsest

pytestmark = pytest.mark.programs

MINE = "import envs, agents, memory, train"
OURS = "import palimpsest; from palimpsest.agents import MemoryPPO"
TRAINS = """
import importlib.metadata, pathlib, sys
import gymnasium

for name in sys.argv[2].split():
    assert sys.modules[name].MINE == name, name
assert pathlib.Path(palimpsest.__file__).parent == pathlib.Path(sys.argv[1], "palimpsest"), palimpsest.__file__
assert palimpsest.__version__ == importlib.metadata.version("palimpsest-rl")
gymnasium.make("palimpsest:Palimpsest/EndlessTMaze-v0").close()

venv = palimpsest.envs.make_vec("CartPole-v1", num_envs=2, seed=0)
small = dict(output_size=2, memory_size=2, num_rows=4)
policy = dict(memory="shm", memory_kwargs=small, encoder_arch=[2], net_arch=[2])
with palimpsest.memory.kernels.torch_only():  # nothing is compiled: the installed copy has no cache yet
    model = MemoryPPO("MlpMemoryPolicy", venv, n_steps=4, batch_size=4, n_epochs=1, policy_kwargs=policy, device="cpu")
    model.learn(8)
    model.save("model")
    MemoryPPO.load("model").predict(venv.reset())
print("trained", model.num_timesteps)
"""


def project(folder: Path, script: str, *names: str) -> Path:
    """A folder with main.py and, for each name, a package or (with ".py") a module that says whose it is."""
    for name in names:
        path = folder / name if name.endswith(".py") else folder / name / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"MINE = {name.removesuffix('.py')!r}\n")
    (folder / "main.py").write_text(script + TRAINS)
    return folder


@pytest.mark.learning
@pytest.mark.parametrize("first", ["mine", "ours"])
def test_a_project_with_the_same_folders_trains(first, installed, tmp_path):
    script = "\n".join([MINE, OURS] if first == "mine" else [OURS, MINE])
    here = project(tmp_path, script, "agents", "envs", "memory", "train.py")
    printed = python("main.py", installed, "agents envs memory train", cwd=here, path=(installed,))
    assert printed.splitlines()[-1] == "trained 8"


@pytest.mark.learning
def test_a_project_with_memory_py_and_an_agents_package_installed_trains(installed, tmp_path):
    """openai-agents, for one, is imported as `agents`."""
    here = project(tmp_path / "here", f"{OURS}\nimport agents, memory", "memory.py")
    other = project(tmp_path / "other", "", "agents")
    printed = python("main.py", installed, "agents memory", cwd=here, path=(other, installed))
    assert printed.splitlines()[-1] == "trained 8"


@pytest.fixture
def here(tmp_path):
    return project(tmp_path, "", "agents", "envs", "memory", "train.py")


def test_the_command_answers(here, installed):
    for words in ([installed / "bin" / "palimpsest"], [sys.executable, "-m", "palimpsest"]):
        printed = run([*words, "--help"], here, (installed,))
        assert printed.startswith("usage: palimpsest ")
        assert "train.py" not in printed
        assert run([*words, "--version"], here, (installed,)) == f"palimpsest {palimpsest.__version__}\n"


def test_the_command_lists(here, installed):
    assert "Palimpsest/EndlessTMaze-v0" in run([installed / "bin" / "palimpsest", "list"], here, (installed,))

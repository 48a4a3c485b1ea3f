"""Every script and notebook of examples/ runs with a small budget; no memory is compiled."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

from palimpsest import memory
from palimpsest.memory import registry

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SCRIPTS = {
    "endless_tmaze.py": "--memory gru --total-timesteps 64 --episodes 1",
    "drop_in.py": "--total-timesteps 64 --memory gru",
    "own_memory.py": "--total-timesteps 64",
    "masked_control.py": "--total-timesteps 64",
    "minigrid.py": "--total-timesteps 64 --ours",
    "compare_memories.py": "--memories gru none --seeds 2 --total-timesteps 64 --episodes 4",
}
TESTED_ELSEWHERE = {"from_sb3.py", "run_onnx.py"}
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, a registry of its own, and pictures that no window shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} <= SCRIPTS.keys() | TESTED_ELSEWHERE
    assert NOTEBOOKS == ["first_agent.ipynb", "inside_a_memory.ipynb"]


@pytest.mark.learning
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name, here, monkeypatch, capsys):
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", [name, *SCRIPTS[name].split()])
    with memory.kernels.torch_only():
        exec(compile((EXAMPLES / name).read_text(encoding="utf-8"), name, "exec"), vars(module))
    assert capsys.readouterr().out.strip()


@pytest.mark.learning
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_cells_of_a_notebook_run(name, here, capsys):
    """As a kernel would run them, but for the budget; nothing that a run leaves behind is committed."""
    cells = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    shorter = {"TOTAL_TIMESTEPS = 150_000": "TOTAL_TIMESTEPS = 64", "EPISODES = 100": "EPISODES = 2"}
    made: dict = {"__name__": "notebook"}
    with memory.kernels.torch_only():
        for cell in code:
            text = "".join(cell["source"])
            for long, short in shorter.items():
                text = text.replace(long, short)
            exec(compile(text, name, "exec"), made)
    assert capsys.readouterr().out.strip()

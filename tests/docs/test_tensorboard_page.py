"""The page on TensorBoard: its Python runs, with stand-ins for trackers, and they get the scalars of a training."""

from __future__ import annotations

import contextlib
import re
import sys
import types
from pathlib import Path

import pytest

from palimpsest import memory

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")


def tracker(name: str, calls: list) -> types.ModuleType:
    """A stand-in for a tracker's package, which notes what it is told."""
    module = types.ModuleType(name)

    def told(what):
        return lambda *arguments, **named: calls.append((what, arguments, named))

    for what in ("init", "log", "finish", "log_params", "log_metrics"):
        setattr(module, what, told(what))
    module.start_run = contextlib.nullcontext
    return module


@pytest.mark.learning
def test_the_python_runs_and_trackers_get_scalars(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = {name: [] for name in ("wandb", "mlflow", "trackio")}
    for name, calls in told.items():
        monkeypatch.setitem(sys.modules, name, tracker(name, calls))
    page = {}
    with memory.kernels.torch_only():
        for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            code = re.sub(r"\.learn\([\d_]+", ".learn(2048", code).replace("every=5_000", "every=1024")
            exec(compile(code, "docs/tensorboard.md", "exec"), page)
    assert list((tmp_path / "runs" / "MemoryPPO_1").iterdir())
    for name, calls in told.items():
        logged = [(arguments[0], named["step"]) for what, arguments, named in calls if what in ("log", "log_metrics")]
        assert [step for _, step in logged] == [1024, 2048], name
        values, _ = logged[-1]
        assert {"rollout/ep_rew_mean", "train/loss", "time/fps"} <= values.keys()
        assert all(type(value) is float for value in values.values())


def test_the_pictures_are_there_and_small():
    named = re.findall(r"\]\((pictures/[\w.]+)\)", PAGE)
    assert len(named) == 4
    for name in named:
        assert 0 < (ROOT / "docs" / name).stat().st_size < 200_000

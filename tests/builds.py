"""Copies of the source tree, what is built from them, and Python as a user starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKS = {"agents": "../agents", "envs": "../envs", "memory": "../memory", "train.py": "../train.py"}
"""What palimpsest/ holds of the folders beside it, and where each leads."""


def copy_of_the_tree(to: Path) -> Path:
    """What a clone holds and a build reads, the tests too, with its links."""
    ignored = shutil.ignore_patterns("__pycache__", "*.nb[ic]")
    for name in ("palimpsest", "agents", "envs", "memory", "tests"):
        shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=ignored)
    for name in ("train.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    return to


def build(kind: str, tree: Path, out: Path) -> Path:
    """The wheel, sdist or editable wheel that `pip` would build from `tree`, by the setuptools installed here."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    python("-c", code, cwd=tree)
    (built,) = out.iterdir()
    return built


def modules_of_the_tree() -> set[str]:
    """Every file that must be installed, as a path in site-packages."""
    folders = [path for name in ("agents", "envs", "memory") for path in (ROOT / name).rglob("*.py")]
    beside = [*(ROOT / "palimpsest").glob("*.py"), ROOT / "palimpsest" / "py.typed"]
    beside += [path for path in (ROOT / "palimpsest" / "shelf").rglob("*") if path.is_file()]
    return {f"palimpsest/{path.relative_to(ROOT)}" for path in [*folders, ROOT / "train.py"]} | {
        str(path.relative_to(ROOT)) for path in beside
    }


def python(*words: str | Path, cwd: Path, path: tuple[Path, ...] = ()) -> str:
    """What Python prints that starts in `cwd` with `path` as PYTHONPATH, hence without this checkout's."""
    return run([sys.executable, *words], cwd, path)


def run(words: list[str | Path], cwd: Path, path: tuple[Path, ...] = ()) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

"""The record of what a run was made with: versions of Python and of packages, the machine, the commit."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from palimpsest.agents.files.archive import write_atomically

VERSIONS_FILE = "versions.json"
"""The file name of the record in a run directory."""

PACKAGES = ("palimpsest-rl", "torch", "stable-baselines3", "gymnasium", "numba", "numpy", "minigrid")


def versions() -> dict[str, Any]:
    """The record of a run: versions of Python and of packages, machine, threads, commit and command line."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": sys.argv,
        **found,
    }


def note_versions(directory: Path) -> None:
    """Write the record of a run, unless its directory holds a whole one. A kill may have left none."""
    path = directory / VERSIONS_FILE
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = None
    if not isinstance(known, dict) or "command" not in known:
        write_atomically(path, (json.dumps(versions(), indent=2) + "\n").encode())


def _commit() -> str | None:
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

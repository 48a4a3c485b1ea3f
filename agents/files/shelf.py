"""Trained agents that come with the package: `shelf:NAME` names one wherever a run or a model's file is taken.

`palimpsest/shelf/` holds a folder for each, with the configuration and the model, and `shelf.toml`, which says what
they are and what they reach. `benchmarks/shelf.py` makes an entry from a run.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from palimpsest.refusals import closest

PREFIX = "shelf:"
MANIFEST = "shelf.toml"


def folder() -> Path:
    """Where the agents lie."""
    return Path(str(resources.files("palimpsest"))) / "shelf"


def entries() -> dict[str, dict[str, Any]]:
    """Name -> what the manifest says.

    An entry has task, memory, steps (of training, in the environment), seed, command, commit, parameters, and figures:
    a list of env_args, episodes, success, return_mean and return_std, the training's setting first.
    """
    return tomllib.loads((folder() / MANIFEST).read_text(encoding="utf-8"))


def taken(path: Path) -> Path:
    """The folder of an agent for a path like `shelf:NAME`; any other path as it is.

    Raises:
        ValueError: there is no agent of that name.
    """
    if not on_shelf(path):
        return path
    name = str(path).removeprefix(PREFIX)
    known = entries()
    if name not in known:
        raise ValueError(f"the shelf has no agent {name!r}{closest(name, known)}; it has: {', '.join(sorted(known))}")
    return folder() / name


def on_shelf(path: Path) -> bool:
    """Whether a path names an agent of the shelf."""
    return str(path).startswith(PREFIX)

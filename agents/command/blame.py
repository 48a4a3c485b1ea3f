"""What a command says of an error that ended it: a sentence of ours alone, what others raised with where it was."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
ROOMS = frozenset({"agents", "envs", "memory", "palimpsest"})
"""What is ours in the folder of the package, which in a clone is the clone's."""
STANDARD = frozenset(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders that hold what was installed, on Debian too."""


def is_of_user(error: BaseException) -> bool:
    """Whether somebody's own code raised the error, or called what raised it: an environment's, a memory's.

    An error in our code, or in a library that we called, is not.
    """
    root = _root(error)
    frames = traceback.extract_tb(root.__traceback__)
    if frames and frames[-1].name == "_raise_if_errors":  # gymnasium's, of what a worker's environment raised
        return True
    own = [frame for frame in frames if _is_theirs(frame.filename) or _is_ours(frame.filename)]
    return bool(own) and _is_theirs(own[-1].filename)


def _root(error: BaseException) -> BaseException:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def told(error: object) -> str:
    """The message in one line, followed by the lines of code that raised it if these are not ours.

    A refusal of ours says all that is to be known. An error of somebody's environment or memory, or of a library that
    these confused, does not say where it was. A library's OSError does, as of a full disk, and what we have explained.
    """
    if not isinstance(error, BaseException):
        return str(error)
    root = _root(error)
    frames = traceback.extract_tb(root.__traceback__)
    theirs = [at for at, frame in enumerate(frames) if _is_theirs(frame.filename)]
    explained = root is not error or isinstance(root, OSError)
    library = bool(frames) and not explained and not _is_ours(frames[-1].filename)
    message = " ".join(str(error).split())
    if not theirs and not library:
        return message
    lines = "".join(traceback.format_list(frames[theirs[0] if theirs else -1 :]))
    return f"{type(root).__name__}: {message}\n{lines.rstrip()}"


def _is_ours(file: str) -> bool:
    path = Path(file).resolve()
    if PACKAGE not in path.parents:
        return path == Path(sys.argv[0]).resolve()
    installed = PACKAGE.name == "palimpsest" and (PACKAGE / "refusals.py").exists()
    return installed or path.relative_to(PACKAGE).parts[0] in (*ROOMS, "train.py")


def _is_theirs(file: str) -> bool:
    """Whether it is neither ours nor a library's."""
    path = Path(file).resolve()
    library = file.startswith("<") or not INSTALLED.isdisjoint(path.parts) or not STANDARD.isdisjoint(path.parents)
    return not library and not _is_ours(file)

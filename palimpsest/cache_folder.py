"""Where files that can be made again are kept: the first folder that can be written."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def cache_folder(source_folder: Path) -> Path | None:
    """Where machine code of sources in a folder is kept; None where nothing can be written.

    The first that can be written of NUMBA_CACHE_DIR, `__pycache__` beside the sources, the user's cache directory and a
    private folder in the directory for temporary files.
    """
    return next(filter(_is_writable, _candidates(source_folder)), None)


def _candidates(source_folder: Path) -> Iterator[Path]:
    own = f"{source_folder.name}_{hashlib.sha256(str(source_folder).encode()).hexdigest()[:16]}"
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"], own)
    yield source_folder / "__pycache__"
    user = _user_cache_folder()
    if user.is_absolute():  # else there is no home
        yield user / "palimpsest" / own
    private = _private_temporary_folder()
    if private is not None:
        yield private / own


def _user_cache_folder() -> Path:
    if sys.platform == "win32":
        given, usual = os.environ.get("LOCALAPPDATA"), "~/AppData/Local"
    elif sys.platform == "darwin":
        given, usual = None, "~/Library/Caches"
    else:
        given, usual = os.environ.get("XDG_CACHE_HOME"), "~/.cache"
    return Path(given or os.path.expanduser(usual))


def _private_temporary_folder() -> Path | None:
    """A folder that no other user can write to: machine code from there will be run."""
    user = os.getuid() if hasattr(os, "getuid") else None
    try:
        folder = Path(tempfile.gettempdir(), "palimpsest" if user is None else f"palimpsest-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    if user is not None and (not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022):
        return None
    return folder


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True

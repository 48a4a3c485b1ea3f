"""The lock of a directory that one process at a time may write to, on every system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

LOCK = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a run directory; ValueError with the other process's id if another process has locked it.

    The system releases the lock when its process ends, whatever ended it. A lock file that is left behind blocks
    nobody.
    """
    path = directory / LOCK
    holder = _holder(path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{str(directory)!r} is in use by another process{f', {holder}' if holder else ''}; wait for it, or stop it"
        ) from None
    try:
        if not isinstance(lock, SoftFileLock):  # that kind has the process's id in its file already
            with suppress(OSError):  # Windows lets nobody write to a locked file
                path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """The id of the process that wrote the lock file last; "" if it cannot be read."""
    try:
        first = path.read_text().partition("\n")[0].strip()
    except (OSError, ValueError):
        return ""
    return first if first.isdigit() else ""

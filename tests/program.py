"""The command line in a process of its own, which starts at once: it is forked from one that has made the imports."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["palimpsest.train", "palimpsest.agents.run.experiment", "torch._dynamo"])
_NUMBERS = itertools.count()


class Program:
    """`palimpsest *words`, running.

    Args:
        folder: where what it prints is kept; made.
        words: the command line.
        before: what the process does first; a function at the top of a module.
    """

    def __init__(self, folder: Path, *words: str, before: Callable[[], Any] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self._printed = [folder / f"{next(_NUMBERS)}.txt" for _ in range(2)]
        self._process = _FORKS.Process(target=_run, args=(words, self._printed, before))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, -n after signal n; None while it runs."""
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """What it has printed until now, errors aside."""
        return self._printed[0].read_text()

    def wait(self, seconds: float = 240) -> tuple[int | None, str, str]:
        """The exit code and all that it printed, once it has ended."""
        self._process.join(seconds)
        return self.code, *(path.read_text() for path in self._printed)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def wait_until(self, happened: Callable[[], Any], seconds: float = 240) -> None:
        """Wait for what the running process must bring about."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.code is None, self.wait()
            assert time.monotonic() < deadline, self.wait(0)
            time.sleep(0.02)


def _run(words: tuple[str, ...], printed: list[Path], before: Callable[[], Any] | None) -> None:
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), number)
    sys.argv = ["palimpsest", *words]
    if before is not None:
        before()
    from palimpsest.train import main

    sys.exit(main())

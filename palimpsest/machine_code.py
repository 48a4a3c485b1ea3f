"""numba's `njit` with another cache: its machine code is never stale, and the package may lie where none can write.

Of the sources that a kernel's machine code is made of, numba's own cache (`cache=True`) looks at the kernel's file
alone, not at the files of the kernels that it calls. And it raises an error where no cache can be written.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

from palimpsest.cache_folder import cache_folder
from palimpsest.source_stamp import source_stamp


def njit(cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `numba.njit(**options)`; with `cache`, later processes find the machine code in a file.

    They use it as long as neither the kernel's source file has changed, nor one that this imports, directly or
    indirectly, from its own package or from ours.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(**options)(function)
        if cache and Path(inspect.getfile(function)).is_file():
            kernel._cache = _Cache(function)
        return kernel

    return decorate


class _Cache:
    """What a kernel asks for machine code: numba's cache in a folder of ours; it never raises an error."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._sources = Path(inspect.getfile(function)).parent
        try:
            self._files: Any = _Files(function)
        except RuntimeError:  # numba's word for: no locator found a place
            self._files = caching.NullCache()

    @property
    def cache_path(self) -> str | None:
        """The folder; None where there is none."""
        return self._files.cache_path

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The machine code for a signature; None where it must be compiled."""
        try:
            found = self._files.load_overload(signature, target_context)
        except Exception as error:  # whatever a file may hold that was cut short
            _say("unread", f"machine code in {self.cache_path} cannot be read and is made again: {error!r}")
            found = None
            with contextlib.suppress(OSError):
                self.flush()
        if found is None:
            self._say_that_it_compiles()
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what was compiled."""
        try:
            self._files.save_overload(signature, compiled)
        except OSError as error:  # a full disk, or a folder that is gone
            _say("unsaved", f"machine code cannot be kept in {self.cache_path}: {error}")

    def flush(self) -> None:
        """Forget what is kept."""
        self._files.flush()

    def _say_that_it_compiles(self) -> None:
        folder = self.cache_path
        if folder is None:
            why = "no folder for it can be written; set NUMBA_CACHE_DIR to one that can"
            _say("nowhere", f"compiling for this machine; this takes some seconds at every start, because {why}")
        elif os.environ.get("NUMBA_CACHE_DIR") or Path(folder).parent == self._sources:
            _say("beside", "compiling for this machine, once; this takes some seconds")
        else:
            why = f"kept in {folder}, because {self._sources} cannot be written"
            _say("elsewhere", f"compiling for this machine, once; this takes some seconds; {why}")


class _Locator:
    """Answers what numba's cache asks: where a function's machine code is kept, and from which sources it is."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file = file
        self._folder, self._stamp = cache_folder(Path(file).parent), source_stamp(Path(file), function.__module__)
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator | None:
        """None where machine code cannot be kept."""
        found = cls(function, file)
        return None if found._folder is None or found._stamp is None else found

    def ensure_cache_path(self) -> None:
        """The folder was made when it was found."""

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str | None:
        return self._stamp

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Placement(caching.CompileResultCacheImpl):
    _locator_classes: Any = (_Locator,)


class _Files(caching.FunctionCache):
    _impl_class = _Placement


_said: set[str] = set()


def _say(kind: str, line: str) -> None:
    """Say a line on stderr, one of each kind in a process."""
    if kind not in _said:
        _said.add(kind)
        print(line, file=sys.stderr)

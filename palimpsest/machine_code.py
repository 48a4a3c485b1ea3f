"""numba's `njit` with another cache: its machine code is never stale, and the package may lie where none can write.

numba's own cache (`cache=True`) has three faults. It compares the source of a kernel's own file, while machine code
holds that of the kernels called, from other files. It raises an error where nothing can be written. And its index of
numbered files can name the wrong one after two processes have written at the same time.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import inspect
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from palimpsest.cache_folder import cache_folder
from palimpsest.source_stamp import source_stamp


def njit(cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `numba.njit(**options)`; with `cache`, later processes find the machine code in a file.

    They use it as long as neither the kernel's source file has changed, nor one that this imports, directly or
    indirectly, from its own package or from ours.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = numba.njit(**{"no_cfunc_wrapper": True, **options})(function)
        kernel.compile = _without_garbage_collection()(kernel.compile)
        if cache and Path(inspect.getfile(function)).is_file():
            kernel._cache = _Cache(function)
        return kernel

    return decorate


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Compiling makes many objects and few cycles; looking for these takes a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Cache:
    """Where a kernel asks for machine code and leaves it; it never raises an error.

    One file holds the code for one signature. Its name tells all that the code depends on.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        file = Path(inspect.getfile(function))
        self._function, self._sources = function, file.parent
        self._folder, self._stamp = cache_folder(file.parent), source_stamp(file, function.__module__)
        if self._stamp is None:
            self._folder = None
        self._name = re.sub(r"[^\w.]", "", f"{file.stem}.{function.__qualname__}")

    @property
    def cache_path(self) -> str | None:
        """The folder; None where nothing is kept."""
        return None if self._folder is None else str(self._folder)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The machine code for a signature; None where it must be compiled."""
        target_context.refresh()
        file = self._file(signature, target_context.codegen())
        if file is not None and file.is_file():
            try:
                found = CompileResult._rebuild(target_context, *pickle.loads(file.read_bytes()))
                # numba forgets what must be done before this code runs, which holds for code that it becomes part of
                found.library._reload_init.update(found.reload_init)
                return found
            except Exception as error:  # whatever a file may hold that was cut short
                _say("unread", f"machine code in {file} cannot be read and is made again: {error!r}")
        self._say_that_it_compiles()
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep what was compiled, and drop what was compiled from older sources."""
        file = self._file(signature, compiled.codegen)
        if file is None or compiled.library.has_dynamic_globals:  # addresses in this process
            return
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            new.write_bytes(dumps(compiled._reduce()))
            new.replace(file)
            for other in file.parent.glob(f"{self._name}-*.nbc"):
                if not other.name.startswith(f"{self._name}-{self._stamp}"):
                    with contextlib.suppress(FileNotFoundError):  # another process was faster
                        other.unlink()
        except OSError as error:  # a full disk, or a folder that is gone
            _say("unsaved", f"machine code cannot be kept in {file.parent}: {error}")
            with contextlib.suppress(OSError):
                new.unlink()

    def flush(self) -> None:
        """Forget what is kept; numba asks for it before it compiles anew."""
        if self._folder is not None:
            for file in self._folder.glob(f"{self._name}-*.nbc"):
                file.unlink(missing_ok=True)

    def _file(self, signature: Any, codegen: Any) -> Path | None:
        if self._folder is None:
            return None
        held = dumps(tuple(cell.cell_contents for cell in self._function.__closure__ or ()))
        code = self._function.__code__
        kernel = code.co_firstlineno, code.co_code, held, signature, *_named_tuples(signature)
        machine = codegen.magic_tuple(), numba.__version__, sys.version
        digest = hashlib.sha256(f"{kernel} {machine}".encode()).hexdigest()[:16]
        return self._folder / f"{self._name}-{self._stamp}-{digest}.nbc"

    def _say_that_it_compiles(self) -> None:
        if self._stamp is None:
            _say("edited", "compiling for this process alone: a source was edited while it ran")
        elif self._folder is None:
            why = "no folder for it can be written; set NUMBA_CACHE_DIR to one that can"
            _say("nowhere", f"compiling for this machine; this takes some seconds at every start, because {why}")
        elif os.environ.get("NUMBA_CACHE_DIR") or self._folder.parent == self._sources:
            _say("beside", "compiling for this machine, once; this takes some seconds")
        else:
            why = f"kept in {self._folder}, because {self._sources} cannot be written"
            _say("elsewhere", f"compiling for this machine, once; this takes some seconds; {why}")


def _named_tuples(types: Iterable[Any]) -> Iterator[str]:
    """The classes of named tuples in a signature, whose text tells their names without their modules."""
    for each in types:
        if (found := getattr(each, "instance_class", None)) is not None:
            yield f"{found.__module__}.{found.__qualname__}"
        yield from _named_tuples(getattr(each, "types", ()))


_said: set[str] = set()


def _say(kind: str, line: str) -> None:
    """Say a line on stderr, one of each kind in a process."""
    if kind not in _said:
        _said.add(kind)
        print(line, file=sys.stderr)

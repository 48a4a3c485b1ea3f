"""A stamp of a source file and of what it imports: two processes have the same stamp where those files are the same.

Imports are read from the text, directly and indirectly, in the file's own package and in this one. So the stamp does
not depend on what a process happens to have imported, and nothing is imported for it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_OWN = __name__.partition(".")[0]
_BEGAN = time.time()
_COMMENT = re.compile(r"#.*")
_IMPORT = re.compile(r"(?:^|[;:])[ \t]*(?:from[ \t]+([\w.]+)[ \t]+)?import\b(\s*\([^)]*\)|(?:[^\n\\;]|\\\n)*)", re.M)


class _Source(NamedTuple):
    digest: str
    names: tuple[str, ...]
    """Dotted names of modules and of what is imported from them; relative ones begin with dots."""
    changed: bool
    """Whether the file was written after this process began, which may then run older code."""


@functools.cache
def source_stamp(file: Path, module: str) -> str | None:
    """The stamp of the file of a module; None where a source was written while this process ran."""
    sources = [_read(each) for each in imported_files(file, module)]
    if any(source.changed for source in sources):
        return None
    return hashlib.sha256("".join(sorted(source.digest for source in sources)).encode()).hexdigest()[:16]


@functools.cache
def imported_files(file: Path, module: str) -> frozenset[Path]:
    """The file of a module and those that it imports, directly or indirectly, from its package and from this one.

    A module outside of packages has for its package the modules beside it.
    """
    found, waiting = {file}, [file]
    while waiting:
        importing = waiting.pop()
        for name in _read(importing).names:
            new = _resolve(name, importing, module.partition(".")[0])
            if new is not None and new not in found:
                found.add(new)
                waiting.append(new)
    return frozenset(found)


@functools.cache
def _read(file: Path) -> _Source:
    text = file.read_bytes()
    names = tuple(sorted(set(_imported_names(text.decode(errors="replace")))))
    return _Source(hashlib.sha256(text).hexdigest(), names, file.stat().st_mtime > _BEGAN)


def _imported_names(text: str) -> Iterator[str]:
    for module, imported in _IMPORT.findall(_COMMENT.sub("", text)):
        if module:
            yield module
        prefix = module if not module or module.endswith(".") else f"{module}."
        for part in imported.replace("\\", " ").strip("() \t\n").split(","):
            yield from [prefix + name for name in part.split()[:1]]


@functools.cache
def _resolve(name: str, importing: Path, package: str) -> Path | None:
    """The source of a module that is named in a file, if it is in `package` or this one; else None."""
    dots = len(name) - len(name.lstrip("."))
    parts = name[dots:].split(".") if name[dots:] else []
    if dots:
        folders = [importing.parents[dots - 1]]
    elif parts[0] in (package, _OWN) and hasattr(sys.modules.get(parts[0]), "__path__"):
        folders = [Path(folder) for folder in sys.modules[parts.pop(0)].__path__]
    elif len(parts) == 1 and not hasattr(sys.modules.get(package), "__path__"):
        return _existing([importing.parent / f"{parts[0]}.py"])
    else:
        return None
    modules = [folder.joinpath(*parts[:-1], f"{parts[-1]}.py") for folder in folders if parts]
    return _existing([*modules, *(folder.joinpath(*parts, "__init__.py") for folder in folders)])


def _existing(files: Sequence[Path]) -> Path | None:
    return next(filter(Path.is_file, files), None)

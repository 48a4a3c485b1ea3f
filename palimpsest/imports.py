"""Modules that a user names, as `module:name` of an environment, a memory or a wrapper. All parts may use it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from palimpsest.refusals import shown


def imported(text: str, what: str) -> tuple[ModuleType, str]:
    """Import the module of "module:name".

    Args:
        text: "module:name"; the module is dotted where it is in a package.
        what: what the name is of, for messages.

    Returns:
        The module, and the name.

    Raises:
        ValueError: it does not read so, there is no such module, or the module raises an error. The message is one
            line and says where.
    """
    module, _, name = text.rpartition(":")
    told = f"the module of {what} {shown(text)} cannot be imported"
    is_path = module.endswith(".py")
    if is_path or not name.strip() or not all(part.isidentifier() for part in module.split(".")):
        hint = ", without .py" if is_path else ""
        raise ValueError(f"{told}: it must read module:name, with dots between packages{hint}")
    try:
        return importlib.import_module(module), name
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{told}: it needs {error.name!r}, which is not installed") from None
        raise ValueError(
            f"{told}: no module {error.name!r}; stand in the folder that holds it, or put that folder on PYTHONPATH"
        ) from None
    except Exception as error:  # a user's module may raise anything
        at = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())
        raise ValueError(f"{told}: {type(error).__name__}: {message} ({at.filename}, line {at.lineno})") from error


@contextmanager
def from_here() -> Iterator[None]:
    """Find modules of the working directory too. Worker processes inherit it.

    Installed modules come first: a file that lies about, perhaps in a folder from a stranger, replaces none of them.
    """
    before = list(sys.path)
    try:
        here = os.getcwd()
    except OSError:  # the folder is gone
        here = None
    if here is not None and here not in sys.path:
        sys.path.append(here)
    try:
        yield
    finally:
        sys.path[:] = before

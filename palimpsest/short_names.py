"""The short names `agents`, `envs` and `memory`, which exist in a clone's root alone, lead to this package.

A folder that is imported under its short name calls `hand_over`. From then on `import agents.x` gives the very module
`palimpsest.agents.x`, never a second copy of it. `import palimpsest` installs nothing of this, so that a user's own
package `agents` stays theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


class _ShortNames(MetaPathFinder, Loader):
    """Finds `<short>.x` as `palimpsest.<short>.x`, for the short names that were handed over."""

    def __init__(self) -> None:
        self.handed_over: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.handed_over:
            return None
        ours = importlib.util.find_spec(f"palimpsest.{fullname}")
        if ours is None:
            return None
        return ModuleSpec(fullname, self, origin=ours.origin, is_package=ours.submodule_search_locations is not None)

    def exec_module(self, module: ModuleType) -> None:
        # the import system returns what stands in sys.modules once a module was executed
        sys.modules[module.__name__] = importlib.import_module(f"palimpsest.{module.__name__}")

    def get_code(self, fullname: str) -> CodeType | None:
        """For `python -m agents.x`, which runs the code instead of importing the module."""
        ours = importlib.util.find_spec(f"palimpsest.{fullname}")
        assert ours is not None
        assert isinstance(ours.loader, InspectLoader)
        return ours.loader.get_code(ours.name)


_SHORT_NAMES = _ShortNames()


def hand_over(name: str) -> None:
    """Let the module that is being imported as `name` be `palimpsest.name`, and its submodules ours."""
    if not _SHORT_NAMES.handed_over:
        sys.meta_path.insert(0, _SHORT_NAMES)
    _SHORT_NAMES.handed_over.add(name)
    sys.modules[name] = importlib.import_module(f"palimpsest.{name}")

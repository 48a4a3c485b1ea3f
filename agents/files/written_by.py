"""What a file says about the program and the system that wrote it."""

from __future__ import annotations

import sys
from typing import Any

from stable_baselines3.common.utils import get_system_info


def written_by() -> dict[str, str]:
    """Versions of this package, of the packages under it, and of the system."""
    package = sys.modules[__name__.partition(".")[0]]  # every part of it may import this module, so no import
    return {"Palimpsest": package.__version__, **get_system_info(print_info=False)[0]}


def show(title: str, info: Any) -> None:
    """Print what `written_by` gave, as stable-baselines3 does."""
    print(f"== {title} ==")
    for name, version in info.items() if isinstance(info, dict) else [("unknown", "the file does not say")]:
        print(f"- {name}: {version}")
    print()

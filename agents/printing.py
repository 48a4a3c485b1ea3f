"""Tables and the console that prints them. Importing this module does not import torch."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table

WIDE = 160
"""Columns of what is printed to no terminal."""


def output() -> Console:
    """Standard output. A file or a pipe has no edge, so its lines are `WIDE`, or as wide as COLUMNS says."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=WIDE)


def table(*heads: str, **options: Any) -> Table:
    """A table whose cells are broken where they are too wide. `rich` would cut them off.

    Args:
        *heads: of its columns.
        **options: of `rich.table.Table`.
    """
    return Table(*(Column(head, overflow="fold") for head in heads), **options)

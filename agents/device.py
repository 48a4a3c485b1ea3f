"""Devices: which names are allowed, and whether a device exists. Importing this module does not import torch."""

from __future__ import annotations

import os
import re
from typing import Any

from palimpsest.refusals import Allowed, check

DEVICE = Allowed(
    "'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'",
    lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value if isinstance(value, str) else "") is not None,
)


def check_device(device: Any) -> None:
    """Refuse a device that does not exist. SB3 would use the CPU instead, without a message."""
    import torch

    name = str(device) if isinstance(device, torch.device) else device
    check("device", name, DEVICE)
    if name.startswith("cuda") and (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device='cpu' or 'auto'"
        )


def check_autocast(device: Any) -> None:
    """Refuse autocast in bfloat16 on a `torch.device` that has none."""
    import torch

    kind = device.type
    there = torch.amp.is_autocast_available(kind)
    if not there or (kind == "cuda" and not torch.cuda.is_bf16_supported()):
        raise ValueError(f"autocast needs bfloat16, which device {str(device)!r} does not compute in; leave it out")


def memory_of(device: Any) -> int | None:
    """Bytes of memory of a `torch.device`, of the machine where that is the CPU; None if they are not known."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_beyond_memory(device: Any, needed: int, what: str, remedy: str) -> None:
    """Refuse what takes more bytes than a `torch.device` has."""
    there = memory_of(device)
    if there is not None and needed > there:
        where = "the machine" if device.type == "cpu" else f"device {str(device)!r}"
        raise ValueError(f"{what} takes {needed / 1e9:.1f} GB, and {where} has {there / 1e9:.1f} GB; {remedy}")

"""Devices: which names are allowed, and whether a device exists. Importing this module does not import torch."""

from __future__ import annotations

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

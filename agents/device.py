"""Refusals of devices that are not there."""

from __future__ import annotations

import torch


def check_device(device: torch.device | str) -> torch.device | str:
    """Refuse a device that is not there; `auto` is left to SB3."""
    if device == "auto":
        return device
    try:
        wanted = torch.device(device)
        known = wanted.type in ("cpu", "cuda", "mps")
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(f"unknown device {device!r}; use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device='cpu' or 'auto'"
        )
    return wanted

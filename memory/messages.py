"""Sizes and types in words, for the messages of a memory that was given what does not fit."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def type_of(dtype: Any) -> str:
    """The name of a torch.dtype."""
    return str(dtype).removeprefix("torch.")


def described(value: Any) -> str:
    """The shape and type of a tensor, for a message; of anything else, that it is none."""
    return f"{list(value.shape)} {type_of(value.dtype)}" if isinstance(value, Tensor) else size_of(value)


def size_of(value: Any) -> str:
    """The shape of a tensor; of anything else, that it is none."""
    return str(list(value.shape)) if isinstance(value, Tensor) else f"{type(value).__name__}, which is not a tensor"


def state_of(state: Any) -> str:
    """A state's fields with their shapes and types, for a message."""
    if not isinstance(state, tuple):
        return type(state).__name__
    names = getattr(state, "_fields", range(len(state)))
    fields = (f"{name} {described(s)}" for name, s in zip(names, state))
    return f"{type(state).__name__}({', '.join(fields)})"

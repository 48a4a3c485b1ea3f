"""What a replay's file holds, looked at as a whole before any of it is taken over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.agents.files.archive import File
from palimpsest.refusals import is_number, shown

SETTINGS = ("n_envs", "sequence_length", "burn_in", "n_steps", "prioritized", "buffer_size")
"""What both replays must have alike, the first cause first: with other n_envs the rows are of another size too."""

_OTHER = {"observations": "observation space", "actions": "action space", "states": "memory"}


def found_file(file: File) -> File:
    """A replay's file, or the one beside it with the suffix that SB3's CheckpointCallback gives: NAME.pkl for NAME."""
    if not isinstance(file, str | PathLike) or not (path := Path(file)).name:
        return file
    as_zip, as_pkl = (path.with_name(f"{path.name}.{suffix}") for suffix in ("zip", "pkl"))
    return as_pkl if as_pkl.is_file() and not path.exists() and not as_zip.exists() else file


def fitting(
    contents: Any,
    settings: Mapping[str, Any],
    entries: Mapping[str, Any],
    cuts: Mapping[str, Any],
    items: int,
    source: str,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The arrays of a replay, each with the one that a file has for it.

    Args:
        contents: what the file holds.
        settings: the replay's, by the names of `SETTINGS`.
        entries: its arrays of entries by name, trees of [T, B, ...].
        cuts: its arrays of sequences by name, trees of [T // L, B, ...].
        items: its sequences over all rows.
        source: what messages call the file.

    Returns:
        Pairs of an array and its first rows [up to T or T // L, B, ...].

    Raises:
        ValueError: the file is of a replay of other settings, spaces or memory, or its parts do not fit together.
    """
    names = [*SETTINGS, *entries, *cuts, "written", "priorities", "largest"]
    if lacking := [name for name in names if not isinstance(contents, Mapping) or name not in contents]:
        raise ValueError(f"{source} holds no whole replay: it lacks {', '.join(lacking)}")
    for name in SETTINGS:
        if contents[name] != settings[name]:
            per_row = " (entries of each row)" if name == "buffer_size" else ""
            raise ValueError(
                f"{source} is of a replay with {name}={shown(contents[name])}{per_row}; this one has "
                f"{name}={settings[name]}: make the model as the one that wrote the file, or fill a replay anew"
            )
    T, B, L = settings["buffer_size"], settings["n_envs"], settings["sequence_length"]
    written, priorities = contents["written"], contents["priorities"]
    if not _is_array(written, (B,), np.int64) or (written < 0).any():
        raise ValueError(f"{source} does not say how many entries each of {B} rows has")
    if not _is_array(priorities, (items,), np.float64) or not (np.isfinite(priorities) & (priorities >= 0)).all():
        raise ValueError(f"{source} holds no priorities, 0 or more, of {items} sequences")
    if not is_number(contents["largest"], 0):
        raise ValueError(f"{source} has {shown(contents['largest'])} as the largest priority")
    filled = min(int(written.max()), T)
    lengths = {**dict.fromkeys(entries, filled), **dict.fromkeys(cuts, math.ceil(filled / L))}
    found = []
    for name, mine in {**entries, **cuts}.items():
        for into, part in _paired(mine, contents[name]):
            if part is None or not _fits(into, part):
                raise ValueError(
                    f"{source} is of another {_OTHER.get(name, 'kind of replay')}: its {name} are {_told(part)}, this "
                    f"replay's {_told(into)} for each entry"
                )
            if len(part) != lengths[name]:
                raise ValueError(f"{source} has {len(part):,} {name} of a row; by its other parts {lengths[name]:,}")
            found.append((into, part))
    return found


def _paired(mine: Any, its: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of a tree with those of another one; None where that has another form."""
    if isinstance(mine, dict):
        fits = isinstance(its, dict) and mine.keys() == its.keys()
        pairs = [(leaf, its[key] if fits else None) for key, leaf in mine.items()]
    elif isinstance(mine, tuple):
        fits = isinstance(its, tuple | list) and len(mine) == len(its)
        pairs = list(zip(mine, its if fits else [None] * len(mine), strict=True))
    else:
        yield mine, its
        return
    for leaf, other in pairs:
        yield from _paired(leaf, other)


def _is_array(value: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    return isinstance(value, np.ndarray) and value.shape == shape and value.dtype == dtype


def _fits(into: np.ndarray, part: Any) -> bool:
    # float32 is what earlier versions wrote of observations in float64
    return isinstance(part, np.ndarray) and part.shape[1:] == into.shape[1:] and np.can_cast(part.dtype, into.dtype)


def _told(part: Any) -> str:
    return f"{list(part.shape[2:])} {part.dtype}" if isinstance(part, np.ndarray) else "of another form"

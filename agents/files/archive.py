"""Files that run no code: a tree of values and tensors in a ZIP of JSON and safetensors.

Entries, all stored uncompressed: `data.json`, `tensors.safetensors`, and `sha256`, which has one line for each of the
others as the sha256sum program prints and checks them. The same tree gives the same bytes. What a tree may hold, and
how it is written, is in `agents.files.values`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from palimpsest.agents.files.values import Decoder, Encoder

DATA, TENSORS, CHECKSUMS = "data.json", "tensors.safetensors", "sha256"
FORMAT, VERSION = "palimpsest", 1

PART = ".part"
"""Ends the names of files that are being written."""

MOST_JSON_BYTES = 256 * 1024**2
"""Largest `data.json` that is read; parsing takes about ten times as much memory."""

END_RECORD_BYTES = 22
"""Size of the record that ends a ZIP without a comment."""

_PICKLED = {"data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth", "_stable_baselines3_version"}
"""Entries by which files of stable-baselines3 are known."""


class CorruptFile(ValueError):
    """A file that is torn, altered, or not one of ours."""


class NamedOnly(ValueError):
    """A file knows classes, functions or objects by their names only.

    Args:
        message: their names.
        tree: the rest of what it holds; None where they belong.
    """

    def __init__(self, message: str, tree: Any) -> None:
        super().__init__(message)
        self.tree = tree


def write_tree(file: str | Path | BinaryIO, tree: Any) -> None:
    """Write `tree` so that a reader sees the whole file or the one before it, whatever stops the writer.

    Args:
        file: a path, which gets the suffix ".zip" if it has none, or a binary file open for writing.
        tree: what `agents.files.values` can write.

    Raises:
        ValueError: something in the tree cannot be written.
        OSError: a full disk, a lost directory; what stood at the path before is still there.
    """
    encoder = Encoder()
    document = {"format": FORMAT, "version": VERSION, "tree": encoder.encode(tree)}
    entries = {
        DATA: json.dumps(document, separators=(",", ":"), allow_nan=False).encode(),
        TENSORS: safetensors.torch.save(encoder.tensors),
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in entries.items())
    entries[CHECKSUMS] = sums.encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    if isinstance(file, str | Path):
        write_atomically(_with_suffix(Path(file)), packed.getbuffer())
    else:
        file.write(packed.getbuffer())


def read_tree(
    file: str | Path | BinaryIO,
    custom_objects: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """Read what `write_tree` wrote. Nothing in the file is executed, imported or unpickled.

    Args:
        file: a path (".zip" is added where nothing else is found), or a binary file open for reading.
        custom_objects: the classes, functions and objects that the file knows by name only: qualified name, or place
            in the tree such as "policy_kwargs.activation_fn" -> object.
        device: where tensors go; arrays stay on the CPU.

    Raises:
        CorruptFile: the file is torn, altered, or not one of ours.
        NamedOnly: a name in the file is not in `custom_objects`.
        ValueError: a model of stable-baselines3.
        OSError: the file is not there or cannot be read.
    """
    if isinstance(file, str | Path):
        path = Path(file)
        path = path if path.exists() else _with_suffix(path)
        label, content = str(path), path.read_bytes()
    else:
        label, content = str(getattr(file, "name", "the file")), file.read()
    torch.empty(0, device=device)  # a device that is not there is no fault of the file
    try:
        entries = _unpack(content)
        document = _parse(entries[DATA])
        decoder = Decoder(safetensors.torch.load(entries[TENSORS]), custom_objects, device)
        tree = decoder.decode(document["tree"])
        if unused := set(decoder.tensors) - decoder.used:
            raise ValueError(f"tensors that nothing refers to: {sorted(unused)[:5]}")
    except _Foreign:
        raise ValueError(
            f"{label!r} is a model of stable-baselines3, whose pickles can run code; if you trust it, convert it with "
            "examples/from_sb3.py, which loads it there and hands its parameters over"
        ) from None
    except Exception as error:  # whatever a parser says of a stranger's bytes, the bytes are at fault
        raise CorruptFile(f"{label!r} is torn, altered or not one of our files: {one_line(error)}") from None
    if decoder.missing:
        names = ", ".join(f"{name!r} (at {place!r})" for name, place in decoder.missing.items())
        raise NamedOnly(
            f"{label!r} knows these by name only: {names}; give them as custom_objects={{name: object}}, as no "
            "name from a file is imported",
            tree,
        )
    return tree


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside, sync, rename, sync the directory: `path` holds all of `content` or what it held before.

    Raises:
        OSError: a full disk, a lost directory; it names `path`, which holds what it held before.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_parts(directory: Path) -> None:
    """Remove what writers that were killed have left beside the files of `directory`; none may be writing now."""
    for part in directory.glob(f".*{PART}"):
        part.unlink()


class _Foreign(Exception):
    """A file of stable-baselines3."""


def _with_suffix(path: Path) -> Path:
    return path if path.suffix else path.with_name(f"{path.name}.zip")


def _unpack(content: bytes) -> dict[str, bytes]:
    """The three entries of a ZIP, checked; nothing is decompressed, so nothing grows beyond the file's own size."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if "data" in names and _PICKLED & set(names) - {"data"}:
            raise _Foreign
        if names != [DATA, TENSORS, CHECKSUMS]:
            raise ValueError(f"entries {names[:5]}; expected {[DATA, TENSORS, CHECKSUMS]}")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise ValueError(f"{info.filename} is compressed or encrypted")
        ended = content[-END_RECORD_BYTES:].startswith(b"PK\x05\x06")
        if (
            not ended
            or archive.comment
            or infos[0].header_offset
            or sum(info.file_size for info in infos) > len(content)
        ):
            raise ValueError("bytes before, after or across the entries")
        if infos[0].file_size > MOST_JSON_BYTES:
            raise ValueError(f"{DATA} has {infos[0].file_size:,} bytes; at most {MOST_JSON_BYTES:,} are read")
        entries = {info.filename: archive.read(info) for info in infos}
    sums = "".join(f"{hashlib.sha256(entries[name]).hexdigest()}  {name}\n" for name in (DATA, TENSORS))
    if entries[CHECKSUMS] != sums.encode():
        raise ValueError("the checksums do not fit the contents")
    return entries


def _parse(content: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a JSON object names a key twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    document = json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(document, dict) or set(document) != {"format", "version", "tree"} or document["format"] != FORMAT:
        raise ValueError(f"{DATA} is not a {FORMAT} document")
    if document["version"] != VERSION:
        raise ValueError(f"{DATA} has version {document['version']!r}; this program reads {VERSION}")
    return document


def one_line(error: Exception) -> str:
    """What an exception says, in one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__

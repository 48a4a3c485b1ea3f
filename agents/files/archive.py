"""Files that run no code: a tree of values and tensors in a ZIP of JSON and safetensors.

A file has three entries, stored without compression: `data.json`, `tensors.safetensors`, and `sha256`, which holds one
line for each of the other two in the format of the sha256sum program. Equal trees give equal bytes.
`palimpsest.agents.files.values` says what a tree may hold and how it is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from palimpsest.agents.files.values import Decoder, Encoder

File = str | os.PathLike[str] | BinaryIO
"""A path, or a file open in binary mode."""

DATA, TENSORS, CHECKSUMS = "data.json", "tensors.safetensors", "sha256"
FORMAT, VERSION = "palimpsest", 1

PART = ".part"
"""Suffix of files that are being written."""

MOST_JSON_BYTES = 256 * 1024**2
"""Largest `data.json` that is read; parsing takes about ten times as much memory."""

END_RECORD_BYTES = 22
"""Size of the record that ends a ZIP without a comment."""

_PICKLED = {"data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth", "_stable_baselines3_version"}
"""Entries by which a file of stable-baselines3 is recognised."""


class CorruptFile(ValueError):
    """A file that is torn, altered, or not one of ours."""


class NamedOnly(ValueError):
    """A file holds only the names of some classes, functions or objects.

    Args:
        message: the names and their places.
        tree: everything else in the file; None stands at those places.
    """

    def __init__(self, message: str, tree: Any) -> None:
        super().__init__(message)
        self.tree = tree


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        label: the file's path or name, for messages.
        tree: the values and tensors; None stands for each object of `missing`.
        missing: (qualified name, place in the tree) of objects that the file names and the caller did not give.
    """

    label: str
    tree: Any
    missing: list[tuple[str, str]]

    def refuse_names(self) -> None:
        """Raise `NamedOnly` where objects are missing."""
        if self.missing:
            names = ", ".join(f"{name!r} (at {place!r})" for name, place in self.missing)
            wanted = ", ".join(f"{place!r}: ..." for _, place in self.missing)
            raise NamedOnly(
                f"{self.label!r} knows these by name only: {names}; no name from a file is imported, so give each "
                f"object by its place: custom_objects={{{wanted}}}",
                self.tree,
            )


def write_tree(file: File, tree: Any) -> None:
    """Write `tree`. A reader of the path sees the whole file or the one before it, whatever stops the writer.

    Args:
        file: a path, which gets the suffix ".zip" if it has none and whose folder is made if it does not exist, or a
            file open for writing in binary mode.
        tree: what `palimpsest.agents.files.values` can write.

    Raises:
        ValueError: something in the tree cannot be written, or `file` is neither of the two.
        OSError: a full disk, a lost directory; the path still holds what it held before.
    """
    if not isinstance(file, str | os.PathLike):
        _check_stream(file, "write")
    encoder = Encoder()
    document = {"format": FORMAT, "version": VERSION, "tree": encoder.encode(tree)}
    entries = {
        DATA: json.dumps(document, separators=(",", ":"), allow_nan=False).encode(),
        TENSORS: safetensors.torch.save(encoder.tensors),
    }
    entries[CHECKSUMS] = _checksums(entries)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    if isinstance(file, str | os.PathLike):
        path = _with_suffix(Path(file))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, packed.getbuffer())
    else:
        file.write(packed.getbuffer())


def read_contents(
    file: File,
    custom_objects: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    classes: Mapping[str, type] | None = None,
) -> Contents:
    """Read what `write_tree` wrote. Nothing in the file is executed, imported or unpickled.

    Args:
        file: a path (".zip" is added where there is no such file), or a file open for reading in binary mode. Such a
            file is read from its position, or from its start if it stands at its end, as it does after `write_tree`.
        custom_objects: object by place in the tree, such as "policy_kwargs.activation_fn", where it replaces what the
            file holds. For what the file knows by name only, the last parts of the place or the qualified name are
            enough, if they fit one place only.
        device: where tensors go; arrays stay on the CPU.
        classes: classes by qualified name that the file may name, besides those of torch and stable-baselines3.

    Raises:
        CorruptFile: the file is torn, altered, or not one of ours.
        ValueError: a model of stable-baselines3, or `file` is neither a path nor such a file.
        OSError: the file is not there or cannot be read.
    """
    label, content = _read(file)
    torch.empty(0, device=device)  # a device that is missing is no fault of the file
    try:
        entries = _unpack(content)
        document = _parse(entries[DATA])
        decoder = Decoder(safetensors.torch.load(entries[TENSORS]), custom_objects, device, classes)
        tree = decoder.decode(document["tree"])
        if unused := set(decoder.tensors) - decoder.used:
            raise ValueError(f"tensors that nothing refers to: {sorted(unused)[:5]}")
    except _Foreign:
        raise ValueError(
            f"{label!r} is a model of stable-baselines3, whose pickles can run code; if you trust it, convert one of "
            "PPO or RecurrentPPO with examples/from_sb3.py, which loads it there and hands its parameters over; one "
            "of another algorithm cannot be converted: train it again"
        ) from None
    except Exception as error:  # whatever a parser says of a stranger's bytes, the bytes are at fault
        raise CorruptFile(f"{label!r} is torn, altered or not one of our files: {one_line(error)}") from None
    return Contents(label, tree, decoder.missing())


def read_tree(
    file: File,
    custom_objects: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """The tree of `read_contents`; arguments and errors are the same.

    Raises:
        NamedOnly: the file knows an object by name only, and `custom_objects` does not give it.
    """
    contents = read_contents(file, custom_objects, device)
    contents.refuse_names()
    return contents.tree


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside, sync, rename, and sync the directory where the system can.

    `path` then holds all of `content`; whatever goes wrong, it holds what it held before.

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
        if hasattr(os, "O_DIRECTORY"):  # Windows opens no directories
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_parts(directory: Path) -> None:
    """Remove what killed writers left beside the files of `directory`; no writer may be at work there."""
    for part in directory.glob(f".*{PART}"):
        part.unlink()


def one_line(error: Exception) -> str:
    """The message of an exception in one line of at most 300 characters; its type if the message is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class _Foreign(Exception):
    """A file of stable-baselines3."""


def _with_suffix(path: Path) -> Path:
    if not path.name:
        raise ValueError(f"a model's file needs a name; got the folder {str(path)!r}")
    return path if path.suffix else path.with_name(f"{path.name}.zip")


def _check_stream(file: Any, action: str) -> None:
    """Refuse what is no file open in binary mode for `action`, "read" or "write"."""
    allowed = getattr(file, "readable" if action == "read" else "writable", lambda: True)
    if not hasattr(file, action) or isinstance(file, io.TextIOBase) or not allowed():
        mode = "rb" if action == "read" else "wb"
        raise ValueError(f"a model's file must be a path or a file open in mode {mode!r}; got {file!r}")


def _read(file: File) -> tuple[str, bytes]:
    """A file's name for messages, and its bytes."""
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        with_zip = path.with_name(f"{path.name}.zip") if path.name else path
        if not path.is_file() and with_zip.is_file():
            path = with_zip
        elif not path.exists():
            path = _with_suffix(path)
        return str(path), path.read_bytes()
    _check_stream(file, "read")
    content = file.read()
    if not content and getattr(file, "seekable", lambda: False)():
        file.seek(0)
        content = file.read()
    return str(getattr(file, "name", "the file")), content


def _checksums(entries: Mapping[str, bytes]) -> bytes:
    lines = (f"{hashlib.sha256(entries[name]).hexdigest()}  {name}\n" for name in (DATA, TENSORS))
    return "".join(lines).encode()


def _unpack(content: bytes) -> dict[str, bytes]:
    """The three entries of a ZIP, checked. Nothing is decompressed, so nothing grows beyond the file's own size."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if "data" in names and _PICKLED & set(names) - {"data"}:
            raise _Foreign
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            raise ValueError("a pickle of torch.save, which can run code")
        if names != [DATA, TENSORS, CHECKSUMS]:
            raise ValueError(f"entries {names[:5]}; expected {[DATA, TENSORS, CHECKSUMS]}")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise ValueError(f"{info.filename} is compressed or encrypted")
        ended = content[-END_RECORD_BYTES:].startswith(b"PK\x05\x06")
        size = sum(info.file_size for info in infos)
        if not ended or archive.comment or infos[0].header_offset or size > len(content):
            raise ValueError("bytes before, after or across the entries")
        if infos[0].file_size > MOST_JSON_BYTES:
            raise ValueError(f"{DATA} has {infos[0].file_size:,} bytes; at most {MOST_JSON_BYTES:,} are read")
        entries = {info.filename: archive.read(info) for info in infos}
    if entries[CHECKSUMS] != _checksums(entries):
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

"""Words of a command line, parsed with tyro into a dataclass. Errors are one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from palimpsest.agents.run.config import Arguments, Axes
from palimpsest.agents.run.key_values import Given, describe, read_value, spelled_out, split_key_values
from palimpsest.agents.run.program import PROGRAM
from palimpsest.refusals import closest

ConfigT = TypeVar("ConfigT")

REPEATED = "--wrapper"
"""A flag that may be given several times, each time with values of its own."""

NAMES = {"start_from": "from"}
"""Field -> its flag, where Python has another use for the word."""


class Usage(Exception):
    """Wrong usage. The message is one line."""


def parse(cls: type[ConfigT], argv: list[str], default: ConfigT | None = None) -> ConfigT:
    """Parse `argv` with tyro. Its errors become `Usage`."""
    argv = _gathered(argv)
    for flag in ("--env-args", "--memory-args", "--algo-args", "--grid"):
        if sum(_dashed(word) == flag for word in argv) > 1:
            raise Usage(f"{flag} is given twice; give all its KEY=VALUE arguments after one")
    name = cls.__name__.removesuffix("Command").lower()
    complaint = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            config, unknown = tyro.cli(
                cls,
                prog=f"{PROGRAM} {name}",
                args=argv,
                registry=_REGISTRY,
                return_unknown_args=True,
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        said = _first_paragraph(complaint.getvalue()).removeprefix(f"{cls.__name__}: ")
        raise Usage(f"{said}; see {PROGRAM} {name} --help") from None
    if unknown:
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        flags = [f"--{NAMES.get(field.name, field.name).replace('_', '-')}" for field in fields]
        word = unknown[0]
        hint = closest(_dashed(word), flags) if word.startswith("-") else ""
        raise Usage(f"unknown argument {word!r}{hint}; see {PROGRAM} {name} --help")
    return config


def _gathered(argv: list[str]) -> list[str]:
    """`argv` with the values of `REPEATED` in one place."""
    rest: list[str] = []
    values: list[str] = []
    taking = False
    for i, word in enumerate(argv):
        if _dashed(word) == REPEATED:
            taking = "=" not in word
            if taking and (i + 1 == len(argv) or argv[i + 1].startswith("-")):
                raise Usage(f"Missing value for argument '{REPEATED}'; give a wrapper's name after it")
            values += [] if taking else [word.partition("=")[2]]
        elif taking and not word.startswith("-"):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return [*rest, REPEATED, *values] if values else rest


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _key_values(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """KEY=VALUE words. They stay texts until the environment or memory is known, which says their types."""
    if info.type not in (Arguments, Axes):
        return None
    expand = spelled_out if info.type == Axes else list
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY=VALUE ...",
        instance_from_str=lambda words: Given(or_usage(lambda: split_key_values(expand(words)))),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{key}={part}" for key, part in value.items()] or ["none"],
    )


@_REGISTRY.primitive_rule
def _plain(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Numbers, strings and paths, and None if the field is optional, with our own error messages."""
    optional = isinstance(info.type, types.UnionType)
    (kind,) = [part for part in typing.get_args(info.type) if part is not type(None)] if optional else [info.type]
    metavars = {int: "INT", float: "NUMBER", str: "NAME", Path: "PATH"}
    if kind not in metavars:
        return None

    def read(words: list[str]) -> Any:
        try:
            return read_value(words[0], kind)
        except ValueError:
            raise ValueError(f"must be {describe(kind)}; got {words[0]!r}") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavars[kind],
        instance_from_str=read,
        is_instance=lambda value: value is None if value is None else isinstance(value, kind),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def or_usage(work: Callable[[], Any]) -> Any:
    """Return the result of `work`. Its ValueError becomes `Usage`."""
    try:
        return work()
    except ValueError as error:
        raise Usage(str(error)) from None


def value_of(argv: list[str], flag: str) -> str | None:
    """The value of the last `flag` in `argv`, which is the next word or follows "="; None if there is none."""
    found = None
    for index, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and index + 1 < len(argv):
            found = argv[index + 1]
    return found


def _dashed(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _first_paragraph(box: str) -> str:
    """The text of a boxed message up to its first horizontal line, joined to one line."""
    lines = [line.strip("│╭╮╰╯─|+. ") for line in box.splitlines()[1:]]
    paragraphs = "\n".join(line if line.strip("-") else "" for line in lines).strip().split("\n\n")
    said = " ".join(paragraphs[0].split()).removeprefix("Error parsing ").replace(": must be", " must be")
    return said or "The arguments do not fit."

"""Train, evaluate, compare and list agents that remember: `palimpsest --help`, or `python train.py --help` in a clone.

Exit codes: 0 success; 1 a failure of a running command, the run directory is kept; 2 wrong usage, no file is written;
128 + n stopped by signal n (130 SIGINT, 143 SIGTERM), with a checkpoint to resume from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

from palimpsest import __version__
from palimpsest.agents.run.config import Arguments, Axes, EvaluateConfig, TrainConfig
from palimpsest.agents.run.key_values import (
    Given,
    algorithm_arguments,
    describe,
    environment_arguments,
    memory_arguments,
    read_value,
    spelled_out,
    split_key_values,
)
from palimpsest.agents.run.presets import usual
from palimpsest.agents.run.program import PROGRAM
from palimpsest.agents.sweep.config import ReportConfig, SweepConfig
from palimpsest.refusals import closest

ConfigT = TypeVar("ConfigT")


class Usage(Exception):
    """Wrong usage. The message is one line."""


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train an agent.

    Other commands: "evaluate" tests runs, see "evaluate --help"; "sweep" trains a suite of runs and "report" compares
    them; "list" shows environments and memories. Without a command, flags are those of "train". Every flag has a
    default. "--version" prints the version.
    """

    config: Path | None = None
    """A configuration file, or a run directory, whose values are the defaults. Other flags replace them. KEY=VALUE
    arguments are replaced one by one if the environment or memory stays the same."""

    # `bool` makes it a switch on the command line; it is None until the memory is known
    share_memory: bool = None  # type: ignore[assignment]
    """Whether actor and critic share one memory or have one each. Default: the memory's preset."""

    UNSAVED: ClassVar[frozenset[str]] = TrainConfig.UNSAVED | {"config"}

    def __post_init__(self) -> None:
        _or_usage(super().__post_init__)
        if self.config is not None and self.resume is not None:
            raise Usage("--resume takes the run's own configuration; leave out --config")

    def _take_preset(self) -> None:
        """Do nothing yet: a later flag may name another memory."""


@dataclass(frozen=True)
class EvaluateCommand(EvaluateConfig):
    """Evaluate the agent of a run, or of several runs that differ only in their seed, in one or in many settings."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """The directory of the run."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN_DIR ...]")] = ()
    """Further runs, with other seeds. The output is then the mean over runs and its standard error."""
    grid: Axes = dataclasses.field(default_factory=dict)
    """Arguments of the environment with several values each, KEY=A,B,C: every combination is tested. The word lengths
    stands for length=9,30,90,150,... up to 9600, the corridors of arXiv 2412.06531."""

    def __post_init__(self) -> None:
        _or_usage(super().__post_init__)


@dataclass(frozen=True)
class SweepCommand(SweepConfig):
    """Train and test all runs of a suite, side by side. A sweep that was stopped continues where it was."""

    suite: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE.toml")]
    """The suite: environments, memories, settings and seeds (docs/sweeps.md)."""

    def __post_init__(self) -> None:
        _or_usage(super().__post_init__)


@dataclass(frozen=True)
class ReportCommand(ReportConfig):
    """Compare the runs of a sweep: tables, statistics over runs and tasks, plots."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|CSV")]
    """The folder of a sweep, or its results.csv."""

    def __post_init__(self) -> None:
        _or_usage(super().__post_init__)


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"palimpsest {__version__}")
        return 0
    try:
        if not argv or argv[0].startswith("-"):
            return _train(argv)
        commands = {"train": _train, "evaluate": _evaluate, "sweep": _sweep, "report": _report, "list": _list}
        if argv[0] not in commands:
            raise Usage(f"unknown command {argv[0]!r}{closest(argv[0], commands)}; known: {', '.join(commands)}")
        return commands[argv[0]](argv[1:])
    except Usage as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _train(argv: list[str]) -> int:
    saved, default = TrainConfig(), TrainCommand()
    source = _value_of(argv, "--resume") or _value_of(argv, "--config")
    if source:
        saved = _or_usage(lambda: TrainConfig.load(Path(source)))
        default = TrainCommand.load(Path(source))
    if default.share_memory is None:
        memory, algo = (_value_of(argv, f"--{name}") or getattr(default, name) for name in ("memory", "algo"))
        default = dataclasses.replace(default, share_memory=usual(memory, algo).share_memory)
    command = _parse(TrainCommand, argv, default)
    config = TrainConfig(**_fields(command, TrainConfig))
    config = _or_usage(lambda: _resolved(config, saved))
    if config.resume is not None:
        if not config.resume.is_dir():
            raise Usage(f"--resume must name a run's directory; got {str(config.resume)!r}")
        _check_resumed(config, saved)
    else:
        config = dataclasses.replace(config, run_dir=config.run_dir or config.new_run_dir())
    directory = config.resume or config.run_dir
    assert directory is not None
    first = os.environ.get("RANK", "0") == "0"
    if config.resume is None and first and (directory.exists() or directory.is_symlink()):
        raise Usage(f"run directory {str(directory)!r} exists; choose another --run-dir, or leave it out")

    from palimpsest.agents.launch import start
    from palimpsest.agents.run.resume import Interrupted, RunFailed

    try:
        start.train(config)
    except (Interrupted, RunFailed) as stop:
        return _fail(stop, stop.exit_code)
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(error, 1 if directory.exists() else 2)
    return 0


def _evaluate(argv: list[str]) -> int:
    command = _parse(EvaluateCommand, argv)
    config = EvaluateConfig(**_fields(command, EvaluateConfig))
    run_dirs = (command.run_dir, *command.more)
    trained, *_ = _or_usage(lambda: [TrainConfig.load(path) for path in run_dirs])
    if config.json is not None:
        _check_output(config.json)
    env = trained.env if config.env is None else config.env
    env_args = _or_usage(lambda: environment_arguments(env, config.env_args))
    axes = _or_usage(lambda: _axes(env, command.grid))
    config = dataclasses.replace(config, env_args=env_args)

    from palimpsest.agents.files.archive import CorruptFile
    from palimpsest.agents.run import experiment, listing

    try:
        if command.more or axes:
            listing.show_grid(experiment.evaluate_grid(config, run_dirs, axes))
        else:
            listing.show_evaluation(experiment.evaluate(config))
    except (CorruptFile, OSError) as error:
        return _fail(error, 1)
    except ValueError as error:
        return _fail(error, 2)
    return 0


def _sweep(argv: list[str]) -> int:
    config = SweepConfig(**_fields(_parse(SweepCommand, argv), SweepConfig))

    from palimpsest.agents.run.resume import Interrupted, RunFailed
    from palimpsest.agents.sweep.sweep import sweep

    try:
        sweep(config)
    except (Interrupted, RunFailed) as stop:
        return _fail(stop, stop.exit_code)
    except OSError as error:
        return _fail(error, 1)
    except ValueError as error:
        return _fail(error, 2)
    return 0


def _report(argv: list[str]) -> int:
    config = ReportConfig(**_fields(_parse(ReportCommand, argv), ReportConfig))

    from palimpsest.agents.sweep.report import report

    try:
        report(config)
    except OSError as error:
        return _fail(error, 1)
    except ValueError as error:
        return _fail(error, 2)
    return 0


def _check_output(path: Path) -> None:
    """Refuse a --json path where no file can be made. Missing folders are allowed; they are made with the file."""
    if path.is_dir():
        raise Usage(f"--json {str(path)!r} is a folder; name a file in it")
    ancestor = next(folder for folder in path.absolute().parents if folder.exists())
    if not ancestor.is_dir():
        raise Usage(f"--json {str(path)!r} cannot be made, as {str(ancestor)!r} is not a folder; choose another path")


def _list(argv: list[str]) -> int:
    if argv in (["--help"], ["-h"]):
        print(f"usage: {PROGRAM} list\n\nShow the environments and memories, each with one line of explanation.")
        return 0
    if argv:
        raise Usage(f"list takes no arguments; got {' '.join(argv)!r}")

    from palimpsest.agents.run import listing

    listing.show()
    return 0


def _parse(cls: type[ConfigT], argv: list[str], default: ConfigT | None = None) -> ConfigT:
    """Parse `argv` with tyro. Its errors become `Usage`."""
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
        raise Usage(f"{_first_paragraph(complaint.getvalue())}; see {PROGRAM} {name} --help") from None
    if unknown:
        flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        word = unknown[0]
        hint = closest(_dashed(word), flags) if word.startswith("-") else ""
        raise Usage(f"unknown argument {word!r}{hint}; see {PROGRAM} {name} --help")
    return config


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
        instance_from_str=lambda words: Given(_or_usage(lambda: split_key_values(expand(words)))),
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


def _resolved(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """Check the names, convert the KEY=VALUE texts for the constructors, and let them replace saved arguments."""
    merged: dict[str, Any] = {}
    resolvers = ("env", environment_arguments), ("memory", memory_arguments), ("algo", algorithm_arguments)
    for name, resolve in resolvers:
        chosen, arguments = getattr(config, name), getattr(config, f"{name}_args")
        base = getattr(saved, f"{name}_args") if chosen == getattr(saved, name) else {}
        if not isinstance(arguments, Given):
            arguments = {}
        merged[f"{name}_args"] = {**resolve(chosen, base), **resolve(chosen, arguments)}
    return dataclasses.replace(config, **merged)


def _axes(env: str, texts: Axes) -> dict[str, list[Any]]:
    """The values of KEY=A,B,C, each converted for the environment's constructor."""
    return {
        key: [environment_arguments(env, Given({key: part}))[key] for part in text.split(",")]
        for key, text in texts.items()
    }


def _check_resumed(config: TrainConfig, saved: TrainConfig) -> None:
    for name, value in _fields(config, TrainConfig).items():
        if name not in TrainConfig.FREE_ON_RESUME and value != getattr(saved, name):
            raise Usage(
                f"{name} is {getattr(saved, name)!r} in the run to resume; got {value!r}, which would be another run: "
                f"leave it out, or start one with --config {config.resume}"
            )


def _or_usage(work: Callable[[], Any]) -> Any:
    """Return the result of `work`. Its ValueError becomes `Usage`."""
    try:
        return work()
    except ValueError as error:
        raise Usage(str(error)) from None


def _fields(config: Any, cls: type) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}


def _value_of(argv: list[str], flag: str) -> str | None:
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


def _fail(error: object, code: int) -> int:
    print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

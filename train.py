"""Train, evaluate, compare and list agents that remember: `palimpsest --help`, or `python train.py --help` in a clone.

Exit codes: 0 success; 1 a failure of a running command, the run directory is kept; 2 wrong usage, no file is written;
128 + n stopped by signal n (130 SIGINT, 143 SIGTERM), with a checkpoint to resume from.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

from palimpsest import __version__
from palimpsest.agents.command.parsing import Usage, or_usage, parse, value_of
from palimpsest.agents.run.config import Axes, EvaluateConfig, TrainConfig
from palimpsest.agents.run.key_values import Given, algorithm_arguments, environment_arguments, memory_arguments
from palimpsest.agents.run.presets import ENGINES, GO_BY, filled_anew, usual
from palimpsest.agents.run.program import PROGRAM
from palimpsest.agents.sweep.config import SweepConfig
from palimpsest.agents.tune.config import ENGINES as TRIAL_ENGINES
from palimpsest.agents.tune.config import TuneConfig
from palimpsest.imports import from_here
from palimpsest.refusals import choice, closest

TrainT = TypeVar("TrainT", bound="TrainCommand")

ROOMS = {
    "report": "palimpsest.agents.sweep.config:ReportCommand",
    "play": "palimpsest.agents.watch.config:PlayCommand",
    "inspect": "palimpsest.agents.watch.config:InspectCommand",
    "export": "palimpsest.agents.export.config:ExportCommand",
}
"""Commands whose rooms do them: a dataclass of flags whose `done_by` names the function."""


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train an agent.

    Other commands: "evaluate" tests runs, see "evaluate --help"; "sweep" trains a suite of runs and "report" compares
    them; "tune" searches for hyperparameters; "play" shows an agent, "inspect" looks inside it and "export" writes it
    as an ONNX file; "list" shows environments and memories. Without a command, flags are those of "train". Every flag
    has a default. "--version" prints the version.
    """

    config: Path | None = None
    """A configuration file, or a run directory, whose values are the defaults. Other flags replace them. KEY=VALUE
    arguments are replaced one by one if the environment or memory stays the same."""
    zoo_config: Path | None = None
    """A hyperparameter file of rl-zoo3 for ppo_lstm (YAML), whose values are the defaults; docs/tuning.md."""
    zoo_key: str | None = None
    """The entry of that file. Default: that of --env, or the only one."""

    # `bool` makes it a switch on the command line; it is None until the memory is known
    share_memory: bool = None  # type: ignore[assignment]
    """Whether actor and critic share one memory or have one each. Default: the memory's preset."""

    start_from: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A run, checkpoint, model.zip or shelf:NAME whose weights a new run starts from. Its configuration gives the
    defaults."""

    engine: Annotated[str, choice(ENGINES)] = "processes"
    """What starts the workers: processes of this machine, or ray for Ray Train (the extra "cluster")."""

    UNSAVED: ClassVar[frozenset[str]] = TrainConfig.UNSAVED | {"engine", "config", "zoo_config", "zoo_key"}

    def __post_init__(self) -> None:
        or_usage(super().__post_init__)
        if self.config is not None and self.resume is not None:
            raise Usage("--resume takes the run's own configuration; leave out --config")
        if self.zoo_config is not None and (self.config or self.resume or self.start_from) is not None:
            raise Usage("--zoo-config gives a whole configuration; leave out --config, --resume and --from")
        if self.zoo_key is not None and self.zoo_config is None:
            raise Usage(f"--zoo-key names an entry of --zoo-config; got {self.zoo_key!r} without it")
        if self.start_from is not None and self.resume is not None:
            raise Usage("--resume goes on with a run, --from starts a new one; leave one out")

    def _take_preset(self) -> None:
        """Do nothing yet: a later flag may name another memory."""


@dataclass(frozen=True)
class EvaluateCommand(EvaluateConfig):
    """Evaluate the agent of a run, or of several runs that differ only in their seed, in one or in many settings."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR|MODEL")]
    """The directory of a run, finished or not, a model's file (a checkpoint, best.zip or model.zip), or shelf:NAME."""
    more: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN_DIR ...]")] = ()
    """Further runs, with other seeds. The output is then the mean over runs and its standard error."""
    grid: Axes = dataclasses.field(default_factory=dict)
    """Arguments of the environment with several values each, KEY=A,B,C: every combination is tested. The word lengths
    stands for length=9,30,90,150,... up to 9600, the corridors of arXiv 2412.06531."""

    def __post_init__(self) -> None:
        or_usage(super().__post_init__)


@dataclass(frozen=True)
class SweepCommand(SweepConfig):
    """Train and test all runs of a suite, side by side. A sweep that was stopped continues where it was."""

    suite: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE.toml")]
    """The suite: environments, memories, settings and seeds (docs/sweeps.md)."""

    def __post_init__(self) -> None:
        or_usage(super().__post_init__)


@dataclass(frozen=True)
class TuneCommand(TrainCommand, TuneConfig):
    """Search for the hyperparameters of a training. A search that was stopped continues where it was.

    A flag of "train" that is given is fixed, and is not searched. --config gives the values of the first trial.
    """

    run_dir: Annotated[Path | None, tyro.conf.Suppress] = None
    resume: Annotated[Path | None, tyro.conf.Suppress] = None
    # that of trials, not of a training's workers
    engine: Annotated[str, choice(TRIAL_ENGINES)] = "pool"
    """pool for processes on this machine, or ray for a Ray cluster (the extra "cluster")."""

    UNSAVED: ClassVar[frozenset[str]] = TrainCommand.UNSAVED | {spec.name for spec in dataclasses.fields(TuneConfig)}

    def __post_init__(self) -> None:
        or_usage(super().__post_init__)
        if (self.run_dir or self.resume) is not None:
            raise Usage("tune has one folder, --out, and goes on where it was; leave out --run-dir and --resume")


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["--version"]:
        print(f"palimpsest {__version__}")
        return 0
    with from_here():
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        if not argv or argv[0].startswith("-"):
            return _train(argv)
        commands = {"train": _train, "evaluate": _evaluate, "sweep": _sweep, "tune": _tune, "list": _list}
        if argv[0] in ROOMS:
            return _by_room(ROOMS[argv[0]], argv[1:])
        if argv[0] not in commands:
            known = [*commands, *ROOMS]
            raise Usage(f"unknown command {argv[0]!r}{closest(argv[0], known)}; known: {', '.join(known)}")
        return commands[argv[0]](argv[1:])
    except Usage as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _configured(cls: type[TrainT], argv: list[str]) -> tuple[TrainT, TrainConfig, TrainConfig]:
    """The command, the training that it describes, and the one that its file describes."""
    saved, default = TrainConfig(), cls()
    source = value_of(argv, "--resume") or value_of(argv, "--config") or _run_of(value_of(argv, "--from"))
    zoo = value_of(argv, "--zoo-config")
    if source:
        saved = or_usage(lambda: TrainConfig.load(Path(source)))
        default = cls.load(Path(source))
        if not value_of(argv, "--resume"):
            default = dataclasses.replace(default, **filled_anew(default, _replaced(argv, default)))
    elif zoo:
        from palimpsest.agents.zoo import hyperparameters

        env, key = value_of(argv, "--env"), value_of(argv, "--zoo-key")
        saved = or_usage(lambda: hyperparameters.load(Path(zoo), env, key))
        default = cls(**_fields(saved, TrainConfig))
    if default.share_memory is None:
        memory, algo = (value_of(argv, f"--{name}") or getattr(default, name) for name in ("memory", "algo"))
        default = dataclasses.replace(default, share_memory=usual(memory, algo).share_memory)
    command = parse(cls, argv, default)
    config = TrainConfig(**_fields(command, TrainConfig))
    return command, or_usage(lambda: _resolved(config, saved)), saved


def _replaced(argv: list[str], default: TrainConfig) -> set[str]:
    """Which of the fields that presets go by have another value on the command line than in its file."""
    given = {name: value_of(argv, f"--{name.replace('_', '-')}") or value_of(argv, f"--{name}") for name in GO_BY}
    return {name for name, text in given.items() if text not in (None, str(getattr(default, name)))}


def _train(argv: list[str]) -> int:
    command, config, saved = _configured(TrainCommand, argv)
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
        start.train(config, engine=command.engine)
    except (Interrupted, RunFailed) as stop:
        return _fail(stop, stop.exit_code)
    except Exception as error:
        from palimpsest.agents.command.blame import is_of_user
        from palimpsest.agents.launch.follow import remedy

        theirs = is_of_user(error)
        if not theirs and not isinstance(error, ValueError | OSError | FloatingPointError):
            raise  # a fault of ours shows where it is
        began = directory.exists()
        return _fail(error, 1 if began else 2, remedy(config) if theirs and began else "")
    return 0


def _run_of(agent: str | None) -> Path | None:
    """The run directory that an agent's path is in; None if it is in none."""
    if not agent:
        return None
    from palimpsest.agents.run.runs import find

    return or_usage(lambda: find(Path(agent))).directory


def _evaluate(argv: list[str]) -> int:
    command = parse(EvaluateCommand, argv)
    config = EvaluateConfig(**_fields(command, EvaluateConfig))
    run_dirs = (command.run_dir, *command.more)

    from palimpsest.agents.run.runs import find

    trained = or_usage(lambda: [find(path) for path in run_dirs])[0].config
    if config.json is not None:
        _check_output(config.json)
    env = config.env
    if env is None:
        if trained is None:
            raise Usage(
                f"{str(command.run_dir)!r} is in no run directory, which would name the environment; give --env"
            )
        env = trained.env
    env_args = or_usage(lambda: environment_arguments(env, config.env_args))
    axes = or_usage(lambda: _axes(env, command.grid))
    config = dataclasses.replace(config, env_args=env_args)

    from palimpsest.agents.run import closing, listing

    if command.more or axes:
        return _done(lambda: closing.evaluate_grid(config, run_dirs, axes, listing.show_grid))
    return _done(lambda: closing.evaluate(config, listing.show_evaluation))


def _by_room(target: str, argv: list[str]) -> int:
    command = or_usage(lambda: parse(_named(target), argv))
    return _done(lambda: _named(command.done_by)(command))


def _named(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _sweep(argv: list[str]) -> int:
    config = SweepConfig(**_fields(parse(SweepCommand, argv), SweepConfig))

    from palimpsest.agents.sweep.sweep import sweep

    return _done(lambda: sweep(config))


def _tune(argv: list[str]) -> int:
    command, training, _ = _configured(TuneCommand, argv)
    given = (word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--"))
    flags = {flag.removeprefix("--no-").removeprefix("--") for flag in given}
    fixed = {name for name in _fields(command, TrainConfig) if name.replace("_", "-") in flags}
    fixed |= {f"{name}.{key}" for name in ("memory_args", "algo_args") for key in _given(getattr(command, name))}
    config = TuneConfig(**_fields(command, TuneConfig))

    from palimpsest.agents.tune.tune import tune

    return _done(lambda: tune(config, training, frozenset(fixed)))


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if isinstance(arguments, Given) else {}


def _done(work: Callable[[], Any]) -> int:
    """Do the work of a command and return its exit code."""
    from gymnasium.error import DependencyNotInstalled

    from palimpsest.agents.files.archive import CorruptFile
    from palimpsest.agents.run.resume import Interrupted, RunFailed

    try:
        work()
    except (Interrupted, RunFailed) as stop:
        return _fail(stop, stop.exit_code)
    except (CorruptFile, OSError) as error:
        return _fail(error, 1)
    except (ValueError, DependencyNotInstalled) as error:
        return _fail(error, 2)
    except Exception as error:
        from palimpsest.agents.command.blame import is_of_user

        if not is_of_user(error):
            raise
        return _fail(error, 1)
    return 0


def _check_output(path: Path) -> None:
    """Refuse a --json path where no file can be made. Missing folders are allowed; they are made with the file."""
    if path.is_dir():
        raise Usage(f"--json {str(path)!r} is a folder; name a file in it")
    ancestor = next(folder for folder in path.absolute().parents if folder.exists())
    if not ancestor.is_dir():
        raise Usage(f"--json {str(path)!r} cannot be made, as {str(ancestor)!r} is not a folder; choose another path")
    try:
        tempfile.TemporaryFile(dir=ancestor).close()
    except OSError as error:
        why = f"as nothing can be written to {str(ancestor)!r} ({error.strerror or error}); choose another path"
        raise Usage(f"--json {str(path)!r} cannot be made, {why}") from None


def _list(argv: list[str]) -> int:
    if argv in (["--help"], ["-h"]):
        print(f"usage: {PROGRAM} list\n\nShow the environments and memories, each with one line of explanation.")
        return 0
    if argv:
        raise Usage(f"list takes no arguments; got {' '.join(argv)!r}")

    from palimpsest.agents.run import listing

    listing.show()
    return 0


def _resolved(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """Check the names, convert the KEY=VALUE texts for the constructors, and let them replace saved arguments."""
    merged: dict[str, Any] = {}
    resolvers = ("env", environment_arguments), ("memory", memory_arguments), ("algo", algorithm_arguments)
    for name, resolve in resolvers:
        chosen, arguments = getattr(config, name), getattr(config, f"{name}_args")
        base = getattr(saved, f"{name}_args") if chosen == getattr(saved, name) else {}
        merged[f"{name}_args"] = {**resolve(chosen, base), **resolve(chosen, _given(arguments))}
    return dataclasses.replace(config, **merged)


def _axes(env: str, texts: Axes) -> dict[str, list[Any]]:
    """The values of KEY=A,B,C, each converted for the environment's constructor."""
    return {
        key: [environment_arguments(env, Given({key: part}))[key] for part in text.split(",")]
        for key, text in texts.items()
    }


def _check_resumed(config: TrainConfig, saved: TrainConfig) -> None:
    for name, value in _fields(config, TrainConfig).items():
        if name == "total_timesteps" and value > saved.total_timesteps:
            continue
        if name not in TrainConfig.FREE_ON_RESUME and value != getattr(saved, name):
            raise Usage(
                f"{name} is {getattr(saved, name)!r} in the run to resume; got {value!r}, which would be another run: "
                f"leave it out, or start one with --config {config.resume}"
            )


def _fields(config: Any, cls: type) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}


def _fail(error: object, code: int, remedy: str = "") -> int:
    from palimpsest.agents.command.blame import told

    print(f"{PROGRAM}: {told(error)}", file=sys.stderr)
    if remedy:
        print(remedy, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

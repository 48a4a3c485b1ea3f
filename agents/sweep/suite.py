"""Suites: which environments, memories, settings and seeds a sweep trains, read from a TOML file.

Importing this module imports no torch. `check_runs` does, because it makes each environment once.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.run.config import EPISODES, RETURN, Arguments, Checked, TrainConfig
from palimpsest.agents.run.key_values import environment_arguments, memory_arguments
from palimpsest.refusals import NAMED, check, closest, integer, refuse

BY_THE_SWEEP = frozenset({"env", "env_args", "memory", "seed", "threads", "progress", "run_dir", "resume"}) | {
    "closing_episodes",  # a suite has `episodes`
    "workers",
}
"""Fields of a training that a suite sets elsewhere, or that the sweep sets."""

TRAINABLE = [spec.name for spec in dataclasses.fields(TrainConfig) if spec.name not in BY_THE_SWEEP]
"""Keys of the tables `train`, `settings.NAME` and `memory.NAME`."""

PLAIN = "default"
"""The setting's name where a suite names none."""

TableT = TypeVar("TableT")


@dataclass(frozen=True)
class Environment(Checked):
    """A table [[environments]]: one task, or one for each combination of the grid."""

    env: str
    """Any registered gymnasium id."""
    env_args: Arguments = field(default_factory=dict)
    """Its arguments."""
    grid: Arguments = field(default_factory=dict)
    """Arguments with a list of values each. Every combination is a task of its own, which is trained."""
    tests: tuple[Arguments, ...] = ()
    """Arguments of further settings in which each finished agent is tested."""
    test_grid: Arguments = field(default_factory=dict)
    """Arguments with a list of values each. Every combination is a further setting to test in."""
    train: Arguments = field(default_factory=dict)
    """Fields of the training in this environment."""
    returns: tuple[Annotated[float, RETURN], ...] | None = None
    """The mean returns that score 0 and 1. Without it, the score is the success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.returns is not None and (len(self.returns) != 2 or self.returns[0] >= self.returns[1]):
            refuse("returns", "the mean returns that score 0 and 1, the lower one first", list(self.returns))
        for name in ("grid", "test_grid"):
            for key, values in getattr(self, name).items():
                if not isinstance(values, tuple) or not values:
                    refuse(f"{name}.{key}", "a list of one value or more", values)

        tests = self.all_tests()
        for i, test in enumerate(tests):
            if not test:
                refuse("tests", "tables of one argument or more: each agent is tested as trained anyway", test)
            if test in tests[:i]:
                refuse("tests and test_grid", "different settings", test, "; leave one of the two out")

    def tasks(self) -> Iterator[Arguments]:
        """The arguments of each task."""
        for values in itertools.product(*self.grid.values()):
            yield {**self.env_args, **dict(zip(self.grid, values, strict=True))}

    def all_tests(self) -> tuple[Arguments, ...]:
        """The arguments of each further setting."""
        combined = itertools.product(*self.test_grid.values()) if self.test_grid else ()
        return (*self.tests, *(dict(zip(self.test_grid, values, strict=True)) for values in combined))


@dataclass(frozen=True)
class Suite(Checked):
    """A suite: environments × memories × settings × seeds."""

    environments: tuple[Arguments, ...]
    """Tables of `Environment`."""
    memories: tuple[str, ...]
    """Names of memories."""
    seeds: tuple[Annotated[int, integer(0, EVALUATION_SEED - 1)], ...] = (0, 1, 2)
    """Seeds, one training each."""
    twins: tuple[str, ...] = ()
    """Memories that are trained on the fully observed twin of each task too, where the hidden state is shown."""
    episodes: Annotated[int, integer(1, EPISODES)] = 200
    """Episodes in which a finished agent is tested, per setting."""
    train: Arguments = field(default_factory=dict)
    """Fields of every training."""
    settings: Arguments = field(default_factory=dict)
    """Name -> fields of the training. Every task is trained in every setting."""
    memory: Arguments = field(default_factory=dict)
    """Name of a memory -> fields of its trainings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("environments", "memories", "seeds"):
            if not getattr(self, name):
                refuse(name, "a list of one entry or more", list(getattr(self, name)))
        for name in ("memories", "seeds", "twins"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                refuse(name, "different entries", list(values))
        _check_fields("train", self.train)
        for name in ("settings", "memory"):
            for key, table in getattr(self, name).items():
                _check_fields(f"{name}.{key}", table)
        for key in self.memory:
            if key not in (known := (*self.memories, *self.twins)):
                raise ValueError(f"memory.{key} is for a memory of the suite{closest(key, known)}: {', '.join(known)}")


class Named(Protocol):
    """A run that an engine can do."""

    @property
    def name(self) -> str:
        """The name of its files, unique in the sweep."""


@dataclass(frozen=True)
class PlannedRun:
    """One training of a sweep and its tests."""

    suite: str
    name: str
    """The name of its directory, unique in the sweep."""
    setting: str
    config: TrainConfig
    tests: tuple[Arguments, ...]
    """Arguments of the environment that differ from the training, for each further test."""
    episodes: int
    returns: tuple[float, ...] | None


def load(path: Path) -> list[PlannedRun]:
    """The runs of a suite's file, task by task.

    Raises:
        ValueError: the file cannot be read, an unknown key (the message names the closest known one), or a value that
            is not allowed. The message names the file and the table.
    """
    try:
        return list(_runs(_table(Suite, tomllib.loads(path.read_text(encoding="utf-8"))), path.stem))
    except OSError as error:
        raise ValueError(f"cannot read the suite {str(path)!r}: {error.strerror or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not a TOML document: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_runs(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs whose environments or memories cannot be made as they are asked for; the message names the run."""
    from palimpsest import memory
    from palimpsest.agents.run.runs import environments, find

    made: set[str] = set()
    for run in runs:
        config = run.config
        try:
            key = repr((config.memory, sorted(config.memory_args.items())))
            if key not in made:
                made.add(key)
                memory.make(config.memory, 1, **memory_arguments(config.memory, config.memory_args))
            if config.start_from is not None:
                find(config.start_from)
            for test in ({}, *run.tests):
                env_args = {**config.env_args, **test}
                seen = (config.fully_observed, config.keep_observations, config.wrapper, config.vec)
                key = repr((config.env, sorted(env_args.items()), *seen))
                if key not in made:
                    made.add(key)
                    environment_arguments(config.env, env_args)
                    environments(dataclasses.replace(config, env_args=env_args), 1).close()
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None


def label(env: str, env_args: Mapping[str, Any]) -> str:
    """The name of a task in tables: the id without its namespace, then the arguments."""
    return " ".join([env.rpartition("/")[2], *(f"{key}={_word(value)}" for key, value in env_args.items())])


def _runs(suite: Suite, suite_name: str) -> Iterator[PlannedRun]:
    taken: set[str] = set()
    players = [(name, False) for name in suite.memories] + [(name, True) for name in suite.twins]
    for i, table in enumerate(suite.environments):
        where = f"environments[{i}]"
        environment = _table(Environment, table, where)
        _check_fields(f"{where}.train", environment.train)
        for env_args, (setting, changes), (memory, twin), seed in itertools.product(
            list(environment.tasks()), (suite.settings or {PLAIN: {}}).items(), players, suite.seeds
        ):
            fields = {**suite.train, **environment.train, **changes, **suite.memory.get(memory, {})}
            if twin:
                fields["fully_observed"] = True
            try:
                config = TrainConfig(
                    env=environment.env,
                    env_args=env_args,
                    memory=memory,
                    seed=seed,
                    threads=1,
                    progress=False,
                    **fields,
                )
            except ValueError as error:
                raise ValueError(f"{where}, {memory}: {error}") from None
            parts = [label(environment.env, env_args), *([setting] if setting != PLAIN else []), memory]
            parts += [*(["fully observed"] if config.fully_observed else []), str(seed)]
            name = re.sub(r"[^A-Za-z0-9.=,]+", "-", "-".join(parts))
            if name in taken or len(name) > 200:
                why = "is there twice" if name in taken else "is longer than 200 characters"
                raise ValueError(f"{where}: the run {name!r} {why}; every run needs a short name of its own")
            taken.add(name)
            tests = environment.all_tests()
            yield PlannedRun(suite_name, name, setting, config, tests, suite.episodes, environment.returns)


def _table(cls: type[TableT], table: Mapping[str, Any], where: str = "") -> TableT:
    """A table of the document as `cls`."""
    at = f"{where}: " if where else ""
    specs = {spec.name: spec for spec in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in specs:
            raise ValueError(f"{at}unknown key {key!r}{closest(key, specs)}; known: {', '.join(specs)}")
    for name, spec in specs.items():
        if name not in table and spec.default is spec.default_factory is dataclasses.MISSING:
            raise ValueError(f"{at}the key {name!r} is missing; needed: {_needed(specs)}")
    try:
        return cls(**table)
    except ValueError as error:
        raise ValueError(f"{at}{error}") from None


def _needed(specs: Mapping[str, Any]) -> str:
    return ", ".join(n for n, spec in specs.items() if spec.default is spec.default_factory is dataclasses.MISSING)


def _check_fields(where: str, table: Any) -> None:
    """Refuse a table that holds anything but fields of a training that a suite may set."""
    check(where, table, NAMED)
    for key in table:
        if key in BY_THE_SWEEP:
            raise ValueError(f"{where}: the sweep sets {key!r} itself, from the suite's other keys; leave it out")
        if key not in TRAINABLE:
            raise ValueError(f"{where}: unknown key {key!r}{closest(key, TRAINABLE)}; known: {', '.join(TRAINABLE)}")


def _word(value: Any) -> str:
    return ",".join(map(_word, value)) if isinstance(value, tuple) else str(value)

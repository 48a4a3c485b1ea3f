"""Search spaces: which fields of a training are searched, and over which values.

A space maps names to what may be chosen. A name is a field of `TrainConfig`, or "memory_args.NAME" or "algo_args.NAME"
for an argument of the memory or the algorithm.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from palimpsest import memory
from palimpsest.agents.run.config import PATH, TrainConfig
from palimpsest.agents.run.key_values import algorithm_arguments, memory_arguments
from palimpsest.agents.run.presets import replaying
from palimpsest.refusals import check, closest, is_flag, is_integer, is_number, keywords

BY_THE_SEARCH = frozenset(
    {
        *("env", "env_args", "memory", "algo", "seed", "threads", "device", "run_dir", "resume", "progress"),
        *("total_timesteps", "eval_every", "eval_episodes", "checkpoint_every", "keep_checkpoints"),
        *("solved", "solved_return", "memory_args", "algo_args"),
    }
)
"""Fields of a training that cannot be searched: with other values, trials could not be compared."""

SEARCHABLE = [spec.name for spec in dataclasses.fields(TrainConfig) if spec.name not in BY_THE_SEARCH]
TABLES = {"memory_args": memory_arguments, "algo_args": algorithm_arguments}

OF_THE_TASK = frozenset({"num_places", "num_tasks", "top_k"})
"""Integers of a memory that are not sizes: the environment's, or bounded by another."""


class Range(NamedTuple):
    """Numbers from `low` to `high`: integers if both are, drawn by their logarithm if `log`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value may be chosen."""
        fits = is_integer if isinstance(self.low, int) else is_number
        on_grid = self.step is None or math.isclose((value - self.low) % self.step, 0, abs_tol=1e-9)
        return fits(value, self.low, self.high) and on_grid

    def corners(self) -> tuple[Any, ...]:
        """Values that must be allowed."""
        return self.low, self.high

    def including(self, value: Any) -> Range:
        """The range, made as wide as a value asks for."""
        return self._replace(low=min(self.low, value), high=max(self.high, value))


class Options(NamedTuple):
    """One of several values."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value may be chosen."""
        return any(value == option and type(value) is type(option) for option in self.values)

    def corners(self) -> tuple[Any, ...]:
        """Values that must be allowed."""
        return self.values

    def including(self, value: Any) -> Options:
        """The options, and a value."""
        return self if self.holds(value) else Options((*self.values, value))


Space = dict[str, Range | Options]

USUAL: Space = {
    "learning_rate": Range(5e-5, 5e-3, log=True),
    "gamma": Options((0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)),
    "width": Options((32, 64, 128, 256)),
    "share_memory": Options((False, True)),
}
"""What is searched with every algorithm, beside the memory's sizes."""

USUAL_PPO: Space = {
    "n_steps": Options((32, 64, 128, 256, 512)),
    "num_envs": Options((8, 16, 32, 64)),
    "num_minibatches": Options((1, 2, 4, 8)),
    "n_epochs": Range(1, 10),
    "gae_lambda": Range(0.8, 1.0),
    "min_gae_lambda": Range(0.5, 1.0),
    "ent_coef": Range(1e-4, 0.1, log=True),
    "clip_range": Range(0.1, 0.4),
    # None: the default, which depends on the actions; 0: no limit
    "target_kl": Options((None, 0.01, 0.02, 0.05, 0.1, 0.0)),
    "carry_over": Options((0.0, 0.5, 0.9)),
}
"""What is searched with ppo too."""


def usual(training: TrainConfig, fixed: Collection[str] = ()) -> Space:
    """The usual space of a training's algorithm and memory, with the training's own values in it.

    `fixed` says what is not searched, where the rest depends on it.
    """
    space = USUAL | USUAL_PPO if training.algo == "ppo" else dict(USUAL)
    if training.algo == "ppo":
        # minibatches divide environments, so other numbers than the usual ones are not mixed with them
        if "num_envs" in fixed or not space["num_envs"].holds(training.num_envs):
            del space["num_envs"]
        elif not space["num_minibatches"].holds(training.num_minibatches):
            del space["num_minibatches"]
    if training.batch_size is not None:
        space.pop("num_minibatches", None)
        space["batch_size"] = Options((128, 256, 512, 1024))
    if training.encoder_arch is not None and training.net_arch is not None:
        del space["width"]
    space = {name: part.including(getattr(training, name)) for name, part in space.items()}
    for name, parameter in keywords(memory.memory_class(training.memory), skip={"input_size", *OF_THE_TASK}).items():
        if is_integer(parameter.default):
            middle = training.memory_args.get(name, parameter.default)
            space[f"memory_args.{name}"] = Options(tuple(sorted({max(1, middle // 2), middle, 2 * middle})))
    return space


def load(path: Path, training: TrainConfig, fixed: Collection[str] = ()) -> tuple[Space, dict[str, Any]]:
    """The space of a file, and the values that it fixes.

    A value of the file is a list of options, a table {low, high, log, step}, or a value to fix. With `default = true`
    what the file does not name has its usual space; `fixed` is what flags fix.

    Raises:
        ValueError: the file cannot be read, an unknown key (the message names the closest known one), or a value that
            is not allowed. The message names the file.
    """
    check("the space's path", path, PATH)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        base = usual(training, fixed) if _whether(document, "default", path.name) else {}
        named = dict(_named(document))
    except OSError as error:
        raise ValueError(f"cannot read the space {str(path)!r}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    space = {name: part for name, part in base.items() if name not in named}
    values: dict[str, Any] = {}
    for name, value in named.items():
        try:
            part = _part(value)
            if isinstance(part, Range | Options):
                space[name] = part
            else:
                values[name] = part
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return space, values


def searched(space: Space, training: TrainConfig, fixed: Collection[str]) -> Space:
    """The space without what is fixed; ValueError if a value of it is not allowed, or if nothing is left.

    Where only one of the numbers of environments and of minibatches is searched, its options are those that fit.
    """
    found = {name: part for name, part in space.items() if name not in fixed}
    if "batch_size" in fixed or "batch_size" in found:
        found.pop("num_minibatches", None)
    if "num_envs" not in found:
        _keep(found, "num_minibatches", lambda value: training.num_envs % value == 0)
    elif "num_minibatches" in fixed and training.num_minibatches is not None:
        _keep(found, "num_envs", lambda value: value % training.num_minibatches == 0)
    if not found:
        raise ValueError("nothing is left to search: every part of the space is fixed; leave out a flag")
    for name, part in found.items():
        others: tuple[dict[str, Any], ...] = ({},)
        if name == "num_minibatches" and "num_envs" in found:
            others = tuple({"num_envs": value} for value in found["num_envs"].corners())
        for value, other in itertools.product(part.corners(), others):
            try:
                config = configured(training, {name: value, **other}, fixed)
                if name.startswith("memory_args."):
                    memory.make(config.memory, 8, **config.memory_args)
            except ValueError as error:
                raise ValueError(f"the space of {name}: {error}") from None
    return found


def _keep(space: Space, name: str, fits: Callable[[Any], bool]) -> None:
    """Drop the options that do not fit, and the whole part where none does."""
    part = space.get(name)
    if isinstance(part, Options):
        space[name] = Options(tuple(filter(fits, part.values)))
        if not space[name].corners():
            del space[name]


def configured(training: TrainConfig, values: Mapping[str, Any], fixed: Collection[str] = ()) -> TrainConfig:
    """The training with these values in place of its own.

    The rollout and its minibatches follow from the number of environments, unless they are fixed or among the values.
    """
    changes: dict[str, Any] = {name: dict(getattr(training, name)) for name in TABLES}
    follow = ["n_steps", "batch_size", "num_minibatches"] if "num_envs" in values else []
    follow += ["batch_size"] if "num_minibatches" in values else ["num_minibatches"] if "batch_size" in values else []
    changes |= {name: None for name in follow if name not in fixed}
    for name, value in values.items():
        table, dot, key = name.partition(".")
        if dot:
            changes[table][key] = value
        else:
            changes[name] = value
    for name, resolve in TABLES.items():
        chosen = training.memory if name == "memory_args" else training.algo
        changes[name] = resolve(chosen, changes[name])
    return dataclasses.replace(training, **changes)


def first(training: TrainConfig, space: Space) -> dict[str, Any]:
    """The training's own values, as far as the space holds them: those of the first trial."""
    parameters = keywords(memory.memory_class(training.memory))
    found = {}
    for name, part in space.items():
        table, dot, key = name.partition(".")
        if not dot:
            value = getattr(training, name)
        elif table == "memory_args":
            value = training.memory_args.get(key, parameters[key].default)
        else:
            value = (replaying(training.algo, training.num_envs) | training.algo_args).get(key)
        if part.holds(value):
            found[name] = value
    return found


def _named(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a file as names of a space."""
    for key, value in document.items():
        if key == "default":
            continue
        if key in TABLES and isinstance(value, dict):
            yield from ((f"{key}.{name}", part) for name, part in value.items())
        elif key in SEARCHABLE:
            yield key, value
        elif key in BY_THE_SEARCH:
            raise ValueError(f"{key!r} cannot be searched; give it as a flag")
        else:
            known = ["default", *SEARCHABLE, *TABLES]
            raise ValueError(f"unknown key {key!r}{closest(key, known)}; known: {', '.join(known)}")


def _whether(document: Mapping[str, Any], key: str, name: str) -> bool:
    value = document.get(key, False)
    if not is_flag(value):
        raise ValueError(f"{key} must be true or false; got {value!r}")
    return value


def _part(value: Any) -> Any:
    """What a file's value says: a range, options, or a value to fix."""
    if isinstance(value, list):
        if not value or not all(isinstance(part, bool | int | float | str) for part in value):
            raise ValueError(f"options must be a list of one plain value or more; got {value!r}")
        return Options(tuple(value))
    if not isinstance(value, dict):
        return value
    unknown = [key for key in value if key not in Range._fields]
    if unknown or not {"low", "high"} <= set(value):
        raise ValueError(f"a range has low and high, and may have log and step; got {value!r}")
    part = Range(**value)
    whole = is_integer(part.low) and is_integer(part.high)
    if not (is_number(part.low) and is_number(part.high, part.low) and is_flag(part.log)):
        raise ValueError(f"low must be a number, high one that is not below it, and log true or false; got {value!r}")
    if part.step is not None and (part.log or not (is_integer if whole else is_number)(part.step, 1e-12)):
        raise ValueError(f"step must be above 0, an integer where low and high are, and without log; got {value!r}")
    if part.log and part.low <= 0:
        raise ValueError(f"low must be above 0 with log; got {value!r}")
    return part if whole else part._replace(low=float(part.low), high=float(part.high))

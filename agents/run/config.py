"""What a run is made of, as data: two frozen dataclasses, the command line's and the run directory's.

Importing this module imports neither torch nor gymnasium, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import tomli_w

from palimpsest.agents.device import DEVICE
from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.learn.hyperparameters import FRACTION, Hyperparameters
from palimpsest.agents.run.presets import preset
from palimpsest.refusals import (
    FLAG,
    MOST_UNITS,
    NAMED,
    STRING,
    Allowed,
    check,
    check_divides,
    closest,
    integer,
    optional,
)

CONFIG_FILE = "config.toml"
"""The configuration's name in a run directory."""

Arguments = dict[str, Any]
"""A constructor's keyword arguments: plain values, sequences as tuples."""

STEPS = 10**15
"""Most environment steps."""

EPISODES = 10**8
"""Most episodes of an evaluation."""


def _is_path(value: Any) -> bool:
    text = str(value) if isinstance(value, str | Path) else ""
    return bool(text.strip()) and text.isprintable() and all(len(part.encode()) <= 255 for part in Path(text).parts)


PATH = Allowed("a path of printable characters, at most 255 bytes from slash to slash", _is_path)
_OF_TYPE = {bool: FLAG, str: STRING, Path: PATH}


@dataclass(frozen=True)
class Checked:
    """A dataclass that refuses values which its annotations do not allow, and converts the others to their types.

    A field of a type alone takes what `_OF_TYPE` says; one that is `Annotated` with an `Allowed`, what that says.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if value is not None or spec.default is not None:
                value = _checked(spec.name, value, hints[spec.name], spec.default is None)
                object.__setattr__(self, spec.name, value)


def _checked(name: str, value: Any, hint: Any, may_be_none: bool = False) -> Any:
    """`value` in the type of the annotation `hint`; ValueError where it is not allowed."""
    hint, *allowed = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if isinstance(hint, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        return tuple(_checked(name, part, typing.get_args(hint)[0]) for part in value)
    if hint == Arguments:
        check(name, value, NAMED)
        return type(value)((key, _as_tuples(part)) for key, part in value.items())
    rule = next((part for part in allowed if isinstance(part, Allowed)), None) or _OF_TYPE[hint]
    check(name, value, optional(rule) if may_be_none else rule)
    return hint(value)


@dataclass(frozen=True)
class Task(Checked):
    """What is trained, where, for how long, and on what machine."""

    env: str = "Palimpsest/EndlessTMaze-v0"
    """Any registered gymnasium id, or "module:id" to import the module that registers it."""
    env_args: Arguments = field(default_factory=dict)
    """Arguments of the environment."""
    previous_action_reward: bool = False
    """Join the previous action and reward to the observations, in training and evaluation."""
    memory: str = "rewrite"
    """A registered memory; `list` shows them."""
    memory_args: Arguments = field(default_factory=dict)
    """Arguments of the memory."""
    carry_over: Annotated[float, FRACTION] = 0.9
    """Chance that a memory is kept, not reset, when a training episode ends; 0 to 1."""
    share_memory: bool | None = None
    """One memory for actor and critic, or one each. The memory's preset where not given."""
    total_timesteps: Annotated[int, integer(1, STEPS)] = 500_000
    """Environment steps to train for, over all environments; rounded up to whole rollouts."""
    num_envs: Annotated[int, integer(1)] = 64
    """Environments that are stepped together."""
    seed: Annotated[int, integer(0, EVALUATION_SEED - 1)] = 0
    """Of parameters, actions, minibatches, carry-over and environments (`seed` and the `num_envs - 1` after it)."""
    device: Annotated[str, DEVICE] = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    threads: Annotated[int | None, integer(1, 1024)] = None
    """Threads for torch; chosen by the sizes where not given. Exact repetition needs the same number."""
    run_dir: Path | None = None
    """Where everything is written, a directory that does not exist yet; a new one under runs/ where not given."""
    resume: Path | None = None
    """A run directory to continue from its last checkpoint, with its configuration."""


@dataclass(frozen=True)
class TrainConfig(Hyperparameters, Task):
    """A training run."""

    num_minibatches: Annotated[int | None, integer(1)] = None
    """Minibatches per pass, each of whole environments; divides `num_envs`. The memory's preset where not given."""
    anneal: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    anneal_entropy: bool = True
    """Lower the entropy's weight linearly to 0 over the run."""
    width: Annotated[int, integer(1, MOST_UNITS)] = 64
    """Units of the encoder's layer and of each head's layer."""
    eval_every: Annotated[int, integer(0, STEPS)] = 50_000
    """Environment steps between greedy evaluations; 0 for none but the closing one."""
    eval_episodes: Annotated[int, integer(1, EPISODES)] = 100
    """Episodes per evaluation."""
    checkpoint_every: Annotated[int, integer(0, STEPS)] = 100_000
    """Environment steps between checkpoints; 0 for none but the last."""
    keep_checkpoints: Annotated[int, integer(1)] = 3
    """Checkpoints kept beside the best; older ones are deleted."""
    progress: bool = True
    """Show the progress bar."""

    UNSAVED: ClassVar[frozenset[str]] = frozenset({"run_dir", "resume"})
    """Fields that say where a run is, not what it is: they are left out of its file."""

    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"device", "progress", "run_dir", "resume"})
    """Fields that may differ when a run is resumed; another value of any other would be another run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._take_preset()
        if self.num_minibatches is not None:
            check_divides("num_minibatches", self.num_minibatches, "num_envs", self.num_envs)
        if self.seed + self.num_envs > EVALUATION_SEED:
            raise ValueError(
                f"seed + num_envs must stay within {EVALUATION_SEED}, where the seeds of evaluation begin; "
                f"got {self.seed} + {self.num_envs}"
            )
        if self.resume is not None and self.run_dir not in (None, self.resume):
            raise ValueError(
                f"a resumed run stays in its directory, {str(self.resume)!r}; got run_dir {str(self.run_dir)!r}; "
                "leave run_dir out"
            )

    def _take_preset(self) -> None:
        usual = preset(self.memory)
        if self.share_memory is None:
            object.__setattr__(self, "share_memory", usual.share_memory)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", usual.learning_rate)
        if self.num_minibatches is None:
            object.__setattr__(self, "num_minibatches", math.gcd(usual.num_minibatches, self.num_envs))

    @property
    def rollout_size(self) -> int:
        """Environment steps in one rollout."""
        return self.num_envs * self.n_steps

    @property
    def minibatch_size(self) -> int:
        """Samples in one minibatch, `batch_size` of `MemoryPPO`."""
        assert self.num_minibatches is not None
        return self.rollout_size // self.num_minibatches

    @property
    def num_iterations(self) -> int:
        """Rollouts, each followed by an update, in the whole run."""
        return math.ceil(self.total_timesteps / self.rollout_size)

    def new_run_dir(self, root: Path = Path("runs"), now: datetime | None = None) -> Path:
        """A directory name that is not taken: root/env-memory-seed-date-time, numbered where that exists."""
        stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
        env = re.sub(r"[^A-Za-z0-9.]+", "-", self.env.rpartition("/")[2].rpartition(":")[2])
        name = f"{env}-{self.memory}-{self.seed}-{stamp}"
        path, count = root / name, 1
        while path.exists():
            count += 1
            path = root / f"{name}-{count}"
        return path

    def to_toml(self) -> str:
        """The configuration as a TOML document; fields that are None are left out, and so are `UNSAVED` ones."""
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return tomli_w.dumps(
            {name: _to_toml(v) for name, v in values.items() if v is not None and name not in self.UNSAVED}
        )

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The configuration that `to_toml` wrote; fields that are missing have their defaults.

        Raises:
            ValueError: not TOML, an unknown key (the closest known one is named), a value that does not fit.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"not a TOML document: {error}") from None
        known = [spec.name for spec in dataclasses.fields(cls) if spec.name not in cls.UNSAVED]
        for name in document:
            if name not in known:
                raise ValueError(f"unknown key {name!r}{closest(name, known)}; known: {', '.join(known)}")
        return cls(**{name: _from_toml(value) for name, value in document.items()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration file, or the one in a run directory.

        Raises:
            ValueError: the file cannot be read, or what `from_toml` refuses; the message names the file.
        """
        check("the configuration's place", path, PATH)
        path = path / CONFIG_FILE if path.is_dir() else path
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read the configuration {str(path)!r}: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """An evaluation of a finished or running run."""

    run_dir: Path
    """The directory of the run."""
    episodes: Annotated[int, integer(1, EPISODES)] = 200
    """Episodes to play, each from its own seed and with a fresh memory."""
    env: str | None = None
    """A registered gymnasium id; the one that the run was trained on where not given."""
    env_args: Arguments = field(default_factory=dict)
    """Arguments of the environment; on the run's own environment they replace its arguments one by one."""
    deterministic: bool = True
    """Take the likeliest actions, or sample."""
    seed: Annotated[int, integer(0, 10**9)] = 0
    """Which set of episodes; any value is apart from the seeds of training."""
    json: Path | None = None
    """A file to write the result to."""
    device: Annotated[str, DEVICE] = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    max_steps: Annotated[int | None, integer(1, STEPS)] = None
    """Steps after which an episode counts as failed and is stopped; the environment's own limit where not given."""

    @property
    def first_seed(self) -> int:
        """The seed of the first episode."""
        return EVALUATION_SEED + self.seed


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    if isinstance(value, dict):
        return {key: _as_tuples(part) for key, part in value.items()}
    return value


_TOML_NONE = {"none": True}
"""Stands for None inside arguments, which TOML cannot write."""


def _to_toml(value: Any) -> Any:
    if value is None:
        return _TOML_NONE
    if isinstance(value, dict):
        return {key: _to_toml(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_to_toml(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _from_toml(value: Any) -> Any:
    if value == _TOML_NONE:
        return None
    if isinstance(value, dict):
        return {key: _from_toml(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_from_toml(part) for part in value]
    return value

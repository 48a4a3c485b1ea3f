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
from typing import Any, ClassVar, Self, TypeVar

import tomli_w

from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.run.presets import preset
from palimpsest.refusals import closest

CONFIG_FILE = "config.toml"
"""The configuration's name in a run directory."""

ConfigT = TypeVar("ConfigT", bound="_Config")
Arguments = dict[str, Any]
"""A constructor's keyword arguments: plain values, sequences as tuples."""


@dataclass(frozen=True)
class _Config:
    """Checks that every field has the type it is declared with and lies in its range."""

    _ranges: ClassVar[dict[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if value is None and spec.default is None:
                continue
            value = _typed(spec.name, value, hints[spec.name])
            object.__setattr__(self, spec.name, value)
            if spec.name in self._ranges:
                _check_range(spec.name, value, *self._ranges[spec.name])


@dataclass(frozen=True)
class TrainConfig(_Config):
    """A training run."""

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
    carry_over: float = 0.9
    """Chance that a memory is kept, not reset, when a training episode ends; 0 to 1."""
    share_memory: bool | None = None
    """One memory for actor and critic, or one each. The memory's preset where not given."""
    total_timesteps: int = 500_000
    """Environment steps to train for, over all environments; rounded up to whole rollouts."""
    num_envs: int = 64
    """Environments that are stepped together."""
    seed: int = 0
    """Of parameters, actions, minibatches, carry-over and environments (`seed` and the `num_envs - 1` after it)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int | None = None
    """Threads for torch; chosen by the sizes where not given. Exact repetition needs the same number."""
    run_dir: Path | None = None
    """Where everything is written, a directory that does not exist yet; a new one under runs/ where not given."""
    resume: Path | None = None
    """A run directory to continue from its last checkpoint, with its configuration."""
    n_steps: int = 128
    """Steps of every environment per rollout; gradients through the memory reach back no further."""
    n_epochs: int = 4
    """Passes over each rollout."""
    num_minibatches: int | None = None
    """Minibatches per pass, each of whole environments; divides `num_envs`. The memory's preset where not given."""
    learning_rate: float | None = None
    """Of Adam. The memory's preset where not given."""
    anneal: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    ent_coef: float = 0.02
    """Weight of the entropy."""
    anneal_entropy: bool = True
    """Lower that weight linearly to 0 over the run."""
    clip_range: float = 0.2
    """PPO's clipping of the ratio of probabilities."""
    target_kl: float = 0.02
    """The passes over a rollout end at 1.5 times this divergence from the policy that acted; a step that alone adds
    more than this is taken back. 0 for no such limit."""
    min_advantage_std: float = 0.1
    """Smallest standard deviation that advantages are divided by: noise, all that is left of them once every episode
    goes alike, is not scaled up to 1."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    width: int = 64
    """Units of the encoder's layer and of each head's layer."""
    eval_every: int = 50_000
    """Environment steps between greedy evaluations; 0 for none but the closing one."""
    eval_episodes: int = 100
    """Episodes per evaluation."""
    checkpoint_every: int = 100_000
    """Environment steps between checkpoints; 0 for none but the last."""
    keep_checkpoints: int = 3
    """Checkpoints kept beside the best; older ones are deleted."""
    progress: bool = True
    """Show the progress bar."""

    _ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "carry_over": (0, 1),
        "total_timesteps": (1, 10**15),
        "num_envs": (1, 10**6),
        "seed": (0, EVALUATION_SEED - 1),
        "threads": (1, 1024),
        "n_steps": (1, 10**6),
        "n_epochs": (1, 10**4),
        "num_minibatches": (1, 10**6),
        "learning_rate": (1e-12, 10),
        "gamma": (0, 1),
        "gae_lambda": (0, 1),
        "ent_coef": (0, 10**6),
        "clip_range": (1e-6, 10**6),
        "target_kl": (0, 10**6),
        "min_advantage_std": (0, 10**6),
        "vf_coef": (0, 10**6),
        "max_grad_norm": (1e-12, 10**12),
        "width": (1, 2**16),
        "eval_every": (0, 10**15),
        "eval_episodes": (1, 10**8),
        "checkpoint_every": (0, 10**15),
        "keep_checkpoints": (1, 10**6),
    }

    UNSAVED: ClassVar[frozenset[str]] = frozenset({"run_dir", "resume"})
    """Fields that say where a run is, not what it is: they are left out of its file."""

    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"device", "progress", "run_dir", "resume"})
    """Fields that may differ when a run is resumed; another value of any other would be another run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_device(self.device)
        self._take_preset()
        if self.num_minibatches is not None and self.num_envs % self.num_minibatches:
            divisors = [str(n) for n in range(1, min(self.num_envs, 64) + 1) if self.num_envs % n == 0]
            raise ValueError(
                f"num_minibatches must divide num_envs={self.num_envs}, as a minibatch is whole environments; "
                f"got {self.num_minibatches}; use one of {', '.join(divisors)}"
            )
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
        _check_path("the configuration's place", path)
        path = path / CONFIG_FILE if path.is_dir() else path
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read the configuration {str(path)!r}: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class EvaluateConfig(_Config):
    """An evaluation of a finished or running run."""

    run_dir: Path
    """The directory of the run."""
    episodes: int = 200
    """Episodes to play, each from its own seed and with a fresh memory."""
    env: str | None = None
    """A registered gymnasium id; the one that the run was trained on where not given."""
    env_args: Arguments = field(default_factory=dict)
    """Arguments of the environment; on the run's own environment they replace its arguments one by one."""
    deterministic: bool = True
    """Take the likeliest actions, or sample."""
    seed: int = 0
    """Which set of episodes; any value is apart from the seeds of training."""
    json: Path | None = None
    """A file to write the result to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    max_steps: int | None = None
    """Steps after which an episode counts as failed and is stopped; the environment's own limit where not given."""

    _ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "episodes": (1, 10**8),
        "seed": (0, 10**9),
        "max_steps": (1, 10**15),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_device(self.device)

    @property
    def first_seed(self) -> int:
        """The seed of the first episode."""
        return EVALUATION_SEED + self.seed


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """`value` as the annotation wants it: an int for a float, a string for a path; ValueError where it is not."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) is tuple and isinstance(value, tuple):
        return tuple(_typed(name, part, typing.get_args(annotation)[0]) for part in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if annotation is Path and isinstance(value, str):
        value = Path(value)
    if annotation == Arguments:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return type(value)((key, _as_tuples(part)) for key, part in value.items())
        raise ValueError(f"{name} must map names to values; got {value!r}")
    if not isinstance(value, annotation) or (isinstance(value, bool) and annotation is not bool):
        raise ValueError(f"{name} must be {_NAMES[annotation]}; got {value!r}")
    if isinstance(value, Path):
        _check_path(name, value)
    return value


def _check_path(name: str, path: Path) -> None:
    text = str(path)
    if not text.strip() or not text.isprintable() or any(len(part.encode()) > 255 for part in path.parts):
        raise ValueError(
            f"{name} must be a path of printable characters, at most 255 bytes from slash to slash; got {text[:80]!r}"
        )


_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", Path: "a path"}


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    if isinstance(value, dict):
        return {key: _as_tuples(part) for key, part in value.items()}
    return value


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}; got {value!r}")


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps; got {device!r}")


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

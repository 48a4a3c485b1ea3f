"""The configurations of a training run and of an evaluation: frozen dataclasses that check their fields.

`train.py` builds the command line from them. A run directory holds the configuration of its training as TOML.

Importing this module does not import torch, so `--help` is fast.
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
from palimpsest.agents.files import shelf
from palimpsest.agents.learn.hyperparameters import FRACTION, Hyperparameters, Network, hints_of
from palimpsest.agents.run.presets import ALGORITHMS, CARRY_OVER, COLUMN, OF_PPO, own_fields, rolled_out, usual
from palimpsest.agents.worlds.vectors import VECS
from palimpsest.refusals import (
    FLAG,
    MOST_UNITS,
    NAMED,
    STRING,
    Allowed,
    check,
    check_divides,
    choice,
    closest,
    integer,
    number,
    optional,
)

CONFIG_FILE = "config.toml"
"""The file name of the configuration in a run directory."""

Arguments = dict[str, Any]
"""Keyword arguments of a constructor: plain values, with sequences as tuples."""

Axes = dict[str, str]
"""The axes of a grid as the command line gives them: KEY=A,B,C."""

STEPS = 10**15
"""The largest number of environment steps that is allowed."""

EPISODES = 10**8
"""The largest number of episodes that an evaluation may play."""


def _is_path(value: Any) -> bool:
    text = str(value) if isinstance(value, str | Path) else ""
    return bool(text.strip()) and text.isprintable() and all(len(part.encode()) <= 255 for part in Path(text).parts)


PATH = Allowed("a path of printable characters, at most 255 bytes from slash to slash", _is_path)
SEQUENCE = Allowed("a sequence of values", lambda value: isinstance(value, list | tuple))
RETURN = number(-(10**9), 10**9)
_OF_TYPE = {bool: FLAG, str: STRING, Path: PATH}


@dataclass(frozen=True)
class Checked:
    """Base class of the configurations. It checks each field by its annotation and converts the value to its type.

    An annotation `Annotated[type, Allowed]` holds its own rule. The rules of plain types are in `_OF_TYPE`.
    """

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if value is not None or spec.default is not None:
                value = _checked(spec.name, value, hints[spec.name], spec.default is None)
                object.__setattr__(self, spec.name, value)


def _checked(name: str, value: Any, hint: Any, may_be_none: bool = False) -> Any:
    """`value`, converted to the type in the annotation `hint`; ValueError if it is not allowed."""
    hint, *allowed = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if isinstance(hint, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        check(name, value, SEQUENCE)
        return tuple(_checked(name, part, typing.get_args(hint)[0]) for part in value)
    if hint in (Arguments, Axes):
        check(name, value, NAMED)
        return type(value)((key, _as_tuples(part)) for key, part in value.items())
    rule = next((part for part in allowed if isinstance(part, Allowed)), None) or _OF_TYPE[hint]
    check(name, value, optional(rule) if may_be_none else rule)
    return hint(value)


@dataclass(frozen=True)
class Task(Checked):
    """The environment, the memory, the length of training, the device and the run directory."""

    env: str = "Palimpsest/EndlessTMaze-v0"
    """Any registered gymnasium id, or module:id to import a module, from here or installed, that registers it."""
    env_args: Arguments = field(default_factory=dict)
    """Arguments of the environment."""
    wrapper: tuple[str, ...] = ()
    """Wrappers, innermost first, may be repeated: flatten, frame-stack=N, time-limit=N, previous-action-reward,
    keep-observations=N,N, minigrid-image, minigrid-pixels, module:Wrapper."""
    vec: Annotated[str | None, choice(VECS)] = None
    """Environments that are not ours step in this process (dummy, the default) or in one each (subproc, async)."""
    overlap: bool = False
    """With subproc or async: while one half of the environments steps, act for the other (docs/scaling.md)."""
    previous_action_reward: bool = False
    """Add the previous action and reward to the observations, in training and in evaluation."""
    antialias: bool = False
    """Beside the previous action, mark the first observation of an episode."""
    keep_observations: tuple[Annotated[int, integer(0)], ...] | None = None
    """Indices of the numbers of an observation that the agent sees, in training and in evaluation. Default: all."""
    fully_observed: bool = False
    """Show the hidden state beside the observation: the twin of a task in which nothing must be remembered."""
    memory: str = "rewrite"
    """Name of a memory; the command `list` shows all. Or module:name of your own."""
    memory_args: Arguments = field(default_factory=dict)
    """Arguments of the memory."""
    algo: Annotated[str, choice(ALGORITHMS)] = "ppo"
    """ppo, or from a replay dqn (discrete actions) or sac."""
    algo_args: Arguments = field(default_factory=dict)
    """Arguments of dqn or sac, by the names that `MemoryDQN` and `MemorySAC` give them. Those of ppo are flags."""
    carry_over: Annotated[float | None, FRACTION] = None
    """Probability that the memory is kept, not reset, when a training episode ends. Default: 0.9, 0 with shm."""
    share_memory: bool | None = None
    """Whether actor and critic share one memory or have one each. Default: the memory's preset."""
    total_timesteps: Annotated[int, integer(1, STEPS)] = 500_000
    """Environment steps to train for, over all environments; rounded up to whole rollouts."""
    num_envs: Annotated[int, integer(1)] = 16
    """Number of environments stepped together. More than 16 make updates fewer, but a step cheaper."""
    seed: Annotated[int, integer(0, EVALUATION_SEED - 1)] = 0
    """Seed of parameters, actions, minibatches, carry-over and environments; environment i has seed + i."""
    device: Annotated[str, DEVICE] = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    threads: Annotated[int | None, integer(1, 1024)] = None
    """Threads for torch. Default: by the size of a minibatch. Runs are equal only with the same number."""
    run_dir: Path | None = None
    """Directory to create and write to. Default: a new one under runs/."""
    resume: Path | None = None
    """Run directory to continue from its last checkpoint, as configured. More --total-timesteps prolong it."""
    start_from: Path | None = None
    """A run, checkpoint, model.zip or shelf:NAME whose weights a new run starts from."""


@dataclass(frozen=True)
class TrainConfig(Hyperparameters, Network, Task):
    """A training run."""

    num_minibatches: Annotated[int | None, integer(1)] = None
    """Minibatches per pass. A minibatch holds all steps of some environments, so the number must divide `num_envs`.
    Default: about one for every four environments; with fewer than 16, a batch_size of 512,
    or of n_steps where more are given."""
    batch_size: Annotated[int | None, integer(1, STEPS)] = None
    """Samples per minibatch, in place of `num_minibatches`; below n_steps also the length of a rollout's segments."""
    anneal: bool = True
    """Lower the learning rate linearly to 0 over the run."""
    anneal_entropy: bool = True
    """Lower the entropy's weight linearly to 0 over the run."""
    anneal_clip_range: bool = False
    """Lower the clip range linearly to 0 over the run."""
    width: Annotated[int, integer(1, MOST_UNITS)] = 64
    """Width of the encoder's layer and of each head's layer."""
    solved: Annotated[float | None, FRACTION] = None
    """Stop when three evaluations in a row reach this success. Default: train to the end."""
    solved_return: Annotated[float | None, RETURN] = None
    """Stop when three evaluations in a row reach this mean return. With `solved` too, both must be reached."""
    eval_every: Annotated[int, integer(0, STEPS)] = 50_000
    """Environment steps between greedy evaluations; 0 evaluates only after the last step."""
    eval_episodes: Annotated[int, integer(1, EPISODES)] = 100
    """Episodes per evaluation."""
    checkpoint_every: Annotated[int, integer(0, STEPS)] = 100_000
    """Environment steps between checkpoints; 0 writes only the last."""
    keep_checkpoints: Annotated[int, integer(1)] = 3
    """Number of latest checkpoints to keep; older ones are deleted."""
    closing_episodes: Annotated[int, integer(0, EPISODES)] = 200
    """Episodes of each test after the last step; 0 for no tests."""
    progress: bool = True
    """Show the progress bar."""
    workers: Annotated[int, integer(1, 4096)] = 1
    """Processes that train together and give what one gives, to rounding; a divisor of `num_envs` (docs/scaling.md)."""

    UNSAVED: ClassVar[frozenset[str]] = frozenset({"run_dir", "resume"})
    """Fields that are not saved: they say where a run is, not what it does."""

    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset(
        {"device", "progress", "run_dir", "resume", "closing_episodes", "workers", "overlap"}
    )
    """Fields that may change when a run is resumed. `total_timesteps` may grow; other changes make it another run."""

    OF_PPO: ClassVar[tuple[str, ...]] = OF_PPO
    """Fields that are without effect with another algorithm. A run of one does not hold them in its file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_algorithm()
        self._take_preset()
        if self.keep_observations == ():
            raise ValueError(
                "keep_observations must hold one index or more; got none; leave --keep-observations out to keep all"
            )
        if self.num_minibatches is not None:
            if self.batch_size is not None:
                raise ValueError(f"batch_size={self.batch_size} says what num_minibatches says; leave one of them out")
            check_divides("num_minibatches", self.num_minibatches, "num_envs", self.num_envs)
        check_divides("workers", self.workers, "num_envs", self.num_envs)
        if self.seed + self.num_envs > EVALUATION_SEED:
            raise ValueError(
                f"seed + num_envs must be at most {EVALUATION_SEED}, where the seeds of evaluation begin; "
                f"got {self.seed} + {self.num_envs}"
            )
        if self.resume is not None and self.run_dir not in (None, self.resume):
            raise ValueError(
                f"a resumed run keeps its directory, {str(self.resume)!r}; got run_dir {str(self.run_dir)!r}; "
                "leave run_dir out"
            )
        if self.start_from is not None and not shelf.on_shelf(self.start_from):
            # a run that is resumed from another folder must find it
            object.__setattr__(self, "start_from", self.start_from.absolute())

    def _check_algorithm(self) -> None:
        if self.algo == "ppo":
            if self.algo_args:
                raise ValueError(
                    f"algo_args are those of dqn and sac; got {dict(self.algo_args)} with algo='ppo', whose arguments "
                    "are flags"
                )
            return
        for spec in dataclasses.fields(self):
            given = getattr(self, spec.name)
            # what defaults became, with every algorithm
            filled = (spec.name, given) in (("n_steps", COLUMN), ("carry_over", CARRY_OVER))
            if spec.name in self.OF_PPO and given != spec.default and not filled:
                raise ValueError(
                    f"{spec.name} is an argument of ppo; got {given!r} with algo={self.algo!r}: leave it out, and give "
                    "the algorithm's own under algo_args"
                )

    def _take_preset(self) -> None:
        is_cut = self.num_minibatches is not None or self.batch_size is not None
        rollout = rolled_out(self.num_envs, self.n_steps, is_cut) if self.algo == "ppo" else {"n_steps": COLUMN}
        for name, value in (usual(self.memory, self.algo)._asdict() | rollout).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def agent(self) -> str:
        """What is trained, in words."""
        return self.memory if self.algo == "ppo" else f"{self.memory} with {self.algo}"

    @property
    def rollout_size(self) -> int:
        """Environment steps in one rollout."""
        return self.num_envs * (self.n_steps or 0)

    @property
    def minibatch_size(self) -> int:
        """Samples in one minibatch, `batch_size` of `MemoryPPO`."""
        return self.batch_size or self.rollout_size // (self.num_minibatches or 1)

    @property
    def num_iterations(self) -> int:
        """Rollouts, each followed by an update, in the whole run."""
        return math.ceil(self.total_timesteps / self.rollout_size)

    @property
    def whole_timesteps(self) -> int:
        """Environment steps in the whole run: with ppo those of whole rollouts."""
        return self.num_iterations * self.rollout_size if self.algo == "ppo" else self.total_timesteps

    def new_run_dir(self, root: Path = Path("runs"), now: datetime | None = None) -> Path:
        """A path that does not exist yet: root/env-memory-seed-date-time, with a number appended if needed."""
        stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
        own = (self.env.rpartition("/")[2].rpartition(":")[2], self.memory.rpartition(":")[2])
        env, memory = (re.sub(r"[^A-Za-z0-9.]+", "-", name) for name in own)
        name = f"{env}-{memory}-{self.seed}-{stamp}"
        path, count = root / name, 1
        while path.exists():
            count += 1
            path = root / f"{name}-{count}"
        return path

    def to_toml(self) -> str:
        """The configuration as a TOML document, without what is None, `UNSAVED`, or of another algorithm."""
        left_out = self.UNSAVED if self.algo == "ppo" else self.UNSAVED.union(OF_PPO)
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return tomli_w.dumps(
            {name: _to_toml(v) for name, v in values.items() if v is not None and name not in left_out}
        )

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read what `to_toml` wrote. Missing fields get their defaults, see also `presets.own_fields`.

        Raises:
            ValueError: not TOML, an unknown key (the message names the closest known one), a value that is not allowed.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"not a TOML document: {error}") from None
        known = [spec.name for spec in dataclasses.fields(cls) if spec.name not in cls.UNSAVED]
        for name in document:
            if name not in known:
                raise ValueError(f"unknown key {name!r}{closest(name, known)}; known: {', '.join(known)}")
        return cls(**{name: _from_toml(value) for name, value in own_fields(document).items()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration file, or the one in a run directory.

        Raises:
            ValueError: the file cannot be read, or `from_toml` refuses it. The message names the file.
        """
        check("the configuration's path", path, PATH)
        path = shelf.taken(path)
        path = path / CONFIG_FILE if path.is_dir() else path
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read the configuration {str(path)!r}: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """An evaluation of an agent."""

    run_dir: Path
    """The directory of a run, a model's file (a checkpoint, best.zip or model.zip) or shelf:NAME."""
    episodes: Annotated[int, integer(1, EPISODES)] = 200
    """Episodes to play, each from its own seed and with a fresh memory."""
    env: str | None = None
    """Any registered gymnasium id. Default: the environment of the run."""
    env_args: Arguments = field(default_factory=dict)
    """Arguments of the environment. In the run's own environment they replace its arguments one by one."""
    deterministic: bool = True
    """Take the most likely action instead of sampling one."""
    seed: Annotated[int, integer(0, 10**9)] = 0
    """Selects the episodes to play. Training never uses the seeds of evaluation."""
    json: Path | None = None
    """File to write the result to."""
    device: Annotated[str, DEVICE] = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    max_steps: Annotated[int | None, integer(1, STEPS)] = None
    """Steps after which an episode is stopped and counted as failed. Default: the environment's own limit."""
    use_masking: bool = True
    """Take only the actions that the environment allows, if it has `action_masks()`."""

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
"""Stands for None inside arguments, because TOML has no None."""


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

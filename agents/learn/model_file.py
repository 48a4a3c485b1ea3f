"""Save models to files and load them. Nothing in a file is executed."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.device import check_device
from palimpsest.agents.environments import check_environment
from palimpsest.agents.files.archive import CorruptFile, File, read_contents, write_tree
from palimpsest.agents.files.classes import has_name, qualified_name
from palimpsest.agents.files.load_checks import (
    as_state,
    by_one_name,
    check_environments,
    check_place,
    check_policy_kwargs,
    check_spaces,
)
from palimpsest.agents.files.statistics import give_statistics, trained_under
from palimpsest.agents.files.written_by import show, written_by
from palimpsest.agents.policy.policies import (
    CnnMemoryPolicy,
    MemoryActorCriticPolicy,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
)
from palimpsest.agents.policy.policy_file import OUR_CLASSES, blamed, check_algorithm, names_of, no_larger_than
from palimpsest.agents.workers.rows import own
from palimpsest.envs.halves import VecHalves, check_outermost
from palimpsest.envs.sb3_wrappers import VecDropText, watch_workers
from palimpsest.refusals import Allowed, check, closest, integer, optional

AlgorithmT = TypeVar("AlgorithmT", bound="SavedAlgorithm")

PLACE_IN_ROLLOUT = frozenset(
    {
        "_last_obs",
        "_last_episode_starts",
        "_last_original_obs",
        "_last_state",
        "_last_memory_starts",
        "_last_strategy",
        "_return_so_far",
        "_last_action_masks",
        "_exploration",
    }
)
"""Attributes that hold a model's position in its environments. They mean nothing without these environments."""

_BESIDE = ("parameters", "vec_normalize", "written_by", "alive", "failure")
"""Entries of a file that are not attributes of a model. Only checkpoints have "alive", which holds the rest of a run's
state. Only dumps have "failure", which describes the error that stopped a training."""

REBUILT = frozenset({"policy", "lr_schedule", "_gives_state_up", "_kept_statistics"})
"""Attributes that are not saved. `_setup_model` makes them from the others, or they matter only within a step."""

CLASSES = OUR_CLASSES | names_of(
    (CnnMemoryPolicy, MemoryActorCriticPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy), "agents.policies"
)
"""Classes of ours that a model's file may name, under the names of every version."""

LOG_INTERVAL = optional(integer(1, math.inf))
"""What `learn` counts from one line of the log to the next: rollouts or episodes; None for no line."""

_NEEDED = ("policy_class", "observation_space", "action_space")
_NOT_GIVEN = ("policy", "env", "device", "_init_setup_model")
_ATTRIBUTES = {"stats_window_size": "_stats_window_size"}
"""Argument -> attribute, if their names differ."""


class SavedAlgorithm(BaseAlgorithm):
    """An algorithm that remembers, and saves its models to files and loads them. Names and arguments are SB3's."""

    remembers = True
    allowed: ClassVar[Mapping[str, Allowed]]
    """Argument -> the values that it allows."""
    synonyms: ClassVar[Mapping[str, str]] = {}
    """Argument that is another name of one -> that one."""
    policy: MemoryActorCriticPolicy
    rng: np.random.Generator
    _last_state: Any
    _kept_statistics: dict[str, Any] | None = None

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, VecHalves):
            return env.wrapped(lambda half: SavedAlgorithm._wrap_env(half, verbose, monitor_wrapper))
        check_environment(env)
        check_outermost(env)
        env = BaseAlgorithm._wrap_env(VecDropText.where_needed(env), verbose, monitor_wrapper)
        watch_workers(env)
        return env

    def learn(
        self: AlgorithmT,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> AlgorithmT:
        """SB3's, but what `log_interval` cannot be is refused before anything is played."""
        check("log_interval", log_interval, LOG_INTERVAL)
        given = (total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return super().learn(*given)  # type: ignore[safe-super, arg-type]

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        check_environments(self)
        return super()._setup_learn(*args, **kwargs)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all that draws: torch, NumPy, the spaces and environments as in SB3, and what this model draws with."""
        super().set_random_seed(seed)
        self.rng = np.random.default_rng(seed)

    def _loaded(self) -> None:
        """Called once the parameters of a file are here; some of them may follow arguments that `load` was given."""

    def recall(self) -> Any:
        """The memory before the step under way."""
        return self._last_state

    def attributes(self) -> dict[str, Any]:
        """The attributes as a file holds them."""
        return dict(vars(self))

    def save(self, path: File, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:  # type: ignore[override]
        """Write the model as JSON and safetensors in a ZIP.

        Numbers, SB3's schedules and spaces are written in full. Of other functions, classes and objects among the
        arguments, such as a lambda as schedule, only the names are written. `load` finds classes of torch and of this
        package by name, and asks for all others.

        Args:
            path: a path, or a file open for writing in binary mode. A path without a suffix gets ".zip", and its
                folder is made if it does not exist.
            exclude: attributes to leave out. After `load` they have the defaults of the class.
            include: attributes to write that are left out otherwise.

        Raises:
            ValueError: an attribute cannot be written; the message names it.
            OSError: a full disk; an earlier file at the path is unchanged.
        """
        save_model(self, path, exclude, include)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[AlgorithmT],
        path: File,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> AlgorithmT:
        """Load a model that `save` wrote. Nothing in the file is executed, imported or unpickled.

        Args:
            path: a path (".zip" is added if there is no such file), or a file open for reading in binary mode. An open
                file is read from its position, or from its start if the position is its end, as after `save`.
            env: environments to train in, or a registered id. Their number may differ from the file's. A `VecNormalize`
                around them gets the statistics that were saved with the model.
            device: "auto", "cpu", "cuda", ...
            custom_objects: attribute ("learning_rate", "policy_kwargs.activation_fn") -> object that replaces the
                file's value. Attributes that are not in the file are ignored. For an object of which the file holds
                only the name, the key may be its qualified name, if one attribute alone has it.
            print_system_info: print the versions of this system and of the system that wrote the file.
            force_reset: whether `learn` starts with a reset of `env`. With False it continues from the moment of
                `save`, with the observations and memory of that moment; `env` must still be in that state.
            **kwargs: arguments and attributes to change.

        Raises:
            CorruptFile: the file is torn, altered, or not one of ours.
            ValueError: a keyword or a value that is not allowed; a name that `custom_objects` lacks; spaces, a number
                of environments or a `VecNormalize` that do not fit; a model of another algorithm, or that SB3 saved.
        """
        if print_system_info:
            show("CURRENT SYSTEM INFO", written_by())
        return load_model(cls, path, env, device, custom_objects, force_reset, print_system_info, **kwargs)[0]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Train in other environments, as many as before; as in SB3.

        A `VecNormalize` around them gets the statistics from the model's file, unless another one got them before.
        """
        super().set_env(env, force_reset)
        assert self.env is not None
        if self._kept_statistics is not None and give_statistics(self.env, self._kept_statistics, "the model"):
            self._kept_statistics = None

    def set_parameters(
        self,
        load_path_or_dict: File | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Load parameters from a dict of state dicts, or from a file that `save` wrote; as in SB3.

        Args:
            load_path_or_dict: the result of `get_parameters`, or the file; of a file only the parameters are read.
            exact_match: whether every parameter must be present.
            device: device of the parameters that are read from a file.

        Raises:
            CorruptFile: the file is torn, altered, or holds no model.
            ValueError: a state dict is missing, or has a name that is unknown here.
            RuntimeError: a state dict does not fit.
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = read_parameters(load_path_or_dict, device)
        # in the order of a file: a target network comes after the network, which it becomes equal to when that is given
        known = [name for name in self._get_torch_save_params()[0] if name in load_path_or_dict]
        ordered = {name: load_path_or_dict[name] for name in (*known, *load_path_or_dict)}
        super().set_parameters(ordered, exact_match, device)


def save_model(
    model: SavedAlgorithm,
    file: File,
    exclude: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as JSON and safetensors. Arguments are those of SB3's `save`; `extra` adds entries to the file.

    Warns:
        UserWarning: `include` names an attribute that no file can hold, such as the environments.
    """
    never = {*model._excluded_save_params(), *REBUILT}
    if unwritable := sorted(never & set(include or ())):
        warnings.warn(f"include={unwritable} is left out: no file can hold it, and load makes it anew", stacklevel=3)
    left_out = never | (set(exclude or ()) - set(include or ()))
    tree = {name: value for name, value in model.attributes().items() if name not in left_out}
    if "_last_state" in tree:
        tree["_last_state"] = model.recall()
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    tree["policy_class"] = aliases.get(model.policy_class, model.policy_class)
    tree["parameters"] = model.get_parameters()
    tree["vec_normalize"] = trained_under(model)
    tree["written_by"] = written_by()
    write_tree(file, tree | dict(extra or {}))


def load_model(
    cls: type[AlgorithmT],
    file: File,
    env: GymEnv | str | None = None,
    device: torch.device | str = "auto",
    custom_objects: Mapping[str, Any] | None = None,
    force_reset: bool = True,
    print_system_info: bool = False,
    **kwargs: Any,
) -> tuple[AlgorithmT, dict[str, Any]]:
    """Load a model and the file's other entries ("alive", "failure"). Arguments are those of SB3's `load`.

    Saved statistics of a `VecNormalize` go into the one around `env`, if there is one.

    Raises:
        CorruptFile: the file is torn, altered, or not one of ours.
        ValueError: a keyword or a value that is not allowed; a class or function of which the file holds only the name;
            spaces, a number of environments or a `VecNormalize` that do not fit.
    """
    check_device(device)
    kwargs = by_one_name(kwargs, cls.synonyms)
    given = _objects(custom_objects or {}, kwargs)
    contents = read_contents(file, given, get_device(device), CLASSES)
    label, tree = contents.label, contents.tree
    if not isinstance(tree, dict) or "parameters" not in tree:
        is_policy = isinstance(tree, dict) and "state_dict" in tree
        raise CorruptFile(f"{label!r} holds {'a policy; use the load of its class' if is_policy else 'no model'}")
    check_algorithm(cls, tree, label)
    _check_given(cls, tree, custom_objects or {}, kwargs)
    contents.refuse_names()
    if print_system_info:
        show("SAVED MODEL SYSTEM INFO", tree.get("written_by"))
    beside = {name: tree.pop(name, None) for name in _BESIDE}
    parameters, statistics = beside.pop("parameters"), beside.pop("vec_normalize")
    check_policy_kwargs(tree, kwargs)
    tree |= {_ATTRIBUTES.get(name, name): value for name, value in kwargs.items()}
    if lacking := [name for name in _NEEDED if name not in tree]:
        raise CorruptFile(
            f"{label!r} lacks {', '.join(lacking)}, without which no model is made; save it without exclude"
        )
    if force_reset:
        tree = {name: value for name, value in tree.items() if name not in PLACE_IN_ROLLOUT}
    else:
        tree |= {name: own(tree[name]) for name in PLACE_IN_ROLLOUT & tree.keys()}
    if env is not None:
        check_environment(env)
        env = cls._wrap_env(maybe_make_env(env, 0), tree.get("verbose", 0))
        check_spaces(env, tree)
        check_place(tree, env.num_envs, label)
        tree["n_envs"] = env.num_envs
    with blamed(label, "model", [*(custom_objects or ()), *kwargs]):
        # a subclass has defaults for the rest
        model = cls(tree["policy_class"], env, device=device, _init_setup_model=False)  # type: ignore[call-arg]
        unknown = _unknown_attributes(model, tree)
        vars(model).update(tree, policy_class=model.policy_class)
        with no_larger_than(parameters.values()):
            model._setup_model()
        model.set_parameters(parameters, exact_match=True, device=device)
    model._loaded()
    if model._last_state is not None:
        model._last_state = as_state(model.policy.initial_state(model.n_envs), model._last_state, label)
    if unknown:
        warnings.warn(
            f"{label!r} holds {', '.join(unknown)}, which a {cls.__name__} does not know: kept as attributes, without "
            "any effect of their own",
            stacklevel=3,
        )
    if tree.get("rng") is not None and "seed" not in kwargs:
        model.rng = tree["rng"]
    if model.env is None or not give_statistics(model.env, statistics, repr(label)):
        model._kept_statistics = statistics
    if model.use_sde:
        model.policy.reset_noise()
    return model, beside


def read_parameters(file: File, device: torch.device | str = "auto") -> dict[str, Any]:
    """The state dicts in a model's file, by name. `custom_objects` are not needed for them.

    Raises:
        CorruptFile: the file is torn, altered, or holds no model.
    """
    check_device(device)
    contents = read_contents(file, None, get_device(device), CLASSES)
    if not isinstance(contents.tree, dict) or not isinstance(contents.tree.get("parameters"), dict):
        raise CorruptFile(f"{contents.label!r} holds no model")
    return contents.tree["parameters"]


def _objects(custom_objects: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The objects that replace the file's: the caller's, by place, and those in `policy_kwargs`, by qualified name."""
    found: dict[str, Any] = {}

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            for part in value.values():
                gather(part)
        elif has_name(value):
            found[qualified_name(value)] = value

    # policy_kwargs must equal the file's, so they only supply objects of which the file holds the name
    gather(kwargs.get("policy_kwargs"))
    whole = {name: value for name, value in kwargs.items() if name != "policy_kwargs"}
    return found | {_ATTRIBUTES.get(name, name): value for name, value in {**whole, **custom_objects}.items()}


def _check_given(
    cls: type[SavedAlgorithm],
    tree: Mapping[str, Any],
    custom_objects: Mapping[str, Any],
    kwargs: dict[str, Any],
) -> None:
    """Refuse keywords that are neither arguments of the class nor attributes in the file, and values out of range."""
    arguments = [name for name in inspect.signature(cls).parameters if name not in _NOT_GIVEN]
    known = [*arguments, *(name for name in tree if name not in _BESIDE)]
    for name in kwargs:
        if name not in known:
            raise ValueError(
                f"{cls.__name__}.load has no keyword {name!r}{closest(name, known)}; it takes custom_objects, "
                f"print_system_info, force_reset, and what the model has: {', '.join(arguments)}"
            )
    replaced = {name: value for name, value in custom_objects.items() if _ATTRIBUTES.get(name, name) in tree}
    for name, value in (replaced | kwargs).items():
        if name in cls.allowed:
            check(name, value, cls.allowed[name])


def _unknown_attributes(model: SavedAlgorithm, tree: Mapping[str, Any]) -> list[str]:
    """Attributes in a file that the class does not know; ValueError for attributes that no file may set."""
    unknown = set(tree) - set(vars(model)) - {"observation_space", "action_space", "n_envs", "rng"}
    forbidden = {*model._excluded_save_params(), *REBUILT}
    wrong = {name for name in unknown if hasattr(type(model), name)} | (forbidden & set(tree))
    if wrong:
        raise ValueError(f"it names what a {type(model).__name__} does not have: {', '.join(sorted(wrong))}")
    return sorted(unknown)

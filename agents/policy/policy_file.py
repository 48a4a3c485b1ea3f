"""Policies as files, without the algorithm that trained them, and what is needed to make modules from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, get_device
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from palimpsest.agents.device import check_device
from palimpsest.agents.files.archive import CorruptFile, File, one_line, read_contents, write_tree
from palimpsest.agents.files.classes import qualified_name
from palimpsest.agents.files.written_by import written_by
from palimpsest.agents.policy.extractors import DictExtractor, ImageExtractor, SmallImageExtractor
from palimpsest.agents.policy.layers import Tanh

PolicyT = TypeVar("PolicyT", bound=ActorCriticPolicy)


class Unfit(ValueError):
    """What a caller gave does not fit what a file holds, which is as it should be; `blamed` lets it through."""


def names_of(classes: tuple[type, ...], *former_modules: str) -> dict[str, type]:
    """Class by the qualified name it has now, and by those it had in modules that are no more."""
    now = {qualified_name(cls): cls for cls in classes}
    return now | {f"{module}.{cls.__qualname__}": cls for module in former_modules for cls in classes}


OUR_CLASSES = names_of((Tanh,), "agents.layers", "agents.activations") | names_of(
    (DictExtractor, ImageExtractor, SmallImageExtractor), "agents.extractors"
)
"""Classes of ours that a file may name, under the names of every version."""

MOST_TIMES, MOST_MORE = 4, 1_000_000
"""Numbers that making modules may register for each one in the file, and beside them: some are replaced at once."""

ALGORITHMS = {"n_epochs": "MemoryPPO", "exploration_fraction": "MemoryDQN", "target_entropy": "MemorySAC"}
"""Attribute that only models of one algorithm have -> the algorithm's class."""

_KINDS = {"dueling": "MemoryQPolicy", "n_critics": "MemorySACPolicy"}
"""Argument that only policies of one algorithm have -> their class."""

_ENTRIES = {"policy", "state_dict", "written_by"}


def save_policy(policy: ActorCriticPolicy, file: File) -> None:
    """Write a policy's arguments and parameters as JSON and safetensors; not its optimiser, as in SB3."""
    arguments = policy._get_constructor_parameters() | {"share_features_extractor": policy.share_features_extractor}
    arguments.pop("lr_schedule", None)
    write_tree(file, {"policy": arguments, "state_dict": policy.state_dict(), "written_by": written_by()})


def algorithm_of(tree: Any) -> str | None:
    """The class of the algorithm of which a file's tree is a model; None where that is not known."""
    return next((cls for name, cls in ALGORITHMS.items() if isinstance(tree, Mapping) and name in tree), None)


def check_algorithm(cls: type, tree: Any, label: str) -> None:
    """Refuse the file of another algorithm of ours than `cls`."""
    found, names = algorithm_of(tree), {each.__name__ for each in cls.__mro__}
    if found is not None and found not in names and names & set(ALGORITHMS.values()):
        raise ValueError(f"{label!r} is a {found}, not a {cls.__name__}; use {found}.load")


def _check_kind(cls: type, arguments: Any, label: str) -> None:
    """Refuse the policy of another algorithm of ours than that of `cls`."""
    names = {each.__name__ for each in cls.__mro__}
    expected = next((kind for kind in _KINDS.values() if kind in names), None)
    found = next((kind for name, kind in _KINDS.items() if isinstance(arguments, Mapping) and name in arguments), None)
    if found != expected:
        told = "policy of MemoryPPO" if found is None else found
        raise ValueError(f"{label!r} is a {told}, not a {cls.__name__}; use the load of its class")


def load_policy(
    cls: type[PolicyT],
    file: File,
    device: torch.device | str = "auto",
    custom_objects: Mapping[str, Any] | None = None,
) -> PolicyT:
    """Make a policy from what `save_policy` wrote. Nothing in the file is executed, imported or unpickled.

    Args:
        cls: the class of the policy that was saved.
        file: a path or a file open for reading in binary mode.
        device: "auto", "cpu", "cuda", ...
        custom_objects: object by argument, such as "policy.activation_fn", for what the file knows by name only.

    Raises:
        CorruptFile: the file is torn, altered, or holds no policy.
        ValueError: a name that `custom_objects` lacks, or a policy of another algorithm.
    """
    check_device(device)
    where = get_device(device)
    contents = read_contents(file, custom_objects, where, OUR_CLASSES)
    tree = contents.tree
    if not isinstance(tree, dict) or set(tree) != _ENTRIES:
        is_model = isinstance(tree, dict) and "policy_class" in tree
        algorithm = algorithm_of(tree) or "MemoryPPO"
        raise CorruptFile(f"{contents.label!r} holds {f'a model; use {algorithm}.load' if is_model else 'no policy'}")
    _check_kind(cls, tree["policy"], contents.label)
    contents.refuse_names()
    with blamed(contents.label, "policy", custom_objects or ()):
        with no_larger_than([tree["state_dict"]]):
            policy = cls(lr_schedule=ConstantSchedule(0.0), **tree["policy"])
        policy.load_state_dict(tree["state_dict"])
    return policy.to(where)


@contextmanager
def no_larger_than(states: Iterable[Mapping[str, Any]]) -> Iterator[None]:
    """Refuse to make modules far larger than `states`, the state dicts that are to be put into them.

    A file of a few bytes can ask for a network that fills the memory. What is refused here has cost one parameter at
    most, and nothing where torch's layers make it, as they register parameters before they fill them.
    """
    tensors = [tensor for state in states for tensor in state.values() if isinstance(tensor, torch.Tensor)]
    left = MOST_TIMES * sum(tensor.numel() for tensor in tensors) + MOST_MORE

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise ValueError(f"it asks for more parameters than it holds, at {type(module).__name__}.{name}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def blamed(label: str, what: str, given: Iterable[str]) -> Iterator[None]:
    """Blame a failure inside on the file, or on what the caller gave in place of what the file holds.

    Args:
        label: the file.
        what: "model" or "policy", which is being made of it.
        given: names of what the caller gave.

    Raises:
        Unfit: as it was raised.
        CorruptFile: nothing was given.
        ValueError: something was given, and is named.
    """
    try:
        yield
    except (Unfit, torch.OutOfMemoryError, MemoryError, OSError, ImportError, Warning):
        raise  # the machine is at fault, or the user made warnings errors
    except Exception as error:
        if names := ", ".join(given):
            raise ValueError(
                f"no {what} can be made of {label!r} with what was given to load, {names}: {one_line(error)}; give "
                "only what the file asks for"
            ) from error
        if "state_dict" in str(error):
            # the parts of a memory, or their sizes, have changed since
            raise CorruptFile(
                f"{label!r} holds parameters of other modules than this version makes; train it again, or load it with "
                f"the version that wrote it (versions.json of its run names the commit): {one_line(error)}"
            ) from error
        raise CorruptFile(f"{label!r} describes no {what} that can be made: {one_line(error)}") from error


SelfPolicy = TypeVar("SelfPolicy", bound="SavedPolicy")


class SavedPolicy(ActorCriticPolicy):
    """The part of a policy that is written and read without pickles."""

    def save(self, path: File) -> None:
        """Write the policy, without its optimiser, as JSON and safetensors; `path` is as in `MemoryPPO.save`."""
        save_policy(self, path)

    @classmethod
    def load(
        cls: type[SelfPolicy],
        path: File,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
    ) -> SelfPolicy:
        """Make a policy from what `save` wrote; arguments and errors are those of `load_policy`."""
        return load_policy(cls, path, device, custom_objects)

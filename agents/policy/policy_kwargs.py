"""The policy and `policy_kwargs` of an agent: what is allowed, checked before a policy is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.refusals import (
    FLAG,
    MOST_UNITS,
    NAMED,
    STRING,
    Allowed,
    check,
    check_keys,
    closest,
    integer,
    keywords,
    number,
    optional,
    refuse,
)

_WIDTH = integer(1, MOST_UNITS)
_WIDTHS = f"a list of layers' widths, each {_WIDTH.words}"


def _are_widths(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(_WIDTH.fits, value))


def net_arch(*critics: str) -> Allowed:
    """Widths of the heads' layers: one list, or a dict of one for "pi" and one for one of the names `critics`."""

    def fits(value: Any) -> bool:
        if isinstance(value, dict):
            known = [set(value) <= {"pi", critic} for critic in critics]
            return any(known) and all(map(_are_widths, value.values()))
        return _are_widths(value)

    names = " or ".join(map(repr, critics))
    return optional(Allowed(f"{_WIDTHS}, or a dict of such lists under 'pi' and {names}", fits))


def _subclass_of(base: type) -> Allowed:
    return Allowed(
        f"a subclass of {base.__module__.partition('.')[0]}'s {base.__name__}",
        lambda value: isinstance(value, type) and issubclass(value, base),
    )


POLICY_ARGUMENTS: dict[str, Allowed] = {
    "memory": STRING,
    "memory_kwargs": optional(NAMED),
    "share_memory": FLAG,
    "encoder_arch": Allowed(_WIDTHS, _are_widths),
    "net_arch": net_arch("vf"),
    "activation_fn": _subclass_of(nn.Module),
    "ortho_init": FLAG,
    "log_std_init": number(-100, 100),
    "full_std": FLAG,
    "use_expln": FLAG,
    "squash_output": FLAG,
    "features_extractor_class": optional(_subclass_of(BaseFeaturesExtractor)),
    "features_extractor_kwargs": optional(NAMED),
    "share_features_extractor": FLAG,
    "normalize_images": FLAG,
    "optimizer_class": _subclass_of(torch.optim.Optimizer),
    "optimizer_kwargs": optional(NAMED),
}
"""What each of a policy's own arguments may be."""

SET_BY_THE_AGENT = {
    "observation_space": "it is the environment's",
    "action_space": "it is the environment's",
    "lr_schedule": "it is MemoryPPO's learning_rate",
    "use_sde": "it is an argument of MemoryPPO",
    "reconstruct": "it follows from MemoryPPO's memory_aux_coef",
    "mark_starts": "it follows from MemoryPPO's memory_carry_over",
    "normalize_observations": "it is an argument of MemoryPPO",
    "normalize_returns": "it is an argument of MemoryPPO",
}
"""Arguments of a policy that `policy_kwargs` cannot hold, and why."""

OF_RECURRENT_PPO = {
    "lstm_hidden_size": "memory_kwargs=dict(output_size=...)",
    "n_lstm_layers": "memory_kwargs=dict(num_layers=...)",
    "shared_lstm": "share_memory",
    "enable_critic_lstm": "share_memory: actor and critic share a memory or have one each",
    "lstm_kwargs": "memory_kwargs",
}
"""Arguments of sb3-contrib's RecurrentActorCriticPolicy -> what a policy has in their place."""


def check_policy(policy: Any, aliases: Mapping[str, type], base: type = MemoryActorCriticPolicy) -> None:
    """Refuse what is neither a policy's name nor a subclass of `base`."""
    if isinstance(policy, type) and issubclass(policy, base):
        return
    if not isinstance(policy, str) or policy not in aliases:
        names = ", ".join(map(repr, aliases))
        refuse("policy", f"one of {names}, or a subclass of {base.__name__}", policy, closest(policy, aliases))


def check_policy_kwargs(policy: type[Any], given: Mapping[str, Any], algorithm: str = "MemoryPPO") -> None:
    """Refuse arguments that a policy cannot be made with.

    Args:
        policy: its class, whose `refused_arguments` and `allowed_arguments` differ from those here.
        given: `policy_kwargs`.
        algorithm: the class that makes the policy, for messages.
    """
    refused = {name: why.replace("MemoryPPO", algorithm) for name, why in SET_BY_THE_AGENT.items()}
    refused |= policy.refused_arguments
    allowed = {**POLICY_ARGUMENTS, **policy.allowed_arguments}
    known = {name: parameter for name, parameter in _arguments_of(policy).items() if name not in refused}
    for name, value in given.items():
        if name in refused:
            raise ValueError(f"policy_kwargs cannot hold {name!r}: {refused[name]}; leave it out")
        if name not in known:
            here = OF_RECURRENT_PPO.get(name)
            hint = closest(name, known) if here is None else f", which is RecurrentPPO's; in its place is {here}"
            raise ValueError(
                f"policy_kwargs: {policy.__name__} has no argument {name!r}{hint}; allowed: {', '.join(known)}"
            )
        if name in allowed:
            check(name, value, allowed[name])
    if "input_size" in (given.get("memory_kwargs") or {}):
        raise ValueError(
            "memory_kwargs cannot hold 'input_size': it is the width of what the encoder gives; leave it out"
        )
    defaults: dict[str, Callable[..., Any]] = {
        "features_extractor": policy.default_extractor,
        "optimizer": known["optimizer_class"].default,
    }
    for kind, default in defaults.items():
        target = given.get(f"{kind}_class") or default
        check_keys(f"{kind}_class {target.__name__}", given.get(f"{kind}_kwargs") or {}, target)


def _arguments_of(policy: type[Any]) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a policy's class, and of its bases as long as one hands **kwargs on to the next."""
    known: dict[str, inspect.Parameter] = {}
    for cls in policy.__mro__:
        init = cls.__init__  # type: ignore[misc]
        known |= keywords(init, skip={"self", *SET_BY_THE_AGENT, *known})
        if all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
            break
    return known

"""The hyperparameters of `MemoryPPO`: the values that each allows, and which of them the command line has.

A new hyperparameter touches two files: `agents/learn/ppo.py`, where it is an argument and is used, and this one. If the
command line has it, it is a field of `Hyperparameters`, with the default of the command line. If not, it is a line of
`ARGUMENTS`. Importing this module imports neither torch nor SB3, so `--help` is fast.
"""

from __future__ import annotations

import functools
import importlib
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any

import numpy as np

from palimpsest.agents.device import check_device
from palimpsest.refusals import (
    FLAG,
    MOST_UNITS,
    NAMED,
    Allowed,
    check,
    choice,
    integer,
    is_flag,
    is_integer,
    is_number,
    number,
    optional,
    shown,
)

FRACTION = number(0, 1)
WEIGHT = number(0, 10**6)
NORM = Allowed(
    "a number, 0 or more, or inf for no clipping",
    lambda value: is_number(value, 0) or (isinstance(value, float | np.floating) and value == math.inf),
)


@dataclass(frozen=True)
class Hyperparameters:
    """Arguments of `MemoryPPO` that the command line and a run's file have under the same names.

    The defaults are the command line's; `MemoryPPO` has those of sb3-contrib's RecurrentPPO, but for
    `normalize_returns`.
    """

    n_steps: Annotated[int | None, integer(1)] = None
    """Steps of every environment per rollout; gradients through the memory reach back no further, nor further than a
    minibatch has samples. Default: 128, or as many as make about 2,048 samples of fewer than 11 environments."""
    n_epochs: Annotated[int, integer(1, 10**4)] = 4
    """Passes over each rollout."""
    learning_rate: Annotated[float | None, number(0, 10)] = None
    """Learning rate of Adam. Default: the memory's preset."""
    gamma: Annotated[float | None, FRACTION] = None
    """Discount factor per step. Default: the algorithm's preset, 0.99 with ppo."""
    gae_lambda: Annotated[float, FRACTION] = 0.95
    """λ of generalised advantage estimation."""
    min_gae_lambda: Annotated[float, FRACTION] = 0.7
    """Smallest λ of the actor's advantages. With less than gae_lambda rollouts choose one between: a small one unless
    values follow too slowly what actions change. 1 for gae_lambda alone."""
    ent_coef: Annotated[float, WEIGHT] = 0.02
    """Weight of the entropy bonus."""
    clip_range: Annotated[float, WEIGHT] = 0.2
    """PPO's clip range of the probability ratio."""
    target_kl: Annotated[float | None, WEIGHT] = None
    """Passes over a rollout stop at 1.5 times this KL divergence from the policy that acted, and a step that alone
    adds more than this is undone. 0 sets no limit. Default: 0.02; 0.1 where actions are a Box."""
    min_advantage_std: Annotated[float, WEIGHT] = 0.1
    """Lower bound of the standard deviation that advantages are divided by; with normalised returns in standard
    deviations of returns. When all episodes go alike, advantages are noise and must not be scaled up."""
    vf_coef: Annotated[float, WEIGHT] = 0.5
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, NORM] = 0.5
    """Gradients are scaled down to this norm; inf for no clipping."""
    use_sde: Annotated[bool, FLAG] = True
    """Where actions are a Box, explore by noise that is a function of what the policy's head reads and changes every
    `sde_sample_freq` steps (gSDE, arXiv 2005.05719), not by independent noise."""
    sde_sample_freq: Annotated[int, integer(-1)] = 4
    """Steps between draws of that noise; -1 for once a rollout."""
    normalize_observations: Annotated[bool, FLAG] = True
    """Scale observations by their running moments: those of a Box of floats with bounds beyond -1 to 1."""
    normalize_returns: Annotated[bool, FLAG] = True
    """Scale the returns that the critic predicts by their mean and their largest spread; rewards stay as they are. With
    dqn and sac, divide the rewards by the standard deviation of all returns so far, or the largest reward."""

    autocast: Annotated[bool, FLAG] = False
    """Update with the encoder, the memory's maps and the heads' layers in bfloat16; where the device gains."""


ACTIVATIONS = {
    "tanh": "palimpsest.agents.policy.layers:Tanh",
    **{name.lower(): f"torch.nn:{name}" for name in ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU")},
}
"""Name on the command line -> class of what follows each layer."""

WIDTHS = integer(1, MOST_UNITS)


@dataclass(frozen=True)
class Network:
    """Arguments of the policy that the command line has, beside the memory's and `width`."""

    encoder_arch: tuple[Annotated[int, WIDTHS], ...] | None = None
    """Widths of the encoder's layers, before the memory; none for no layer. Default: one of `width`."""
    net_arch: tuple[Annotated[int, WIDTHS], ...] | None = None
    """Widths of each head's layers, after the memory. Default: one of `width`; two of 128 with dqn and sac."""
    activation: Annotated[str | None, choice(ACTIVATIONS)] = None
    """What follows each of these layers. Default: tanh; relu with dqn and sac."""
    ortho_init: Annotated[bool, FLAG] = True
    """Begin from orthogonal weights."""
    log_std_init: Annotated[float | None, number(-100, 100)] = None
    """Logarithm of the actions' standard deviation at first, where actions are a Box. Default: 0; -1 with `use_sde`."""

    def layers(self, width: int) -> dict[str, Any]:
        """These as arguments of a policy, without those that are its defaults."""
        activation = self.activation or "tanh"
        module, _, cls = ACTIVATIONS[activation].partition(":")
        given = {
            "activation_fn": None if activation == "tanh" else getattr(importlib.import_module(module), cls),
            "ortho_init": None if self.ortho_init else False,
            "log_std_init": self.log_std_init,
        }
        return {
            "encoder_arch": [width] if self.encoder_arch is None else list(self.encoder_arch),
            "net_arch": [width] if self.net_arch is None else list(self.net_arch),
            **{name: value for name, value in given.items() if value is not None},
        }


hints_of: Callable[[type], dict[str, Any]] = functools.cache(
    functools.partial(typing.get_type_hints, include_extras=True)
)
"""The annotations of a dataclass, which are texts: to evaluate them takes longer than to check the values."""


def allowed_of(cls: type) -> dict[str, Allowed]:
    """Field of a dataclass -> the values that it allows, for fields with an `Allowed` in their annotation."""
    found = {
        name: [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Allowed)]
        for name, hint in hints_of(cls).items()
    }
    return {name: parts[0] for name, parts in found.items() if parts}


def schedule(allowed: Allowed) -> Allowed:
    """The same, or a function of the remaining progress, 1 to 0, that gives it."""
    return Allowed(
        f"{allowed.words}, or a function of the remaining progress (1 to 0) that gives one",
        lambda value: allowed.fits(_at_first(value) if callable(value) else value),
        lambda value: f", which at 1.0 {_told(_at_first(value))}" if callable(value) else "",
    )


def _at_first(value: Callable[[float], Any]) -> Any:
    """The value of a schedule at the start of training, or the exception that it raises."""
    try:
        return value(1.0)
    except Exception as error:  # a user's function may raise anything
        return error


def _told(result: Any) -> str:
    return f"{'raises' if isinstance(result, Exception) else 'gives'} {shown(result)}"


def _is_directory(value: Any) -> bool:
    return isinstance(value, str | PathLike) and bool(str(value).strip()) and "\0" not in str(value)


def _is_pair_of_fractions(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(FRACTION.fits, value))


_FIELDS = allowed_of(Hyperparameters)

ARGUMENTS: dict[str, Allowed] = {
    **_FIELDS,
    **{name: schedule(_FIELDS[name]) for name in ("learning_rate", "ent_coef", "clip_range")},
    "target_kl": optional(_FIELDS["target_kl"]),
    "min_gae_lambda": optional(_FIELDS["min_gae_lambda"]),
    "batch_size": optional(integer(1, math.inf)),
    "clip_range_vf": optional(schedule(WEIGHT)),
    "normalize_advantage": FLAG,
    "use_sde": FLAG,
    "sequence_length": optional(integer(1)),
    "normalize_returns": optional(FLAG),
    "refresh_states": FLAG,
    "memory_carry_over": FRACTION,
    "memory_aux_coef": WEIGHT,
    "strategy_epsilon": Allowed("two numbers, 0 to 1, at the beginning and at the end", _is_pair_of_fractions),
    "stats_window_size": integer(1),
    "tensorboard_log": optional(Allowed("a directory's path", _is_directory)),
    "policy_kwargs": optional(NAMED),
    "verbose": Allowed("an integer, 0 to 2, or True or False", lambda value: is_integer(value, 0, 2) or is_flag(value)),
    "seed": optional(integer(0, 2**32 - 1)),
}
"""The values that each argument of `MemoryPPO` allows, except `policy`, `env` and `device`."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments that `MemoryPPO` does not allow, before anything is made. `given` may hold other names."""
    for name, allowed in ARGUMENTS.items():
        check(name, given[name], allowed)
    check_device(given["device"])

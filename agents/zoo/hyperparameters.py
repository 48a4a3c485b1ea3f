"""rl-zoo3's hyperparameters of `ppo_lstm` -> the configuration of a training. A key that has no counterpart is refused.

The format is that of rl-zoo3's `hyperparams/ppo_lstm.yml`: environment -> key -> value, where some values are texts.
Keys that are left out have RecurrentPPO's defaults, not those of the command line. But the critic predicts scaled
returns, as `MemoryPPO`'s does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.agents.learn.hyperparameters import ACTIVATIONS
from palimpsest.agents.run.config import PATH, TrainConfig
from palimpsest.agents.zoo.texts import Activation, read_expression, read_number, read_schedule
from palimpsest.refusals import check, closest, is_flag, is_integer, is_number

RECURRENT_PPO = {
    "memory": "lstm",
    "num_envs": 1,
    "n_steps": 128,
    "batch_size": 128,
    "n_epochs": 10,
    "learning_rate": 3e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "min_gae_lambda": 1.0,
    "ent_coef": 0.0,
    "clip_range": 0.2,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "use_sde": False,
    "sde_sample_freq": -1,
    "target_kl": 0.0,
    "min_advantage_std": 0.0,
    "anneal": False,
    "anneal_entropy": False,
    "normalize_observations": False,
    "normalize_returns": True,
    "carry_over": 0.0,
    "share_memory": False,
    "encoder_arch": (),
    "net_arch": (64, 64),
    "log_std_init": 0.0,
}
"""What a training has where a file says nothing. 0 is no limit of the KL divergence."""

LSTM_SIZE = 256
"""RecurrentPPO's default of lstm_hidden_size."""

POLICIES = ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy")

REFUSED = {
    "callback": "callbacks are objects of Python; give them to MemoryPPO.learn",
    "vec_env_class": "the command line chooses the kind of vector environment",
    "vec_env_wrapper": "wrappers of vector environments are objects of Python; wrap the environment for MemoryPPO",
    "monitor_kwargs": "every environment is monitored",
    "clip_range_vf": "the command line does not clip values; MemoryPPO has clip_range_vf",
    "lstm_kwargs": "the memory has no such arguments",
    "optimizer_class": "the optimiser is Adam; MemoryPPO takes others in policy_kwargs",
    "optimizer_kwargs": "the optimiser is Adam; MemoryPPO takes others in policy_kwargs",
    "features_extractor_class": "classes are objects of Python; give it to MemoryPPO in policy_kwargs",
    "features_extractor_kwargs": "give it to MemoryPPO in policy_kwargs",
}
"""Keys that a training by the command line cannot do, and why."""

_ORDER = {"policy": 0, "frame_stack": 2}
"""When a key is read, if not among the others (1): a policy has defaults of its own, and frames are stacked last."""

Fields = dict[str, Any]


def load(path: Path, env: str | None = None, key: str | None = None) -> TrainConfig:
    """The configuration that a file says for an environment.

    Args:
        path: the YAML file.
        env: the environment's id. It decides the entry if there are several; default: the entry's name.
        key: the entry's name.

    Raises:
        ValueError: PyYAML is not installed, the file cannot be read, it has no such entry, or a key or a value has no
            counterpart. The message names the file, the entry and the key.
    """
    document = _document(path)
    name = _entry(document, env, key, path)
    found: Fields = dict(RECURRENT_PPO)
    sizes: Fields = {"output_size": LSTM_SIZE}
    try:
        for zoo_name, value in sorted(document[name].items(), key=lambda item: _ORDER.get(item[0], 1)):
            _take(str(zoo_name), value, found, sizes)
        return TrainConfig(**found, memory_args=sizes, env=env or _environment(name))
    except ValueError as error:
        raise ValueError(f"{path}: {name}: {error}") from None


def _document(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise ValueError("--zoo-config needs PyYAML; install it with: pip install 'palimpsest-rl[tune]'") from None
    check("the path of rl-zoo3's file", path, PATH)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML document: {error}") from None
    if not isinstance(document, dict) or not document or not all(isinstance(part, dict) for part in document.values()):
        raise ValueError(f"{path} must hold a table of hyperparameters for each environment, as rl-zoo3's files do")
    return {str(name): table for name, table in document.items()}


def _entry(document: Mapping[str, Any], env: str | None, key: str | None, path: Path) -> str:
    """The name of the entry that is meant."""
    listed = ", ".join(document)
    if key is not None:
        if key not in document:
            raise ValueError(f"{path} has no entry {key!r}{closest(key, document)}; it has {listed}")
        return key
    if env is not None:
        found = [name for name in document if name == env] or [name for name in document if _bare(name) == _bare(env)]
        if len(found) == 1:
            return found[0]
        why = f"several entries for {env!r}" if found else f"no entry for {env!r}"
    elif len(document) == 1:
        return next(iter(document))
    else:
        why = "several entries"
    raise ValueError(f"{path} has {why}; choose one by --zoo-key: {listed}")


def _bare(name: str) -> str:
    """The name of an environment alone: module:Palimpsest/CartPoleNoVel-v0 -> CartPoleNoVel."""
    return re.sub(r"-v\d+$", "", name.rpartition(":")[2].rpartition("/")[2])


def _environment(name: str) -> str:
    """The id for an entry's name: its own if gymnasium has it, else that of our world of this name."""
    import gymnasium

    from palimpsest import envs

    ours = [env for env in envs.ids() if _bare(env) == _bare(name)]
    return ours[0] if ours and name not in gymnasium.registry else name


def _take(name: str, value: Any, found: Fields, sizes: Fields) -> None:
    """Put what a key says into the fields of the training, or into the memory's arguments."""
    if name in REFUSED:
        if value is None or (name == "clip_range_vf" and is_number(value, high=-1e-12)):
            return  # the default, and the zoo's word for no clipping
        raise ValueError(f"{name!r} is not taken: {REFUSED[name]}; leave it out of the file")
    if name not in _READERS:
        known = [*_READERS, *REFUSED]
        raise ValueError(f"unknown key {name!r}{closest(name, known)}; known: {', '.join(_READERS)}")
    try:
        _READERS[name](value, found, sizes)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name!r}: {error}") from None


def _number(field: str, none: float | None = None) -> Callable[[Any, Fields, Fields], None]:
    def take(value: Any, found: Fields, sizes: Fields) -> None:
        found[field] = none if value is None and none is not None else read_number(value)

    return take


def _integer(field: str) -> Callable[[Any, Fields, Fields], None]:
    def take(value: Any, found: Fields, sizes: Fields) -> None:
        found[field] = _whole(value)

    return take


def _flag(field: str) -> Callable[[Any, Fields, Fields], None]:
    def take(value: Any, found: Fields, sizes: Fields) -> None:
        found[field] = _truth(value)

    return take


def _falling(field: str, falls: str) -> Callable[[Any, Fields, Fields], None]:
    def take(value: Any, found: Fields, sizes: Fields) -> None:
        found[field], found[falls] = read_schedule(value)

    return take


def _whole(value: Any) -> int:
    number = read_number(value)
    if number != int(number):
        raise ValueError(f"it must be an integer; got {value!r}")
    return int(number)


def _truth(value: Any) -> bool:
    if not is_flag(value):
        raise ValueError(f"it must be true or false; got {value!r}")
    return bool(value)


def _table(value: Any) -> dict[str, Any]:
    """A table, or the text of one."""
    table = read_expression(value) if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise ValueError(f"it must be dict(...) or a table; got {value!r}")
    return table


def _policy(value: Any, found: Fields, sizes: Fields) -> None:
    if value not in POLICIES:
        raise ValueError(f"it must be one of {', '.join(POLICIES)}, of which a training finds the one; got {value!r}")
    if value == "CnnLstmPolicy":
        found["net_arch"] = ()  # as in SB3, whose NatureCNN is deep enough


def _normalize(value: Any, found: Fields, sizes: Fields) -> None:
    """VecNormalize -> moments inside the policy: of observations, and of returns in place of rewards."""
    table = {} if is_flag(value) else dict(_table(value))
    wanted = value if is_flag(value) else True
    for name, field in (("norm_obs", "normalize_observations"), ("norm_reward", "normalize_returns")):
        found[field] = wanted and _truth(table.pop(name, True))
    table.pop("gamma", None)  # rl-zoo3 sets it to that of the training
    if table:
        raise ValueError(f"it takes norm_obs and norm_reward; leave out {', '.join(map(repr, table))}")


def _normalize_advantage(value: Any, found: Fields, sizes: Fields) -> None:
    if not _truth(value):
        raise ValueError("the command line always normalises advantages; leave it out, or use MemoryPPO")


def _env_wrapper(value: Any, found: Fields, sizes: Fields) -> None:
    for part in value if isinstance(value, list) else [] if value is None else [value]:
        module, _, name = part.rpartition(".") if isinstance(part, str) else ("", "", "")
        if not module:
            raise ValueError(f"it must be module.Wrapper, or a list of them, without arguments; got {part!r}")
        found["wrapper"] = (*found.get("wrapper", ()), f"{module}:{name}")


def _frame_stack(value: Any, found: Fields, sizes: Fields) -> None:
    found["wrapper"] = (*found.get("wrapper", ()), f"frame-stack={_whole(value)}")


def _env_kwargs(value: Any, found: Fields, sizes: Fields) -> None:
    found["env_args"] = _table(value)


def _policy_kwargs(value: Any, found: Fields, sizes: Fields) -> None:
    table = dict(_table(value))
    shared, critic = (_truth(table.pop(*pair)) for pair in (("shared_lstm", False), ("enable_critic_lstm", True)))
    if not shared and not critic:
        raise ValueError(
            "'enable_critic_lstm' is False and 'shared_lstm' too: a critic without a memory is not taken; set one"
        )
    found["share_memory"] = shared
    for name, part in table.items():
        if name in REFUSED:
            raise ValueError(f"{name!r} is not taken: {REFUSED[name]}; leave it out of the file")
        if name not in _POLICY_READERS:
            raise ValueError(
                f"unknown key {name!r}{closest(name, _POLICY_READERS)}; known: {', '.join(_POLICY_READERS)}"
            )
        try:
            _POLICY_READERS[name](part, found, sizes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name!r}: {error}") from None


def _net_arch(value: Any, found: Fields, sizes: Fields) -> None:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        (value,) = value  # an older way to write it
    if isinstance(value, dict):
        if set(value) != {"pi", "vf"} or value["pi"] != value["vf"]:
            raise ValueError(f"the two heads must have equal layers; got {value}")
        value = value["pi"]
    if not isinstance(value, list) or not all(is_integer(width, 1) for width in value):
        raise ValueError(f"it must be a list of widths, or dict(pi=[...], vf=[...]); got {value!r}")
    found["net_arch"] = tuple(value)


def _activation(value: Any, found: Fields, sizes: Fields) -> None:
    name = value.name if isinstance(value, Activation) else ""
    if name.lower() not in ACTIVATIONS:
        raise ValueError(f"it must be nn. and one of {', '.join(ACTIVATIONS)}; got {name or value!r}")
    found["activation"] = name.lower()


def _size(argument: str) -> Callable[[Any, Fields, Fields], None]:
    def take(value: Any, found: Fields, sizes: Fields) -> None:
        sizes[argument] = _whole(value)

    return take


_READERS: dict[str, Callable[[Any, Fields, Fields], None]] = {
    "policy": _policy,
    "n_envs": _integer("num_envs"),
    "n_timesteps": _integer("total_timesteps"),
    "n_steps": _integer("n_steps"),
    "batch_size": _integer("batch_size"),
    "n_epochs": _integer("n_epochs"),
    "learning_rate": _falling("learning_rate", "anneal"),
    "clip_range": _falling("clip_range", "anneal_clip_range"),
    "ent_coef": _falling("ent_coef", "anneal_entropy"),
    "gamma": _number("gamma"),
    "gae_lambda": _number("gae_lambda"),
    "vf_coef": _number("vf_coef"),
    "max_grad_norm": _number("max_grad_norm"),
    "target_kl": _number("target_kl", none=0.0),
    "use_sde": _flag("use_sde"),
    "sde_sample_freq": _integer("sde_sample_freq"),
    "seed": _integer("seed"),
    "normalize": _normalize,
    "normalize_advantage": _normalize_advantage,
    "env_kwargs": _env_kwargs,
    "env_wrapper": _env_wrapper,
    "frame_stack": _frame_stack,
    "policy_kwargs": _policy_kwargs,
}
"""Key of rl-zoo3 -> what takes its value."""

_POLICY_READERS: dict[str, Callable[[Any, Fields, Fields], None]] = {
    "lstm_hidden_size": _size("output_size"),
    "n_lstm_layers": _size("num_layers"),
    "net_arch": _net_arch,
    "activation_fn": _activation,
    "ortho_init": _flag("ortho_init"),
    "log_std_init": _number("log_std_init"),
}
"""The same for the keys of policy_kwargs, beside shared_lstm and enable_critic_lstm."""

"""Arguments of environments and memories: KEY=VALUE texts, converted by the annotations of the constructor."""

from __future__ import annotations

import collections.abc
import decimal
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from palimpsest import memory
from palimpsest.agents.environments import environment_spec
from palimpsest.agents.run.presets import algorithm_class
from palimpsest.refusals import FLAG, check_keys, closest, keywords

MADE_BY_US = frozenset({"render_mode", "input_size"})
"""Arguments that a run sets itself."""


FLAGS_OF_A_RUN = frozenset(
    {
        *("policy", "env", "policy_kwargs", "learning_rate", "gamma", "normalize_observations", "seed", "device"),
        *("verbose", "tensorboard_log", "stats_window_size", "_init_setup_model", "action_noise"),
        *("replay_buffer_class", "replay_buffer_kwargs"),
    }
)
"""Arguments of an algorithm that other flags of a run say, or that no text can."""

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "lengths": {"length": (9, 30, 90, 150, 300, 600, 900, 1200, 2400, 4800, 9600)},
}
"""Grids of test settings that have a name: argument of the environment -> values.

"lengths": corridors after arXiv 2412.06531, which trains at each of the first seven lengths and tests up to 9,600. The
lengths from 1,200 on are our choice.
"""


class Given(dict[str, str]):
    """KEY=VALUE texts from the command line, not converted yet. Any other dict of arguments holds converted values."""


def environment_arguments(env_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for the environment registered under `env_id`.

    Args:
        env_id: a registered gymnasium id, or "module:id".
        arguments: `Given` texts, or converted values.

    Raises:
        ValueError: an unknown id or argument (the message names the closest known one), a value of the wrong type, or
            an environment whose module cannot be imported.
    """
    from gymnasium.envs.registration import load_env_creator
    from gymnasium.error import DependencyNotInstalled

    spec = environment_spec(env_id)
    if spec.entry_point is None:
        raise ValueError(f"environment {env_id!r} has only a vectorised form; choose one with an entry point")
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (ImportError, DependencyNotInstalled) as error:
        raise ValueError(f"environment {env_id!r} cannot be imported: {error}; install its dependencies") from None
    return _arguments(arguments, creator, env_id, spec.kwargs)


def memory_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for the memory registered under `name`; see `environment_arguments`."""
    memory.register_from(name)
    memory.entry(name)
    return _arguments(arguments, memory.memory_class(name), f"memory {name!r}")


def algorithm_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for an algorithm other than ppo; see `environment_arguments`."""
    if name == "ppo" and not arguments:
        return {}
    return _arguments(arguments, algorithm_class(name), f"algorithm {name!r}", skip=FLAGS_OF_A_RUN)


def _arguments(
    arguments: Mapping[str, Any],
    target: Callable[..., Any],
    name: str,
    extra: Mapping[str, Any] | None = None,
    skip: frozenset[str] = MADE_BY_US,
) -> dict[str, Any]:
    if isinstance(arguments, Given):
        return parse_key_values([f"{k}={v}" for k, v in arguments.items()], target, skip, name, extra)
    check_keys(name, arguments, target, skip, extra)
    return dict(arguments)


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONE = ("none", "null")
_SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_UNION_ORDER = (Literal, int, float, bool, *_SEQUENCES, Any, Path, str)
"""The order in which the members of a union try to read a text, narrow types first. None comes before all of them."""


def parse_key_values(
    pairs: Iterable[str],
    target: Callable[..., Any],
    skip: Collection[str] = (),
    name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read ["corridors=10", "regime=uniform"] as keyword arguments of `target`.

    Numbers, truth values (true, false, yes, no, 1, 0), None ("none"), strings, Literals, unions and sequences
    ("1,2,3") are read by the annotation of the parameter. Without an annotation the type of the default decides.
    If that does not help, or if the key goes to **kwargs, the text is read as JSON. A text that is not JSON stays a
    string.

    Args:
        pairs: KEY=VALUE texts.
        target: a class or function.
        skip: parameters that must not be given.
        name: the name of the target in messages; default: its own name.
        extra: further keys that the target takes, with their defaults, from its registration.

    Raises:
        ValueError: no "=", a key twice, an unknown key (the message names the closest known one), or a value of the
            wrong type.
    """
    called = name or getattr(target, "__name__", None) or str(target)
    known, hints = keywords(target, skip, extra), _hints(target)
    found: dict[str, Any] = {}
    for key, text in split_key_values(pairs).items():
        check_keys(called, [key], target, skip, extra)
        parameter = known.get(key)
        kind = Any if parameter is None else hints.get(key, _kind_of_default(parameter.default))
        try:
            found[key] = read_value(text, kind)
        except ValueError:
            options = [option for option in typing.get_args(kind) if isinstance(option, str)]
            hint = closest(text, options) if typing.get_origin(kind) is Literal else ""
            raise ValueError(f"argument {key!r} of {called} must be {describe(kind)}; got {text!r}{hint}") from None
    return found


def split_key_values(pairs: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE texts as a dict; ValueError if one has no "=" or no key, or if a key comes twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"arguments must read KEY=VALUE, without spaces around '='; got {pair!r}")
        if key in found:
            raise ValueError(f"argument {key!r} is given twice, as {found[key]!r} and {text!r}; give it once")
        found[key] = text
    return found


def spelled_out(words: Iterable[str]) -> list[str]:
    """`words` KEY=A,B,C of a grid, with the axes of one of `GRIDS` in place of its name."""
    found = []
    for word in words:
        axes = GRIDS.get(word)
        found += [word] if axes is None else [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    return found


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a class's or a function's parameters; empty if one of them cannot be resolved."""
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}  # some names exist only for a type checker


def _kind_of_default(default: Any) -> Any:
    """The type to read for a parameter that has a default and no annotation."""
    kind = type(default)
    return int | float if kind is int else kind if kind in (bool, float, str) else Any


def _parts(kind: Any) -> list[Any]:
    """The members of a union, in `_UNION_ORDER`."""

    def rank(part: Any) -> int:
        origin = typing.get_origin(part) or part
        return _UNION_ORDER.index(origin) if origin in _UNION_ORDER else _UNION_ORDER.index(Any)

    return sorted((part for part in typing.get_args(kind) if part is not type(None)), key=rank)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def read_value(text: str, kind: Any) -> Any:
    """`text` as a value of the annotation `kind`; ValueError without a message if it is not one."""
    origin = typing.get_origin(kind) or kind
    if _is_union(kind):
        if text.lower() in _NONE and type(None) in typing.get_args(kind):
            return None
        for part in _parts(kind):
            try:
                return read_value(text, part)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        for option in typing.get_args(kind):
            if text == str(option):
                return option
        raise ValueError
    if origin is bool:
        if text.lower() not in _TRUTH:
            raise ValueError
        return _TRUTH[text.lower()]
    if origin is int:
        return _integer(text)
    if origin is float:
        return float(text)
    if origin is Path and not text.strip():
        raise ValueError
    if origin in (str, Path):
        return origin(text)
    if origin in _SEQUENCES:
        return _read_sequence(text, kind)
    return _literal(text)


def _integer(text: str) -> int:
    """The integer of "1000000", "1_000_000" or "1e6"; ValueError for another text."""
    try:
        return int(text)
    except ValueError:
        if re.fullmatch(r"[+-]?\d+(\.\d+)?[eE]\+?\d{1,2}", text) is None:
            raise
    exact = decimal.Decimal(text)
    if exact != exact.to_integral_value():
        raise ValueError
    return int(exact)


def _read_sequence(text: str, kind: Any) -> Any:
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()"):
        inner = inner[1:-1]
    texts = [part.strip() for part in inner.rstrip(",").split(",")] if inner.strip() else []
    members = typing.get_args(kind) or (Any,)
    is_tuple = (typing.get_origin(kind) or kind) is tuple
    if is_tuple and len(members) > 1 and members[-1] is not ...:
        if len(texts) != len(members):
            raise ValueError
        return tuple(map(read_value, texts, members))
    values = [read_value(part, members[0]) for part in texts]
    return tuple(values) if is_tuple else values


def _literal(text: str) -> Any:
    """The value of a JSON text (true, false and none in upper or lower case). Any other text stays a string."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in _NONE:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def describe(kind: Any) -> str:
    """The values that the annotation `kind` allows, in words."""
    origin = typing.get_origin(kind) or kind
    if _is_union(kind):
        words = [describe(part) for part in _parts(kind)]
        return " or ".join([*words, *(["None"] if type(None) in typing.get_args(kind) else [])])
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(kind))
    if origin in _SEQUENCES:
        members = [part for part in typing.get_args(kind) or (Any,) if part is not ...]
        if len(members) > 1:
            return f"{len(members)} values separated by commas"
        return f"values separated by commas, each {describe(members[0])}"
    plain = {int: "an integer", float: "a number", bool: FLAG.words, str: "a string", Path: "a path"}
    return plain.get(origin, "a JSON value")

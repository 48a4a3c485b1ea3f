"""A tree of plain values as JSON and tensors, and back, with nothing in it that could run.

Numbers, strings, paths, dicts, lists, tuples, deques, numpy scalars and arrays, torch tensors, random generators,
gymnasium spaces and SB3's schedules are written in full. Any other object, class or function is written as its
qualified name alone. Reading finds the classes of a fixed table and asks the caller for the rest: no name from a file
is ever imported.

A JSON object stands for a dict. If it has a single key that begins with "$", the key says what it stands for instead.
A value's place is the keys and indices that lead to it from the root, joined by dots.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor

from palimpsest.agents.files.classes import CLASSES, has_name, qualified_name

MOST_DEPTH = 100
"""Most levels of nesting: more than any state has, fewer than Python's stack allows."""

_BIT_GENERATORS = {cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937)} | {
    cls.__name__: cls for cls in (np.random.Philox, np.random.SFC64)
}
_DTYPES = {
    str(np.dtype(kind)): np.dtype(kind)
    for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
}
_TORCH_DTYPES = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
}
_SPACES: dict[type, tuple[str, ...]] = {
    spaces.Box: ("low", "high", "dtype"),
    spaces.Discrete: ("n", "start", "dtype"),
    spaces.MultiDiscrete: ("nvec", "start", "dtype"),
    spaces.MultiBinary: ("n",),
    spaces.Text: ("max_length", "min_length", "charset"),
    spaces.Dict: ("spaces",),
    spaces.Tuple: ("spaces",),
}
_SCHEDULES: dict[type, tuple[str, ...]] = {
    ConstantSchedule: ("val",),
    LinearSchedule: ("start", "end", "end_fraction"),
    FloatSchedule: ("value_schedule",),
}
_SPACE_NAMES = {cls.__name__: cls for cls in _SPACES}
_SCHEDULE_NAMES = {cls.__name__: cls for cls in _SCHEDULES}


class Encoder:
    """Turns trees into JSON nodes.

    Attributes:
        tensors: the tensors that the nodes refer to, by name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}
        self._kept: list[Any] = []

    def encode(self, value: Any, path: str = "", depth: int = 0) -> Any:
        """The JSON node of `value`, whose place is `path`; ValueError where it cannot be written."""
        if depth > MOST_DEPTH:
            raise ValueError(f"{path[:80]!r} is nested deeper than {MOST_DEPTH} levels, or holds itself")

        def inner(part: Any, key: Any) -> Any:
            return self.encode(part, f"{path}.{key}" if path else str(key), depth + 1)

        def sequence(parts: Any) -> list[Any]:
            return [inner(part, index) for index, part in enumerate(parts)]

        if value is None or type(value) in (bool, int):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if type(value) is bytes:
            return {"$bytes": value.hex()}
        if isinstance(value, np.generic) and value.dtype.name in _DTYPES:
            return {"$scalar": [value.dtype.name, _little(np.asarray(value)).tobytes().hex()]}
        if isinstance(value, np.ndarray):
            return {"$array": self._array(value, path)}
        if isinstance(value, Tensor):
            return {"$tensor": self._tensor(value, path)}
        if isinstance(value, torch.dtype) and str(value).removeprefix("torch.") in _TORCH_DTYPES:
            return {"$dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"$device": str(value)}
        if isinstance(value, PurePath):
            return {"$path": str(value)}
        if isinstance(value, dict):
            if all(type(key) is str for key in value) and not (len(value) == 1 and next(iter(value))[:1] == "$"):
                return {key: inner(part, key) for key, part in value.items()}
            return {"$dict": [[self._key(key, path), inner(part, key)] for key, part in value.items()]}
        if isinstance(value, tuple):
            return {"$tuple": sequence(value)}
        if isinstance(value, deque):
            return {"$deque": [value.maxlen, sequence(value)]}
        if isinstance(value, list):
            return sequence(value)
        if isinstance(value, np.random.Generator) and type(value.bit_generator).__name__ in _BIT_GENERATORS:
            return {"$generator": inner(value.bit_generator.state, "state")}
        if type(value) in _SPACES:
            return {"$space": [type(value).__name__, inner(_space_arguments(value), "space")]}
        if type(value) in _SCHEDULES:
            arguments = [getattr(value, name) for name in _SCHEDULES[type(value)]]
            return {"$schedule": [type(value).__name__, *sequence(arguments)]}
        return {"$named" if has_name(value) else "$object": qualified_name(value)}

    def _key(self, key: Any, path: str) -> Any:
        if key is None or isinstance(key, str | bool | int | float | np.generic):
            return self.encode(key, path)
        if isinstance(key, tuple):
            return {"$tuple": [self._key(part, path) for part in key]}
        raise ValueError(f"a key of {path!r} must be a plain value; got {key!r}")

    def _array(self, array: np.ndarray, path: str) -> list[Any]:
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"{path!r} is an array of {array.dtype}, which cannot be stored; allowed: numbers")
        plain = array.flags.writeable and array.flags.aligned and array.dtype.isnative
        if not plain or any(stride < 0 or stride % array.itemsize for stride in array.strides):
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        return self._tensor(torch.from_numpy(array), path)

    def _tensor(self, tensor: Tensor, path: str) -> list[Any]:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{path!r} is a {tensor.layout} tensor, which cannot be stored; make it dense")
        tensor = tensor.detach()
        self._kept.append(tensor)  # an address identifies a tensor only while the tensor lives
        empty = tensor.numel() == 0
        place = len(self._kept) if empty else (str(tensor.device), tensor.data_ptr(), tensor.stride())
        key = (place, tensor.shape, tensor.dtype, tensor.is_conj(), tensor.is_neg())
        if key not in self._names:
            self._names[key] = f"t{len(self._names)}"
            dense = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
            self.tensors[self._names[key]] = dense.resolve_neg().cpu().contiguous().clone()
        return [self._names[key], tensor.is_complex()]


class Decoder:
    """Turns JSON nodes back into trees.

    Args:
        tensors: the tensors that the nodes refer to, by name.
        custom_objects: object by place, where it replaces what the node holds, or, for a name in the file, by the last
            parts of its place or by qualified name, if these fit one place only.
        device: where tensors go; arrays stay on the CPU.
        classes: classes by qualified name, besides those of the fixed table.

    Attributes:
        used: names of the tensors that nodes referred to.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        custom_objects: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        classes: Mapping[str, type] | None = None,
    ) -> None:
        self.tensors = tensors
        self.device = device
        self.custom_objects = custom_objects or {}
        self.classes = {**CLASSES, **(classes or {})}
        self.used: set[str] = set()
        self._replaced: set[str] = set()
        self._names: list[tuple[str, str, str | None]] = []
        self._ready: dict[tuple[str, torch.device], Tensor] = {}
        self._kinds: dict[str, Callable[[Any, str], Any]] = {
            "$float": lambda node, path: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[node],
            "$bytes": lambda node, path: bytes.fromhex(node),
            "$scalar": _scalar,
            "$array": lambda node, path: self._tensor(node, "cpu").numpy(),
            "$tensor": lambda node, path: self._tensor(node, self.device),
            "$dtype": lambda node, path: _TORCH_DTYPES[node],
            "$device": lambda node, path: torch.device(node),
            "$path": lambda node, path: Path(node),
            "$dict": self._dict,
            "$tuple": lambda node, path: tuple(self._list(node, path)),
            "$deque": lambda node, path: deque(self._list(node[1], path), maxlen=node[0]),
            "$generator": self._generator,
            "$space": self._space,
            "$schedule": self._schedule,
            "$named": self._named,
            "$object": self._object,
        }

    def decode(self, node: Any, path: str = "") -> Any:
        """What `node`, whose place is `path`, was made from; None for a name that stays unknown.

        Raises:
            ValueError: a node that `Encoder` does not write.
        """
        value = self._decode(node, path)
        if path in self.custom_objects:
            self._replaced.add(path)
            return self.custom_objects[path]
        return value

    def missing(self) -> list[tuple[str, str]]:
        """(qualified name, place) of the names in what was decoded that `custom_objects` does not give.

        A key of `custom_objects` that fits two places gives neither, as two functions may have one qualified name.
        """
        within = tuple(f"{place}." for place in self._replaced)
        names = [found for found in self._names if not f"{found[1]}.".startswith(within)]
        used = Counter(key for _, _, key in names)
        return [(name, place) for name, place, key in names if key is None or used[key] > 1 or key in self._replaced]

    def _decode(self, node: Any, path: str) -> Any:
        if isinstance(node, list):
            return self._list(node, path)
        if not isinstance(node, dict):
            return node
        if len(node) != 1 or next(iter(node))[:1] != "$":
            return {key: self.decode(part, f"{path}.{key}" if path else key) for key, part in node.items()}
        ((kind, content),) = node.items()
        if kind not in self._kinds:
            raise ValueError(f"unknown kind {kind!r} at {path!r}")
        try:
            return self._kinds[kind](content, path)
        except (LookupError, TypeError, AttributeError, OverflowError, RuntimeError, AssertionError) as error:
            if isinstance(error, RecursionError):
                raise
            raise ValueError(f"malformed {kind} at {path!r}: {type(error).__name__}: {error}") from None

    def _list(self, nodes: list[Any], path: str) -> list[Any]:
        if not isinstance(nodes, list):
            raise TypeError(f"expected a list, got {type(nodes).__name__}")
        return [self.decode(part, f"{path}.{index}" if path else str(index)) for index, part in enumerate(nodes)]

    def _dict(self, pairs: list[Any], path: str) -> dict[Any, Any]:
        found = {}
        for key, part in pairs:
            plain = self.decode(key, path)
            found[plain] = self.decode(part, f"{path}.{plain}" if path else str(plain))
        return found

    def _tensor(self, node: list[Any], device: torch.device | str) -> Tensor:
        name, is_complex = node
        self.used.add(name)
        key = (name, torch.device(device))
        if key not in self._ready:
            tensor = self.tensors[name]
            self._ready[key] = (torch.view_as_complex(tensor) if is_complex else tensor).to(device)
        return self._ready[key]

    def _generator(self, node: Any, path: str) -> np.random.Generator:
        state = self.decode(node, path)
        bits = _BIT_GENERATORS[state["bit_generator"]](0)
        bits.state = state
        return np.random.Generator(bits)

    def _space(self, node: list[Any], path: str) -> spaces.Space:
        name, arguments = node
        return _make_space(_SPACE_NAMES[name], self.decode(arguments, path))

    def _schedule(self, node: list[Any], path: str) -> Any:
        name, *parts = node
        cls = _SCHEDULE_NAMES[name]
        if cls is FloatSchedule:
            # the wrapped schedule has the place of its wrapper; None is a function that is missing
            (inner,) = parts
            value = self._decode(inner, path)
            return cls(value) if callable(value) or _is_number(value) else value
        arguments = self._list(parts, path)
        if not all(map(_is_number, arguments)):
            raise TypeError(f"{name} is not made of {arguments!r}")
        return cls(*arguments)

    def _named(self, name: str, path: str) -> Any:
        return self._object(name, path, self.classes.get(name))

    def _object(self, name: str, path: str, known: Any = None) -> Any:
        """What the caller gives for a name, else `known`, else None."""
        parts = path.split(".")
        keys = (name, *(".".join(parts[first:]) for first in range(1, len(parts))))
        key = next((key for key in keys if key in self.custom_objects), None)
        if key is None and known is not None:
            return known
        self._names.append((name, path, key))
        return None if key is None else self.custom_objects[key]


def _little(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("<"))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int | np.number)


def _scalar(node: list[Any], path: str) -> np.generic:
    name, digits = node
    (value,) = np.frombuffer(bytes.fromhex(digits), dtype=_DTYPES[name].newbyteorder("<"))
    return _DTYPES[name].type(value)


def _space_arguments(space: spaces.Space) -> dict[str, Any]:
    arguments = {name: getattr(space, name) for name in _SPACES[type(space)] if hasattr(space, name)}
    if "dtype" in arguments:
        arguments["dtype"] = np.dtype(arguments["dtype"]).name
    if isinstance(space, spaces.Discrete) and arguments["dtype"] == "int64":
        del arguments["dtype"]  # the default; older versions of gymnasium lack the argument
    if isinstance(space, spaces.Text):
        arguments["charset"] = "".join(space.character_list)
    if isinstance(space, spaces.Dict):
        arguments["spaces"] = list(space.spaces.items())
    return arguments


def _make_space(cls: type[spaces.Space], arguments: dict[str, Any]) -> spaces.Space:
    if set(_SPACES[cls]) - {"dtype"} != set(arguments) - {"dtype"}:
        raise KeyError(f"{cls.__name__} takes {_SPACES[cls]}, got {tuple(arguments)}")
    if "dtype" in arguments:
        arguments["dtype"] = _DTYPES[arguments["dtype"]].type
    return cls(**arguments)

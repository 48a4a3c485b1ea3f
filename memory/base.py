"""The contract that every memory keeps, and the slow scan that says what a fast one must compute.

Sizes: `T` time, `B` parallel environments, `F` features in, `D` features out. Sequences are `[T, B, ...]`,
states `[B, ...]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.arithmetic.dispatch import by_steps_where_transformed
from palimpsest.memory.messages import described, size_of, state_of, type_of
from palimpsest.refusals import check_integer

State = tuple[Tensor, ...]
"""A flat NamedTuple of tensors, each with the batch first."""

StateT = TypeVar("StateT", bound=State)


class Context(NamedTuple):
    """How far back a memory reaches (arXiv 2412.06531), in inputs, the current one included."""

    K: int
    """Inputs that the memory reads directly."""
    K_eff: float
    """Inputs reachable through its mechanism, K or more; `math.inf` where nothing bounds them."""


class Panel(NamedTuple):
    """A quantity of a row's memory, for a picture of it."""

    title: str
    values: Tensor
    """[N] at one step, to be drawn over time; or [R, C], to be drawn as it stands, with NaN where nothing is drawn."""
    span: tuple[float, float] | None = None
    """Smallest and largest value that there can be; None where nothing bounds them."""
    names: tuple[str, ...] = ()
    """What each of the N entries or R lines is, from top to bottom; () where there is nothing to tell."""


def reset(state: StateT, fresh: StateT, start: Tensor) -> StateT:
    """The rows of `state` where `start` [B] bool is true become those of `fresh`.

    A selection, not a product with zero: what stood in a finished episode's state, NaN included, is gone, and a
    fresh state need not be zeros.
    """

    def pick(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(start.view(-1, *[1] * (old.ndim - 1)), new, old)

    return type(state)(*map(pick, state, fresh))


def takes_plain_tuples(position: int) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a memory's method: a state that lost its type, as `tuple(s.detach() for s in state)`, gets it back.

    Args:
        position: that of the argument `state`, after `self`.
    """

    def decorate(method: Callable[..., Any]) -> Any:
        @functools.wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) > position and type(args[position]) is tuple:
                args = (*args[:position], self._named(args[position]), *args[position + 1 :])
            elif type(kwargs.get("state")) is tuple:
                kwargs["state"] = self._named(kwargs["state"])
            return method(self, *args, **kwargs)

        return run

    return decorate


class Watching(nn.Module):
    """A module that keeps what its `diagnostics` shows of the last scan, detached. Its copies and files do without."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: of a long scan the rest is many times larger than the module."""
        return vars(self) | {"watched": {}}


class Memory(Watching):
    """What an agent remembers with: a recurrence from features [B, F] to features [B, D].

    A memory defines `initial_state` and `step`; a faster one overrides `scan` with a form that equals the loop
    here, values and gradients, for any T (0 too), any `start` and any split of the sequence. Nothing random
    happens in `step` or `scan`: the update scans the rollout again and must see what acting saw.

    Args:
        input_size: F, features per input; 1 or more.
        output_size: D, features per output; 1 or more.
    """

    input_size: int
    output_size: int
    num_places: int = 1
    """Places that `place` may name; 1 where a memory does not use it."""
    _layout: tuple[torch.dtype, type, list[tuple[torch.Size, torch.dtype]]] | None = None
    _accepted: list[Any] | None = None
    _told_of_steps: bool = False

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = check_integer("input_size", input_size, 1)
        self.output_size = check_integer("output_size", output_size, 1)
        self.register_load_state_dict_post_hook(Memory._fit_what_was_loaded)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "scan" in cls.__dict__:
            cls.scan = by_steps_where_transformed(cls.__dict__["scan"], Memory.scan)  # type: ignore[method-assign]
        for name, position in (("step", 1), ("advance", 1), ("scan", 2)):
            if name in cls.__dict__:
                setattr(cls, name, takes_plain_tuples(position)(cls.__dict__[name]))
        if "step" in cls.__dict__ and "advance" not in cls.__dict__:
            # a class with a step of its own does not act by another one's
            cls.advance = Memory.advance  # type: ignore[method-assign]

    def forward(
        self,
        x: Tensor,
        state: Any,
        start: Tensor | None = None,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
        keep_state: bool = True,
    ) -> tuple[Tensor, Any]:
        """`scan` for a sequence x [T, B, F] with start [T, B]; without start `step` for one input x [B, F].

        Without `keep_state` it is `advance` instead of `step`. Calling the module, as policies do, runs the hooks that
        are registered on it; `step`, `advance` and `scan` themselves run none.
        """
        if start is not None:
            return self.scan(x, start, state, place, strategy)
        return (self.step if keep_state else self.advance)(x, state, place, strategy)

    def initial_state(self, batch_size: int) -> Any:
        """What the memory holds before an episode's first input, for `batch_size` rows.

        Floats in the module's dtype and everything on its device; counters and slots int64.
        """
        raise NotImplementedError

    def step(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Read one input. The caller resets: there is no start flag here.

        Args:
            x: [B, F] in the module's dtype.
            state: as `initial_state` or the step before gave it.
            place: [B] int64, where each agent is; ignored by memories that do not use it.
            strategy: [B] int64, the allocation to use; read at a fresh state's first step, then held in the state.

        Returns:
            y [B, D] and the next state.

        Raises:
            ValueError: shapes or types do not fit.
        """
        raise NotImplementedError

    def advance(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """`step` for a caller that gives `state` up, as acting does: the next state may be written into its memory.

        The numbers are those of `step`. The state must share memory with nothing that is still wanted, as one that
        `step` or `scan` returned may: the caller clones it once. What this returns is the caller's, to give up in turn.
        A memory with a large state overrides it, for to copy such a state takes longer than to read one input. Where
        gradients are wanted, nothing is written into.
        """
        return self.step(x, state, place, strategy)

    @property
    def reuses_state(self) -> bool:
        """Whether `advance` may write into the state it is given."""
        return type(self).advance is not Memory.advance

    @takes_plain_tuples(2)
    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: Any,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Read a sequence. This loop is the reference for every faster form.

        Args:
            x: [T, B, F] in the module's dtype; T may be 0.
            start: [T, B] bool, true where x[t, b] opens an episode. It acts before x is read and selects the
                initial state.
            state: at the sequence's first step. It is never detached here.
            place: [T, B] int64 or None, as in `step`.
            strategy: [T, B] int64 or None, as in `step`.

        Returns:
            y [T, B, D] and the state after the last input.

        Raises:
            ValueError: shapes or types do not fit.
        """
        T, B = self.check_sequence(x, start, state)
        fresh = self.initial_state(B)
        ys = []
        for t in range(T):
            state = reset(state, fresh, start[t])
            y, state = self.step(
                x[t],
                state,
                None if place is None else place[t],
                None if strategy is None else strategy[t],
            )
            ys.append(y)
        return (torch.stack(ys) if ys else x.new_empty(0, B, self.output_size)), state

    def context(self) -> Context:
        """Inputs seen directly and inputs reachable through the mechanism (arXiv 2412.06531)."""
        raise NotImplementedError

    def redraw(self, rng: np.random.Generator) -> None:
        """Draw anew what the memory holds at random; called before a rollout, never inside one. Most hold nothing."""

    def diagnostics(self) -> dict[str, Tensor]:
        """What to watch of the last scan, detached; the number of dimensions says how it is shown.

        [] is a scalar, [N] a distribution, [H, W] an image in 0 to 1, and [T, B, N] a quantity at every step,
        which agents/ averages over steps that show an event and over the others.
        """
        return {}

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """What a picture shows of the first row, right after a scan of a single input.

        By default the diagnostics of that scan, then every field of the state that holds floats: numbers of one unit or
        layer as they are, of tables, slots and traces the lengths. A memory with more to tell overrides it.

        Args:
            before: the state that the scan was given.
            after: the state that it returned.
        """
        shown = []
        for name, value in self.diagnostics().items():
            now = value[-1, 0] if value.ndim == 3 else value
            shown.append(Panel(name.replace("_", " "), now if now.ndim == 2 else now.flatten()))
        for name, field in zip(getattr(after, "_fields", ()), after):
            if field.is_floating_point() and field.numel():
                row = field[0].detach()
                lengths = row.ndim > 2
                row = row.flatten(2).norm(dim=2) if lengths else row
                shown.append(Panel(f"state {name}, lengths" if lengths else f"state {name}", row.flatten()))
        return shown

    def read_weights(self, x: Tensor, start: Tensor, state: Any) -> Tensor | None:
        """The implied attention of a memory that reads a sum of what was written; None for any other memory.

        What a head reads at step t is then a sum of w[t, s] v_s over the values v_s that it wrote at the steps s, and
        of what is left of `state`.

        Args:
            x: [T, B, F], as for `scan`.
            start: [T, B] bool, as for `scan`.
            state: at the first step.

        Returns:
            w [B, N, T, T]: row, head (layer by layer), step t of the read, step s of the write; 0 for s > t.
        """
        return None

    def check_step(self, x: Tensor, state: Any) -> int:
        """B of one input, or a ValueError that says what does not fit."""
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"x must be [B, F] with F = {self.input_size}; got {size_of(x)}")
        B = x.shape[0]
        self._check_state(x, state, B)
        return B

    def check_sequence(self, x: Tensor, start: Tensor, state: Any) -> tuple[int, int]:
        """T and B of a sequence, or a ValueError that says what does not fit."""
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x must be [T, B, F] with F = {self.input_size}; got {size_of(x)}")
        T, B, _ = x.shape
        if not isinstance(start, Tensor) or start.shape != (T, B) or start.dtype != torch.bool:
            order = "" if isinstance(start, Tensor) else "; scan takes (x, start, state), a call (x, state, start)"
            raise ValueError(
                f"start must be [T, B] = [{T}, {B}] bool, one flag per input; got {described(start)}{order}"
            )
        self._check_state(x, state, B)
        return T, B

    def _check_state(self, x: Tensor, state: Any, B: int) -> None:
        """Refuse what kernels would read beyond its end or as another type."""
        given: list[Any] = []
        # while the operations are recorded B is a symbol, and to compare it with a number would fix it
        recorded = torch.compiler.is_compiling()
        if isinstance(state, tuple):
            try:
                given = [B, x.dtype, type(state), *map(_SIZE, state), *[s.dtype for s in state]]
            except TypeError:  # not all are tensors
                given = []
            if given and not recorded and given == self._accepted:
                return
        if self._layout is None or self._layout[0] != self.dtype:  # parameters may have been replaced
            fresh = self.initial_state(1)
            self._layout = self.dtype, type(fresh), [(s.shape[1:], s.dtype) for s in fresh]
        dtype, kind, layout = self._layout
        fits, typed = bool(given) and len(state) == len(layout), x.dtype == dtype
        if fits:
            for s, (size, type_) in zip(state, layout):
                fits = fits and s.shape == (B, *size)
                typed = typed and s.dtype == type_
        # autocast makes floats of several types, which no kernel takes
        if not fits or not (typed or torch.is_autocast_enabled(x.device.type)):
            raise ValueError(
                f"x must be {type_of(dtype)} and the state as initial_state({B}), {state_of(self.initial_state(B))}; "
                f"got {type_of(x.dtype)} and {state_of(state)}"
            )
        if not isinstance(state, kind):
            raise ValueError(
                f"the state must be {kind.__name__}, as initial_state({B}) gives it; got {type(state).__name__} of the "
                f"same tensors: give {kind.__name__}(*state)"
            )
        self._accepted = given if typed and not recorded else None

    def _named(self, state: tuple[Any, ...]) -> Any:
        """A plain tuple as this memory's state; as it is where their lengths differ."""
        kind = type(self.initial_state(1))
        return kind(*state) if len(state) == len(getattr(kind, "_fields", ())) else state

    def constants(self) -> dict[str, Tensor]:
        """Buffers that follow from the arguments, by name, before they are rounded to the module's type.

        They are made anew where the module gets another type or device: rounded twice, they would be others.
        """
        return {}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.device, self.dtype
        super()._apply(fn, recurse)
        self._layout = self._accepted = None  # other types, perhaps
        if (self.device, self.dtype) != before:
            for name, value in self.constants().items():
                setattr(self, name, value.to(self.device, self.dtype))
        return self

    def _fit_what_was_loaded(self, _: Any) -> None:
        """Parameters that are assigned may have another type or device than the buffers that are not saved."""
        self._layout = self._accepted = None
        for name, value in self.constants().items():
            now = getattr(self, name)
            if (now.device, now.dtype) != (self.device, self.dtype):
                setattr(self, name, value.to(self.device, self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the module's parameters."""
        first = _first_parameter(self)
        return torch.get_default_dtype() if first is None else first.dtype

    @property
    def device(self) -> torch.device:
        """Where the module's parameters are."""
        first = _first_parameter(self)
        return torch.device("cpu") if first is None else first.device


def _first_parameter(module: nn.Module) -> Tensor | None:
    """The first of `module.parameters()`, without its long search, which a short scan would feel."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        found = None if child is None else _first_parameter(child)
        if found is not None:
            return found
    return None


# acting looks at every step whether sizes and types are those of the last one
_SIZE: Any = Tensor.size

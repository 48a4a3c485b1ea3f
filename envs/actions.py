"""The actions that worlds take: what a kernel reads for each kind of action space, and which actions are refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.refusals import shown

ActionSpace = spaces.Discrete | spaces.MultiDiscrete | spaces.Box


class Actions(NamedTuple):
    """How the actions of a space reach the kernel.

    | space | actions of B rows | what is refused |
    |---|---|---|
    | Discrete(n) | [B] int64 | all but 0 to n - 1 |
    | MultiDiscrete(nvec) | [B, n] int64 | all but 0 to nvec - 1 |
    | Box of one dimension | [B, n] float32 | NaN and infinity |

    A number outside the bounds of a Box is not refused: the world's own rules clip it, as gymnasium's environments do.
    """

    choices: Any
    """What `kernels.first_illegal` compares with: n, nvec [n] int64, or None for a Box."""
    shape: tuple[int, ...]
    """The shape of one action."""
    dtype: np.dtype
    """The kernel's dtype."""
    kinds: str
    """The kinds of numpy's dtypes that may be given."""
    number: str
    """How many numbers one action has, in words."""
    allowed: str
    """Which actions are allowed, in words."""

    def batch(self, given: Any, rows: int) -> np.ndarray:
        """`given` for B rows, as the kernel reads it. An array that already fits is not copied.

        Raises:
            ValueError: another shape or kind of dtype. Which numbers are allowed is checked by the kernel.
        """
        given = np.asarray(given)
        if given.shape != (rows, *self.shape) or given.dtype.kind not in self.kinds:
            raise ValueError(
                f"actions must be {self.number} per row, {[rows, *self.shape]}; got {list(given.shape)} {given.dtype}"
            )
        return self._converted(given)

    def single(self, given: Any) -> Any:
        """`given` for one row, as an integer or an array of the kernel's dtype.

        Raises:
            ValueError: another shape or type, or an integer that is not allowed. The numbers in an array are checked by
                the kernel.
        """
        if self.shape == ():
            fits = type(given) is int or (getattr(given, "dtype", np.dtype("O")).kind in "iu" and np.ndim(given) == 0)
            if fits and 0 <= given < self.choices:
                return given
        elif not isinstance(given, str) and np.shape(given) == self.shape:
            action = np.asarray(given)
            if action.dtype.kind in self.kinds:
                return self._converted(action)
        raise ValueError(self.refusal(given))

    def _converted(self, actions: np.ndarray) -> np.ndarray:
        if actions.dtype.kind != "f" or actions.dtype == self.dtype:
            return np.asarray(actions, self.dtype, "C")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and the kernel refuses it
            return np.asarray(actions, self.dtype, "C")

    def refusal(self, action: Any, where: str = "") -> str:
        """The error message for an action that is not allowed."""
        return f"actions must be {self.allowed}; got {shown(action)} {where}".rstrip()


def actions_of(space: ActionSpace) -> Actions:
    """How the actions of `space` reach the kernel. Other spaces are an error in the family."""
    if isinstance(space, spaces.Discrete):
        assert space.start == 0, space
        n = int(space.n)
        return Actions(n, (), np.dtype(np.int64), "iu", "one integer", f"integers, 0 to {n - 1}")
    assert space.shape is not None
    assert len(space.shape) == 1, space
    count = space.shape[0]
    plural = "s" if count > 1 else ""
    if isinstance(space, spaces.MultiDiscrete):
        assert not space.start.any(), space
        number, most = f"{count} integer{plural}", ", ".join(map(str, space.nvec - 1))
        nvec = space.nvec.astype(np.int64)
        return Actions(nvec, space.shape, nvec.dtype, "iu", number, f"{number}, from 0 to {most}")
    assert space.dtype == np.float32, space
    number, finite = f"{count} number{plural}", f"{count} finite number{plural}"
    return Actions(None, space.shape, space.dtype, "iuf", number, finite)


def random_actions(space: Any, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uniform actions [*shape, ...] of `space`, as the kernel reads them; for benchmarks and tests."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=shape)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(*shape, *space.shape))
    return rng.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)

"""One batched world per task. A `World` is a gymnasium Env of one row; the other faces hold a World of many.

A family subclasses `World` with its rules, its state (arrays with the rows first) and one compiled kernel
(`envs.kernels`); it says nothing of seeds, step limits, autoreset or infos.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numba import typeof

from palimpsest.envs.kernels import IO, OBSERVE, RESTART, STEP, seeded
from palimpsest.refusals import check_choice

_BOOL, _INT64 = np.dtype(bool), np.dtype(np.int64)
RENDER_MODES = ("rgb_array", "ansi")


class World(gym.Env):
    """A task as a batch of independent rows, and gymnasium's face for one row.

    Row i of a batch reset with seed s is the world of one row reset with seed s + i, whatever the batch's size.

    Args:
        rules: NamedTuple of Python numbers that the kernel reads; its field `limit` is the number of steps after
            which an episode is truncated.
        observation_space: a Box, or a Dict of Box and Discrete.
        num_actions: the action space is Discrete(num_actions).
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an unknown render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # type: ignore[misc]
    kernel: ClassVar[Any]
    """Compiled (rules, state, io, mode) -> int; see `envs.kernels`."""
    observed: ClassVar[type[tuple] | None] = None
    """For a Dict observation: the NamedTuple of arrays that the kernel's `observe` writes, fields named as the keys."""
    expert_success: ClassVar[float] = 1.0
    """Mean success of the expert, or a lower bound where chance decides."""
    closing_settings: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Arguments under which a trained agent should be tested too, beside those it was trained with."""

    def __init__(
        self, rules: tuple, observation_space: spaces.Space, num_actions: int, render_mode: str | None = None
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.rules: Any = rules
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(num_actions)
        self.num_actions = num_actions
        self._keys = tuple(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else ()
        self.render_mode = render_mode
        self._call: Callable[..., int] | None = None
        self.allocate(1)

    def new_state(self, rows: int) -> Any:
        """The family's NamedTuple of arrays [rows, ...], among them `rng` [rows] uint64 and `steps` [rows] int64."""
        raise NotImplementedError

    def expert(self) -> np.ndarray:
        """[B] int64: what an optimal or near-optimal player, who may read the hidden state, does in every row."""
        raise NotImplementedError

    def memory_horizons(self) -> tuple[int, ...]:
        """Ξ, ascending: inputs needed to reach back to an event, the current one included (arXiv 2412.06531)."""
        raise NotImplementedError

    def chance_level(self) -> float:
        """Success of the best player without memory, 0 to 1."""
        raise NotImplementedError

    def event_mask(self, obs: Any) -> np.ndarray:
        """Which observations [..., *shape] show an event that must be remembered: [...] bool."""
        raise NotImplementedError

    def breakdown(self) -> dict[str, np.ndarray]:
        """What evaluation splits success by: name -> [B] int64, -1 in rows whose next step gives no answer.

        Read before a step. Elsewhere that step is an answer, right if its reward is above 0, and the value, 0 or
        more, says of which kind. An episode may hold several answers. Nothing ({}) where a family does not say.
        """
        return {}

    def picture(self) -> np.ndarray:
        """The first row as [H, W, 3] uint8, what is hidden from the player drawn faded."""
        raise NotImplementedError

    def text(self) -> str:
        """The first row as lines of text."""
        raise NotImplementedError

    def allocate(self, rows: int) -> None:
        """Become a batch of `rows` rows, none of them reset."""
        self.num_rows = rows
        self.state = self.new_state(rows)
        self.io = self._buffers(rows)
        obs = self.io.obs
        self._parts = [(key, obs._fields.index(key)) for key in self._keys]
        self._kinds = [(part.shape, part.dtype) for part in ([obs] if self.observed is None else obs)]
        self.over = np.ones(rows, bool)
        self.ready = False
        self.seeded = np.zeros(rows, bool)

    def row(self, i: int) -> World:
        """Row i as a world of one row that shares this one's state: a view to ask questions of, not to step."""
        view = copy.copy(self)
        view.num_rows = 1
        view.state = type(self.state)(*(array[i : i + 1] for array in self.state))
        view.io = self._buffers(1)
        view.over, view.seeded = self.over[i : i + 1], self.seeded[i : i + 1]
        return view

    def run(self, mode: int, io: IO | None = None) -> int:
        """Call the kernel on `io`, or the world's own; ValueError where it met an illegal action."""
        if self._call is None:
            self._call = self._bind()
        if io is None:
            io = self.io
        ends = self._call(self.rules, self.state, io, mode)
        if ends < 0:
            raise ValueError(self.illegal(io.action[-1 - ends], f"in row {-1 - ends}"))
        return ends

    def checked(self, actions: Any) -> np.ndarray:
        """`actions`, integers of any size, as the kernel reads them: [B] int64, the caller's own array if it is that.

        Raises:
            ValueError: another shape or type, or rows whose episode has not begun or is over.
        """
        if not self.ready:
            raise ValueError("step needs episodes that go on; call reset() first")
        actions = np.asarray(actions)
        if actions.shape != (self.num_rows,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be one integer per row, [{self.num_rows}]; got {list(actions.shape)} {actions.dtype}"
            )
        return np.asarray(actions, np.int64, "C")

    def fresh_io(self, actions: np.ndarray) -> IO:
        """An `io` that reads `actions` (see `checked`) and whose results can be given away uncopied.

        All of them but the last observations, which remain the world's, and the lengths.
        """
        io, rows, empty = self.io, self.num_rows, np.empty
        # Not IO(...), which takes as long as three of the arrays.
        parts: Any = [empty(shape, dtype) for shape, dtype in self._kinds]
        return tuple.__new__(
            IO,
            (
                self.num_actions,
                io.mask,
                actions,
                parts[0] if self.observed is None else tuple.__new__(self.observed, parts),
                empty(rows),
                empty(rows, _BOOL),
                empty(rows, _BOOL),
                empty(rows, _INT64),
                empty(rows, _BOOL),
                io.length,
                io.final_obs,
            ),
        )

    def begin(
        self,
        mask: np.ndarray,
        seeds: Sequence[int | None],
        generator: Callable[[], np.random.Generator],
        options: dict[str, Any] | None,
    ) -> None:
        """Start an episode in the rows where `mask` [B] is true, or restore `options["hidden_state"]` there.

        Args:
            mask: [B] bool.
            seeds: one per row; a row without goes on with its own generator, or with an unpredictable one.
            generator: gives what unpredictable seeds are drawn from.
            options: None or a dict that may hold "hidden_state".

        Raises:
            ValueError: an unknown option, or a hidden state that does not fit.
        """
        options = options or {}
        unknown = set(options) - {"hidden_state"}
        if unknown:
            raise ValueError(f"options may hold 'hidden_state'; got {sorted(unknown)}")
        restoring = "hidden_state" in options
        if restoring:
            self._check_hidden(options["hidden_state"])
        for i in np.flatnonzero(mask).tolist():
            seed = seeds[i]
            if seed is None and not self.seeded[i]:
                seed = int(generator().integers(2**63))
            if seed is not None:
                self.state.rng[i] = seeded(np.array([seed % 2**64], np.uint64))[0]
                self.seeded[i] = True
        self.io.mask[:] = mask
        self.over[mask] = False
        if restoring:
            for name, array in self._hidden().items():
                array[mask] = options["hidden_state"][name][mask]
        self.ready = not self.over.any()
        self.run(OBSERVE if restoring else RESTART)

    def hidden_state(self) -> dict[str, np.ndarray]:
        """Everything that the future depends on, generators included: copies of arrays, rows first.

        `reset(options={"hidden_state": d})` goes on from there. Fields may say one thing twice: change those that
        depend on each other together.
        """
        return {name: array.copy() for name, array in self._hidden().items()}

    def expert_action(self) -> int:
        """What an optimal or near-optimal player, who may read the hidden state, does now."""
        return int(self.expert()[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, or restore `options["hidden_state"]`.

        Args:
            seed: of the row's generator; None goes on with the one it has.
            options: None or {"hidden_state": what `hidden_state()` gave}.

        Raises:
            ValueError: an unknown option, or a hidden state that does not fit.
        """
        super().reset(seed=seed)
        self.begin(np.ones(1, bool), [seed], lambda: self.np_random, options)
        return self.first(self.io.obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step. `info` is empty except at an episode's end, where it holds `success`.

        Args:
            action: an integer, 0 to num_actions - 1.

        Raises:
            ValueError: an action outside the space, or an episode that has not begun or is over.
        """
        if self.over.item(0):
            raise ValueError("step needs an episode that goes on; call reset() first")
        integer = type(action) is int or (getattr(action, "dtype", np.dtype("O")).kind in "iu" and np.ndim(action) == 0)
        if not integer or not 0 <= action < self.num_actions:
            raise ValueError(self.illegal(action))
        io = self.io
        io.action[0] = action
        info = {}
        if self.run(STEP):
            self.over[0] = True
            info["success"] = io.success.item(0)
        return self.first(io.obs), io.reward.item(0), io.terminated.item(0), io.truncated.item(0), info

    def render(self) -> Any:
        """The world as `render_mode` says: [H, W, 3] uint8 or text. What is hidden from the player is drawn faded."""
        if self.render_mode is None:
            gym.logger.warn("render() draws nothing without a render_mode; make the environment with one")
            return None
        if not self.seeded[0]:
            raise ValueError("render needs an episode; call reset() first")
        return self.picture() if self.render_mode == "rgb_array" else self.text()

    def first(self, obs: Any) -> Any:
        """A copy of the first entry of `obs`, as the observation space has it."""
        if self.observed is None:
            return obs[0].copy()
        return {key: obs[k][0].copy() for key, k in self._parts}

    def given(self, obs: Any) -> Any:
        """`obs` itself, as the observation space has it: an array, or a dict of arrays."""
        return obs if self.observed is None else {key: obs[k] for key, k in self._parts}

    def copied(self, obs: Any, count: int | None = None) -> Any:
        """A copy of `obs`, or of its first `count` entries: an array, or a dict of arrays for a Dict space."""
        if self.observed is None:
            return obs.copy() if count is None else obs[:count].copy()
        return {key: obs[k][:count].copy() for key, k in self._parts}

    def illegal(self, action: Any, where: str = "") -> str:
        """The refusal of `action`."""
        return f"actions must be integers from 0 to {self.num_actions - 1}; got {action!r} {where}".rstrip()

    def _buffers(self, rows: int) -> IO:
        def array(space: spaces.Space) -> np.ndarray:
            return np.zeros((rows, *(space.shape or ())), space.dtype)

        def observations() -> Any:
            space = self.observation_space
            if not isinstance(space, spaces.Dict):
                return array(space)
            assert self.observed is not None
            return self.observed(**{key: array(part) for key, part in space.spaces.items()})

        return IO(
            num_actions=self.num_actions,
            mask=np.zeros(rows, bool),
            action=np.zeros(rows, np.int64),
            obs=observations(),
            reward=np.zeros(rows),
            terminated=np.zeros(rows, bool),
            truncated=np.zeros(rows, bool),
            row=np.zeros(rows, np.int64),
            success=np.zeros(rows, bool),
            length=np.zeros(rows, np.int64),
            final_obs=observations(),
        )

    def _hidden(self) -> dict[str, np.ndarray]:
        return {**self.state._asdict(), "over": self.over}

    def _check_hidden(self, given: Any) -> None:
        own = self._hidden()
        if not isinstance(given, dict) or given.keys() != own.keys():
            got = sorted(given) if isinstance(given, dict) else type(given).__name__
            raise ValueError(f"hidden_state must be what hidden_state() gives, with {sorted(own)}; got {got}")
        for name, array in own.items():
            shape, dtype = np.shape(given[name]), getattr(given[name], "dtype", None)
            if shape != array.shape or dtype != array.dtype:
                raise ValueError(
                    f"hidden_state[{name!r}] must be {list(array.shape)} {array.dtype}; got {list(shape)} {dtype}"
                )

    def _bind(self) -> Callable[..., int]:
        """The kernel's machine code for this family's types, called without looking the types up at every step."""
        kernel = type(self).kernel
        signature = tuple(map(typeof, (self.rules, self.state, self.io, STEP)))
        if signature not in kernel.overloads:
            drop_stale(kernel)
            name = type(self).__name__
            cached = Path(kernel.stats.cache_path).glob(f"{kernel.__module__.rpartition('.')[2]}.kernel-*.nbi")
            if not any(cached):
                print(f"compiling {name} for this machine, once; this takes some seconds", file=sys.stderr)
            kernel.compile(signature)
        return kernel.get_overload(signature)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_call": None}


def drop_stale(kernel: Any) -> None:
    """Delete cached code that is older than a file whose functions it holds; numba looks only at the kernel's own."""
    functions = (f for f in vars(sys.modules[kernel.__module__]).values() if hasattr(f, "py_func"))
    files = {Path(f.py_func.__code__.co_filename) for f in functions}
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    for file in files:
        for index in Path(kernel.stats.cache_path).glob(f"{file.stem}.*.nbi"):
            with contextlib.suppress(FileNotFoundError):  # another process may clear it at the same time
                if index.stat().st_mtime < newest:
                    index.unlink()

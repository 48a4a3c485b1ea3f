"""The base class of all tasks: a `World` is a batch of rows, and a gymnasium Env while it has one row.

The vector interfaces (`envs.vector`, `envs.sb3`) hold a `World` of many rows. A family subclasses `World`. It adds its
rules, its state (arrays, rows first) and one compiled kernel (`envs.kernels`). Seeds, step limits, autoreset and infos
are handled here, once for all families.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numba import typeof

from palimpsest.envs.actions import ActionSpace, actions_of
from palimpsest.envs.kernels import IO, OBSERVE, RESTART, STEP, seeded
from palimpsest.refusals import check_choice

_BOOL, _INT64 = np.dtype(bool), np.dtype(np.int64)
RENDER_MODES = ("rgb_array", "ansi")


class World(gym.Env):
    """A task as a batch of independent rows. With one row it is a gymnasium Env.

    Row i of a batch reset with seed s equals a single row reset with seed s + i, for every batch size. A family that
    forbids actions has a method `action_masks()` for a world of one row: [num_actions] bool, true for what is allowed.

    Args:
        rules: NamedTuple of Python numbers that the kernel reads. An episode is truncated after `rules.limit` steps.
        observation_space: a Box, or a Dict of Box and Discrete.
        action_space: a Discrete or a MultiDiscrete from 0, or a Box of one dimension; see `envs.actions.Actions`.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an unknown render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # type: ignore[misc]
    kernel: ClassVar[Any]
    """Compiled function (rules, state, io, mode) -> int; see `envs.kernels`."""
    observed: ClassVar[type[tuple] | None] = None
    """For a Dict observation: the NamedTuple of arrays that `observe` writes. Its fields have the names of the keys."""
    expert_success: float | None = 1.0
    """Mean success of the expert, or a lower bound of it where chance decides; None where it is not known."""
    reported: ClassVar[dict[str, str]] = {}
    """More of an episode's result in its last info: name -> the field of the state, [B], that holds it even after the
    row has begun its next episode."""
    action_names: ClassVar[tuple[str, ...]] = ()
    """What the actions of a Discrete space are called, for pictures; () where they have no names."""
    closing_settings: ClassVar[tuple[dict[str, Any], ...]] = ()
    """More settings to test a trained agent in, beside the one it was trained in."""

    def __init__(
        self,
        rules: tuple,
        observation_space: spaces.Space,
        action_space: ActionSpace,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.rules: Any = rules
        self.observation_space = observation_space
        self.action_space = action_space
        self._actions = actions_of(action_space)
        self._keys = tuple(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else ()
        self.render_mode = render_mode
        self._call: Callable[..., int] | None = None
        self.allocate(1)

    def new_state(self, rows: int) -> Any:
        """The family's NamedTuple of arrays [rows, ...]. It has `rng` [rows] uint64 and `steps` [rows] int64."""
        raise NotImplementedError

    def expert(self) -> np.ndarray:
        """Each row's action of an optimal or near-optimal player, who may read the hidden state.

        [B] int64 for a Discrete space, [B, n] int64 for a MultiDiscrete one, [B, n] float32 for a Box.
        """
        raise NotImplementedError

    def memory_horizons(self) -> tuple[int, ...]:
        """Ξ, ascending: how many inputs reach from an event to its use, both included (arXiv 2412.06531)."""
        raise NotImplementedError

    def longest_wait(self) -> int:
        """The largest of Ξ: for so many steps a task may show the same, whatever wrappers add to what is seen."""
        return max(self.memory_horizons())

    def chance_level(self) -> float | None:
        """Success of the best player without memory, 0 to 1; None where it is not known for these arguments."""
        raise NotImplementedError

    def event_mask(self, obs: Any) -> np.ndarray:
        """Which observations [..., *shape] show an event that must be remembered: [...] bool."""
        raise NotImplementedError

    def breakdown(self) -> dict[str, np.ndarray]:
        """The kinds of answers by which evaluation splits success: name -> [B] int64.

        Read it before a step. A value of -1 means that the row's next step is no answer. A value of 0 or more is the
        kind of the answer. The answer is right if the step's reward is above 0. An episode may hold several answers.
        The default is no split, {}.
        """
        return {}

    def report(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What is `reported` of the episodes that ended in the last step in `rows` [N]: name -> [N]."""
        return {name: getattr(self.state, field)[rows] for name, field in self.reported.items()}

    def picture(self) -> np.ndarray:
        """The first row as [H, W, 3] uint8. Colours are faded where the player cannot see."""
        raise NotImplementedError

    def text(self) -> str:
        """The first row as lines of text."""
        raise NotImplementedError

    def allocate(self, rows: int) -> None:
        """Become a batch of `rows` rows. None of them is reset yet."""
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
        """Row i as a `World` of one row that shares this one's state. It is a view: read it, but do not step it."""
        view = copy.copy(self)
        view.num_rows = 1
        view.state = type(self.state)(*(array[i : i + 1] for array in self.state))
        view.io = self._buffers(1)
        view.over, view.seeded = self.over[i : i + 1], self.seeded[i : i + 1]
        return view

    def run(self, mode: int, io: IO | None = None) -> int:
        """Call the kernel on `io`, by default the world's own; ValueError for an illegal action."""
        if self._call is None:
            self._call = self._bind()
        if io is None:
            io = self.io
        ends = self._call(self.rules, self.state, io, mode)
        if ends < 0:
            raise ValueError(self._actions.refusal(io.action[-1 - ends], f"in row {-1 - ends}"))
        return ends

    def checked(self, actions: Any) -> np.ndarray:
        """`actions` of every row as the kernel reads them. An array that already fits is not copied.

        Raises:
            ValueError: another shape or dtype, or a row without a running episode.
        """
        if not self.ready:
            raise ValueError("step needs a running episode in every row; call reset() first")
        return self._actions.batch(actions, self.num_rows)

    def fresh_io(self, actions: np.ndarray) -> IO:
        """An `io` that reads `actions` (see `checked`) and has new arrays for the results.

        The caller may keep the results without a copy. Two arrays are still the world's own: the final observations
        and the lengths.
        """
        io, rows, empty = self.io, self.num_rows, np.empty
        # tuple.__new__, because IO(...) takes as long as three of the arrays
        parts: Any = [empty(shape, dtype) for shape, dtype in self._kinds]
        return tuple.__new__(
            IO,
            (
                io.choices,
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
            seeds: one per row. A row with None keeps its generator, or gets a random seed if it never had one.
            generator: returns the generator that random seeds are drawn from.
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
        """Everything that the future depends on, generators included, as copies of arrays, rows first.

        `reset(options={"hidden_state": d})` continues from it. Some fields depend on each other: change these together.
        """
        return {name: array.copy() for name, array in self._hidden().items()}

    def expert_action(self) -> Any:
        """The action of an optimal or near-optimal player, who may read the hidden state: an int or an array [n]."""
        action = self.expert()[0]
        return action if self._actions.shape else int(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, or restore `options["hidden_state"]`.

        Args:
            seed: seed of the row's generator; None keeps the generator as it is.
            options: None or {"hidden_state": what `hidden_state()` returned}.

        Raises:
            ValueError: an unknown option, or a hidden state that does not fit.
        """
        super().reset(seed=seed)
        self.begin(np.ones(1, bool), [seed], lambda: self.np_random, options)
        return self.first(self.io.obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step. At an episode's end `info` has `success`, for SB3 as `is_success` too, and what is `reported`.

        Args:
            action: an integer, or an array [n] of integers or of floats, by the action space.

        Raises:
            ValueError: an action outside the space, or no running episode.
        """
        if self.over.item(0):
            raise ValueError("step needs a running episode; call reset() first")
        io = self.io
        io.action[0] = self._actions.single(action)
        info = {}
        if self.run(STEP):
            self.over[0] = True
            info["success"] = info["is_success"] = io.success.item(0)
            if self.reported:
                info |= {name: values.item() for name, values in self.report(np.zeros(1, _INT64)).items()}
        return self.first(io.obs), io.reward.item(0), io.terminated.item(0), io.truncated.item(0), info

    def render(self) -> Any:
        """The first row as [H, W, 3] uint8 or as text, by `render_mode`. Faded colours: the player cannot see it."""
        if self.render_mode is None:
            gym.logger.warn("render() draws nothing without a render_mode; make the environment with one")
            return None
        if not self.seeded[0]:
            raise ValueError("render needs an episode; call reset() first")
        return self.picture() if self.render_mode == "rgb_array" else self.text()

    def first(self, obs: Any) -> Any:
        """A copy of the first entry of `obs`, in the form of the observation space."""
        if self.observed is None:
            return obs[0].copy()
        return {key: obs[k][0].copy() for key, k in self._parts}

    def given(self, obs: Any) -> Any:
        """`obs` without a copy: an array, or a dict of arrays for a Dict space."""
        return obs if self.observed is None else {key: obs[k] for key, k in self._parts}

    def copied(self, obs: Any, count: int | None = None) -> Any:
        """A copy of `obs`, or of its first `count` entries: an array, or a dict of arrays for a Dict space."""
        if self.observed is None:
            return obs.copy() if count is None else obs[:count].copy()
        return {key: obs[k][:count].copy() for key, k in self._parts}

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
            choices=self._actions.choices,
            mask=np.zeros(rows, bool),
            action=np.zeros((rows, *self._actions.shape), self._actions.dtype),
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
            raise ValueError(f"hidden_state must be what hidden_state() returns, with {sorted(own)}; got {got}")
        for name, array in own.items():
            shape, dtype = np.shape(given[name]), getattr(given[name], "dtype", None)
            if shape != array.shape or dtype != array.dtype:
                raise ValueError(
                    f"hidden_state[{name!r}] must be {list(array.shape)} {array.dtype}; got {list(shape)} {dtype}"
                )

    def _bind(self) -> Callable[..., int]:
        """The kernel's machine code for this family's types. Calling it skips numba's type lookup at every step."""
        kernel = type(self).kernel
        signature = tuple(map(typeof, (self.rules, self.state, self.io, STEP)))
        return kernel.compile(signature)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_call": None}

"""Gymnasium's VectorEnv over a batched world."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from palimpsest.envs.core import World
from palimpsest.envs.kernels import OBSERVE, STEP_AND_RESTART
from palimpsest.envs.registration import families
from palimpsest.refusals import MOST, check_integer


class FinalInfos(dict):
    """The infos of a step in which rows ended. They are built when they are first read.

    Most infos are never read. Where many rows end, building the object arrays costs more than the step itself.

    Args:
        ends: N, the number of valid entries of `rows` and `success`.
        rows: [B] int64, indices of the rows that ended.
        final_obs: [N, ...], or a dict of such arrays: the last observations of these rows.
        success: [B] bool.
        report: more entries of `final_info`, name -> [N].
    """

    __slots__ = ("_unwritten",)

    def __init__(
        self, ends: int, rows: np.ndarray, final_obs: Any, success: np.ndarray, report: dict[str, np.ndarray]
    ) -> None:
        self._unwritten: tuple | None = (ends, rows, final_obs, success, report)

    def _write(self) -> None:
        if self._unwritten is None:
            return
        ends, rows, obs, success, report = self._unwritten
        self._unwritten = None
        B, rows = len(rows), rows[:ends]
        ended = np.zeros(B, bool)
        ended[rows] = True
        final_info: dict[str, np.ndarray] = {}
        for name, values in {"success": success[:ends], "is_success": success[:ends], **report}.items():
            final_info[name] = np.zeros(B, values.dtype)
            final_info[name][rows] = values
            final_info[f"_{name}"] = ended.copy()
        final_obs = np.full(B, None, object)
        for k, row in enumerate(rows.tolist()):
            final_obs[row] = {key: part[k] for key, part in obs.items()} if isinstance(obs, dict) else obs[k]
        dict.update(
            self,
            final_obs=final_obs,
            _final_obs=ended,
            final_info=final_info,
            _final_info=ended.copy(),
        )

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


def _written_first(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @functools.wraps(method)
    def call(self: FinalInfos, *args: Any, **kwargs: Any) -> Any:
        self._write()
        return method(self, *args, **kwargs)

    return call


for _name in set(dir(dict)) - set(dir(object)) - {"__class_getitem__", "fromkeys"} | {"__eq__", "__ne__", "__repr__"}:
    setattr(FinalInfos, _name, _written_first(_name))


class WorldVectorEnv(VectorEnv):
    """A `World` of B rows as a gymnasium VectorEnv. A row that ends starts its next episode in the same step.

    When rows end, `infos` has the form of gymnasium's SyncVectorEnv in the same autoreset mode. It holds `final_obs`
    (object array [B]) and `final_info` with `success` and `is_success`, the same [B] bool, each with its mask. The
    caller may keep and change the arrays that are returned.

    Args:
        family: a subclass of `World`.
        num_envs: B, 1 to 1,048,576.
        **kwargs: the family's arguments.

    Raises:
        ValueError: an argument that the family does not allow.
    """

    def __init__(self, family: type[World], num_envs: int = 1, **kwargs: Any) -> None:
        self.num_envs = check_integer("num_envs", num_envs, 1, MOST)
        self.world = family(**kwargs)
        self.world.allocate(self.num_envs)
        self.metadata = {**family.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = self.world.render_mode
        self.single_observation_space = self.world.observation_space
        self.single_action_space = self.world.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every row.

        Args:
            seed: s gives row i the seed s + i; a sequence holds one seed per row; None keeps the generators.
            options: None or a dict that may hold "hidden_state" (what `hidden_state()` returned) and "reset_mask" ([B]
                bool, the rows to reset, at least one).

        Raises:
            ValueError: a seed, an option, a mask or a hidden state that does not fit.
        """
        B = self.num_envs
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
            seeds: Sequence[int | None] = [None] * B if seed is None else [int(seed) + i for i in range(B)]
        else:
            seeds = list(seed)
            if len(seeds) != B:
                raise ValueError(f"seeds must be one per row, {B}; got {len(seeds)}")
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        if mask is None:
            mask = np.ones(B, bool)
        elif not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (B,) or not mask.any():
            raise ValueError(f"options['reset_mask'] must be [{B}] bool with a row that is true; got {mask!r}")
        elif (self.world.over & ~mask).any():
            raise ValueError("options['reset_mask'] leaves out rows that have never been reset; call reset() first")
        self.world.begin(mask, seeds, lambda: self.np_random, options)
        if not mask.all():
            self.world.io.mask[:] = True
            self.world.run(OBSERVE)  # `step` writes to other arrays, so the other rows are observed again
        return self.world.copied(self.world.io.obs), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step in every row.

        Args:
            actions: [B] integers, or [B, n] integers or floats, by the action space.

        Returns:
            Observations, rewards [B] float64, terminations and truncations [B] bool, infos.

        Raises:
            ValueError: an action outside the space (then no row has moved), or rows that were never reset.
        """
        world = self.world
        io = world.fresh_io(world.checked(actions))
        ends = world.run(STEP_AND_RESTART, io)
        infos: dict[str, Any] = {}
        if ends:
            report = world.report(io.row[:ends]) if world.reported else {}
            infos = FinalInfos(ends, io.row, world.copied(io.final_obs, ends), io.success, report)
        return world.given(io.obs), io.reward, io.terminated, io.truncated, infos

    def hidden_state(self) -> dict[str, np.ndarray]:
        """Everything that the future of the rows depends on. `reset(options={"hidden_state": d})` continues from it."""
        return self.world.hidden_state()

    def expert_action(self) -> np.ndarray:
        """[B] or [B, n]: each row's action of an optimal or near-optimal player, who may read the hidden state."""
        return self.world.expert()

    def memory_horizons(self) -> tuple[int, ...]:
        """Ξ, ascending."""
        return self.world.memory_horizons()

    def longest_wait(self) -> int:
        """For so many steps the task may show the same, whatever wrappers add to what is seen."""
        return self.world.longest_wait()

    def chance_level(self) -> float | None:
        """Success of the best player without memory, 0 to 1; None where it is not known."""
        return self.world.chance_level()

    def event_mask(self, obs: Any) -> np.ndarray:
        """Which observations [..., *shape] show an event that must be remembered: [...] bool."""
        return self.world.event_mask(obs)

    def breakdown(self) -> dict[str, np.ndarray]:
        """The kinds of answers by which evaluation splits success, for the next step; see `World.breakdown`."""
        return self.world.breakdown()

    def render(self) -> tuple[Any, ...] | None:
        """One picture or text per row."""
        if self.render_mode is None:
            return self.world.render()
        return tuple(self.world.row(i).render() for i in range(self.num_envs))


def __getattr__(name: str) -> Callable[..., WorldVectorEnv]:
    """Gymnasium's registry calls `envs.vector:Family` to make the VectorEnv of that family."""
    if name in families():
        return functools.partial(WorldVectorEnv, families()[name]())
    raise AttributeError(f"module 'palimpsest.envs.vector' has no attribute {name!r}")

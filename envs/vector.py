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
    """The infos of a step in which rows ended, written out when they are first looked at.

    Object arrays cost more than the step itself where many rows end, and most steps' infos are never read.

    Args:
        ends: N, how many entries of `rows` and `success` count.
        rows: [B] int64, those that ended.
        final_obs: [N, ...], or a dict of such arrays: their last observations.
        success: [B] bool.
    """

    __slots__ = ("_unwritten",)

    def __init__(self, ends: int, rows: np.ndarray, final_obs: Any, success: np.ndarray) -> None:
        self._unwritten: tuple | None = (ends, rows, final_obs, success)

    def _write(self) -> None:
        if self._unwritten is None:
            return
        ends, rows, obs, success = self._unwritten
        self._unwritten = None
        B, rows, success = len(rows), rows[:ends], success[:ends]
        ended = np.zeros(B, bool)
        ended[rows] = True
        won = np.zeros(B, bool)
        won[rows] = success
        final_obs = np.full(B, None, object)
        for k, row in enumerate(rows.tolist()):
            final_obs[row] = {key: part[k] for key, part in obs.items()} if isinstance(obs, dict) else obs[k]
        dict.update(
            self,
            final_obs=final_obs,
            _final_obs=ended,
            final_info={"success": won, "_success": ended.copy()},
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
    """Rows of one world; a row that ends begins its next episode in the same step.

    At an end `infos` holds, as gymnasium's SyncVectorEnv in the same mode, `final_obs` (object array [B]) and
    `final_info` with `success` [B] bool, each beside its mask. Arrays that are returned are the caller's own.

    Args:
        family: the world's class.
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
            seed: s for s + i in row i, or one per row; None goes on with the generators.
            options: None or a dict that may hold "hidden_state" (what `hidden_state()` gave) and "reset_mask" ([B]
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
            self.world.run(OBSERVE)  # `step` leaves nothing in the world's own arrays
        return self.world.copied(self.world.io.obs), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step in every row.

        Args:
            actions: [B] integers.

        Returns:
            Observations, rewards [B] float64, terminations and truncations [B] bool, infos.

        Raises:
            ValueError: actions outside the space, and then no row has moved; rows that were never reset.
        """
        world = self.world
        io = world.fresh_io(world.checked(actions))
        ends = world.run(STEP_AND_RESTART, io)
        infos = FinalInfos(ends, io.row, world.copied(io.final_obs, ends), io.success) if ends else {}
        return world.given(io.obs), io.reward, io.terminated, io.truncated, infos

    def hidden_state(self) -> dict[str, np.ndarray]:
        """Everything that the rows' futures depend on; `reset(options={"hidden_state": d})` goes on from there."""
        return self.world.hidden_state()

    def expert_action(self) -> np.ndarray:
        """[B] int64: what an optimal or near-optimal player, who may read the hidden state, does in every row."""
        return self.world.expert()

    def memory_horizons(self) -> tuple[int, ...]:
        """Ξ, ascending."""
        return self.world.memory_horizons()

    def chance_level(self) -> float:
        """Success of the best player without memory, 0 to 1."""
        return self.world.chance_level()

    def event_mask(self, obs: Any) -> np.ndarray:
        """Which observations [..., *shape] show an event that must be remembered: [...] bool."""
        return self.world.event_mask(obs)

    def breakdown(self) -> dict[str, np.ndarray]:
        """What evaluation splits success by, of the step that comes next; see `World.breakdown`."""
        return self.world.breakdown()

    def render(self) -> tuple[Any, ...] | None:
        """One picture or text per row."""
        if self.render_mode is None:
            return self.world.render()
        return tuple(self.world.row(i).render() for i in range(self.num_envs))


def __getattr__(name: str) -> Callable[..., WorldVectorEnv]:
    """`envs.vector:Family` is what gymnasium's registry calls to make that family's rows."""
    if name in families():
        return functools.partial(WorldVectorEnv, families()[name]())
    raise AttributeError(f"module 'palimpsest.envs.vector' has no attribute {name!r}")

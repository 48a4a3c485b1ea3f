"""`MiniGridMemoryRewrite` on the package minigrid, for its wrappers, its renderer and its manual control."""

from __future__ import annotations

from typing import Any, SupportsFloat

from minigrid.core.actions import Actions
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Key, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv

from palimpsest.envs.minigrid_rewrite import HEIGHT, MIDDLE, rules_for
from palimpsest.envs.minigrid_view import VIEW

MISSION = "go to the object at the end of the hallway that is like the last one you passed"


class MemoryRewriteEnv(MiniGridEnv):
    """A hallway in which the cue is replaced on the way. The last cue says which object at the end to go to.

    `envs.minigrid_rewrite.MiniGridMemoryRewrite` has the same rules as a batched world, and its docstring explains
    them. This class is for people who play and for tools that expect a `MiniGridEnv`. It adds minigrid's mission text.

    Args:
        replacements: how often the cue is replaced, 0 to 300.
        length: cells from one niche to the next and from the last niche to the junction, 7 to 100.
        random_length: whether each of these distances is drawn from 7 to `length`.
        view_size: cells along a side of the view: 3, 5 or 7.
        max_steps: steps until truncation; None for 5 width².
        **kwargs: other arguments of `MiniGridEnv`, `render_mode` included.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        replacements: int = 3,
        length: int = 7,
        random_length: bool = False,
        view_size: int = 7,
        max_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.rules = rules_for(replacements, length, random_length, view_size)
        super().__init__(
            mission_space=MissionSpace(mission_func=self._gen_mission),
            width=self.rules.width,
            height=HEIGHT,
            agent_view_size=self.rules.view_size,
            max_steps=self.rules.limit if max_steps is None else max_steps,
            **kwargs,
        )

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step. The observation of the step that reaches a niche shows the new cue."""
        if action == Actions.pickup:
            action = Actions.toggle  # as in minigrid's MemoryEnv, nothing can be picked up
        following = [(x, MIDDLE) for x in self.niches[self.shown + 1 : self.shown + 2]]
        if action == Actions.forward and tuple(self.front_pos) in following:  # the hallway is free: the step succeeds
            self.grid.set(self.niches[self.shown], MIDDLE - 1, None)
            self._show(self.shown + 1)
        obs, reward, terminated, truncated, info = super().step(action)
        if self.agent_pos[0] == self.junction and self.agent_pos[1] != MIDDLE:
            won = tuple(self.agent_pos) == self.success_pos
            return obs, self._reward() if won else 0, True, truncated, info
        return obs, reward, terminated, truncated, info

    @staticmethod
    def _gen_mission() -> str:
        return MISSION

    def _show(self, niche: int) -> None:
        self.shown = niche
        self.put_obj(self.cues[niche], self.niches[niche], MIDDLE - 1)

    def _gen_grid(self, width: int, height: int) -> None:
        random, length = self.rules.random_length, self.rules.length
        self.niches: list[int] = []
        self.cues: list[WorldObj] = []
        column = 1
        for _ in range(self.rules.replacements + 1):
            self.niches.append(column)
            self.cues.append(self._rand_elem([Key, Ball])("green"))
            column += int(self._rand_int(VIEW, length + 1)) if random else length
        self.junction = column

        self.grid = Grid(width, height)
        for y in range(height):
            self.grid.horz_wall(0, y, width, Wall)
        floor = [(x, MIDDLE) for x in range(1, column + 1)] + [(x, MIDDLE - 1) for x in self.niches]
        for x, y in [*floor, (column, MIDDLE - 1), (column, MIDDLE + 1)]:
            self.grid.set(x, y, None)
        self._show(0)

        upper, lower = self._rand_elem([(Key, Ball), (Ball, Key)])
        self.put_obj(upper("green"), column, MIDDLE - 2)
        self.put_obj(lower("green"), column, MIDDLE + 2)
        self.success_pos = column, MIDDLE + (-1 if isinstance(self.cues[-1], upper) else 1)
        self.agent_pos, self.agent_dir = (1, MIDDLE), 0
        self.mission = MISSION

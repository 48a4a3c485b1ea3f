"""SB3's VecEnv for a batched `World`, and for any gymnasium VectorEnv. It imports SB3, as `sb3_wrappers` does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from palimpsest.envs.core import World
from palimpsest.envs.declared import DECLARED, hides
from palimpsest.envs.kernels import STEP_AND_RESTART
from palimpsest.envs.made import made
from palimpsest.envs.text import DropText, check_storable, has_text
from palimpsest.envs.workers import watch
from palimpsest.refusals import MOST, check_integer


class Ends(NamedTuple):
    """The N episodes that ended in a step, in ascending order of row."""

    rows: np.ndarray
    """[N] int64"""
    final_obs: Any
    """[N, ...], or a dict of such arrays: the last observations, before the rows were reset."""
    truncated: np.ndarray
    """[N] bool, truncated by a step limit and not terminated."""
    success: np.ndarray | None
    """[N] bool; None if the environment does not report it."""
    returns: np.ndarray
    """[N] float64, sums of rewards."""
    lengths: np.ndarray
    """[N] int64, steps."""


class EpisodicVecEnv(VecEnv):
    """A VecEnv that keeps episode statistics itself, as SB3's Monitor does for single environments.

    The info dict of a row is empty except at the end of an episode. There it holds `episode` {r, l, t},
    `terminal_observation`, `TimeLimit.truncated` and, if known, `success` and `is_success`. Each row has one dict,
    which is cleared at the next step: copy it to keep it. `last_ends` holds the same in arrays.
    """

    def __init__(self, num_envs: int, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__(num_envs, observation_space, action_space)
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self._returns = np.zeros(num_envs)
        self._began = time.time()
        self.last_ends: Ends | None = None
        """The episodes that ended in the last step, None if none did. Reading it is faster than reading the infos."""

    def _begin(self) -> None:
        """Prepare for a reset of every row. Seeds and options apply to one reset."""
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._clear()

    def _clear(self) -> None:
        """Empty the infos of the rows that ended in the last step."""
        if self.last_ends is not None:
            for row in self.last_ends.rows.tolist():
                self._infos[row].clear()
            self.last_ends = None

    def _end(
        self, rows: np.ndarray, final_obs: Any, truncated: np.ndarray, success: np.ndarray | None, lengths: np.ndarray
    ) -> None:
        """Report the ends of `rows`. Arguments are those of `Ends`; the arrays are kept, not copied."""
        returns = self._returns[rows]
        self._returns[rows] = 0
        self.last_ends = Ends(rows, final_obs, truncated, success, returns, lengths)
        seconds = round(time.time() - self._began, 6)
        columns = zip(rows.tolist(), truncated.tolist(), returns.tolist(), lengths.tolist())
        for k, (row, cut, total, length) in enumerate(columns):
            info = self._infos[row]
            info["episode"] = {"r": round(total, 6), "l": length, "t": seconds}
            info["TimeLimit.truncated"] = cut
            if isinstance(final_obs, dict):
                info["terminal_observation"] = {key: part[k] for key, part in final_obs.items()}
            else:
                info["terminal_observation"] = final_obs[k]
            if success is not None:
                info["is_success"] = info["success"] = bool(success[k])

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for Monitor, because the infos hold its statistics; False for any other wrapper."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _options_given(self) -> dict[str, Any]:
        """The options of all rows, merged into one dict."""
        merged: dict[str, Any] = {}
        for options in self._options:
            merged.update(options)
        return merged


class WorldVecEnv(EpisodicVecEnv):
    """A `World` of B rows as an SB3 VecEnv. A row that ends starts its next episode in the same step.

    `env_method` and `get_attr` see a row as a `World` of one row (`World.row`). It can be read but not stepped alone.
    `set_attr` stores new attributes and refuses those that the world defines. `seed` and `set_options` (of
    {"hidden_state": ...}, for the whole batch) apply to the next `reset`, as in SB3.

    Args:
        family: a subclass of `World`.
        num_envs: B, 1 to 1,048,576.
        spec: gymnasium's registration of the id, for `get_attr("spec")`.
        **kwargs: the family's arguments.

    Raises:
        ValueError: an argument that the family does not allow.
    """

    def __init__(
        self, family: type[World], num_envs: int, spec: gym.envs.registration.EnvSpec | None = None, **kwargs: Any
    ) -> None:
        check_integer("num_envs", num_envs, 1, MOST)
        self.world = family(**kwargs)
        self.world.allocate(num_envs)
        if spec is not None:
            self.world.spec = deepcopy(spec)
            self.world.spec.kwargs = {**spec.kwargs, **kwargs}
        self._rows: dict[int, World] = {}
        super().__init__(num_envs, self.world.observation_space, self.world.action_space)

    def reset(self) -> Any:
        """Start an episode in every row."""
        world, seeds, options = self.world, self._seeds, self._options_given()
        self._begin()
        world.begin(np.ones(self.num_envs, bool), seeds, lambda: world.np_random, options)
        return world.copied(world.io.obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions [B] or [B, n] for the next `step_wait`; ValueError for a wrong shape or dtype."""
        self.world.io.action[:] = self.world.checked(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """One step in every row: observations, rewards [B] float32, dones [B] bool, infos."""
        world, io = self.world, self.world.io
        ends, final_obs = self._advance()
        self._returns += io.reward
        self._clear()
        if ends:
            rows = io.row[:ends].copy()
            self._end(rows, final_obs, io.truncated[rows], io.success[:ends].copy(), io.length[:ends].copy())
            for name, values in world.report(rows).items():
                for row, value in zip(rows.tolist(), values.tolist()):
                    self._infos[row][name] = value
        return world.copied(io.obs), io.reward.astype(np.float32), io.terminated | io.truncated, self._infos

    def _advance(self) -> tuple[int, Any]:
        """One step; rows that end begin anew. The number of ends, and their final observations."""
        ends = self.world.run(STEP_AND_RESTART)
        return ends, self.world.copied(self.world.io.final_obs, ends) if ends else None

    def breakdown(self) -> dict[str, np.ndarray]:
        """The kinds of answers by which evaluation splits success, for the next step; see `World.breakdown`."""
        return self.world.breakdown()

    def snapshot(self) -> dict[str, Any]:
        """Everything that the future of the rows and their episode statistics depend on, as copies of arrays."""
        return {"hidden_state": self.world.hidden_state(), "returns": self._returns.copy()}

    def restore(self, snapshot: dict[str, Any]) -> Any:
        """Continue from a `snapshot`. Returns the observations [B, ...] of that step.

        Raises:
            ValueError: a snapshot of another task or of another number of rows.
        """
        self.set_options({"hidden_state": snapshot["hidden_state"]})
        obs = self.reset()
        self._returns[:] = snapshot["returns"]
        return obs

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each row."""
        return [getattr(row, attr_name) for row in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set a new attribute on each row; ValueError for one that the world defines."""
        if hasattr(self.world, attr_name):
            raise ValueError(f"{attr_name!r} belongs to the world and cannot be set; make a new environment instead")
        for row in self._chosen(indices):
            setattr(row, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of each row; ValueError for methods that would step or reset a single row."""
        if method_name in ("step", "reset", "begin", "allocate", "run"):
            raise ValueError(f"rows move together: call step() and reset() of the VecEnv, not {method_name!r} of a row")
        return [getattr(row, method_name)(*args, **kwargs) for row in self._chosen(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture per row; None for each row if the render mode is not "rgb_array"."""
        return self.env_method("render") if self.render_mode == "rgb_array" else [None] * self.num_envs

    def _chosen(self, indices: VecEnvIndices) -> Iterable[World]:
        for i in self._get_indices(indices):
            if i not in self._rows:
                self._rows[i] = self.world.row(range(self.num_envs)[i])
            yield self._rows[i]


class VectorEnvAdaptor(EpisodicVecEnv):
    """SB3's VecEnv for a gymnasium VectorEnv that resets rows in the step that ends them, or that can do so.

    Autoreset mode SAME_STEP works as it is. SyncVectorEnv and AsyncVectorEnv in another mode are reset here, through
    `reset(options={"reset_mask": ended})`. All other entries of the environment's infos for a row are copied to that
    row's info. Observations are copies: environments with copy=False write the next ones into the same arrays.

    Args:
        env: the vector environment.

    Raises:
        ValueError: an unsupported autoreset mode; at a step, an episode that ends without a final observation.
        ChildProcessError: at a step, a worker of an AsyncVectorEnv is dead.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        self._resets_itself = mode == AutoresetMode.SAME_STEP
        if not self._resets_itself and not isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            raise ValueError(
                f"{env} has autoreset mode {mode}, which splits an episode's last observation and the next one's first "
                "over two steps; make it with AutoresetMode.SAME_STEP, or as Sync- or AsyncVectorEnv"
            )
        self.env = env
        self._elsewhere = env if isinstance(env, AsyncVectorEnv) else None
        if isinstance(env.unwrapped, AsyncVectorEnv):
            watch(env.unwrapped, "parent_pipes")
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._actions: Any = None

    @property
    def steps_elsewhere(self) -> bool:
        """Whether rows step in other processes from `step_async` on. A wrapper around them has no `step_async`."""
        return self._elsewhere is not None

    def reset(self) -> Any:
        """Start an episode in every row."""
        seed, options = self._seeds[0], self._options_given() or None
        self._begin()
        obs, infos = self.env.reset(seed=seed, options=options)
        self._lengths[:] = 0
        self.reset_infos = [_of_row(infos, i) for i in range(self.num_envs)]
        return _copied(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions [B, ...] for the next `step_wait`; rows in other processes begin to step."""
        self._actions = actions
        if self._elsewhere is not None:
            self._elsewhere.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """One step in every row: observations, rewards [B] float32, dones [B] bool, infos."""
        ended_step = self.env.step(self._actions) if self._elsewhere is None else self._elsewhere.step_wait()
        obs, rewards, terminated, truncated, infos = ended_step
        self._returns += rewards
        self._lengths += 1
        for info in self._infos:
            info.clear()
        self._clear()
        ended = terminated | truncated
        rows = np.flatnonzero(ended)
        if infos:
            for row in np.flatnonzero(~ended).tolist():
                self._infos[row].update(_of_row(infos, row))
        if len(rows):
            final_obs, final_info = self._finals(rows, obs, infos)
            if not self._resets_itself:
                obs, infos = self.env.reset(options={"reset_mask": ended})
            for row, info in zip(rows.tolist(), final_info):
                self._infos[row].update(info)
                self.reset_infos[row] = _of_row(infos, row)
            told = [info.get("is_success") for info in final_info]
            success = None if None in told else np.array(told, bool)
            self._end(rows, final_obs, (truncated & ~terminated)[rows], success, self._lengths[rows])
            self._lengths[rows] = 0
        return _copied(obs), rewards.astype(np.float32), ended, self._infos

    def _finals(self, rows: np.ndarray, obs: Any, infos: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        """The last observations of `rows`, stacked, and their last infos."""
        if not self._resets_itself:
            final_obs = {k: part[rows] for k, part in obs.items()} if isinstance(obs, dict) else obs[rows]
            return final_obs, [_of_row(infos, row) for row in rows.tolist()]
        given = infos.get("final_obs", [None] * self.num_envs)
        lacking = [row for row in rows.tolist() if given[row] is None]
        if lacking:
            raise ValueError(
                f"{self.env} ended rows {lacking} without infos['final_obs']; a SAME_STEP vector environment must "
                "return the last observation of every episode there"
            )
        parts = [given[row] for row in rows.tolist()]
        final_obs = (
            {k: np.stack([part[k] for part in parts]) for k in parts[0]}
            if isinstance(parts[0], dict)
            else np.stack(parts)
        )
        return final_obs, [_of_row(infos.get("final_info", {}), row) for row in rows.tolist()]

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether every row has the attribute; if there are no single rows, whether the vector environment has it."""
        whole = self.env.unwrapped
        if isinstance(whole, SyncVectorEnv | AsyncVectorEnv):
            # Ask the rows first: reading an attribute that does not exist ends the worker of an AsyncVectorEnv.
            hidden = attr_name in DECLARED and self._holder(attr_name) is not whole
            return not hidden and all(whole.call("has_wrapper_attr", attr_name))
        return super().has_attr(attr_name)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for Monitor, as the infos hold its statistics; else whether a row of this process is in the wrapper."""
        inside = any(is_wrapped(row, wrapper_class) for row in getattr(self.env.unwrapped, "envs", ()))
        return [inside or told for told in super().env_is_wrapped(wrapper_class, indices)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each row; if there are no single rows, that of the vector environment for each row."""
        whole = self.env.unwrapped
        if attr_name == "render_mode" or not hasattr(whole, "get_attr"):
            values: Sequence[Any] = [getattr(self._holder(attr_name), attr_name)] * self.env.num_envs
        else:
            values = whole.get_attr(attr_name)
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of every row."""
        if indices is not None or not hasattr(self.env.unwrapped, "set_attr"):
            raise ValueError(f"{self.env} sets attributes only for all rows at once, or not; got indices {indices!r}")
        self.env.unwrapped.set_attr(attr_name, [value] * self.num_envs)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of every row and return the results of `indices`.

        A vector environment without single rows, as our worlds', has its `action_masks` [B, n] and what it declares.
        """
        if hasattr(self.env.unwrapped, "call"):
            results = self.env.unwrapped.call(method_name, *args, **kwargs)
        elif method_name == "action_masks":
            results = self._holder(method_name).action_masks()
        elif method_name in (*DECLARED, "longest_wait"):
            results = [getattr(self._holder(method_name), method_name)(*args, **kwargs)] * self.num_envs
        else:
            raise ValueError(f"{self.env} has no rows to call {method_name!r} of; call the vector environment's own")
        return [results[i] for i in self._get_indices(indices)]

    def _holder(self, name: str) -> Any:
        """The outermost wrapper of the vector environment that has an attribute or hides it; else the environment."""
        env: Any = self.env
        while isinstance(env, VectorWrapper) and not hasattr(env, name) and not hides(env, name):
            env = env.env
        return env

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture per row; None for each row if the render mode is not "rgb_array"."""
        frames: Any = self.env.render() if self.render_mode == "rgb_array" else [None] * self.num_envs
        return list(frames)


def _copied(obs: Any) -> Any:
    """Observations, or a dict of them, in new arrays: with copy=False the next ones come in the same."""
    return {key: part.copy() for key, part in obs.items()} if isinstance(obs, dict) else obs.copy()


def _of_row(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """The entries of a vector environment's infos for row i, without those of an episode that has ended."""
    found = {}
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        if key not in ("final_obs", "final_info") and mask is not None and mask[i]:
            found[key] = _of_row(value, i) if isinstance(value, dict) else value[i]
    return found


def dummy_vec_env(id: str, num_envs: int, kwargs: dict[str, Any]) -> DummyVecEnv:
    """SB3's DummyVecEnv of a registered id. Each row has a Monitor; text keys of observations are removed."""

    def one() -> gym.Env:
        env = made(id, kwargs)
        if has_text(env.observation_space):
            env = DropText(env)
        check_storable(env.observation_space)
        return Monitor(env)

    return DummyVecEnv([one] * num_envs)

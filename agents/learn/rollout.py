"""Collecting rollouts with a memory: what is carried from step to step, and where it begins anew."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from palimpsest.agents.learn.buffers import MemoryRolloutBuffer
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.learn.numerics import (
    check_actions,
    check_observation,
    check_rewards,
    check_rollout,
    explained_step,
    warn_outside,
)
from palimpsest.agents.masks import get_action_masks
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.spaces import task_of
from palimpsest.agents.tree import stacked, tree_map
from palimpsest.agents.workers.algorithm import DividedAlgorithm, Ends
from palimpsest.agents.workers.parts import Part, Step, joined, together, truncated_rows
from palimpsest.envs.halves import VecHalves


class RememberingAlgorithm(DividedAlgorithm, SavedAlgorithm, OnPolicyAlgorithm):
    """An on-policy algorithm of SB3's whose rollouts hold whole columns of steps and the memory before the first.

    Its subclass sets the attributes below and defines `train`.
    """

    policy: MemoryActorCriticPolicy
    rollout_buffer: MemoryRolloutBuffer  # type: ignore[assignment]
    memory_carry_over: float
    strategy_epsilon: tuple[float, float]
    _last_memory_starts: np.ndarray | None
    _last_strategy: Tensor | None
    _return_so_far: np.ndarray | None
    _last_action_masks: np.ndarray | None
    _told_of_outside: bool
    _gives_state_up = False
    """Whether the step under way was given `_last_state` to write into."""

    def attributes(self) -> dict[str, Any]:
        """The attributes as a file holds them: those of an agent that trained alone."""
        return super().attributes() | {"n_envs": self.whole_envs}

    @property
    def _strategy_values(self) -> Any:
        """What an adaptive allocator chooses by; None for every other memory."""
        return getattr(self.policy.memory, "strategy_values", None)

    def _check_halves(self) -> None:
        """Refuse to act by turns with what must know of the ends of all rows before the next action of any."""
        if isinstance(self.env, VecHalves) and self._strategy_values is not None:
            raise ValueError(
                "an adaptive allocator learns from the ends of all rows before it chooses for any; leave VecHalves "
                "(--overlap) out, or take another allocator"
            )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        fresh = reset_num_timesteps or self._last_obs is None
        self._check_halves()
        if self.workers.rank and not self._custom_logger:
            self.set_logger(Logger(None, []))
        if self.policy.return_scale is not None:
            self.policy.return_scale.begin()
        self.workers.share(list(self.policy.state_dict().values()))
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if fresh:
            self._last_obs = tree_map(np.array, self._last_obs)  # see Part.end
        if fresh or self._last_state is None:
            self._last_state = self.policy.initial_state(self.n_envs)
            self._last_memory_starts = np.ones(self.n_envs, dtype=bool)
            self._last_strategy = None
            self._return_so_far = np.zeros(self.n_envs)
        return result

    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: MemoryRolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer with `n_rollout_steps` steps of every environment; False if the callback stops it."""
        assert self._last_memory_starts is not None
        # First of all, so that a checkpoint written here holds the streams before anything of this rollout is drawn.
        callback.on_rollout_start()
        began = time.perf_counter()
        policy = self.policy
        policy.set_training_mode(False)
        policy.look_for_changes()
        for memory in policy.memories():
            memory.redraw(self.rng)
        if self.use_sde:
            self._reset_noise()
        rollout_buffer.reset()
        ends: Ends = []
        try:
            finished = self._collect(env, callback, rollout_buffer, n_rollout_steps, ends)
        finally:
            # what ended the rollout in the middle of a step must not leave a state that the step has written into
            self._last_state, self._gives_state_up = self.recall(), False
        if not finished:
            return False
        check_observation(self._last_obs, self.num_timesteps)
        obs = self._to_device(self._last_obs)
        with torch.no_grad():
            last_values = policy.predict_values(
                obs,
                self._last_state,
                self._flags(self._last_memory_starts),
                self._choose_strategy(obs),
                **self._opens(self._last_episode_starts),
            )
        rollout_buffer.compute_returns_and_advantage(last_values, self._last_episode_starts)  # type: ignore[arg-type]
        rollout_buffer.gather()
        self._note_episodes(ends)
        check_rollout(self)
        warn_outside(self)
        callback.update_locals(locals())
        callback.on_rollout_end()
        self.logger.record("time/rollout_steps_per_s", rate(n_rollout_steps * self.whole_envs, began))
        return True

    def _collect(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: MemoryRolloutBuffer,
        n_rollout_steps: int,
        ends: Ends,
    ) -> bool:
        """The steps of a rollout; False if the callback stops it. Callbacks find RecurrentPPO's names in `locals`.

        Of two halves the first is ahead: its environments step while the second's step ends and is followed by another.
        `ends` gets the steps at which episodes ended, and their infos.
        """
        *ahead, last = parts = self._parts(env)
        for part in ahead:
            self._act_ahead(parts, part, 0)
        for n_steps in range(n_rollout_steps):
            self._act_last(parts, n_steps)
            chances = functools.cache(self._chances)
            steps, targets = [], []
            for part in ahead:
                steps.append(part.end())
                targets.append(self._settle(part, steps[-1], chances, self.num_timesteps + self.whole_envs))
                if n_steps + 1 < n_rollout_steps:
                    self._act_ahead(parts, part, n_steps + 1)
            steps.append(last.end())
            step = together(steps)
            obs_tensor, chosen, values, log_probs, masks, clipped_actions, new_obs, rewards, dones, infos = step
            actions, lstm_states = chosen.cpu().numpy(), None if ahead else last.state
            action_masks, episode_starts = self._last_action_masks, self._last_episode_starts
            check_rewards(rewards, self.num_timesteps)
            self.num_timesteps += self.whole_envs

            callback.update_locals(locals())
            goes_on = callback.on_step()

            ended = np.flatnonzero(dones)
            self._note_ends(obs_tensor, rewards, ended)
            if ended.size:
                self._note_ended(n_steps, [infos[row] for row in ended], ends)
            targets.append(self._settle(last, steps[-1], chances, self.num_timesteps))
            rollout_buffer.add(
                obs_tensor,
                chosen,
                joined(targets),
                episode_starts,  # type: ignore[arg-type]
                self._last_memory_starts,  # type: ignore[arg-type]
                values,
                log_probs,
                self._last_strategy,
                **({} if masks is None else {"action_masks": masks}),
            )
            self._last_obs = new_obs
            self._last_episode_starts = dones
            self._last_memory_starts = joined([part.memory_starts for part in parts])
            if not ahead or n_steps + 1 == n_rollout_steps:
                self._last_state, self._gives_state_up = joined([part.state for part in parts]), False
            if not goes_on:  # only now, so that a later `learn` knows which episodes this step ended
                return False
        return True

    def _parts(self, env: VecEnv) -> list[Part]:
        """The rows that act and step together: all, or each of two halves."""
        gives_up, state = self._reuses_state, self._last_state
        if gives_up:
            # each step may write into the state that it is given; `_last_state` may be somebody else's
            state = tree_map(torch.clone, state)
        known = gives_up, self._last_obs, self._last_episode_starts, self._last_memory_starts, state
        if isinstance(env, VecHalves):
            return [Part(half, half.rows, False, *known) for half in env.halves]
        self._last_state = state
        return [Part(env, slice(0, self.n_envs), True, *known)]

    def _act(self, parts: list[Part], part: Part, n_steps: int) -> None:
        """Choose a part's actions for step `n_steps` of the rollout, and begin it. The last part acts last."""
        buffer, last = self.rollout_buffer, part is parts[-1]
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0 and part is parts[0]:
            self._reset_noise()
        if n_steps % buffer.sequence_length == 0:
            part.before = tree_map(torch.clone, part.state) if part.gives_up else part.state
            if last:
                buffer.begin_segment(joined([each.before for each in parts]))
        check_observation(part.obs, self.num_timesteps)
        obs_tensor = self._to_device(part.obs)
        strategy = self._choose_strategy(obs_tensor)
        masks = {}
        if buffer.columns.action_masks is not None:
            part.masks = get_action_masks(part.venv, self.num_timesteps)
            masks["action_masks"] = self._to_device(part.masks)
        if last:
            self._last_action_masks = joined([each.masks for each in parts])
            self._gives_state_up = part.gives_up or not part.whole
        with torch.no_grad(), explained_step(self), self._own_draws(part):
            chosen, values, log_probs, part.state = self.policy(
                obs_tensor,
                part.state,
                self._flags(part.memory_starts),
                strategy,
                **({"keep_state": False} if part.gives_up else {}),
                **masks,
                **self._opens(part.episode_starts),
            )
        actions = self._to_env(chosen.cpu().numpy())
        part.begin(Step(obs_tensor, chosen, values, log_probs, masks.get("action_masks"), actions))

    def _act_ahead(self, parts: list[Part], part: Part, n_steps: int) -> None:
        """The same before the last part's environments have ended their step. What goes wrong is told after that."""
        try:
            self._act(parts, part, n_steps)
        except Exception as error:  # whatever it is, `_act_last` raises it
            part.failed = error

    def _act_last(self, parts: list[Part], n_steps: int) -> None:
        """The same for the last part. An error is that of all rows, which it names as it would without halves."""
        *ahead, last = parts
        failed = next((part.failed for part in ahead if part.failed is not None), None)
        if failed is None:
            try:
                return self._act(parts, last, n_steps)
            except Exception as error:
                if last.whole:
                    raise
                failed = error
        known = self._last_obs, self._last_episode_starts, self._last_memory_starts, self.recall()
        whole = Part(self.env, slice(0, self.n_envs), True, last.gives_up, *known)
        self._act([whole], whole, n_steps)
        raise failed

    def _settle(self, part: Part, step: Step, chances: Callable[[], np.ndarray], timesteps: int) -> np.ndarray:
        """Note what a part's step has led to. Its rewards [B], with what truncated episodes are still worth."""
        rewards = self._bootstrap(part, step, timesteps) if step.dones.any() else step.rewards
        part.obs, part.episode_starts, part.memory_starts = step.new_obs, step.dones, step.dones
        if self.memory_carry_over > 0.0:
            part.memory_starts = step.dones & (chances()[part.rows] >= self.memory_carry_over)
        return rewards

    def _chances(self) -> np.ndarray:
        """[B] numbers in 0 to 1, by which memories are carried over the ends of a step.

        They are drawn for every row of every worker at every step, so that none need know what ended elsewhere.
        """
        return self.rng.random(self.whole_envs)[self.workers.rows(self.n_envs)]

    def recall(self) -> Any:
        """The memory before the step under way: what it read of the episodes so far, but for `_last_obs`.

        A step may write into the state that it was given. While it is under way (in `on_step` of a callback, in the
        report of a failure), the state is made again from the rollout's steps; else this is `_last_state`.
        """
        if not self._gives_state_up:
            return self._last_state
        buffer, policy = self.rollout_buffer, self.policy
        segment = len(buffer.states) - 1
        state, columns = buffer.states[segment], buffer.columns
        for t in range(segment * buffer.sequence_length, buffer.pos):
            at = t, buffer.own
            obs = tree_map(lambda leaf, at=at: leaf[at], columns.observations)
            strategy = None if columns.strategy is None else columns.strategy[at]
            opens = {} if columns.episode_start is None else {"episode_start": columns.episode_start[at]}
            with torch.no_grad():
                state = policy.next_state(obs, state, columns.memory_start[at], strategy, **opens)
        return tree_map(torch.clone, state)

    @property
    def _reuses_state(self) -> bool:
        """Whether steps write into the state they are given; a `forward` of a user's own may not know of that."""
        known = "keep_state" in inspect.signature(self.policy.forward).parameters
        return known and any(memory.reuses_state for memory in self.policy.memories())

    def _to_device(self, arrays: Any) -> Any:
        """A tree of arrays as one of tensors, which share the arrays' memory on the CPU."""
        return tree_map(lambda array: torch.from_numpy(array).to(self.device), arrays)

    def _flags(self, flags: np.ndarray) -> Tensor | None:
        return self._to_device(flags) if flags.any() else None

    def _opens(self, episode_starts: Any) -> dict[str, Any]:
        """The argument that says where episodes begin, where that is not where memories begin."""
        return {"episode_start": self._to_device(episode_starts)} if self.policy.mark_starts else {}

    def _to_env(self, actions: np.ndarray) -> np.ndarray:
        check_actions(self, actions)
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _bootstrap(self, part: Part, step: Step, timesteps: int) -> np.ndarray:
        """Add γ V(final observation) to the last reward of each truncated episode; the state after it is dropped."""
        infos, strategy = step.infos, self._last_strategy
        truncated = truncated_rows(step.dones, infos)
        if not truncated:
            return step.rewards
        final = stacked([infos[row]["terminal_observation"] for row in truncated], step.new_obs)
        check_observation(final, timesteps, "the final observation", [part.rows.start + row for row in truncated])
        rows = torch.as_tensor(truncated, device=self.device)
        with torch.no_grad():
            values = self.policy.predict_values(
                self._to_device(final),
                tree_map(lambda leaf: leaf[rows], part.state),
                strategy=None if strategy is None else strategy[rows],
            )
        rewards = np.array(step.rewards, dtype=np.float32)
        rewards[truncated] += self.gamma * values.cpu().numpy()
        return rewards

    def _choose_strategy(self, obs: Any) -> Tensor | None:
        """The allocation that each row uses: drawn anew where its memory begins anew, else kept."""
        values = self._strategy_values
        if values is None:
            return None
        assert self._last_memory_starts is not None
        if self._last_strategy is None:
            self._last_strategy = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)
        rows = np.flatnonzero(self._last_memory_starts)
        tasks = self.workers.objects(task_of(obs, self.n_envs)[rows])
        if sum(map(len, tasks)):
            first, last = self.strategy_epsilon
            epsilon = last + (first - last) * self._current_progress_remaining
            choice = values.choose(torch.cat(tasks), epsilon, self.rng).split([len(task) for task in tasks])
            kept = self._last_strategy.clone()
            kept[rows] = choice[self.workers.rank].to(self.device)
            self._last_strategy = kept
        return self._last_strategy

    def _note_ends(self, obs: Any, rewards: np.ndarray, ended: np.ndarray) -> None:
        """Teach an adaptive allocator the returns of the episodes that ended."""
        values = self._strategy_values
        if values is None:
            return
        assert self._return_so_far is not None
        assert self._last_strategy is not None
        self._return_so_far += rewards
        task = task_of(obs, self.n_envs)[ended]
        returns = torch.as_tensor(self._return_so_far[ended], dtype=torch.float32)
        found = self.workers.objects((task, self._last_strategy[ended], returns))
        task, strategy, returns = (torch.cat(each) for each in zip(*found))
        if len(task):
            loss = values.update(task, strategy, returns)
            self.logger.record_mean("memory/strategy_value_loss", float(loss))
            self._return_so_far[ended] = 0.0


def rate(steps: int, began: float) -> float:
    """Steps per second since `began`, a reading of `time.perf_counter`."""
    return steps / max(time.perf_counter() - began, 1e-9)

"""What `MemoryDQN` and `MemorySAC` share: acting with a memory, filling the replay, and their files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from palimpsest.agents.device import check_device
from palimpsest.agents.environments import check_normalize, unscaled
from palimpsest.agents.files.archive import CorruptFile, File, read_tree, write_tree
from palimpsest.agents.files.load_checks import check_environments
from palimpsest.agents.files.replay_file import found_file
from palimpsest.agents.learn.hyperparameters import ARGUMENTS
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.learn.numerics import check_categories, check_observation, check_rewards, explained_step
from palimpsest.agents.masks import warn_of_masks
from palimpsest.agents.off_policy.exploration import noise_of_rows, noisy
from palimpsest.agents.off_policy.replay import SequenceReplay, Sequences, check_replay_arguments
from palimpsest.agents.policy.policy_file import Unfit
from palimpsest.agents.policy.policy_kwargs import check_policy_kwargs
from palimpsest.agents.policy.scales import RewardScale
from palimpsest.agents.tree import stacked, tree_map
from palimpsest.agents.workers.parts import truncated_rows
from palimpsest.refusals import FLAG, NAMED, Allowed, check, integer, is_integer, number, optional


def _is_frequency(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) == 2 and is_integer(value[0], 1) and value[1] in ("step", "episode")
    return is_integer(value, 1)


SHARED: dict[str, Allowed] = {
    **{
        name: ARGUMENTS[name]
        for name in (
            "learning_rate",
            "gamma",
            "stats_window_size",
            "tensorboard_log",
            "policy_kwargs",
            "verbose",
            "seed",
        )
    },
    # of these SB3 takes more than `refusals.MOST`; the machine's memory bounds the replay
    "buffer_size": integer(1, math.inf),
    "learning_starts": integer(0, math.inf),
    "batch_size": integer(1),
    "tau": number(0, 1),
    "train_freq": Allowed('an integer, 1 or more, or a pair as (4, "step") or (1, "episode")', _is_frequency),
    "gradient_steps": integer(-1),
    "replay_buffer_class": optional(
        Allowed(
            "a subclass of SequenceReplay", lambda value: isinstance(value, type) and issubclass(value, SequenceReplay)
        )
    ),
    "replay_buffer_kwargs": optional(NAMED),
    "optimize_memory_usage": FLAG,
    "n_steps": integer(1),
    "n_step": optional(integer(1)),
    "target_update_interval": integer(1, math.inf),
    "sequence_length": integer(1),
    "burn_in": integer(0),
    "prioritized": FLAG,
    "refresh_states": FLAG,
    "normalize_observations": FLAG,
    "normalize_returns": FLAG,
}
"""The values that each argument of both algorithms allows."""


def check_arguments(allowed: Mapping[str, Allowed], given: Mapping[str, Any]) -> None:
    """Refuse arguments that are not allowed, before anything is made. `given` may hold other names."""
    for name, what in allowed.items():
        check(name, given[name], what)
    check_device(given["device"])
    if given["n_step"] is not None and given["n_steps"] not in (1, given["n_step"]):
        raise ValueError(
            f"n_step and n_steps are one number; got {given['n_step']} and {given['n_steps']}: leave one out"
        )
    check_together(given)


def check_together(given: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit each other. `given` may hold other names."""
    check_replay_arguments(given["replay_buffer_class"], given["replay_buffer_kwargs"])
    if given["refresh_states"] and given["burn_in"] > given["sequence_length"]:
        raise ValueError(
            f"refresh_states=True needs a burn_in of sequence_length, {given['sequence_length']}, at most; got "
            f"burn_in={given['burn_in']}: lower it, or set refresh_states=False"
        )


class OffPolicyMemoryAlgorithm(SavedAlgorithm, OffPolicyAlgorithm):
    """An off-policy algorithm of SB3's whose replay holds sequences and the memory's states.

    Its subclass makes the target networks, chooses actions and defines `train`.

    Args:
        **kwargs: those of SB3's `OffPolicyAlgorithm`.
        n_step: `n_steps` by another name; None for that.
        sequence_length: see `SequenceReplay`.
        burn_in: see `SequenceReplay`.
        prioritized: see `SequenceReplay`.
        refresh_states: whether updates call `SequenceReplay.refresh`.
        normalize_observations: whether the policy scales observations by running moments.
        normalize_returns: whether rewards that are learned from are divided by a standard deviation; see `RewardScale`.
    """

    synonyms: ClassVar = {"n_step": "n_steps"}
    _replay: SequenceReplay | None = None

    def __init__(
        self,
        *,
        n_step: int | None,
        n_steps: int,
        sequence_length: int,
        burn_in: int,
        prioritized: bool,
        refresh_states: bool,
        normalize_observations: bool,
        normalize_returns: bool,
        **kwargs: Any,
    ) -> None:
        often, *unit = kwargs["train_freq"] if isinstance(kwargs["train_freq"], tuple) else (kwargs["train_freq"],)
        kwargs["train_freq"] = (int(often), *unit) if unit else int(often)  # SB3 takes no integer of NumPy's
        super().__init__(n_steps=n_step or n_steps, sde_support=False, support_multi_env=True, **kwargs)
        self.sequence_length = sequence_length
        self.burn_in = burn_in
        self.prioritized = prioritized
        self.refresh_states = refresh_states
        self.normalize_observations = normalize_observations
        self.normalize_returns = normalize_returns
        self._last_state: Any = None
        self._next_state: Any = None
        self._return_so_far = self._exploration = np.zeros(0)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = SavedAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_normalize(wrapped)
        return wrapped

    def _setup_model(self) -> None:
        check_together(vars(self))
        parts = self._chosen_parts()
        for name in parts:
            if name in self.policy_kwargs:
                raise ValueError(
                    f"policy_kwargs cannot hold {name!r}: it is an argument of {type(self).__name__}; leave it out"
                )
        check_policy_kwargs(self.policy_class, self.policy_kwargs, type(self).__name__)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs, **parts
        ).to(self.device)
        if any(getattr(each, "strategy_values", None) is not None for each in self.policy.memories()):
            raise ValueError(
                f"allocator='adaptive' learns from the returns of whole episodes, which {type(self).__name__} does not "
                "give it; choose another allocator, or MemoryPPO"
            )
        self._make_targets()
        self._convert_train_freq()
        self._replay = None
        if self.env is not None:
            warn_of_masks(self.env, type(self).__name__)
            try:
                self._make_replay()
            except ValueError as error:
                # of the number of environments, or of the machine, and of no fault in a file
                raise Unfit(str(error)) from error

    @property
    def replay(self) -> SequenceReplay:
        """The replay. A loaded model makes it when it is first asked for, as acting alone needs none."""
        if self._replay is None:
            self._make_replay()
        assert self._replay is not None
        return self._replay

    @property  # type: ignore[override]
    def replay_buffer(self) -> SequenceReplay:
        """`replay`, by SB3's name."""
        return self.replay

    @replay_buffer.setter
    def replay_buffer(self, replay: Any) -> None:
        self._replay = replay

    def _chosen_parts(self) -> dict[str, Any]:
        """The policy's arguments that are this algorithm's."""
        return {"normalize_observations": self.normalize_observations, "normalize_returns": self.normalize_returns}

    def _make_targets(self) -> None:
        """Make the target networks from the policy."""
        raise NotImplementedError

    def _choose(self, obs: Any, state: Any, start: Tensor | None, warm: bool) -> tuple[np.ndarray, Any]:
        """Actions [B, ...] to explore with, those of a Box in -1 to 1, and the state after the observations.

        While `warm`, before learning begins, they are drawn uniformly; the memory reads the observations all the same.
        """
        raise NotImplementedError

    def _first_exploration(self) -> np.ndarray:
        """What exploration remembers of each row, before the first step."""
        raise NotImplementedError

    def _make_replay(self) -> None:
        cls: Any = self.replay_buffer_class or SequenceReplay
        replay: SequenceReplay = cls(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.policy.initial_state(1),
            device=self.device,
            n_envs=self.n_envs,
            sequence_length=self.sequence_length,
            burn_in=self.burn_in,
            n_steps=self.n_steps,
            prioritized=self.prioritized,
            **self.replay_buffer_kwargs,
        )
        self._replay = replay
        if self.verbose:
            total = replay.bytes_per_sequence * replay.tree.size
            print(
                f"Replay: {replay.tree.size:,} sequences of {self.sequence_length} steps, "
                f"{replay.bytes_per_sequence:,} bytes each with the memory's state, {total / 1e6:,.1f} MB"
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        check_environments(self)
        self.action_noise = noise_of_rows(self.action_noise, self.n_envs)
        before = self._last_obs
        # past OffPolicyAlgorithm's, which changes a replay of SB3's
        result = super(OffPolicyAlgorithm, self)._setup_learn(*args, **kwargs)
        fresh = self._last_obs is not before
        if self.replay.n_envs != self.n_envs:
            self._make_replay()
        self.policy.look_for_changes()
        if fresh:
            self._see(self._last_obs)
        if fresh or self._last_state is None:
            self._last_state = self.policy.initial_state(self.n_envs)
            self._return_so_far = np.zeros(self.n_envs)
            self._exploration = self._first_exploration()
        return result

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        check_observation(self._last_obs, self.num_timesteps)
        start = self._last_episode_starts
        with torch.no_grad(), explained_step(self):  # type: ignore[arg-type]
            chosen, self._next_state = self._choose(
                tree_map(lambda array: torch.from_numpy(array).to(self.device), self._last_obs),
                self._last_state,
                torch.as_tensor(start, device=self.device) if start.any() else None,  # type: ignore[union-attr]
                self.num_timesteps < learning_starts,
            )
        if not isinstance(self.action_space, spaces.Box):
            return chosen, chosen
        if action_noise is not None:
            chosen = noisy(chosen, action_noise)
        return self.policy.unscale_action(chosen), chosen

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """SB3's, but a step at which a callback stops is a whole one: a later `learn` knows what ended there."""
        collected = super().collect_rollouts(env, callback, *args, **kwargs)
        if not collected.continue_training:
            self._end_step(callback.locals)
        return collected

    def _end_step(self, step: dict[str, Any]) -> None:
        """What SB3 does with a step, by its names, after the callback. `learn` resets action noise when it begins."""
        self._update_info_buffer(step["infos"], step["dones"])
        names = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
        self._store_transition(*(step[name] for name in names))
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._on_step()
        interval = step["log_interval"]
        for _ in range(step["dones"].sum()):
            self._episode_num += 1
            if interval is not None and self._episode_num % interval == 0:
                self.dump_logs()

    def _store_transition(  # type: ignore[override]
        self,
        replay_buffer: SequenceReplay,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep a step, and the final observations of the episodes that it truncated; not normalised, as in SB3."""
        normalize = self._vec_normalize_env
        original, original_reward = self._last_obs, reward
        if normalize is not None:
            original, original_reward = self._last_original_obs, normalize.get_original_reward()
        check_rewards(original_reward, self.num_timesteps - self.n_envs)
        if self.policy.observation_scales is not None:
            played = tree_map(lambda array: torch.from_numpy(array[None]), self._last_obs)
            self.policy.observation_scales.update(played)
        scale = self.policy.return_scale
        if isinstance(scale, RewardScale):
            self._return_so_far = self.gamma * self._return_so_far + reward
            scale.update(torch.from_numpy(self._return_so_far), torch.from_numpy(reward))
            self._return_so_far[dones] = 0
        truncated = truncated_rows(dones, infos)
        terminated = dones.copy()
        terminated[truncated] = False
        replay_buffer.add(
            original,
            buffer_action,
            original_reward,
            terminated,
            self._last_episode_starts,  # type: ignore[arg-type]
            self._last_state,
            self._n_updates,
        )
        if truncated:
            finals = stacked([infos[row]["terminal_observation"] for row in truncated], self._last_obs)
            check_observation(finals, self.num_timesteps, "the final observation", truncated)
            check_categories(self.observation_space, finals, self.num_timesteps, rows=truncated)
            if normalize is not None:
                finals = normalize.unnormalize_obs(finals)
            replay_buffer.add_final(np.array(truncated), finals, self._next_state, self._n_updates)
        self._see(new_obs)
        self._last_episode_starts, self._last_state = np.array(dones), self._next_state

    def _see(self, obs: Any) -> None:
        """Act on `obs` [B, ...] next. They are copied, as is what ended: a VecEnv may use its arrays again."""
        self._last_obs = tree_map(np.array, obs)
        self._last_original_obs = unscaled(self._last_obs, self._vec_normalize_env)

    def _sample(self, batch_size: int) -> Sequences:
        """Sequences to learn from, with scaled rewards."""
        batch = self.replay.sample(batch_size, self.rng, self._vec_normalize_env)
        if self.policy.return_scale is not None:
            batch = batch._replace(rewards=batch.rewards / self.policy.return_scale.std)
        return batch

    def _refresh(self, batch: Sequences, state: Any) -> None:
        """Store the states [b, ...] before the entries after the first L of a batch, where that is wanted."""
        if self.refresh_states:
            self.replay.refresh(batch.items, state, self._n_updates)

    def _record_batch(self, batch: Sequences) -> None:
        """Log how old the last sampled sequences were, and what was stored with them."""
        self.logger.record("replay/sampled_age", float(batch.age.mean()))
        stale = self._n_updates - batch.staleness
        self.logger.record("replay/state_staleness", float(stale.mean()))

    def attributes(self) -> dict[str, Any]:
        """The attributes as a file holds them."""
        found = super().attributes()
        if isinstance(self.train_freq, TrainFreq):
            found["train_freq"] = (self.train_freq.frequency, self.train_freq.unit.value)
        return found

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_next_state", "_replay"]

    def save_replay_buffer(self, path: File) -> None:  # type: ignore[override]
        """Write the replay as JSON and safetensors; `path` is as in `save`."""
        write_tree(path, {"replay": self.replay.contents()})

    def load_replay_buffer(self, path: File, truncate_last_traj: bool = True) -> None:  # type: ignore[override]
        """Read what `save_replay_buffer` wrote. Nothing in the file is executed, imported or unpickled.

        Args:
            path: as in `load`; NAME.pkl, which SB3's CheckpointCallback writes, is found as NAME too.
            truncate_last_traj: of SB3, for its hindsight replay; without effect. Where `learn` resets the environments,
                the last observation of an episode in the file ends it as a truncation would.

        Raises:
            CorruptFile: the file is torn, altered, or holds no replay.
            ValueError: the replay in it has other settings, spaces or another memory; the model's is as it was.
        """
        path = found_file(path)
        tree = read_tree(path)
        if not isinstance(tree, dict) or set(tree) != {"replay"}:
            raise CorruptFile(f"{str(path)!r} holds no replay; save_replay_buffer writes one")
        self.replay.restore(tree["replay"], repr(str(path)))

"""Proximal policy optimisation for policies with a memory."""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor

from palimpsest.agents.advantages import averaged
from palimpsest.agents.device import check_autocast
from palimpsest.agents.environments import longest_horizon, made_environment
from palimpsest.agents.learn.buffers import MemoryRolloutBuffer, Minibatch
from palimpsest.agents.learn.diagnostics import record_memory, record_returns, tell_size
from palimpsest.agents.learn.divergence import DivergenceLimit
from palimpsest.agents.learn.dump import dumped
from palimpsest.agents.learn.hyperparameters import ARGUMENTS, check_arguments
from palimpsest.agents.learn.loss import LossWeights, ppo_loss, state_after
from palimpsest.agents.learn.numerics import ADVICE, NotFinite, check_parameters, check_update
from palimpsest.agents.learn.rollout import RememberingAlgorithm, rate
from palimpsest.agents.masks import is_masking_supported, mask_sizes
from palimpsest.agents.policy.policies import (
    CnnMemoryPolicy,
    MemoryActorCriticPolicy,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
)
from palimpsest.agents.policy.policy_kwargs import check_policy, check_policy_kwargs
from palimpsest.agents.policy.spaces import check_spaces
from palimpsest.agents.workers.gradient import add_up

SelfMemoryPPO = TypeVar("SelfMemoryPPO", bound="MemoryPPO")


class MemoryPPO(RememberingAlgorithm):
    """PPO (arXiv 1707.06347) whose policy remembers, over segments of the rollout without padding.

    The arguments are those of sb3-contrib's RecurrentPPO in their order, and ten more, by name alone.

    Args:
        policy: "MlpMemoryPolicy", "CnnMemoryPolicy", "MultiInputMemoryPolicy" or a `MemoryActorCriticPolicy`.
        env: a gymnasium Env, an SB3 VecEnv, or a registered id. While one half of an `envs.halves.VecHalves` steps, the
            policy acts for the other; the results are those of one VecEnv.
        learning_rate: of Adam; a number or a function of the remaining progress (1 to 0).
        n_steps: T, steps of every environment per rollout.
        batch_size: samples per minibatch, None for the whole rollout; a minibatch is batch_size // sequence_length
            segments, 1 or more.
        n_epochs: passes over each rollout.
        gamma: discount per step.
        gae_lambda: λ of GAE.
        clip_range: PPO's clipping of the ratio; a number or a function of the remaining progress.
        clip_range_vf: the same for values, None for none.
        normalize_advantage: whether advantages are standardised in each minibatch.
        ent_coef: weight of the entropy; a number or a function of the remaining progress.
        vf_coef: weight of the value loss.
        max_grad_norm: gradients are scaled down to this norm; inf for no clipping.
        use_sde: generalized state-dependent exploration, for Box actions.
        sde_sample_freq: steps between draws of its noise; -1 for once a rollout.
        target_kl: the passes over a rollout end once the KL estimate passes 1.5 times this; where the last step alone
            raised it by more than this, that step is taken back (SB3 keeps it). None for no limit.
        stats_window_size: episodes over which returns, lengths and successes are averaged.
        tensorboard_log: directory of the event files, None for none.
        policy_kwargs: the policy's arguments: memory, memory_kwargs, share_memory, encoder_arch, net_arch, ...
        verbose: 0 silent, 1 or True information, 2 debugging.
        seed: of parameters, actions, minibatches, carry-over and the environments.
        device: "auto", "cpu", "cuda", ...
        min_advantage_std: smallest standard deviation that advantages are divided by. Once every episode goes alike,
            what advantages are left is noise; scaled up to 1 it can undo in one rollout what was learned. With
            `normalize_returns` its unit is the standard deviation of returns. 0 as in SB3.
        normalize_observations: whether the policy scales observations by their running moments: those of a Box of
            floats, if it is no image and its bounds exceed -1 to 1. The moments are part of the policy and of its
            files; they change after each update. (VecNormalize's `norm_obs`, which cannot be forgotten.)
        normalize_returns: whether the critic predicts returns scaled by the mean of the latest rollout's and the
            largest standard deviation so far (arXiv 2103.01955); rewards and logged values keep their scale.
            By default it does, unless a VecNormalize scales the rewards already.
        sequence_length: L, steps of a segment. A rollout's columns are cut into segments. The memory's state before
            each is kept while acting; gradients through the memory reach back no further. By default as long as a
            column where batch_size >= n_steps, else as batch_size: as many updates as RecurrentPPO makes. Later passes
            over a rollout begin from states that the parameters before them made, as RecurrentPPO's do.
        refresh_states: whether each pass but the first computes the states before segments again, by a scan of the
            rollout without gradient. Without segments there is nothing to compute: no parameter reaches the state
            before the first step.
        memory_carry_over: p in 0 to 1, the chance that a memory is kept, not reset, at the end of a training episode
            (state passing, arXiv 2507.02782). Values still stop there; `env.reset()` and evaluation start fresh.
            Where p > 0 the policy marks the first step of every episode, in evaluation too, unless its `forward` or
            `evaluate_actions` takes no `episode_start`.
        memory_aux_coef: weight of reconstructing the observation from what the memory gives out, a loss that
            reaches the encoder where reward does not (as HCAM is trained, arXiv 2105.14039); 0 for none.
        strategy_epsilon: exploration of an adaptive allocator, (at the beginning, at the end) of training.
        autocast: whether updates compute the encoder, the memory's maps and the heads' layers in bfloat16. All else
            stays float32, acting too: ratios begin at 1 but for the rounding of bfloat16.
        min_gae_lambda: smallest λ of the actor's advantages. Rollouts choose one from it to `gae_lambda` (see
            `agents.advantages`); the critic's returns keep `gae_lambda`. None: one λ, as in SB3.

    Raises:
        ValueError: an argument out of range, a space or a memory that is not supported.
    """

    allowed: ClassVar = ARGUMENTS
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MlpMemoryPolicy,
        "CnnMemoryPolicy": CnnMemoryPolicy,
        "MultiInputMemoryPolicy": MultiInputMemoryPolicy,
    }

    def __init__(
        self,
        policy: str | type[MemoryActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        min_advantage_std: float = 0.0,
        normalize_observations: bool = False,
        normalize_returns: bool | None = None,
        sequence_length: int | None = None,
        refresh_states: bool = False,
        memory_carry_over: float = 0.0,
        memory_aux_coef: float = 0.0,
        strategy_epsilon: tuple[float, float] = (1.0, 0.2),
        autocast: bool = False,
        min_gae_lambda: float | None = None,
    ) -> None:
        check_policy(policy, self.policy_aliases)
        check_arguments(locals())
        super().__init__(
            policy,
            made_environment(env, verbose, _init_setup_model, check_spaces),
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            stats_window_size=int(stats_window_size),
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.min_advantage_std = min_advantage_std
        self.normalize_observations = normalize_observations
        scales_rewards = getattr(self.get_vec_normalize_env(), "norm_reward", False)
        self.normalize_returns = not scales_rewards if normalize_returns is None else normalize_returns
        self.target_kl = target_kl
        self.sequence_length = sequence_length
        self.refresh_states = refresh_states
        self.memory_carry_over = memory_carry_over
        self.memory_aux_coef = memory_aux_coef
        self.strategy_epsilon = strategy_epsilon
        self.autocast = autocast
        self.min_gae_lambda = min_gae_lambda
        self.gae_slopes: list[float] = []
        self._last_state: Any = None
        self._last_memory_starts = self._last_strategy = self._return_so_far = self._last_action_masks = None
        self._told_of_outside = False
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_policy_kwargs(self.policy_class, self.policy_kwargs)
        if self.autocast:
            check_autocast(self.device)
        self._prepare_division()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self.policy_kwargs,
            **self._chosen_parts(),
        ).to(self.device)
        self.policy.autocast = self.autocast
        self._check_halves()
        rollout = functools.partial(
            MemoryRolloutBuffer,
            observation_space=self.observation_space,
            action_space=self.action_space,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            min_gae_lambda=self.min_gae_lambda,
            gae_slopes=self.gae_slopes,
            strategies=self._strategy_values is not None,
            sequence_length=self._segment_length(),
            carries_over=self.policy.mark_starts,
        )
        sizes, state = (self.n_steps, self.whole_envs, self._segment_length()), self.policy.initial_state(1)
        tell_size(rollout(buffer_size=1, device="meta"), *sizes, state, self.device, self.verbose)
        self.rollout_buffer = rollout(
            buffer_size=self.n_steps, n_envs=self.whole_envs, workers=self.workers, device=self.device
        )
        self.clip_range = FloatSchedule(self.clip_range)
        self.clip_range_vf = None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)
        reach = self.rollout_buffer.sequence_length
        if self.sequence_length is None and reach < self.n_steps:
            warnings.warn(
                f"batch_size={self.batch_size} is less than n_steps={self.n_steps}: the rollout is cut into segments "
                f"of {reach} steps, and gradients through the memory reach back no further; sequence_length chooses "
                "another length",
                stacklevel=2,
            )
        horizon = None if self.env is None else longest_horizon(self.env)
        if horizon is not None and horizon > reach:
            name = "n_steps" if reach == self.n_steps else "sequence_length (--batch-size)"
            warnings.warn(
                f"the environment's longest correlation horizon, {horizon} steps, exceeds {name}={reach}: no gradient "
                f"joins its event and its recall; set {name} to {horizon} or more",
                stacklevel=2,
            )

    def _chosen_parts(self) -> dict[str, bool]:
        """The policy's arguments that follow from this algorithm's, where they are not the policy's defaults."""
        parts = {
            "reconstruct": bool(self.memory_aux_coef),
            "mark_starts": bool(self.memory_carry_over) and _knows_episode_starts(self.policy_class),
            "normalize_observations": self.normalize_observations,
            "normalize_returns": self.normalize_returns,
        }
        return {name: True for name, wanted in parts.items() if wanted}

    def _segment_length(self) -> int:
        """Steps that are scanned together: as asked, else as many as a minibatch and a column have."""
        return min(self.sequence_length or self.batch_size or self.n_steps, self.n_steps)

    def learn(
        self: SelfMemoryPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "MemoryPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool = True,
    ) -> SelfMemoryPPO:
        """Train for at least `total_timesteps` environment steps, in whole rollouts; arguments as in SB3.

        Args:
            total_timesteps: environment steps, over all environments.
            callback: of SB3.
            log_interval: rollouts between two lines of the log; None for no line.
            tb_log_name: name of the run in `tensorboard_log`.
            reset_num_timesteps: whether steps are counted from 0 and the environments are reset.
            progress_bar: whether SB3's progress bar is shown.
            use_masking: whether only the actions are taken that the environments allow, where they have
                `action_masks()`; see `agents.masks`.

        Raises:
            NotFinite: NaN or infinity in an observation, a reward, the policy or an update; what led to it is kept in
                a file of the logger's directory, for `agents.learn.failure`.
            ValueError: a `log_interval` below 1; an observation that is a category which its space does not hold;
                action masks that do not fit, that some of the environments lack, or that allow nothing.
        """
        uses_masks = use_masking and self.env is not None and is_masking_supported(self.env)
        self.rollout_buffer.keep_masks(sum(mask_sizes(self.action_space)) if uses_masks else 0)
        self._last_action_masks = None
        with dumped(self):
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[Any, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[Any, ...] | None]:
        """Actions for observations; arguments are those of the policy's `predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def train(self) -> None:
        """Update the policy from the rollout: `n_epochs` passes over its segments in minibatches."""
        began = time.perf_counter()
        self.policy.set_training_mode(True)
        self.policy.look_for_changes()
        self._update_learning_rate(self.policy.optimizer)
        remaining = self._current_progress_remaining
        clip_range = self.clip_range(remaining)  # type: ignore[operator]
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(remaining)  # type: ignore[operator]
        columns, workers = self.rollout_buffer.columns, self.workers
        least = self.min_advantage_std
        if self.policy.return_scale is not None:
            self.policy.return_scale.update(columns.returns)
            least *= float(self.policy.return_scale.std)
        if float(columns.advantages.std(correction=0)) >= least:  # else they are noise, which tells nothing of λ
            self.gae_slopes[:] = averaged(self.gae_slopes, self.rollout_buffer.found_slopes)
        weights = LossWeights(
            clip_range,
            clip_range_vf,
            self.normalize_advantage,
            least,
            self.ent_coef(remaining) if callable(self.ent_coef) else self.ent_coef,
            self.vf_coef,
            self.memory_aux_coef,
        )
        limit = None if self.target_kl is None else DivergenceLimit(self.policy.optimizer, self.target_kl)
        parameters = list(self.policy.parameters())
        records: list[dict[str, Tensor]] = []
        batch: Minibatch | None = None
        for epoch in range(self.n_epochs):
            if epoch and self.refresh_states:
                self.rollout_buffer.refresh_states(functools.partial(state_after, self.policy))
            for batch in self.rollout_buffer.get(self.batch_size, self.rng):
                loss, record = ppo_loss(self.policy, batch, weights)
                if workers.size > 1:
                    # one message a step: the divergence, which may end the passes, comes with the gradient
                    self.policy.optimizer.zero_grad()
                    (loss * batch.share).backward()
                    record = add_up(workers, parameters, record, batch.share)
                records.append(record)
                if limit is not None:
                    check_update(self, record["approx_kl"], batch, weights)
                    if limit.check(float(record["approx_kl"])):
                        break
                if workers.size == 1:
                    self.policy.optimizer.zero_grad()
                    loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                record["grad_norm"] = norm
                check_update(self, record["approx_kl"] + record["loss"] + norm, batch, weights)
                self.policy.optimizer.step()
            self._n_updates += 1
            if limit is not None and limit.passed:
                break
        assert batch is not None
        if limit is not None:
            if not limit.passed:
                with torch.no_grad():
                    record = ppo_loss(self.policy, batch, weights)[1]
                limit.check(float(add_up(workers, [], record, batch.share)["approx_kl"]))
            self.logger.record("train/rejected_steps", int(limit.rejected))
        if self.policy.observation_scales is not None:
            # only now, so that the update saw what acting saw
            self.policy.observation_scales.update(columns.observations)
        check_parameters(self.policy, self.num_timesteps)
        self._record_update(records, clip_range, clip_range_vf)
        self.logger.record("time/update_steps_per_s", rate(self.n_steps * self.whole_envs, began))
        record_memory(self.logger, self.policy.memories(), batch, self.env, workers)

    def _record_update(self, records: list[dict[str, Tensor]], clip_range: float, clip_range_vf: float | None) -> None:
        for name in sorted(set().union(*records)):
            mean = torch.stack([record[name] for record in records if name in record]).mean().item()
            if not np.isfinite(mean):
                step = self.num_timesteps
                raise NotFinite(f"train/{name} is {mean} after step {step}; {ADVICE}", "parameters", {"step": step})
            self.logger.record(f"train/{name}", mean)
        record_returns(self.logger, self.rollout_buffer)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)


def _knows_episode_starts(policy: type[BasePolicy]) -> bool:
    """Whether a policy takes where episodes begin; methods of a user's own may not."""
    methods = (getattr(policy, name) for name in ("forward", "evaluate_actions"))
    return all("episode_start" in inspect.signature(method).parameters for method in methods)

"""Soft actor-critic for policies with a memory, from replayed sequences."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from palimpsest.agents.environments import made_environment
from palimpsest.agents.off_policy.algorithm import SHARED, OffPolicyMemoryAlgorithm, check_arguments
from palimpsest.agents.off_policy.exploration import first_parts, pink
from palimpsest.agents.off_policy.policy import clip_and_step, follow, target_of
from palimpsest.agents.off_policy.replay import SequenceReplay
from palimpsest.agents.off_policy.sac_loss import sac_losses
from palimpsest.agents.off_policy.sac_policy import (
    CnnMemorySACPolicy,
    MemorySACPolicy,
    MultiInputMemorySACPolicy,
)
from palimpsest.agents.policy.policy_kwargs import check_policy
from palimpsest.agents.policy.spaces import check_spaces
from palimpsest.refusals import FLAG, Allowed, integer, is_number, optional

SelfMemorySAC = TypeVar("SelfMemorySAC", bound="MemorySAC")

DISCRETE_ENTROPY = 0.98
"""Share of the largest entropy that Discrete actions aim at (arXiv 1910.07207)."""


def _is_entropy_weight(value: Any) -> bool:
    if not isinstance(value, str):
        return is_number(value, 0)
    start, _, first = value.partition("_")
    try:
        return start == "auto" and (not first or 0 < float(first) < math.inf)
    except ValueError:
        return False


class MemorySAC(OffPolicyMemoryAlgorithm):
    """SAC (arXiv 1812.05905) whose actor and critics remember; with Discrete actions as in arXiv 1910.07207.

    The arguments are those of SB3's SAC in their order, and eight more, by name alone. Actions are a Box or Discrete.

    Args:
        policy: "MlpMemoryPolicy", "CnnMemoryPolicy", "MultiInputMemoryPolicy" or a `MemorySACPolicy`.
        env: a gymnasium Env, an SB3 VecEnv, or a registered id.
        learning_rate: of Adam, of actor, critics and the entropy's weight; a number or a function of the remaining
            progress (1 to 0).
        buffer_size: environment steps that are kept, over all rows.
        learning_starts: steps before learning begins; their actions are random.
        batch_size: sequences per update. (SB3's are single steps.)
        tau: share of the target networks that each of their updates replaces.
        gamma: discount per step.
        train_freq: steps of every environment between updates; or (n, "step"), (n, "episode").
        gradient_steps: updates each time; -1 for as many as there were environment steps.
        action_noise: SB3's, added to the actions of a Box while training; None for none.
        replay_buffer_class: a `SequenceReplay`; None for that.
        replay_buffer_kwargs: further arguments of it.
        optimize_memory_usage: without effect: each observation is stored once in any case.
        n_steps: steps that returns look ahead.
        ent_coef: weight of the entropy; "auto" learns it, "auto_0.1" from 0.1 on.
        target_update_interval: updates between those of the target networks, over all calls of `train`.
        target_entropy: what a learned weight aims at; "auto" is minus the numbers of a Box's action, or 0.98 of the
            largest entropy of Discrete actions.
        use_sde: refused: its noise is not part of what a replay stores.
        sde_sample_freq: of use_sde.
        use_sde_at_warmup: of use_sde.
        stats_window_size: episodes over which returns, lengths and successes are averaged.
        tensorboard_log: directory of the event files, None for none.
        policy_kwargs: the policy's arguments: memory, memory_kwargs, share_memory, encoder_arch, net_arch, ...
        verbose: 0 silent, 1 or True information, as the size of the replay, 2 debugging.
        seed: of parameters, actions, samples and the environments.
        device: "auto", "cpu", "cuda", ...
        sequence_length: L, steps of a sequence that are learned from together. The memories' states are stored every L
            steps, and gradients reach back no further.
        burn_in: steps before these, which bring the stored states up to date with the parameters, without gradients.
        n_step: `n_steps` by the name that R2D2 gives it; None for `n_steps`.
        prioritized: whether sequences with large errors are drawn more often, and weighted less.
        refresh_states: as in `MemoryDQN`.
        normalize_observations: as in `MemoryDQN`.
        normalize_returns: as in `MemoryDQN`. The entropy's weight is then one of scaled rewards.
        pink_noise: whether the noise of a Box's actions, random ones too, is kept up over steps, see `pink`; otherwise
            it is drawn anew in each. The actions of a step have the same distribution with both.

    Raises:
        ValueError: an argument out of range, a space or a memory that is not supported, a replay that is larger than
            the machine's memory.
    """

    allowed: ClassVar = SHARED | {
        "action_noise": optional(Allowed("SB3's ActionNoise", lambda value: isinstance(value, ActionNoise))),
        "ent_coef": Allowed('a number, 0 or more, "auto" or "auto_0.1"', _is_entropy_weight),
        "target_entropy": Allowed('a number or "auto"', lambda value: value == "auto" or is_number(value)),
        "use_sde": Allowed("False, as a replay does not store its noise", lambda value: value is False),
        "sde_sample_freq": integer(-1),
        "use_sde_at_warmup": FLAG,
        "pink_noise": FLAG,
    }
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MemorySACPolicy,
        "CnnMemoryPolicy": CnnMemorySACPolicy,
        "MultiInputMemoryPolicy": MultiInputMemorySACPolicy,
    }
    policy: MemorySACPolicy
    critic_target: MemorySACPolicy

    def __init__(
        self,
        policy: str | type[MemorySACPolicy],
        env: gym.Env | VecEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[SequenceReplay] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        sequence_length: int = 32,
        burn_in: int = 8,
        n_step: int | None = None,
        prioritized: bool = False,
        refresh_states: bool = False,
        normalize_observations: bool = False,
        normalize_returns: bool = False,
        pink_noise: bool = False,
    ) -> None:
        check_policy(policy, self.policy_aliases, MemorySACPolicy)
        check_arguments(self.allowed, locals())
        super().__init__(
            policy=policy,
            env=made_environment(env, verbose, _init_setup_model, _check_spaces),
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=tuple(train_freq) if isinstance(train_freq, list) else train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=int(stats_window_size),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            n_step=n_step,
            sequence_length=sequence_length,
            burn_in=burn_in,
            prioritized=prioritized,
            refresh_states=refresh_states,
            normalize_observations=normalize_observations,
            normalize_returns=normalize_returns,
        )
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.target_update_interval = target_update_interval
        self.pink_noise = pink_noise
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.target_entropy == "auto":
            if isinstance(self.action_space, spaces.Discrete):
                self.target_entropy = DISCRETE_ENTROPY * math.log(int(self.action_space.n))
            else:
                self.target_entropy = -float(np.prod(self.action_space.shape))  # type: ignore[arg-type]
        self._begin_entropy()

    def _begin_entropy(self) -> None:
        """Where the entropy's weight is learned, begin at the value that `ent_coef` says."""
        if isinstance(self.ent_coef, str):
            first = float(self.ent_coef.partition("_")[2] or 1.0)
            with torch.no_grad():
                self.policy.log_ent_coef.fill_(math.log(first))

    def _loaded(self) -> None:
        if not self.policy.ent_coef_optimizer.state:  # nothing of the weight was learned before
            self._begin_entropy()

    def _make_targets(self) -> None:
        self.critic_target = target_of(self.policy)

    def learn(
        self: SelfMemorySAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "MemorySAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMemorySAC:
        """Train for at least `total_timesteps` environment steps; arguments as in SB3, `log_interval` in episodes.

        Raises:
            ValueError: a `log_interval` that is neither an integer of 1 or more nor None.
            NotFinite: NaN or infinity in an observation, a reward or an update.
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[Any, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[Any, ...] | None]:
        """Actions for observations; arguments are those of the policy's `predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _choose(self, obs: Any, state: Any, start: Tensor | None, warm: bool) -> tuple[np.ndarray, Any]:
        if isinstance(self.action_space, spaces.Discrete):
            drawn, after = self.policy.act(obs, state, start)
            actions = drawn.numpy(force=True)
            return (self.rng.integers(self.action_space.n, size=actions.shape) if warm else actions), after
        noise = None
        if self.pink_noise:
            noise = torch.from_numpy(pink(self._exploration, self.rng)).to(self.device, torch.float32)
        drawn, after = self.policy.act(obs, state, start, noise)
        actions = drawn.numpy(force=True)
        if warm and noise is None:
            actions = self.rng.uniform(-1, 1, actions.shape).astype(np.float32)
        elif warm:
            # uniform too: the normal distribution's function of normal numbers
            actions = torch.special.ndtr(noise).mul(2).sub(1).numpy(force=True)
        return actions.reshape(-1, *self.action_space.shape), after  # type: ignore[misc]

    def _first_exploration(self) -> np.ndarray:
        return first_parts(self.n_envs, flatdim(self.action_space), self.rng)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update actor and critics `gradient_steps` times; nothing while the replay holds no whole sequence."""
        replay, policy = self.replay, self.policy
        if not replay.ready:
            return
        policy.set_training_mode(True)
        policy.look_for_changes()
        learned = isinstance(self.ent_coef, str)
        self._update_learning_rate([policy.actor_optimizer, policy.critic_optimizer, policy.ent_coef_optimizer])
        records: dict[str, list[Tensor]] = {}
        for step in range(1, gradient_steps + 1):
            batch = self._sample(batch_size)
            ent_coef = policy.log_ent_coef.detach().exp() if learned else torch.tensor([float(self.ent_coef)])
            ent_coef = ent_coef.to(self.device)
            losses = sac_losses(policy, self.critic_target, batch, ent_coef, self.burn_in, self.n_steps, self.gamma)
            at = self.num_timesteps
            policy.critic_optimizer.zero_grad()
            policy.actor_optimizer.zero_grad()
            # before any step, as the actor's gradient goes through the critics' weights
            torch.autograd.backward((losses.critic, losses.actor))
            clip_and_step(policy.critic_parameters, losses.critic, policy.critic_optimizer, math.inf, at)
            clip_and_step(policy.actor_parameters, losses.actor, policy.actor_optimizer, math.inf, at)
            record = {"ent_coef": ent_coef, "actor_loss": losses.actor, "critic_loss": losses.critic}
            record["entropy"] = losses.entropy
            if learned:
                # -log pi + target, as in SB3, with the mean of -log pi
                loss = policy.log_ent_coef * (losses.entropy - float(self.target_entropy))
                record["ent_coef_loss"] = loss
                policy.ent_coef_optimizer.zero_grad()
                loss.sum().backward()
                clip_and_step([policy.log_ent_coef], loss.sum(), policy.ent_coef_optimizer, math.inf, at)
            if (self._n_updates + step) % self.target_update_interval == 0:
                follow(self.critic_target, policy, self.tau)
            replay.update_priorities(batch.items, losses.errors.numpy(force=True), losses.counted.numpy(force=True))
            self._refresh(batch, losses.state)
            for name, value in record.items():
                records.setdefault(name, []).append(value.detach().mean())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in records.items():
            self.logger.record(f"train/{name}", torch.stack(values).mean().item())
        self.logger.record("train/q_mean", losses.values[losses.counted].mean().item())
        self.logger.record("train/td_error", losses.errors[losses.counted].abs().mean().item())
        self._record_batch(batch)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "critic_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        optimizers = [f"policy.{name}_optimizer" for name in ("actor", "critic", "ent_coef")]
        return ["policy", *optimizers, "critic_target"], []


def _check_spaces(observations: spaces.Space, actions: spaces.Space) -> None:
    check_spaces(observations, actions)
    if not isinstance(actions, spaces.Box | spaces.Discrete):
        raise ValueError(f"the action space must be Box or Discrete; got {actions}: MemoryPPO takes any")

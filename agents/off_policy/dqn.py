"""Deep Q-learning for policies with a memory, from replayed sequences."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional

from palimpsest.agents.environments import made_environment
from palimpsest.agents.learn.hyperparameters import ARGUMENTS, FRACTION
from palimpsest.agents.off_policy.algorithm import SHARED, OffPolicyMemoryAlgorithm, check_arguments
from palimpsest.agents.off_policy.exploration import explored
from palimpsest.agents.off_policy.policy import clip_and_step, follow, target_of
from palimpsest.agents.off_policy.q_policy import CnnMemoryQPolicy, MemoryQPolicy, MultiInputMemoryQPolicy
from palimpsest.agents.off_policy.replay import SequenceReplay, Sequences
from palimpsest.agents.off_policy.targets import lookahead, refreshed, rescale, same, unscale
from palimpsest.agents.policy.policy_kwargs import check_policy
from palimpsest.agents.policy.spaces import check_spaces
from palimpsest.agents.tree import halves
from palimpsest.refusals import FLAG, integer

SelfMemoryDQN = TypeVar("SelfMemoryDQN", bound="MemoryDQN")


class Learning(NamedTuple):
    """How `q_loss` learns; see the arguments of `MemoryDQN`."""

    burn_in: int
    n_steps: int
    gamma: float
    double_q: bool
    value_rescaling: bool


class QErrors(NamedTuple):
    """What `q_loss` saw, [L, b] each and without gradients."""

    values: Tensor
    errors: Tensor
    counted: Tensor
    """bool, false for final observations, which no action follows."""
    state: Any
    """Tree of [b, ...]: the memory before the entry after the first L, see `SequenceReplay.refresh`."""


class MemoryDQN(OffPolicyMemoryAlgorithm):
    """DQN (Nature 2015) whose Q-network remembers, with the parts of R2D2 (OpenReview r1lyTjAqYX) as arguments.

    The arguments are those of SB3's DQN in their order, and twelve more, by name alone. Actions are Discrete.

    Args:
        policy: "MlpMemoryPolicy", "CnnMemoryPolicy", "MultiInputMemoryPolicy" or a `MemoryQPolicy`.
        env: a gymnasium Env, an SB3 VecEnv, or a registered id.
        learning_rate: of Adam; a number or a function of the remaining progress (1 to 0).
        buffer_size: environment steps that are kept, over all rows.
        learning_starts: steps before learning begins; their actions are random.
        batch_size: sequences per update. (SB3's are single steps.)
        tau: share of the target network that each of its updates replaces; 1 for a copy.
        gamma: discount per step.
        train_freq: steps of every environment between updates; or (n, "step"), (n, "episode").
        gradient_steps: updates each time; -1 for as many as there were environment steps.
        replay_buffer_class: a `SequenceReplay`; None for that.
        replay_buffer_kwargs: further arguments of it.
        optimize_memory_usage: without effect: each observation is stored once in any case.
        n_steps: steps that returns look ahead, up to the first action that the network would not take now.
        target_update_interval: environment steps between updates of the target network.
        exploration_fraction: share of the training over which the chance of a random action falls.
        exploration_initial_eps: that chance at the beginning.
        exploration_final_eps: that chance afterwards. It is drawn for each row of its own.
        max_grad_norm: gradients are scaled down to this norm; inf for no clipping.
        stats_window_size: episodes over which returns, lengths and successes are averaged.
        tensorboard_log: directory of the event files, None for none.
        policy_kwargs: the policy's arguments: memory, memory_kwargs, encoder_arch, net_arch, ...
        verbose: 0 silent, 1 or True information, as the size of the replay, 2 debugging.
        seed: of parameters, actions, samples and the environments.
        device: "auto", "cpu", "cuda", ...
        sequence_length: L, steps of a sequence that are learned from together. The memory's state is stored every L
            steps, and gradients reach back no further.
        burn_in: steps before these, which bring the stored state up to date with the parameters, without gradients.
        n_step: `n_steps` by the name that R2D2 gives it; None for `n_steps`.
        double_q: whether the network chooses the action whose value the target network tells (arXiv 1509.06461).
        dueling: whether values are a sum of the state's value and advantages (arXiv 1511.06581).
        prioritized: whether sequences with large errors are drawn more often, and weighted less.
        refresh_states: whether an update replaces the stored state after each of its sequences by its own.
            `burn_in` is `sequence_length` at most then.
        value_rescaling: whether the network predicts values on the scale of `targets.rescale`, for rewards of any size.
        normalize_observations: whether observations are scaled by the running moments of those that were learned from:
            those of a Box of floats, if it is no image and its bounds exceed -1 to 1. They are part of the policy.
        normalize_returns: whether rewards that are learned from are divided by the standard deviation of discounted
            returns, or the largest reward; see `RewardScale`. It is part of the policy.
        longest_repeat: the most steps for which a random action is repeated, each with a probability that falls with
            the square of their number (εz-greedy, arXiv 2006.01782); 1 for never.

    Raises:
        ValueError: an argument out of range, a space or a memory that is not supported, a replay that is larger than
            the machine's memory.
    """

    allowed: ClassVar = SHARED | {
        "exploration_fraction": FRACTION,
        "exploration_initial_eps": FRACTION,
        "exploration_final_eps": FRACTION,
        "max_grad_norm": ARGUMENTS["max_grad_norm"],
        "double_q": FLAG,
        "dueling": FLAG,
        "value_rescaling": FLAG,
        "longest_repeat": integer(1),
    }
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MemoryQPolicy,
        "CnnMemoryPolicy": CnnMemoryQPolicy,
        "MultiInputMemoryPolicy": MultiInputMemoryQPolicy,
    }
    policy: MemoryQPolicy
    q_net_target: MemoryQPolicy

    def __init__(
        self,
        policy: str | type[MemoryQPolicy],
        env: gym.Env | VecEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 32,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        replay_buffer_class: type[SequenceReplay] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        target_update_interval: int = 10000,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float = 10,
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
        double_q: bool = True,
        dueling: bool = True,
        prioritized: bool = False,
        refresh_states: bool = False,
        value_rescaling: bool = False,
        normalize_observations: bool = False,
        normalize_returns: bool = False,
        longest_repeat: int = 1,
    ) -> None:
        check_policy(policy, self.policy_aliases, MemoryQPolicy)
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
        self.target_update_interval = target_update_interval
        self.exploration_fraction = exploration_fraction
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        self.exploration_rate = 0.0
        self.exploration_schedule: Schedule | None = None
        self.max_grad_norm = max_grad_norm
        self.double_q = double_q
        self.dueling = dueling
        self.value_rescaling = value_rescaling
        self.longest_repeat = longest_repeat
        self._n_calls = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.exploration_schedule = LinearSchedule(
            self.exploration_initial_eps, self.exploration_final_eps, self.exploration_fraction
        )
        if self.n_envs > self.target_update_interval:
            warnings.warn(
                f"there are more environments, {self.n_envs}, than target_update_interval="
                f"{self.target_update_interval}: the target network is updated after each of their steps",
                stacklevel=2,
            )

    def _chosen_parts(self) -> dict[str, Any]:
        return super()._chosen_parts() | {"dueling": self.dueling}

    def _make_targets(self) -> None:
        self.q_net_target = target_of(self.policy)

    @property
    def q_net(self) -> MemoryQPolicy:
        """The Q-network, which is the policy."""
        return self.policy

    def learn(
        self: SelfMemoryDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "MemoryDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMemoryDQN:
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
        """Actions for observations; arguments are those of the policy's `predict`.

        Where not `deterministic`, an action is random by the chance of `exploration_rate`. The state is that after the
        observations in any case.
        """
        actions, state = self.policy.predict(observation, state, episode_start)
        if deterministic:
            return actions, state
        once = np.zeros((2, actions.size), np.int64)
        return self._explored(actions.reshape(-1), self.exploration_rate, 1, once).reshape(actions.shape), state

    def _choose(self, obs: Any, state: Any, start: Tensor | None, warm: bool) -> tuple[np.ndarray, Any]:
        values, after = self.policy.q_step(obs, state, start)
        chance = 1.0 if warm else self.exploration_rate
        best = values.argmax(-1).numpy(force=True)
        return self._explored(best, chance, self.longest_repeat, self._exploration), after

    def _first_exploration(self) -> np.ndarray:
        return np.zeros((2, self.n_envs), np.int64)

    def _explored(self, actions: np.ndarray, chance: float, longest: int, repeated: np.ndarray) -> np.ndarray:
        """The actions [B], some of them replaced by random ones; see `explored`."""
        assert isinstance(self.action_space, spaces.Discrete)
        return explored(actions, chance, int(self.action_space.n), longest, repeated, self.rng)

    def _on_step(self) -> None:
        """Update the target network and the chance of random actions, as SB3 does after each step."""
        self._n_calls += 1
        if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
            follow(self.q_net_target, self.policy, self.tau)
        assert self.exploration_schedule is not None
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)

    def train(self, gradient_steps: int, batch_size: int = 32) -> None:
        """Update the network `gradient_steps` times; nothing while the replay holds no whole sequence."""
        replay = self.replay
        if not replay.ready:
            return
        self.policy.set_training_mode(True)
        self.policy.look_for_changes()
        self._update_learning_rate(self.policy.optimizer)
        learning = Learning(self.burn_in, self.n_steps, self.gamma, self.double_q, self.value_rescaling)
        parameters = list(self.policy.parameters())
        losses, norms = [], []
        for _ in range(gradient_steps):
            batch = self._sample(batch_size)
            loss, seen = q_loss(self.policy, self.q_net_target, batch, learning)
            self.policy.optimizer.zero_grad()
            loss.backward()
            norms.append(clip_and_step(parameters, loss, self.policy.optimizer, self.max_grad_norm, self.num_timesteps))
            losses.append(loss.detach())
            replay.update_priorities(batch.items, seen.errors.numpy(force=True), seen.counted.numpy(force=True))
            self._refresh(batch, seen.state)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", torch.stack(losses).mean().item())
        self.logger.record("train/grad_norm", torch.stack(norms).mean().item())
        self.logger.record("train/q_mean", seen.values[seen.counted].mean().item())
        self.logger.record("train/td_error", seen.errors[seen.counted].abs().mean().item())
        self._record_batch(batch)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "q_net_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "q_net_target"], []


def q_loss(
    network: MemoryQPolicy, target: MemoryQPolicy, batch: Sequences, learning: Learning
) -> tuple[Tensor, QErrors]:
    """Huber loss of the TD errors, weighted by sequence, mean over the actions that were taken.

    The goal of Q(t, a) is r(t) + γ r(t + 1) + ... + γ^n V(t + n), see `targets.lookahead`, with V(t) the target
    network's value of the best action; it ends before the first action that is not the best.

    Args:
        network: it gets the gradient.
        target: its target network.
        batch: from the replay.
        learning: how it learns.
    """
    before, obs = halves(batch.observations, learning.burn_in)
    start_before, start = halves(batch.memory_start, learning.burn_in)
    rewards, terminated, acted = (each[learning.burn_in :] for each in (batch.rewards, batch.terminated, batch.acted))
    to_scale, from_scale = (rescale, unscale) if learning.value_rescaling else (same, same)
    with torch.no_grad():
        state = refreshed(network, before, batch.state, start_before)
        ahead = target.q_scan(batch.observations, batch.state, batch.memory_start, learning.burn_in)
    L = len(start) - learning.n_steps
    values, later = network.q_scan_through(obs, state, start, L - learning.burn_in)
    taken = batch.actions[learning.burn_in :].unsqueeze(-1)
    with torch.no_grad():
        best = (values if learning.double_q else ahead).argmax(-1, keepdim=True)
        bootstraps = from_scale(ahead.gather(-1, best).squeeze(-1))
        greedy = (taken == best).squeeze(-1)
        goals = lookahead(bootstraps, rewards, terminated, acted, learning.gamma, learning.n_steps, greedy)
        goals = to_scale(goals)
    chosen, counted = values[:L].gather(-1, taken[:L]).squeeze(-1), acted[:L]
    losses = functional.smooth_l1_loss(chosen, goals, reduction="none") * batch.weights
    loss = torch.where(counted, losses, 0.0).sum() / counted.sum().clamp(min=1)
    return loss, QErrors(chosen.detach(), (chosen - goals).detach(), counted, later)


def _check_spaces(observations: spaces.Space, actions: spaces.Space) -> None:
    check_spaces(observations, actions)
    if not isinstance(actions, spaces.Discrete):
        raise ValueError(f"the action space must be Discrete; got {actions}: MemorySAC takes Box, MemoryPPO any")

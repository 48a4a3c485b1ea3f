"""Proximal policy optimisation for policies with a memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, get_device, get_system_info
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.buffers import MemoryRolloutBuffer, Minibatch
from agents.checkpoint import File, load_model, save_model
from agents.checks import check_action_space, check_device, check_policy, check_range
from agents.diagnostics import record_memory
from agents.files import read_tree
from agents.loss import LossWeights, ppo_loss
from agents.policies import (
    CnnMemoryPolicy,
    MemoryActorCriticPolicy,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
    check_finite,
)
from agents.tree import tree_map
from agents.vec_env import VecDropText, longest_horizon

SelfMemoryPPO = TypeVar("SelfMemoryPPO", bound="MemoryPPO")


class MemoryPPO(OnPolicyAlgorithm):
    """PPO (arXiv 1707.06347) whose policy remembers, over whole columns of the rollout.

    The arguments are those of sb3-contrib's RecurrentPPO, and three more.

    Args:
        policy: "MlpMemoryPolicy", "CnnMemoryPolicy", "MultiInputMemoryPolicy" or a `MemoryActorCriticPolicy`.
        env: a gymnasium Env, an SB3 VecEnv, or a registered id.
        learning_rate: of Adam; a number or a function of the remaining progress (1 to 0).
        n_steps: T, steps of every environment per rollout; gradients through the memory reach back no further.
        batch_size: samples per minibatch; a minibatch is max(1, batch_size // n_steps) whole columns.
        n_epochs: passes over each rollout.
        gamma: discount per step.
        gae_lambda: λ of GAE.
        clip_range: PPO's clipping of the ratio; a number or a function of the remaining progress.
        clip_range_vf: the same for values, None for none.
        normalize_advantage: whether advantages are standardised in each minibatch.
        ent_coef: weight of the entropy.
        vf_coef: weight of the value loss.
        max_grad_norm: gradients are scaled down to this norm.
        use_sde: generalized state-dependent exploration, for Box actions.
        sde_sample_freq: steps between draws of its noise; -1 for once a rollout.
        target_kl: stop a rollout's updates once the KL estimate passes 1.5 times this; None for never.
        memory_carry_over: p in 0 to 1, the chance that a memory is kept, not reset, at the end of a training
            episode, so that the next episode begins on a page already written (state passing,
            arXiv 2507.02782). Values still stop at the episode's end; `env.reset()` and evaluation start fresh.
        memory_aux_coef: weight of reconstructing the observation from what the memory gives out, a loss that
            reaches the encoder where reward does not (arXiv 2105.14039 trains HCAM with one); 0 for none.
        strategy_epsilon: exploration of an adaptive allocator, (at the beginning, at the end) of training.
        stats_window_size: episodes over which returns, lengths and successes are averaged.
        tensorboard_log: directory of the event files, None for none.
        policy_kwargs: the policy's arguments: memory, memory_kwargs, share_memory, encoder_arch, net_arch, ...
        verbose: 0 silent, 1 information, 2 debugging.
        seed: of parameters, actions, minibatches, carry-over and the environments.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ValueError: an argument out of range, a space or a memory that is not supported.
    """

    policy: MemoryActorCriticPolicy
    rollout_buffer: MemoryRolloutBuffer  # type: ignore[assignment]
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
        batch_size: int = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        memory_carry_over: float = 0.0,
        memory_aux_coef: float = 0.0,
        strategy_epsilon: tuple[float, float] = (1.0, 0.2),
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_policy(policy, self.policy_aliases)
        for name, value, low, high in (
            ("n_steps", n_steps, 1, None),
            ("batch_size", batch_size, 1, None),
            ("n_epochs", n_epochs, 1, None),
            ("gamma", gamma, 0, 1),
            ("gae_lambda", gae_lambda, 0, 1),
            ("max_grad_norm", max_grad_norm, 0, None),
            ("memory_carry_over", memory_carry_over, 0, 1),
            ("memory_aux_coef", memory_aux_coef, 0, None),
        ):
            check_range(name, value, low, high)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=check_device(device),
            _init_setup_model=False,
        )
        if env is not None:
            check_action_space(self.action_space)
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.memory_carry_over = memory_carry_over
        self.memory_aux_coef = memory_aux_coef
        self.strategy_epsilon = strategy_epsilon
        self._last_state: Any = None
        self._last_memory_starts: np.ndarray | None = None
        self._last_strategy: Tensor | None = None
        self._return_so_far: np.ndarray | None = None
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        env = VecDropText.where_needed(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self.policy_kwargs,
            **({"reconstruct": True} if self.memory_aux_coef else {}),
        ).to(self.device)
        self.rollout_buffer = MemoryRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            strategies=self._strategy_values is not None,
        )
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            if isinstance(self.clip_range_vf, int | float):
                check_range("clip_range_vf", self.clip_range_vf, 0, None)
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        horizon = None if self.env is None else longest_horizon(self.env)
        if horizon is not None and horizon > self.n_steps:
            warnings.warn(
                f"the environment's longest correlation horizon, {horizon} steps, exceeds n_steps={self.n_steps}: no "
                f"gradient joins its event and its recall; set n_steps to {horizon} or more",
                stacklevel=2,
            )

    @property
    def _strategy_values(self) -> Any:
        """What an adaptive allocator chooses by; None for every other memory."""
        return getattr(self.policy.memory, "strategy_values", None)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        fresh = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if fresh or self._last_state is None:
            self._last_state = self.policy.initial_state(self.n_envs)
            self._last_memory_starts = np.ones(self.n_envs, dtype=bool)
            self._last_strategy = None
            self._return_so_far = np.zeros(self.n_envs)
        return result

    def learn(
        self: SelfMemoryPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MemoryPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMemoryPPO:
        """Train for at least `total_timesteps` environment steps, in whole rollouts; arguments as in SB3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def save(self, path: File, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:  # type: ignore[override]
        """Write the model as JSON and safetensors in a ZIP; arguments as in SB3.

        Classes and functions among the arguments (an activation, a schedule that is a lambda) are written as their
        names only.
        """
        save_model(self, path, exclude, include)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfMemoryPPO],
        path: File,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfMemoryPPO:
        """Make a model from what `save` wrote; arguments as in SB3. Nothing in the file is executed or imported.

        Args:
            path: a path or a binary file.
            env: environments to train on; their number may differ.
            device: "auto", "cpu", "cuda", ...
            custom_objects: attribute, or qualified name of a class or function -> the object to use for it.
            print_system_info: print this system's versions.
            force_reset: whether `learn` begins with a reset.
            **kwargs: attributes to change.

        Raises:
            CorruptFile: the file is torn, altered, or not one of ours.
            ValueError: a name that `custom_objects` lacks, spaces that do not fit, a model of SB3's own.
        """
        if print_system_info:
            get_system_info()
        return load_model(cls, path, env, device, custom_objects, force_reset, **kwargs)[0]

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Load parameters from a dict of state dicts, or from a file that `save` wrote; as in SB3."""
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = read_tree(load_path_or_dict, {}, get_device(device))["parameters"]
        super().set_parameters(load_path_or_dict, exact_match, device)

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
        for memory in policy.memories():
            memory.redraw(self.rng)
        rollout_buffer.begin(self._last_state)
        if self.use_sde:
            policy.reset_noise(env.num_envs)
        for t in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and t % self.sde_sample_freq == 0:
                policy.reset_noise(env.num_envs)
            assert self._last_obs is not None
            check_finite(self._last_obs, f" at step {self.num_timesteps}")
            obs = tree_map(lambda array: torch.as_tensor(array, device=self.device), self._last_obs)
            strategy = self._choose_strategy(obs)
            with torch.no_grad():
                actions, values, log_prob, state = policy(
                    obs, self._last_state, self._flags(self._last_memory_starts), strategy
                )
            new_obs, rewards, dones, infos = env.step(self._to_env(actions))
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                return False

            ended = np.flatnonzero(dones)
            self._note_ends(obs, rewards, ended)
            if ended.size:
                self._update_info_buffer([infos[row] for row in ended], np.ones(ended.size, dtype=bool))
                rewards = self._bootstrap(rewards, state, infos, ended, strategy)
            rollout_buffer.add(
                obs,
                actions,
                rewards,
                self._last_episode_starts,  # type: ignore[arg-type]
                self._last_memory_starts,
                values,
                log_prob,
                strategy,
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            self._last_memory_starts = self._restart(dones, ended)
            self._last_state = state

        obs = tree_map(lambda array: torch.as_tensor(array, device=self.device), self._last_obs)
        with torch.no_grad():
            last_values = policy.predict_values(
                obs, self._last_state, self._flags(self._last_memory_starts), self._choose_strategy(obs)
            )
        rollout_buffer.compute_returns_and_advantage(last_values, self._last_episode_starts)  # type: ignore[arg-type]
        callback.update_locals(locals())
        callback.on_rollout_end()
        self.logger.record("time/rollout_steps_per_s", _rate(n_rollout_steps * env.num_envs, began))
        return True

    def _flags(self, flags: np.ndarray) -> Tensor | None:
        return torch.as_tensor(flags, device=self.device) if flags.any() else None

    def _to_env(self, actions: Tensor) -> np.ndarray:
        array = actions.cpu().numpy()
        if not isinstance(self.action_space, spaces.Box):
            return array
        if self.policy.squash_output:
            return self.policy.unscale_action(array)
        return np.clip(array, self.action_space.low, self.action_space.high)

    def _restart(self, dones: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """[B] bool: which memories begin anew at the next step, the carried ones left out."""
        if self.memory_carry_over == 0.0 or not ended.size:
            return dones
        starts = dones.copy()
        starts[ended] = self.rng.random(ended.size) >= self.memory_carry_over
        return starts

    def _bootstrap(
        self, rewards: np.ndarray, state: Any, infos: list[dict[str, Any]], ended: np.ndarray, strategy: Tensor | None
    ) -> np.ndarray:
        """Add γ V(final observation) to the last reward of each truncated episode; the state after it is dropped."""
        truncated = [int(row) for row in ended if infos[row].get("TimeLimit.truncated", False)]
        if not truncated:
            return rewards
        finals = [infos[row]["terminal_observation"] for row in truncated]
        keys = self.observation_space.spaces if isinstance(self.observation_space, spaces.Dict) else None
        final = np.stack(finals) if keys is None else {key: np.stack([f[key] for f in finals]) for key in keys}
        check_finite(final, f" at step {self.num_timesteps}, in a final observation")
        rows = torch.as_tensor(truncated, device=self.device)
        with torch.no_grad():
            values = self.policy.predict_values(
                tree_map(lambda array: torch.as_tensor(array, device=self.device), final),
                tree_map(lambda leaf: leaf[rows], state),
                strategy=None if strategy is None else strategy[rows],
            )
        rewards = np.array(rewards, dtype=np.float32)
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
        if rows.size:
            first, last = self.strategy_epsilon
            epsilon = last + (first - last) * self._current_progress_remaining
            choice = values.choose(self.policy.task(obs, self.n_envs)[rows], epsilon, self.rng)
            kept = self._last_strategy.clone()
            kept[rows] = torch.as_tensor(choice, device=self.device)
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
        if ended.size:
            task = self.policy.task(obs, self.n_envs)[ended]
            returns = torch.as_tensor(self._return_so_far[ended], dtype=torch.float32)
            loss = values.update(task, self._last_strategy[ended], returns)
            self.logger.record_mean("memory/strategy_value_loss", float(loss))
            self._return_so_far[ended] = 0.0

    def train(self) -> None:
        """Update the policy from the rollout: `n_epochs` passes over its columns in minibatches."""
        began = time.perf_counter()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        weights = LossWeights(
            clip_range, clip_range_vf, self.normalize_advantage, self.ent_coef, self.vf_coef, self.memory_aux_coef
        )
        columns = max(1, self.batch_size // self.n_steps)
        records: list[dict[str, Tensor]] = []
        batch: Minibatch | None = None
        for _ in range(self.n_epochs):
            kl = 0.0
            for batch in self.rollout_buffer.get(columns, self.rng):
                loss, record = ppo_loss(self.policy, batch, weights)
                records.append(record)
                if self.target_kl is not None and (kl := float(record["approx_kl"])) > 1.5 * self.target_kl:
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                record["grad_norm"] = norm
                self.policy.optimizer.step()
            self._n_updates += 1
            if self.target_kl is not None and kl > 1.5 * self.target_kl:
                break
        self._record_update(records, clip_range, clip_range_vf)
        self.logger.record("time/update_steps_per_s", _rate(self.n_steps * self.n_envs, began))
        assert batch is not None
        record_memory(self.logger, self.policy.memories(), batch.observations, self.env)

    def _record_update(self, records: list[dict[str, Tensor]], clip_range: float, clip_range_vf: float | None) -> None:
        for name in sorted(set().union(*records)):
            mean = torch.stack([record[name] for record in records if name in record]).mean().item()
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"train/{name} is {mean} after step {self.num_timesteps}: training stopped before it spoils a "
                    "checkpoint; lower the learning rate, or normalise rewards and observations"
                )
            self.logger.record(f"train/{name}", mean)
        buffer = self.rollout_buffer
        variance = explained_variance(buffer.values.cpu().numpy().ravel(), buffer.returns.cpu().numpy().ravel())
        self.logger.record("train/explained_variance", float(variance))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)


def _rate(steps: int, began: float) -> float:
    return steps / max(time.perf_counter() - began, 1e-9)

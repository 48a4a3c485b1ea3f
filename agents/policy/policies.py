"""Actor-critic policies: observation -> features -> encoder -> memory -> (actor head, critic head)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, create_mlp
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from palimpsest import memory as memories
from palimpsest.agents.policy.distributions import draw, make_distribution, restricted
from palimpsest.agents.policy.extractors import DictExtractor, ImageExtractor, Observation
from palimpsest.agents.policy.heads import act, in_its_form
from palimpsest.agents.policy.layers import Tanh
from palimpsest.agents.policy.memory_pair import Both, MemoryPair, State
from palimpsest.agents.policy.policy_file import SavedPolicy
from palimpsest.agents.policy.predict import PredictingPolicy
from palimpsest.agents.policy.scales import ObservationScales, ReturnScale
from palimpsest.agents.policy.spaces import check_place, flat_action_space, place_of
from palimpsest.agents.slips import refuse_other_algorithms, refuse_steps
from palimpsest.agents.tree import tree_map
from palimpsest.memory.base import Memory
from palimpsest.memory.kernels.arithmetic.dispatch import kernels_may_run
from palimpsest.refusals import Allowed


class Evaluation(NamedTuple):
    """What a sequence looks like to the current policy; each [T, B]."""

    values: Tensor
    log_prob: Tensor
    entropy: Tensor | None
    reconstruction: Tensor | None = None
    """Mean squared error of the observation, decoded from what the memory gives out."""


class MemoryActorCriticPolicy(SavedPolicy, PredictingPolicy):
    """SB3's actor-critic policy with a memory, for sequences [T, B, ...] and for single steps [B, ...].

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.
        action_space: Discrete, MultiDiscrete, MultiBinary or Box.
        lr_schedule: learning rate by remaining progress (1 to 0).
        memory: a name of `memory.names()`.
        memory_kwargs: the memory's arguments, without `input_size`.
        share_memory: whether actor and critic read one memory; if not, each has its own and the state is a pair.
        encoder_arch: widths of the layers between the features and the memory.
        reconstruct: whether a linear layer decodes the observation from what the (actor's) memory gives out, for
            `MemoryPPO`'s `memory_aux_coef`.
        mark_starts: whether a learned vector is added to what each memory reads at the first step of an episode, for
            `MemoryPPO`'s `memory_carry_over`: a memory that was not reset cannot know of it otherwise.
        normalize_observations: whether observations are scaled by their running moments; see `ObservationScales`.
        normalize_returns: whether the critic predicts returns scaled by theirs; see `ReturnScale`.
        net_arch: widths of the layers between the memory and the heads, as in SB3; default one of 64 each.
        activation_fn: what follows each of them and of the encoder's.
        **kwargs: SB3's other arguments.

    Attributes:
        compiled: whether kernels compute on the CPU while the policy is as it was built. Where a module was hooked,
            replaced, pruned or parametrized, a warning says so once and torch's operations compute. False chooses them
            without a warning, to watch or change the modules.

    Raises:
        ValueError: an unknown memory or argument, or a memory whose places the observations do not give.
    """

    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    return_scale_class: ClassVar[type[ReturnScale]] = ReturnScale
    refused_arguments: ClassVar[Mapping[str, str]] = {}
    """Arguments that `policy_kwargs` cannot hold, and why; beside those of `policy_kwargs.SET_BY_THE_AGENT`."""
    allowed_arguments: ClassVar[Mapping[str, Allowed]] = {}
    """What further or other arguments may be; beside those of `policy_kwargs.POLICY_ARGUMENTS`."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        memory: str = "rewrite",
        memory_kwargs: dict[str, Any] | None = None,
        share_memory: bool = True,
        encoder_arch: list[int] | tuple[int, ...] = (64,),
        reconstruct: bool = False,
        mark_starts: bool = False,
        normalize_observations: bool = False,
        normalize_returns: bool = False,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = Tanh,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_other_algorithms()
        extractor = features_extractor_class or self.default_extractor
        if isinstance(observation_space, spaces.Dict) and extractor in (FlattenExtractor, ImageExtractor):
            raise ValueError(
                f"{type(self).__name__} reads one array of observations; got {observation_space}: "
                "use MultiInputMemoryPolicy"
            )
        if share_memory and not kwargs.get("share_features_extractor", True):
            raise ValueError(
                "share_memory=True needs share_features_extractor=True, for one memory reads one stream of features; "
                "set share_memory=False to keep two extractors"
            )
        self.memory_name = memory
        self.memory_kwargs = dict(memory_kwargs or {})
        self.shares_memory = share_memory
        self.encoder_arch = list(encoder_arch)
        self.reconstruct, self.mark_starts = reconstruct, mark_starts
        self.normalize_observations, self.normalize_returns = normalize_observations, normalize_returns
        super().__init__(
            observation_space,
            flat_action_space(action_space),
            lr_schedule,
            net_arch={"pi": [64], "vf": [64]} if net_arch is None else net_arch,
            activation_fn=activation_fn,
            features_extractor_class=extractor,
            **kwargs,
        )
        self.action_space = action_space

    def _build(self, lr_schedule: Schedule) -> None:
        if not self.use_sde:
            self.action_dist = make_distribution(self.action_space)
        if self.optimizer_class is torch.optim.Adam:
            # one kernel for all parameters, on the CPU too
            others = {"foreach", "differentiable"} & self.optimizer_kwargs.keys()
            self.optimizer_kwargs = {"fused": not others, **self.optimizer_kwargs}
        scales = ObservationScales(self.observation_space, self.normalize_images)
        self.observation_scales = scales if self.normalize_observations and scales.keys else None
        self.return_scale = self.return_scale_class() if self.normalize_returns else None
        self.encoder, width = self._make_encoder()
        self.memory = memories.make(self.memory_name, width, **self.memory_kwargs)
        if self.shares_memory:
            self.encoder_critic, self.memory_critic = self.encoder, self.memory
        else:
            self.encoder_critic = self.encoder if self.share_features_extractor else self._make_encoder()[0]
            self.memory_critic = memories.make(self.memory_name, width, **self.memory_kwargs)
        check_place(self.memory, self.memory_name, self.observation_space)
        # of the size of what the encoder gives out: a smaller one is learned too late
        marks = 1 if self.shares_memory else 2
        self.start_mark = nn.Parameter(torch.randn(marks, width)) if self.mark_starts else None
        if self.reconstruct:
            self.decoder = nn.Linear(self.memory.output_size, flatdim(self.observation_space))
        super()._build(lr_schedule)

    def _make_encoder(self) -> tuple[nn.Sequential, int]:
        layers = create_mlp(self.features_dim, -1, self.encoder_arch, self.activation_fn) if self.encoder_arch else []
        encoder = nn.Sequential(*layers)
        if self.ortho_init:
            encoder.apply(functools.partial(self.init_weights, gain=np.sqrt(2)))
        return encoder, self.encoder_arch[-1] if self.encoder_arch else self.features_dim

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "memory": self.memory_name,
            "memory_kwargs": self.memory_kwargs,
            "share_memory": self.shares_memory,
            "encoder_arch": self.encoder_arch,
            "reconstruct": self.reconstruct,
            "mark_starts": self.mark_starts,
            "normalize_observations": self.normalize_observations,
            "normalize_returns": self.normalize_returns,
        }

    @property
    def memory_pair(self) -> MemoryPair:
        """The actor's memory and the critic's."""
        # read once: while torch.export records, a module that is read twice is two objects
        actor = self.memory
        return MemoryPair(actor, actor if self.shares_memory else self.memory_critic, self.start_mark)

    def memories(self) -> list[Memory]:
        """The memories, each once: one, or the actor's and the critic's."""
        return self.memory_pair.each()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; a critic that came without a scale of returns predicts them as they are."""
        weights = state_dict if self.return_scale is None else self.return_scale.adopted(state_dict)
        return super().load_state_dict(weights, strict, assign)

    def initial_state(self, batch_size: int) -> State:
        """What is remembered before an episode, for `batch_size` rows: the memory's state, or a pair of them."""
        return self.memory_pair.initial_state(batch_size)

    @in_its_form
    def forward(  # type: ignore[override]
        self,
        obs: Observation,
        state: State,
        start: Tensor | None = None,
        strategy: Tensor | None = None,
        deterministic: bool = False,
        keep_state: bool = True,
        action_masks: Tensor | None = None,
        episode_start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Act for one step.

        Args:
            obs: tree of [B, ...], as the environments give it.
            state: after the step before.
            start: [B] bool, rows whose memory begins anew; None for none.
            strategy: [B] int64 for memories that choose an allocation.
            deterministic: the likeliest action instead of a sample.
            keep_state: False gives `state` up, so that the next one may be written into it; without gradients.
            action_masks: [B, n] bool, the choices that are allowed (`agents.masks`); None for all.
            episode_start: [B] bool, rows that begin an episode, for `mark_starts`; None for those of `start`.

        Returns:
            Actions [B, ...], values [B], log-probabilities [B], next state.
        """
        latent, state = self._step(obs, state, start, strategy, episode_start, keep_state or torch.is_grad_enabled())
        heads = None if deterministic else self._compiled_heads(latent)
        if heads is not None:
            chosen, predicted, log_prob = act(heads, *latent, action_masks)
            return chosen, self._to_values(predicted), log_prob, state
        actions, log_prob = self._drawn(latent, deterministic, action_masks)
        return actions.reshape(-1, *self.action_space.shape), self._value(latent), log_prob, state  # type: ignore[misc]

    def _drawn(self, latent: Both, deterministic: bool, action_masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions [B, ...] and their log-probabilities [B], of what the heads read."""
        return draw(restricted(self._actor(latent.actor), action_masks), deterministic)

    def _value(self, latent: Both) -> Tensor:
        """Values [B] of what the heads read."""
        return self._critic(latent.critic)

    @in_its_form
    def evaluate_actions(  # type: ignore[override]
        self,
        obs: Observation,
        actions: Tensor,
        state: State,
        start: Tensor,
        strategy: Tensor | None = None,
        action_masks: Tensor | None = None,
        episode_start: Tensor | None = None,
    ) -> Evaluation:
        """Values, log-probabilities and entropies of a whole rollout.

        Args:
            obs: tree of [T, B, ...].
            actions: [T, B, ...].
            state: before the first step, batch B.
            start: [T, B] bool, where the memory begins anew.
            strategy: [T, B] int64 or None.
            action_masks: [T, B, n] bool, those with which the actions were drawn; None for none.
            episode_start: [T, B] bool, where episodes begin, for `mark_starts`; None for `start`.
        """
        refuse_steps(obs, actions, start)
        T, B = start.shape
        latent, _ = self._scan(obs, state, start, strategy, episode_start)
        pi, vf = (each.flatten(0, 1) for each in latent)
        distribution = restricted(self._actor(pi), None if action_masks is None else action_masks.flatten(0, 1))
        entropy = distribution.entropy()
        return Evaluation(
            self._critic(vf).view(T, B),
            distribution.log_prob(self._flat_actions(actions)).view(T, B),
            None if entropy is None else entropy.view(T, B),
            self._reconstruction(pi, _flat(obs)).view(T, B) if self.reconstruct else None,
        )

    @in_its_form
    def state_after(
        self,
        obs: Observation,
        state: State,
        start: Tensor,
        strategy: Tensor | None = None,
        episode_start: Tensor | None = None,
    ) -> State:
        """The state after a sequence; arguments as for `evaluate_actions`."""
        return self._scan(obs, state, start, strategy, episode_start)[1]

    def _flat_actions(self, actions: Tensor) -> Tensor:
        """Actions [T, B, *shape] as distributions take them: [N], or [N, numbers] where an action is several."""
        flat = actions.flatten(0, 1)
        return flat if isinstance(self.action_space, spaces.Discrete) else flat.reshape(len(flat), -1)

    def _reconstruction(self, latent: Tensor, obs: Observation) -> Tensor:
        """Squared error [N] of `obs` (tree of [N, ...]) decoded from `latent` [N, D], mean over its numbers."""
        target = self.floats(obs)
        parts = target.values() if isinstance(target, dict) else [target]
        flat = torch.cat([part.flatten(1).to(latent.dtype) for part in parts], dim=1)
        return (self.decoder(latent) - flat).square().mean(1)

    @in_its_form
    def predict_values(
        self,
        obs: Observation,
        state: State,
        start: Tensor | None = None,
        strategy: Tensor | None = None,
        episode_start: Tensor | None = None,
    ) -> Tensor:
        """Values [B] of observations [B, ...] that follow `state`; the state after them is discarded."""
        return self._value(self._step(obs, state, start, strategy, episode_start)[0])

    @in_its_form
    def get_distribution(  # type: ignore[override]
        self,
        obs: Observation,
        state: State,
        start: Tensor | None = None,
        strategy: Tensor | None = None,
        action_masks: Tensor | None = None,
    ) -> tuple[Distribution, State]:
        """The distribution of the next actions that `action_masks` [B, n] bool allow, and the state after `obs`."""
        latent, state = self._step(obs, state, start, strategy)
        return restricted(self._actor(latent.actor), action_masks), state

    @in_its_form
    def next_state(
        self,
        obs: Observation,
        state: State,
        start: Tensor | None = None,
        strategy: Tensor | None = None,
        episode_start: Tensor | None = None,
    ) -> State:
        """The state after observations [B, ...]."""
        return self._step(obs, state, start, strategy, episode_start)[1]

    def _scan(
        self, obs: Observation, state: State, start: Tensor, strategy: Tensor | None, opens: Tensor | None
    ) -> tuple[Both, State]:
        """What the heads read after each of the observations [T, B, ...], [T, B, D] each, and the state after them."""
        features = Both(*(each.unflatten(0, start.shape) for each in self._encode(_flat(obs))))
        place = place_of(obs, self.memory, self.observation_space)
        latent, after = self.memory_pair.scan(features, start, state, place, strategy, opens)
        return self._read(latent, features), after

    def _step(
        self,
        obs: Observation,
        state: State,
        start: Tensor | None,
        strategy: Tensor | None,
        opens: Tensor | None = None,
        keep_state: bool = True,
    ) -> tuple[Both, State]:
        """What the heads read after observations [B, ...], [B, D] each, and the state after them."""
        place = place_of(obs, self.memory, self.observation_space)
        features = self._encode(obs)
        latent, after = self.memory_pair.step(features, state, start, place, strategy, keep_state, opens)
        return self._read(latent, features), after

    def _read(self, latent: Both, features: Both) -> Both:
        """What the heads read of what the memories gave out and of what these read, [..., D] and [..., F] each."""
        return latent

    def _encode(self, obs: Observation) -> Both:
        """What the memories read of `obs` (tree of [N, ...]), [N, F] each."""
        if self._flattens and kernels_may_run():
            # what SB3 does to such observations takes longer to find out than to do
            features: Any = obs.float().reshape(len(obs), -1)  # type: ignore[union-attr]
            if self.observation_scales is not None:
                features = self.observation_scales(features)
        else:
            features = self.extract_features(obs)
        if self.share_features_extractor:
            y = self.encoder(features)
            return Both(y, y)
        pi, vf = features
        return Both(self.encoder(pi), self.encoder_critic(vf))


def _flat(obs: Observation) -> Observation:
    return tree_map(lambda leaf: leaf.flatten(0, 1), obs)


class MlpMemoryPolicy(MemoryActorCriticPolicy):
    """For flat observations; images are flattened."""


class CnnMemoryPolicy(MemoryActorCriticPolicy):
    """For images: NatureCNN, or categories where a side is below 36 pixels."""

    default_extractor = ImageExtractor


class MultiInputMemoryPolicy(MemoryActorCriticPolicy):
    """For Dict observations."""

    default_extractor = DictExtractor

"""The networks of `MemorySAC`: an actor and critics, with a memory each or one that the critics' loss trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.distributions import Distribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor, create_mlp
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from palimpsest.agents.off_policy.policy import ReplayPolicy
from palimpsest.agents.policy.extractors import DictExtractor, ImageExtractor, Observation
from palimpsest.agents.policy.heads import in_its_form
from palimpsest.agents.policy.memory_pair import Both, State
from palimpsest.agents.policy.policy_kwargs import net_arch as widths_of_heads
from palimpsest.agents.policy.spaces import place_of
from palimpsest.agents.tree import tree_map
from palimpsest.refusals import Allowed, integer

LOG_STD = -20.0, 2.0
"""Smallest and largest logarithm of a standard deviation, as in SB3."""


class MemorySACPolicy(ReplayPolicy):
    """An actor with a squashed Gaussian (Box) or a categorical distribution (Discrete), and several critics.

    With a Box the critics read an action beside what their memory gives out; with Discrete actions they give a value
    for each (arXiv 1910.07207).

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.
        action_space: Box or Discrete.
        lr_schedule: learning rate by remaining progress (1 to 0).
        share_memory: whether actor and critics read one memory, which only the critics' loss trains; if not, each
            side has an extractor, an encoder and a memory of its own.
        n_critics: heads of the critics, of which the smallest value counts.
        net_arch: widths of the layers of the heads; default two of 64 each. A dict has those of the actor under "pi",
            of the critics under "qf", as in SB3, or "vf".
        **kwargs: those of `ReplayPolicy`.

    Raises:
        ValueError: `share_features_extractor` differs from `share_memory`.
    """

    allowed_arguments: ClassVar[Mapping[str, Allowed]] = {
        **ReplayPolicy.allowed_arguments,
        "n_critics": integer(1),
        "net_arch": widths_of_heads("qf", "vf"),
    }

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        share_memory: bool = False,
        n_critics: int = 2,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.setdefault("share_features_extractor", share_memory) != share_memory:
            raise ValueError(
                f"share_features_extractor must be share_memory, {share_memory}: the loss that trains a memory trains "
                "what is before it; leave it out"
            )
        self.n_critics = n_critics
        if isinstance(net_arch, dict):
            net_arch = {"vf" if name == "qf" else name: widths for name, widths in net_arch.items()}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            share_memory=share_memory,
            net_arch=[64, 64] if net_arch is None else net_arch,
            **kwargs,
        )
        self._squash_output = isinstance(action_space, spaces.Box)

    def _build_mlp_extractor(self) -> None:
        widths = self.net_arch if isinstance(self.net_arch, dict) else {"pi": self.net_arch, "vf": self.net_arch}
        # the critics' layers read actions too, and are theirs
        self.mlp_extractor = MlpExtractor(
            self.latent_size, {"pi": widths.get("pi", [])}, self.activation_fn, self.device
        )
        self._critic_arch = list(widths.get("vf", []))

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        del self.optimizer
        reads, gives = self.latent_size, flatdim(self.action_space)
        if isinstance(self.action_space, spaces.Box):
            reads, gives = reads + gives, 1
            self.action_dist = SquashedDiagGaussianDistribution(flatdim(self.action_space))
            del self.log_std
            self.log_std = nn.Linear(self.mlp_extractor.latent_dim_pi, flatdim(self.action_space))  # type: ignore[assignment]
        self.value_net = nn.ModuleList(  # type: ignore[assignment]
            nn.Sequential(*create_mlp(reads, gives, self._critic_arch, self.activation_fn))
            for _ in range(self.n_critics)
        )
        self.log_ent_coef = nn.Parameter(torch.zeros(1))
        """Logarithm of the weight of the entropy, where that is learned."""
        extractor = self.features_extractor if self.shares_memory else self.vf_features_extractor
        critic = (extractor, self.encoder_critic, self.memory_critic, self.value_net)
        self.critic_parameters = [each for module in critic for each in module.parameters()]
        others = {id(each) for each in (*self.critic_parameters, self.log_ent_coef)}
        self.actor_parameters = [each for each in self.parameters() if id(each) not in others]

        def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

        self.actor_optimizer = optimizer(self.actor_parameters)
        self.critic_optimizer = optimizer(self.critic_parameters)
        self.ent_coef_optimizer = optimizer([self.log_ent_coef])

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"n_critics": self.n_critics}

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if isinstance(self.action_space, spaces.Box):
            log_std = self.log_std(latent_pi).clamp(*LOG_STD)  # type: ignore[operator]
            return self.action_dist.proba_distribution(self.action_net(latent_pi), log_std)
        return super()._get_action_dist_from_latent(latent_pi)

    @in_its_form
    def act(
        self, obs: Observation, state: State, start: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Draw actions after observations [B, ...] that follow `state`; also the state after them, of both memories.

        Actions of a Box are [B, numbers] in -1 to 1. `noise` [B, numbers] has variance 1, and takes the place of
        numbers that are drawn here.
        """
        latent, state = self._step(obs, state, start, None)
        distribution = self._actor(latent.actor)
        if noise is None:
            return distribution.get_actions(), state
        normal = distribution.distribution
        return (normal.mean + normal.stddev * noise).tanh(), state  # type: ignore[union-attr]

    @in_its_form
    def latent(self, obs: Observation, state: State, start: Tensor, cut: int = 0) -> tuple[Both, State]:
        """What the actor and the critics read of a sequence, [T, B, D] each, and the state before its entry `cut`.

        Arguments are as in `_scan_through`. The actor's has no gradient where they share a memory.
        """
        (actor, critic), middle = self._scan_through(obs, state, start, cut)
        return Both(actor.detach() if self.shares_memory else actor, critic), middle

    @in_its_form
    def critic_latent(self, obs: Observation, state: State, start: Tensor, burn_in: int) -> Tensor:
        """What the critics read of a sequence after its first `burn_in` entries, [T - burn_in, B, D]."""
        flat = tree_map(lambda leaf: leaf.flatten(0, 1), obs)
        if self.shares_memory:
            features, own = self._encode(flat).critic, state
        else:
            features, own = self.encoder_critic(self.extract_features(flat, self.vf_features_extractor)), state[1]
        place = place_of(obs, self.memory_critic, self.observation_space)
        features = features.unflatten(0, start.shape)
        y, _ = self.memory_critic(features, own, start, place)
        return self._beside(y, features)[burn_in:]

    def distribution(self, latent: Tensor) -> Distribution:
        """That of the actions after what the actor reads, [..., D], as [N, ...]."""
        return self._actor(latent.flatten(0, -2))

    def _judge(self, latent: Both) -> Tensor:
        """The smallest of the critics' values: of every action where these are Discrete, else of the likeliest one."""
        if isinstance(self.action_space, spaces.Box):
            likeliest = self.distribution(latent.actor).get_actions(deterministic=True)
            values = self.q_values(latent.critic, likeliest.unflatten(0, latent.actor.shape[:-1]))
        else:
            values = self.q_values(latent.critic)
        return self._to_values(values.amin(0))

    def _value(self, latent: Both) -> Tensor:
        judged = self._judge(latent)
        if isinstance(self.action_space, spaces.Box):
            return judged
        likeliest = self.distribution(latent.actor).get_actions(deterministic=True)
        return judged.gather(-1, likeliest.view(*judged.shape[:-1], 1)).squeeze(-1)

    def q_values(self, latent: Tensor, actions: Tensor | None = None) -> Tensor:
        """Values of the critics after what they read, latent [..., D].

        Args:
            latent: [..., D].
            actions: [..., numbers] in -1 to 1 for a Box; None for Discrete.

        Returns:
            [n_critics, ...] of the actions, for Discrete [n_critics, ..., A] of every action.
        """
        reads = latent if actions is None else torch.cat([latent, actions], -1)
        values = torch.stack([critic(reads) for critic in self.value_net])  # type: ignore[attr-defined]
        return values if actions is None else values.squeeze(-1)


class CnnMemorySACPolicy(MemorySACPolicy):
    """For images: NatureCNN, or categories where a side is below 36 pixels."""

    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = ImageExtractor


class MultiInputMemorySACPolicy(MemorySACPolicy):
    """For Dict observations."""

    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = DictExtractor

"""Which past input moves an action, and what a memory's reads weigh: numbers of one episode, as arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from palimpsest.agents.environments import declares, event_mask
from palimpsest.agents.masks import get_action_masks, is_masking_supported
from palimpsest.agents.policy.memory_pair import Both
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.spaces import greedy_strategy, place_of
from palimpsest.agents.tree import tree_map
from palimpsest.memory.kernels.arithmetic.dispatch import torch_only


class Recording(NamedTuple):
    """T steps of one episode, from its start."""

    obs: Any
    """Tree of [T, 1, ...] tensors."""
    actions: Tensor
    """[T, ...]"""
    strategy: Tensor | None
    """[T, 1] int64, for a memory that chooses an allocation."""
    events: np.ndarray
    """[T] bool, the steps whose observation shows an event."""

    @property
    def start(self) -> Tensor:
        """[T, 1] bool: the first step opens the episode."""
        first = torch.zeros(len(self.actions), 1, dtype=torch.bool, device=self.actions.device)
        first[0] = True
        return first


def record(model: Any, env: VecEnv, seed: int, steps: int, deterministic: bool = True) -> Recording:
    """Play the first `steps` steps, or all, of one episode.

    Args:
        model: a `MemoryPPO`, `MemoryDQN` or `MemorySAC`.
        env: one row, with the observation wrappers of the training.
        seed: of the episode.
        steps: 1 or more.
        deterministic: the likeliest action instead of a sample.
    """
    policy: MemoryActorCriticPolicy = model.policy
    masking, has_events = is_masking_supported(env), declares(env, "event_mask")
    env.seed(seed)
    obs: Any = env.reset()
    state, start, seen, actions, strategies, events = None, np.ones(1, bool), [], [], [], []
    for step in range(steps):
        masks = {"action_masks": get_action_masks(env, step)} if masking else {}
        tensors = policy.obs_to_tensor(obs)[0]
        seen.append(tree_map(torch.clone, tensors))
        strategies.append(greedy_strategy(policy.memory, tensors, 1))
        events.append(has_events and bool(event_mask(env, obs)[0]))
        action, state = model.predict(obs, state, start, deterministic, **masks)
        actions.append(torch.as_tensor(action[0], device=policy.device))
        obs, _, start, _ = env.step(action)
        if start[0]:
            break
    strategy = None if strategies[0] is None else torch.stack(strategies)  # type: ignore[arg-type]
    return Recording(
        tree_map(lambda *parts: torch.stack(parts), *seen), torch.stack(actions), strategy, np.array(events)
    )


def influence(policy: MemoryActorCriticPolicy, recording: Recording) -> np.ndarray:
    """How strongly each past input moves each action: the length of the gradient of the chosen logit.

    The gradient is that by what the actor's memory reads at a step, after the encoder, through the memory's scan, and
    past it where the heads read that too. For a Box it is the gradient of the sum of the means, for several choices or
    switches that of the sum of their logits.

    Returns:
        [T, T] float: action at step t, input at step s; 0 for s > t.
    """
    with torch.enable_grad():
        inputs, outputs = chosen_outputs(policy, recording)
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    return gradient.norm(dim=2).T.cpu().numpy()


def chosen_outputs(
    policy: MemoryActorCriticPolicy, recording: Recording, change: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The memory's inputs [T, T, F], a leaf, and the chosen output of each action [T].

    The episode is repeated T times, as a batch. Row t is for the action at step t alone, so that one gradient of the
    sum of all outputs holds those of each.

    Args:
        policy: the policy.
        recording: an episode.
        change: [T, T, F], added to the inputs; None for nothing.
    """
    T, space = len(recording.actions), policy.observation_space
    with torch.no_grad():
        read = Both(*(each.repeat(1, T, 1) for each in policy.memory_inputs(recording.obs)))
    inputs = (read.actor if change is None else read.actor + change).requires_grad_()
    place = place_of(recording.obs, policy.memory, space)
    pair = policy.memory_pair
    features = Both(inputs, inputs if policy.shares_memory else read.critic)
    with torch_only():
        latent, _ = pair.scan(
            features,
            recording.start.expand(T, T).contiguous(),
            pair.initial_state(T),
            None if place is None else place.expand(T, T).contiguous(),
            None if recording.strategy is None else recording.strategy.expand(T, T).contiguous(),
        )
        # some heads read the memory's input too
        own = policy._read(latent, features).actor.diagonal(0, 0, 1).T  # [T, D], of each action its row
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(own))
    return inputs, chosen_output(policy.action_space, outputs, recording.actions)


def chosen_output(space: spaces.Space, outputs: Tensor, actions: Tensor) -> Tensor:
    """What of the action head's outputs [T, n] speaks for the actions [T, ...] that were taken, as [T]."""
    if isinstance(space, spaces.Discrete):
        return outputs.gather(1, actions.long().view(-1, 1)).squeeze(1)
    if isinstance(space, spaces.MultiDiscrete):
        parts = outputs.split(space.nvec.reshape(-1).tolist(), 1)
        taken = actions.long().flatten(1).split(1, 1)
        return torch.cat([part.gather(1, choice) for part, choice in zip(parts, taken)], 1).sum(1)
    if isinstance(space, spaces.MultiBinary):
        return (outputs * (2 * actions.flatten(1) - 1)).sum(1)
    return outputs.sum(1)


def read_weights(policy: MemoryActorCriticPolicy, recording: Recording) -> np.ndarray | None:
    """The implied attention of the actor's memory, [N, T, T]: head, step of the read, step of the write.

    None where the memory does not read a sum of what was written; see `Memory.read_weights`.
    """
    with torch.no_grad(), torch_only():
        x = policy.memory_pair.marked(policy.memory_inputs(recording.obs), recording.start).actor
        found = policy.memory.read_weights(x, recording.start, policy.memory.initial_state(1))
    return None if found is None else found[0].cpu().numpy()

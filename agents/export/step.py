"""One greedy step of a policy as a function of tensors, and the names, types and shapes of what it takes and gives."""

from __future__ import annotations

import copy
import json
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from palimpsest.agents.masks import mask_sizes
from palimpsest.agents.policy.distributions import MultiCategorical
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.spaces import task_of
from palimpsest.memory.base import Memory


class Port(NamedTuple):
    """A tensor that goes into a step or comes out of it."""

    name: str
    dtype: str
    """As numpy names it."""
    shape: tuple[int, ...]
    """Without the batch, which is first."""
    initial: Any = None
    """Of a state: what it is before an episode, one number for all or nested lists of this shape."""


class Signature(NamedTuple):
    """What a step takes and gives: (*observations, *states, episode_start, mask) -> (action, *states), so ordered."""

    observations: list[Port]
    """One, or one for each key of a Dict space, named "observation.key"."""
    states: list[Port]
    """Named "state.field"; what comes out is named "next_state.field". There may be none."""
    episode_start: Port
    """Rows that begin an episode: their state is not read."""
    action_mask: Port | None
    """The choices that are allowed, flat over all; None where a step takes no mask."""
    action: Port

    def inputs(self) -> list[Port]:
        """What goes in."""
        return [*self.observations, *self.states, self.episode_start, *([self.action_mask] if self.action_mask else [])]

    def outputs(self) -> list[Port]:
        """What comes out."""
        return [self.action, *(port._replace(name=f"next_{port.name}", initial=None) for port in self.states)]

    def to_json(self) -> str:
        """For the file's metadata."""
        return json.dumps({name: _plain(part) for name, part in self._asdict().items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**{name: _ports(part) for name, part in json.loads(text).items()})


def _plain(part: Any) -> Any:
    if isinstance(part, Port):
        return part._asdict()
    return [each._asdict() for each in part] if isinstance(part, list) else part


def _ports(part: Any) -> Any:
    if isinstance(part, dict):
        return Port(**{**part, "shape": tuple(part["shape"])})
    return [_ports(each) for each in part] if isinstance(part, list) else part


class Step(nn.Module):
    """What `predict(deterministic=True)` computes, from tensors to tensors, in the order of `signature`.

    Args:
        policy: of `MemoryPPO`, `MemoryDQN` or `MemorySAC`.
        masked: whether a mask of actions is taken.
        normalize: the `VecNormalize` of the training, whose statistics become part of the step; None for none.
    """

    def __init__(
        self, policy: MemoryActorCriticPolicy, masked: bool = False, normalize: VecNormalize | None = None
    ) -> None:
        super().__init__()
        self.policy = _copied(policy)
        self.statistics = Statistics(normalize) if normalize is not None and normalize.norm_obs else None
        self.space = _unscaled(policy.observation_space, normalize)
        """That of the observations: as the policy has it, but what `normalize` scales as it is before."""
        self.signature = signature_of(self.policy, self.space, masked)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Act once. The batch is the first dimension of every tensor."""
        policy, signature = self.policy, self.signature
        read, held = len(signature.observations), len(signature.states)
        observations, states, (start, *masks) = inputs[:read], inputs[read : read + held], inputs[read + held :]
        space = policy.observation_space
        obs: Any = dict(zip(space.spaces, observations)) if isinstance(space, spaces.Dict) else observations[0]
        if self.statistics is not None:
            obs = self.statistics(obs)
        state = type(policy.memory.initial_state(1))(*states)
        strategy = _strategy(policy.memory, obs)
        distribution, after = policy.get_distribution(obs, state, start, strategy, *masks)
        return self._action(distribution.mode()), *after

    def _action(self, chosen: Tensor) -> Tensor:
        space = self.policy.action_space
        if isinstance(space, spaces.Box):
            low, high = (torch.as_tensor(bound, dtype=chosen.dtype).reshape(-1) for bound in (space.low, space.high))
            if self.policy.squash_output:
                chosen = low + 0.5 * (chosen + 1.0) * (high - low)
            else:
                chosen = torch.minimum(torch.maximum(chosen, low), high)
        action = self.signature.action
        return chosen.reshape(-1, *action.shape).to(getattr(torch, action.dtype))

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Inputs of this batch size: zeros, or ones where zero is not allowed."""
        given = []
        for port in self.signature.inputs():
            array = np.ones if port == self.signature.action_mask else np.zeros
            given.append(torch.from_numpy(array((rows, *port.shape), port.dtype)))
        return tuple(given)


def _unscaled(space: spaces.Space, normalize: VecNormalize | None) -> spaces.Space:
    if normalize is None or not normalize.norm_obs:
        return space
    given = normalize.venv.observation_space
    if not isinstance(space, spaces.Dict):
        return given
    scaled = normalize.norm_obs_keys or ()
    return spaces.Dict([(key, given[key] if key in scaled else part) for key, part in space.spaces.items()])  # type: ignore[index]


def _copied(policy: MemoryActorCriticPolicy) -> MemoryActorCriticPolicy:
    """A copy of what acts, on the CPU."""
    # what SB3's distributions hold of the last call may have a graph, which cannot be copied
    distribution = copy.copy(policy.action_dist)
    if isinstance(distribution, MultiCategorical):
        distribution.parts = [copy.copy(part) for part in distribution.parts]
    copied = copy.deepcopy(policy, {id(policy.action_dist): distribution}).cpu().requires_grad_(False)
    copied.set_training_mode(False)
    # the critic's own memory acts on nothing
    copied.shares_memory, copied.memory_critic = True, copied.memory
    return copied


class Statistics(nn.Module):
    """What a `VecNormalize` does to observations, by the means and variances that it has now."""

    def __init__(self, normalize: VecNormalize) -> None:
        super().__init__()
        self.epsilon, self.clip = normalize.epsilon, normalize.clip_obs
        moments = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {None: normalize.obs_rms}
        self.keys = list(moments)
        for number, rms in enumerate(moments.values()):
            self.register_buffer(f"mean_{number}", torch.as_tensor(np.asarray(rms.mean), dtype=torch.float64))
            self.register_buffer(f"var_{number}", torch.as_tensor(np.asarray(rms.var), dtype=torch.float64))

    def forward(self, obs: Any) -> Any:
        """Normalise a tree of [B, ...]."""
        for number, key in enumerate(self.keys):
            mean, var = self.get_buffer(f"mean_{number}"), self.get_buffer(f"var_{number}")
            x = obs if key is None else obs[key]
            scaled = ((x.double() - mean) / (var + self.epsilon).sqrt()).clamp(-self.clip, self.clip).float()
            obs = scaled if key is None else {**obs, key: scaled}
        return obs


def _strategy(memory: Memory, obs: Any) -> Tensor | None:
    """`spaces.greedy_strategy` by torch's operations alone."""
    values = getattr(memory, "strategy_values", None)
    if values is None:
        return None
    rows = next(iter(obs.values())) if isinstance(obs, dict) else obs
    return values(task_of(obs, rows.shape[0])).argmax(1)


def signature_of(policy: MemoryActorCriticPolicy, space: spaces.Space, masked: bool) -> Signature:
    """What the step of a policy takes and gives, with observations of `space`."""
    if isinstance(space, spaces.Dict):
        observations = [_observed(f"observation.{key}", part) for key, part in space.spaces.items()]
    else:
        observations = [_observed("observation", space)]
    states = [_held(f"state.{name}", leaf[0]) for name, leaf in policy.memory.initial_state(1)._asdict().items()]
    mask = Port("action_mask", "bool", (sum(mask_sizes(policy.action_space)),)) if masked else None
    discrete = isinstance(policy.action_space, spaces.Discrete | spaces.MultiDiscrete)
    action = Port("action", "int64" if discrete else "float32", tuple(policy.action_space.shape))  # type: ignore[arg-type]
    return Signature(observations, states, Port("episode_start", "bool", ()), mask, action)


def _observed(name: str, space: spaces.Space) -> Port:
    return Port(name, np.dtype(space.dtype).name, tuple(space.shape))  # type: ignore[arg-type]


def _held(name: str, leaf: Tensor) -> Port:
    array = leaf.numpy(force=True)
    same = array.size > 0 and (array == array.flat[0]).all()
    return Port(name, array.dtype.name, array.shape, array.flat[0].item() if same else array.tolist())

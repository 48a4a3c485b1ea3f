"""Whether a file acts as `predict` does, over whole episodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from palimpsest.agents.export.formats import Loaded, NotExported
from palimpsest.agents.export.step import Port
from palimpsest.agents.masks import get_action_masks, mask_sizes
from palimpsest.agents.policy.memory_pair import PairState
from palimpsest.agents.policy.spaces import greedy_strategy
from palimpsest.agents.tree import tree_map

MOST_STEPS = 2000
"""Steps after which a check ends, as some episodes never do."""
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far a float of a state may be off, by the largest of its tensor."""
TIE = 1e-4
"""Actions whose log-probabilities differ by less are equally good: rounding decides between them."""


class Checked(NamedTuple):
    """What was compared."""

    episodes: int
    steps: int
    """Of all rows together."""
    ties: int
    """Steps at which the file took another of two equally likely actions."""
    difference: float
    """Largest difference of a float of a state."""


class Rows(Protocol):
    """What observations come from: some rows of an environment, or chance."""

    num_envs: int

    def reset(self) -> Any:
        """The first observations."""

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray]:
        """The next observations, and which rows begin an episode with them."""

    def masks(self) -> np.ndarray:
        """The choices that are allowed now, [B, n]."""


class Played:
    """The rows of a VecEnv, below its `VecNormalize`.

    Args:
        env: the VecEnv.
        space: that of the observations; images are brought into it, and texts left out, as agents' own wrappers do.
    """

    def __init__(self, env: VecEnv, space: spaces.Space) -> None:
        normalize = unwrap_vec_normalize(env)
        self.env = env if normalize is None else normalize.venv
        self.num_envs, self.space = env.num_envs, space

    def reset(self) -> Any:
        """Reset the environments."""
        return self._read(self.env.reset(), self.space)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray]:
        """Step the environments."""
        obs, _, start, _ = self.env.step(actions)
        return self._read(obs, self.space), start

    def _read(self, obs: Any, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._read(obs[key], part) for key, part in space.spaces.items()}
        # an environment may write the next observation into the same array
        return np.array(maybe_transpose(obs, space))

    def masks(self) -> np.ndarray:
        """Ask the environments."""
        return get_action_masks(self.env)


class Drawn:
    """Three rows of observations, ends and masks drawn at random, where there is no environment."""

    num_envs = 3

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.space, self.actions, self.rng = copy.deepcopy(observation_space), action_space, np.random.default_rng(0)
        self.space.seed(0)

    def reset(self) -> Any:
        """Draw observations."""
        return tree_map(lambda *rows: np.stack(rows), *(self.space.sample() for _ in range(self.num_envs)))

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray]:
        """Draw observations, and ends of episodes of 20 steps on average."""
        return self.reset(), self.rng.random(self.num_envs) < 0.05

    def masks(self) -> np.ndarray:
        """Draw masks that allow something of every choice."""
        sizes = mask_sizes(self.actions)
        allowed = self.rng.random((self.num_envs, sum(sizes))) < 0.5
        firsts = np.cumsum([0, *sizes[:-1]])
        allowed[:, firsts] |= ~np.logical_or.reduceat(allowed, firsts, axis=1)
        return allowed


def check(model: Any, loaded: Loaded, rows: Rows, episodes: int, seen: Callable[[Any], Any]) -> Checked:
    """Play until every row has ended an episode, and all of them `episodes`; agent and file act from their own states.

    Of an agent whose actor and critic have a memory each, the file holds the actor's.

    Args:
        model: the agent.
        loaded: the file.
        rows: what is played.
        episodes: 1 or more; fewer are played where `MOST_STEPS` end it.
        seen: what `predict` reads of an observation.

    Raises:
        NotExported: they do not act alike, or their states part.
    """
    signature, B = loaded.signature, rows.num_envs
    held = [np.zeros((B, *port.shape), port.dtype) for port in signature.states]
    obs, state, start = rows.reset(), None, np.ones(B, dtype=bool)
    ended, steps, ties, difference = np.zeros(B, np.int64), 0, 0, 0.0
    while steps < MOST_STEPS and (ended.sum() < episodes or not ended.all()):
        masks = {} if signature.action_mask is None else {"action_masks": rows.masks()}
        before, given = state, [*(obs.values() if isinstance(obs, dict) else [obs]), *held, start, *masks.values()]
        expected, state = model.predict(seen(obs), state, start, True, **masks)
        outputs = action, *held = loaded.run(given)
        if not _alike(action, expected):
            if not _tied(model.policy, seen(obs), before, start, masks, [action, expected]):
                raise NotExported(
                    f"at step {steps} the file's action is {action.tolist()}, the agent's {expected.tolist()}"
                )
            ties += 1
        acting = state.actor if isinstance(state, PairState) else state
        for port, found, wanted in zip(signature.states, held, acting, strict=True):
            difference = max(difference, _parted(port, found, wanted, steps))
        if steps == 0:
            _check_one_row(loaded, given, outputs)
        obs, start = rows.step(expected)
        ended += start
        steps += 1
    return Checked(int(ended.sum()), steps * B, ties, difference)


def _check_one_row(loaded: Loaded, given: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    """The first row alone gives what it gives among others."""
    for port, alone, among in zip(loaded.signature.outputs(), loaded.run([each[:1] for each in given]), outputs):
        _parted(port, alone, among[:1], 0)


def _alike(action: np.ndarray, expected: np.ndarray) -> bool:
    exact = np.issubdtype(expected.dtype, np.integer)
    if action.shape != expected.shape:
        return False
    return bool((action == expected).all()) if exact else np.allclose(action, expected, RELATIVE, ABSOLUTE)


def _tied(
    policy: Any, obs: Any, state: Any, start: np.ndarray, masks: dict[str, np.ndarray], actions: list[np.ndarray]
) -> bool:
    """Whether all these choices are equally likely to the agent. Where actions are numbers nothing is a tie."""
    if isinstance(policy.action_space, spaces.Box) or actions[0].shape != actions[1].shape:
        return False
    read, _ = policy.obs_to_tensor(obs)
    B, memory = len(start), policy.memory

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(array, device=policy.device)

    with torch.no_grad():
        before = policy.initial_state(B) if state is None else tree_map(tensor, state)
        strategy, allowed = greedy_strategy(memory, read, B), tree_map(tensor, masks)
        distribution, _ = policy.get_distribution(read, before, tensor(start), strategy, **allowed)
        flat = (each.reshape(B, -1) if policy.action_space.shape else each for each in actions)
        first, second = (distribution.log_prob(tensor(each)) for each in flat)
    return bool(((first - second).abs() < TIE).all())


def _parted(port: Port, found: np.ndarray, wanted: np.ndarray, step: int) -> float:
    """The largest difference of a part of a state.

    Raises:
        NotExported: it is too large, or shapes or types differ.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise NotExported(
            f"at step {step} {port.name} is {list(found.shape)} {found.dtype} in the file and "
            f"{list(wanted.shape)} {wanted.dtype} in the agent"
        )
    if not wanted.size:
        return 0.0
    difference = float(np.abs(found.astype(np.float64) - wanted).max())
    exact = np.issubdtype(wanted.dtype, np.integer)
    # NaN is not within anything
    if not difference <= (0 if exact else ABSOLUTE + RELATIVE * float(np.abs(wanted).max())):
        raise NotExported(f"at step {step} {port.name} is off by {difference:.2g} in the file")
    return difference

"""Checks for NaN and infinity during training. An error names the tensor, the environment row and the step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from palimpsest.agents.learn.buffers import MemoryRolloutBuffer, Minibatch
from palimpsest.agents.learn.loss import LossWeights, evaluated, ppo_loss
from palimpsest.agents.observation_checks import not_finite, outside_space
from palimpsest.agents.policy.distributions import Undrawable
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.tree import tree_map

ADVICE = (
    "training stopped before it spoils a checkpoint; lower the learning rate, or normalise rewards and observations"
)


class Algorithm(Protocol):
    """The attributes of an algorithm that the checks read: its policy, its rollout and the policy's next input."""

    policy: MemoryActorCriticPolicy
    rollout_buffer: MemoryRolloutBuffer
    num_timesteps: int
    _last_obs: np.ndarray | dict[str, np.ndarray] | None
    _last_memory_starts: np.ndarray | None
    _last_episode_starts: np.ndarray | None
    _last_strategy: Tensor | None
    _told_of_outside: bool
    observation_space: spaces.Space

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The VecNormalize around its environments."""

    def recall(self) -> Any:
        """The memory before the step under way."""


class NotFinite(FloatingPointError):
    """NaN or infinity in a training.

    Args:
        message: names the tensor, the environment row and the step.
        check: name of the check that failed, as `agents.learn.failure.reproduce` lists it.
        evidence: the inputs of that check, besides the model: a dict of values, arrays and tensors.
    """

    def __init__(self, message: str, check: str, evidence: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.check = check
        self.evidence = dict(evidence)


def check_observation(
    observation: Any, step: int, name: str = "observation", rows: Sequence[int] | None = None
) -> None:
    """Refuse an observation [B, ...] (or a dict of them) that is not finite, seen at environment step `step`.

    Args:
        observation: the policy's next observation.
        step: environment steps before it.
        name: its name in the message.
        rows: indices of its environment rows; None for all rows.
    """
    if found := not_finite(observation, name):
        part, value, (row, *inside) = found
        raise NotFinite(
            f"{part} holds {value} at index {[row if rows is None else rows[row], *inside]} (environment row first) "
            f"at step {step}; observations must be finite: check the environment, or VecNormalize's statistics",
            "observation",
            {"observation": observation, "step": step, "name": name, "rows": rows},
        )


def check_rewards(rewards: np.ndarray, step: int) -> None:
    """Refuse rewards [B] that are not finite. They are of the step after `step` environment steps."""
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(rewards))[0])
        raise NotFinite(
            f"the reward is {rewards[row]} in environment row {row} at step {step}; rewards must be finite: check the "
            "environment, or the wrappers around it",
            "rewards",
            {"rewards": rewards, "step": step},
        )


@contextmanager
def explained_step(model: Algorithm) -> Iterator[None]:
    """Explain an error of the acting policy: look at its parameters, the memory and the observations, in this order.

    Raises:
        NotFinite: a parameter, the memory's state, the policy's value or its logits are not finite.
        ValueError: an observation is a category outside its space.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        found = in_step(model)
        if not found and isinstance(error, Undrawable):
            found = f"{error} at step {model.num_timesteps}"
        if found:
            raise NotFinite(f"{found}; {ADVICE}", "step", {}) from error
        # of the finite observations, only a category outside its space makes a policy fail
        check_categories(model.policy.observation_space, model._last_obs, model.num_timesteps, error)
        raise


def check_categories(
    space: spaces.Space,
    observation: Any,
    step: int,
    cause: Exception | None = None,
    rows: Sequence[int] | None = None,
) -> None:
    """Refuse a category of an observation [B, ...] (or a dict of them) that is outside its space.

    Args:
        space: of one observation; other parts of it than Discrete and MultiDiscrete are not looked at.
        observation: finite.
        step: environment steps before it.
        cause: the error that is explained, if there was one.
        rows: indices of its environment rows; None for all rows.
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    others = {key for key, part in parts.items() if not isinstance(part, spaces.Discrete | spaces.MultiDiscrete)}
    if outside := outside_space(space, observation, frozenset(others)):
        row, *inside = outside.place
        outside = outside._replace(place=(row if rows is None else int(rows[row]), *inside))
        raise ValueError(f"{outside.at(step)}; correct observation_space, or the environment") from cause


def check_actions(model: Algorithm, actions: np.ndarray) -> None:
    """Refuse actions [B, ...] of the policy that are not finite, before they reach an environment."""
    if actions.dtype.kind == "f" and not np.isfinite(actions).all():
        bad = np.argwhere(~np.isfinite(actions))[0]
        found = in_step(model) or f"the policy's action is not finite in environment row {bad[0]}"
        raise NotFinite(f"{found}; {ADVICE}", "step", {})


def in_step(model: Algorithm) -> str:
    """What is not finite when the policy reads its last observation, in words; "" if nothing is found."""
    if found := in_parameters(model.policy):
        return found
    where = f"at step {model.num_timesteps}"
    for leaf in _leaves(model.recall()):
        if (bad := _first_index(leaf)) is not None:
            return f"the memory's state holds {leaf[bad].item()} in environment row {bad[0]} {where}"
    try:
        with torch.no_grad():
            values = model.policy.predict_values(**policy_input(model))
    except (RuntimeError, ValueError):
        return ""
    bad = _first_index(values)
    return "" if bad is None else f"the policy's value is {values[bad].item()} in environment row {bad[0]} {where}"


def policy_input(model: Algorithm) -> dict[str, Any]:
    """The policy's next input: observation, state, starts and strategy, by the names of its arguments."""
    obs, start, episode_start = tree_map(
        lambda array: torch.as_tensor(array, device=model.policy.device),
        # off-policy, memories begin where episodes do
        (
            model._last_obs,
            getattr(model, "_last_memory_starts", model._last_episode_starts),
            model._last_episode_starts,
        ),
    )
    found = dict(obs=obs, state=model.recall(), start=start, strategy=getattr(model, "_last_strategy", None))
    return found | (dict(episode_start=episode_start) if model.policy.mark_starts else {})


def check_rollout(model: Algorithm) -> None:
    """Refuse a rollout with a return or a log-probability that is not finite."""
    buffer = model.rollout_buffer
    if not (torch.isfinite(buffer.columns.returns).all() and torch.isfinite(buffer.columns.old_log_prob).all()):
        raise_for_rollout(model.policy, buffer.columns, _first_step(model))


def warn_outside(model: Algorithm) -> None:
    """Warn, once in a model's life, of an observation in the rollout that the environment's space does not hold.

    What a VecNormalize changes is not looked at: it leaves the space of what it normalises as it was.
    """
    if model._told_of_outside:
        return
    normalize = model.get_vec_normalize_env()
    skip: frozenset[str] = frozenset()
    if normalize is not None and normalize.norm_obs:
        if not isinstance(model.observation_space, spaces.Dict):
            return
        skip = frozenset(normalize.norm_obs_keys or ())
    buffer = model.rollout_buffer
    found = outside_space(model.observation_space, buffer.columns.observations, skip)
    if found is not None:
        model._told_of_outside = True
        step = model.num_timesteps - (buffer.pos - found.place[0]) * buffer.n_envs
        warnings.warn(f"{found.at(step, 2)}; correct the space or the environment (said once)", stacklevel=2)


def raise_for_rollout(policy: MemoryActorCriticPolicy, rollout: Minibatch, first_step: int) -> NoReturn:
    """Raise `NotFinite` for a rollout that began at environment step `first_step`; the message names the tensor."""
    found = in_parameters(policy) or in_rollout(rollout, first_step) or "the policy's output is not finite"
    raise NotFinite(f"{found}; {ADVICE}", "rollout", {"rollout": rollout._asdict(), "first_step": first_step})


def check_update(model: Algorithm, figures: Tensor, batch: Minibatch, weights: LossWeights) -> None:
    """Refuse a gradient step if the loss or the gradient is not finite. The parameters stay as they were.

    Args:
        model: the algorithm that takes the step.
        figures: [], the sum of the KL estimate, the loss and the norm of all gradients. It must be finite.
        batch: the minibatch of these figures.
        weights: weights of the loss.
    """
    if not torch.isfinite(figures):
        raise_for_update(model.policy, batch, weights, model.rollout_buffer.columns, _first_step(model))


def raise_for_update(
    policy: MemoryActorCriticPolicy, batch: Minibatch, weights: LossWeights, rollout: Minibatch, first_step: int
) -> NoReturn:
    """Raise `NotFinite` for a minibatch's loss or gradient. The whole `rollout` tells where the first cause is."""
    found = in_parameters(policy) or in_rollout(rollout, first_step) or _in_evaluation(policy, rollout, first_step)
    raise NotFinite(
        f"{found or _in_loss(policy, batch, weights) or _in_gradients(policy, batch, weights)}; {ADVICE}",
        "update",
        {
            "batch": batch._asdict(),
            "weights": weights._asdict(),
            "rollout": rollout._asdict(),
            "first_step": first_step,
        },
    )


def check_parameters(policy: MemoryActorCriticPolicy, step: int) -> None:
    """Refuse parameters that are not finite after an update that ended at environment step `step`."""
    if found := in_parameters(policy):
        raise NotFinite(f"{found} after step {step}; {ADVICE}", "parameters", {"step": step})


def _first_step(model: Algorithm) -> int:
    """Environment steps before the rollout that has just ended."""
    buffer = model.rollout_buffer
    return model.num_timesteps - buffer.pos * buffer.n_envs


def in_parameters(policy: MemoryActorCriticPolicy) -> str:
    """The first parameter that is not finite, in words; "" if all are finite."""
    return _first_bad("parameter ", {name: p.detach() for name, p in policy.named_parameters()})


def _in_gradients(policy: MemoryActorCriticPolicy, batch: Minibatch, weights: LossWeights) -> str:
    policy.optimizer.zero_grad()  # the old ones were clipped by a norm that is not finite, which spoiled all of them
    ppo_loss(policy, batch, weights)[0].backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return _first_bad("the gradient of ", gradients) or "the norm of the gradients is not finite"


def _first_bad(kind: str, tensors: dict[str, Tensor]) -> str:
    for name, tensor in tensors.items():
        if (bad := _first_index(tensor)) is not None:
            return f"{kind}{name} holds {tensor[bad].item()} at index {list(bad)}"
    return ""


def in_rollout(rollout: Minibatch, first_step: int) -> str:
    """The first tensor of a rollout that is not finite, in the order of computation; "" if all are finite."""
    for name in ("state", "observations", "old_values", "old_log_prob", "actions", "returns", "advantages"):
        for leaf in _leaves(getattr(rollout, name)):
            bad = _first_index(leaf)
            if bad is None:
                continue
            if name == "state":
                return f"the memory's state holds {leaf[bad].item()} in environment row {bad[0]} at step {first_step}"
            return _place(name.removeprefix("old_").replace("log_prob", "log-probability"), leaf, bad, first_step)
    return ""


def _in_evaluation(policy: MemoryActorCriticPolicy, rollout: Minibatch, first_step: int) -> str:
    """The first output of the policy's scan of a rollout that is not finite; "" if all are finite."""
    with torch.no_grad():
        seen = evaluated(policy, rollout)
    names = {"values": "the value", "log_prob": "the log-probability", "entropy": "the entropy"}
    for name, words in (names | {"reconstruction": "the reconstruction error"}).items():
        tensor = getattr(seen, name)
        if tensor is not None and (bad := _first_index(tensor)) is not None:
            return _place(f"{words} of the updated policy", tensor, bad, first_step)
    return ""


def _in_loss(policy: MemoryActorCriticPolicy, batch: Minibatch, weights: LossWeights) -> str:
    with torch.no_grad():
        _, record = ppo_loss(policy, batch, weights)
    bad = [f"{name} {value.item()}" for name, value in record.items() if not torch.isfinite(value)]
    return f"the loss is not finite: {', '.join(bad)}" if bad else ""


def _place(name: str, tensor: Tensor, bad: tuple[int, ...], first_step: int) -> str:
    t, row = bad[:2]
    step = first_step + t * tensor.shape[1]
    return (
        f"{name} {'are' if name.endswith('s') else 'is'} {tensor[bad].item()} in environment row {row}"
        f"{_inside(bad[2:])} at step {step} (step {t} of the rollout)"
    )


def _inside(index: Any) -> str:
    """The index inside one row's array, in words; "" for a row that is a single number."""
    return f", index {[int(i) for i in index]}," if len(index) else ""


def _first_index(tensor: Tensor) -> tuple[int, ...] | None:
    if not tensor.is_floating_point() or torch.isfinite(tensor).all():
        return None
    return tuple(int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])


def _leaves(tree: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    tree_map(leaves.append, tree)
    return leaves

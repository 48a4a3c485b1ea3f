"""Distributions over actions with SB3's interface, without the checks and copies that torch's make at every step.

Each is equal in law to SB3's: the same log-probabilities, entropies and modes, samples from the same probabilities,
drawn from torch's generator. `distribution` is what SB3 users find there: torch's own, made when asked for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from torch import Tensor
from torch.nn import functional

from palimpsest.agents.workers.draws import normal_like, switched, uniform
from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels, is_watched

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def make_distribution(action_space: spaces.Space) -> sb3.Distribution:
    """The distribution of a Discrete, MultiDiscrete, MultiBinary or Box space of one dimension; refusals are SB3's."""
    made = sb3.make_proba_distribution(action_space)
    if isinstance(made, sb3.CategoricalDistribution):
        return Categorical(made.action_dim)
    if isinstance(made, sb3.MultiCategoricalDistribution):
        return MultiCategorical(made.action_dims)
    if isinstance(made, sb3.BernoulliDistribution):
        return Bernoulli(made.action_dims)
    assert isinstance(made, sb3.DiagGaussianDistribution)
    return DiagGaussian(made.action_dim)


def restricted(distribution: sb3.Distribution, masks: Tensor | None) -> sb3.Distribution:
    """`distribution`, among what `masks` [N, n] bool allow; None for everything.

    Raises:
        ValueError: a distribution of a user's own that has no `apply_masking`.
    """
    if masks is not None:
        if not hasattr(distribution, "apply_masking"):
            raise ValueError(
                f"action masks need a distribution with apply_masking(masks); {type(distribution).__name__} has none: "
                "define it, or leave the masks out with use_masking=False"
            )
        distribution.apply_masking(masks)
    return distribution


def draw(distribution: sb3.Distribution, deterministic: bool) -> tuple[Tensor, Tensor]:
    """Actions [N, ...], samples or modes, and their log-probabilities [N]."""
    if isinstance(distribution, Categorical) and not deterministic:
        return distribution.sample_with_log_prob()
    actions = distribution.get_actions(deterministic)
    return actions, log_prob_of(distribution, actions)


def log_prob_of(distribution: sb3.Distribution, drawn: Tensor) -> Tensor:
    """Log-probabilities [N] of the actions [N, ...] that `distribution` has just given out.

    Those of a squashed distribution come from the numbers before tanh, as in SB3's SAC. float32 rounds tanh to 1 from 9
    on, so the inverse of the action would not be the number that was drawn.
    """
    if isinstance(distribution, sb3.SquashedDiagGaussianDistribution):
        return distribution.log_prob(drawn, distribution.gaussian_actions)
    return distribution.log_prob(drawn)


class _Remade:
    """A copy of a policy, pickled or not, does not get the numbers of the last call, which may have a graph."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}


def _checks() -> bool | None:
    """Whether torch checks the numbers of a distribution; None for its default. A recording cannot depend on them."""
    return False if is_watched() else None


class Categorical(_Remade, sb3.CategoricalDistribution):
    """One of n actions, from logits [N, n]; -inf for what cannot be chosen."""

    _logits: Tensor
    _log_probs: Tensor | None

    def proba_distribution(self, action_logits: Tensor) -> Categorical:
        """Take the logits; nothing is computed yet."""
        self._logits, self._log_probs = action_logits, None
        return self

    def apply_masking(self, masks: Tensor) -> None:
        """Allow only the actions where `masks` [N, n] bool is true, of those that were allowed."""
        self.proba_distribution(self._logits.masked_fill(~masks, -torch.inf))

    @property
    def distribution(self) -> torch.distributions.Categorical:  # type: ignore[override]
        """The same as torch has it."""
        return torch.distributions.Categorical(logits=self._logits, validate_args=_checks())

    @property
    def log_probs(self) -> Tensor:
        """The logarithms of the probabilities [N, n]."""
        if self._log_probs is None:
            self._log_probs = self._logits.log_softmax(-1)
        return self._log_probs

    def log_prob(self, actions: Tensor) -> Tensor:
        """[N], of actions [N] in 0 to n - 1."""
        return self.log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """[N], in nats; what cannot be chosen adds nothing."""
        # 0 * -inf would be NaN
        finite = self.log_probs.clamp(min=torch.finfo(self._logits.dtype).min)
        return -(finite.exp() * finite).sum(-1)

    def sample(self) -> Tensor:
        """[N] int64."""
        return self.sample_with_log_prob()[0]

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """Actions [N] int64 by inverting the distribution function, one uniform number each, and their log_prob [N]."""
        logits = self._logits
        # Apple's processors have no float64
        device = torch.device("cpu") if logits.device.type == "mps" else logits.device
        numbers = uniform(len(logits), device)
        if logits.requires_grad or not has_kernels(logits):
            actions = invert(logits.detach().to(device), numbers).to(logits.device)
            return actions, self.log_prob(actions)
        actions, log_prob = torch.empty(len(logits), dtype=torch.int64), logits.new_empty(len(logits))
        check_drawn(logits, invert_into(logits.numpy(), numbers.numpy(), actions.numpy(), log_prob.numpy()))
        return actions, log_prob

    def mode(self) -> Tensor:
        """[N] int64, the likeliest."""
        return self._logits.argmax(-1)


def invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """The first action at which the distribution function exceeds a uniform number.

    Args:
        logits: [N, n] floats.
        uniform: [N] float64 in [0, 1).

    Returns:
        [N] int64. An action of probability zero is never returned.

    Raises:
        Undrawable: a row without a distribution.
    """
    cumulated = (logits.double() - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    bad = (~cumulated[:, -1].isfinite()).nonzero()
    check_drawn(logits, int(bad[0]) if len(bad) else -1)
    # searchsorted counts what is at most the threshold: the index of the first that exceeds it
    return torch.searchsorted(cumulated, (uniform * cumulated[:, -1]).unsqueeze(-1), right=True).squeeze(-1)


@njit(cache=True)
def invert_into(logits: np.ndarray, uniform: np.ndarray, actions: np.ndarray, log_prob: np.ndarray) -> int:
    """Fill actions [N] as `invert` does, and their log_prob [N]; the first row with no finite sum, or -1."""
    N, n = logits.shape
    for row in range(N):
        # compiled, float() would leave float32 as it is
        highest = np.float64(logits[row, 0])
        for a in range(1, n):
            highest = max(highest, np.float64(logits[row, a]))
        total = 0.0
        for a in range(n):
            total += math.exp(np.float64(logits[row, a]) - highest)
        if not 0.0 < total < math.inf:
            return row
        threshold = uniform[row] * total
        action, cumulated = 0, 0.0
        for a in range(n):
            part = math.exp(np.float64(logits[row, a]) - highest)
            # the last that can be chosen is taken if rounding leaves the sum below the threshold
            if part > 0.0:
                action = a
                cumulated += part
                if cumulated > threshold:
                    break
        actions[row] = action
        log_prob[row] = np.float64(logits[row, action]) - highest - math.log(total)
    return -1


class Undrawable(ValueError):
    """Logits from which no action can be drawn: NaN or infinity among them, or all of them minus infinity."""


def check_drawn(logits: Tensor, bad: int) -> None:
    """Refuse logits [N, n] of which row `bad` has no distribution; -1 for none."""
    if bad >= 0:
        wrong = (logits[bad].isnan() | logits[bad].isposinf()).nonzero()
        found = f"that of action {int(wrong[0])} is {logits[bad, wrong[0]].item()}" if len(wrong) else "all are -inf"
        raise Undrawable(f"no action can be drawn from the logits of row {bad}: {found}")


class MultiCategorical(_Remade, sb3.MultiCategoricalDistribution):
    """Several independent choices, from the logits of one after the other [N, sum of n]."""

    def __init__(self, action_dims: list[int]) -> None:
        super().__init__(action_dims)
        self.parts = [Categorical(int(n)) for n in action_dims]

    def proba_distribution(self, action_logits: Tensor) -> MultiCategorical:
        """Take the logits."""
        for part, logits in zip(self.parts, self._split(action_logits)):
            part.proba_distribution(logits)
        return self

    def apply_masking(self, masks: Tensor) -> None:
        """Allow only what `masks` [N, sum of n] bool say, of what was allowed."""
        for part, mask in zip(self.parts, self._split(masks)):
            part.apply_masking(mask)

    def _split(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """[N, sum of n] as one [N, n] for each choice."""
        return numbers.split([part.action_dim for part in self.parts], -1)

    @property
    def distribution(self) -> list[torch.distributions.Categorical]:  # type: ignore[override]
        """The same as torch has them."""
        return [part.distribution for part in self.parts]

    def log_prob(self, actions: Tensor) -> Tensor:
        """[N], of actions [N, choices]."""
        return torch.stack([part.log_prob(chosen) for part, chosen in zip(self.parts, actions.unbind(-1))], -1).sum(-1)

    def entropy(self) -> Tensor:
        """[N], in nats."""
        return torch.stack([part.entropy() for part in self.parts], -1).sum(-1)

    def sample(self) -> Tensor:
        """[N, choices] int64."""
        return torch.stack([part.sample() for part in self.parts], -1)

    def mode(self) -> Tensor:
        """[N, choices] int64."""
        return torch.stack([part.mode() for part in self.parts], -1)


class Bernoulli(_Remade, sb3.BernoulliDistribution):
    """Independent switches, from logits [N, n]; actions are 0.0 or 1.0."""

    _logits: Tensor

    def proba_distribution(self, action_logits: Tensor) -> Bernoulli:
        """Take the logits."""
        self._logits = action_logits
        return self

    def apply_masking(self, masks: Tensor) -> None:
        """Allow only what `masks` [N, 2 n] bool say, of each switch first 0, then 1."""
        off, on = masks.unflatten(-1, (-1, 2)).unbind(-1)
        # at the largest number a probability is 0 or 1 exactly, and its logarithm is finite
        largest = torch.finfo(self._logits.dtype).max
        self._logits = self._logits.masked_fill(~off, largest).masked_fill(~on, -largest)

    @property
    def distribution(self) -> torch.distributions.Bernoulli:  # type: ignore[override]
        """The same as torch has it."""
        return torch.distributions.Bernoulli(logits=self._logits, validate_args=_checks())

    def log_prob(self, actions: Tensor) -> Tensor:
        """[N], of actions [N, n]."""
        return -functional.binary_cross_entropy_with_logits(self._logits, actions, reduction="none").sum(-1)

    def entropy(self) -> Tensor:
        """[N], in nats."""
        p = self._logits.sigmoid()
        return functional.binary_cross_entropy_with_logits(self._logits, p, reduction="none").sum(-1)

    def sample(self) -> Tensor:
        """[N, n] floats."""
        return switched(self._logits.detach().sigmoid())

    def mode(self) -> Tensor:
        """[N, n] floats; 0 where both are equally likely."""
        return (self._logits > 0).to(self._logits.dtype)


class DiagGaussian(_Remade, sb3.DiagGaussianDistribution):
    """Independent normal numbers: means [N, n] and one standard deviation for each of the n."""

    _mean: Tensor
    _log_std: Tensor

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor) -> DiagGaussian:
        """Take means [N, n] and the logarithm of the standard deviations [n]."""
        self._mean, self._log_std = mean_actions, log_std
        return self

    @property
    def distribution(self) -> torch.distributions.Normal:  # type: ignore[override]
        """The same as torch has it."""
        return torch.distributions.Normal(self._mean, self._log_std.exp().expand_as(self._mean), _checks())

    def log_prob(self, actions: Tensor) -> Tensor:
        """[N], the logarithm of the density at actions [N, n]."""
        z = (actions - self._mean) * (-self._log_std).exp()
        return -(0.5 * z.square() + self._log_std + HALF_LOG_TAU).sum(-1)

    def entropy(self) -> Tensor:
        """[N], in nats."""
        return (self._log_std + (0.5 + HALF_LOG_TAU)).sum().expand(len(self._mean))

    def sample(self) -> Tensor:
        """[N, n], with a gradient to means and deviations."""
        return torch.addcmul(self._mean, normal_like(self._mean), self._log_std.exp())

    def mode(self) -> Tensor:
        """[N, n], the means."""
        return self._mean

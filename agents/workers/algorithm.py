"""An algorithm of SB3's that several workers train together: whose rows, seeds, noise and episodes are whose."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from palimpsest.agents.workers.draws import part_of
from palimpsest.agents.workers.group import Alone, here
from palimpsest.agents.workers.parts import Part

Ends = list[tuple[int, list[dict[str, Any]]]]
"""Steps of a rollout at which episodes ended here, each with the infos of these episodes."""


class DividedAlgorithm(BaseAlgorithm):
    """Holds the environments of its own rows. With one worker these are all."""

    @property
    def workers(self) -> Alone:
        """The processes that train this agent together. Each holds the environments of its own rows."""
        return here()

    @property
    def whole_envs(self) -> int:
        """B, the environments of all workers; `n_envs` is how many are here."""
        return self.workers.size * self.n_envs

    def _prepare_division(self) -> None:
        """Before the policy is made: one seed for all, and no statistics of one worker's rows alone."""
        if self.workers.size == 1:
            return
        if self.get_vec_normalize_env() is not None:
            raise ValueError(
                "VecNormalize has statistics of its own in every worker; use MemoryPPO's normalize_observations=True "
                "and normalize_returns=True instead"
            )
        if self.seed is None:
            self.seed = self.workers.of_first(random.randrange(2**31))

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what draws; the environment of row i of the whole batch has seed + i."""
        super().set_random_seed(seed)
        first = self.workers.rows(self.n_envs).start
        if seed is not None and first:
            # environments of a user's own may draw from the global streams; no two workers' draw the same
            random.seed(seed + first)
            np.random.seed((seed + first) % 2**32)  # noqa: NPY002
            if self.env is not None:
                self.env.seed(seed + first)

    def _reset_noise(self) -> None:
        """Draw gSDE's noise for all rows of the whole batch, and keep that of own rows."""
        self.policy.reset_noise(self.whole_envs)  # type: ignore[operator]
        if self.workers.size > 1:
            noise: Any = self.policy.action_dist
            noise.exploration_matrices = noise.exploration_matrices[self.workers.rows(self.n_envs)]
            if self.n_envs == 1:
                noise.exploration_mat = noise.exploration_matrices[0]

    def _own_draws(self, part: Part) -> contextlib.AbstractContextManager[None]:
        """Within it, the actions of a part's rows get the random numbers that they get in the whole batch."""
        if part.whole and self.workers.size == 1:
            return contextlib.nullcontext()
        first = self.workers.rows(self.n_envs).start
        rows = slice(first + part.rows.start, first + part.rows.stop)
        return part_of(rows, self.whole_envs) if part.whole else self._half_draws(part, rows)

    @contextlib.contextmanager
    def _half_draws(self, part: Part, rows: slice) -> Iterator[None]:
        """The same for a half. The first leaves torch's generator as it was, so that the second draws the same."""
        devices = [self.device] if self.device.type == "cuda" else []
        first = part.rows.start == 0
        with torch.random.fork_rng(devices, enabled=first), self._noise_of(part.rows), part_of(rows, self.whole_envs):
            yield

    @contextlib.contextmanager
    def _noise_of(self, rows: slice) -> Iterator[None]:
        """Within it, gSDE's noise is that of some of this worker's rows."""
        noise: Any = self.policy.action_dist
        if not self.use_sde:
            yield
            return
        whole = noise.exploration_mat, noise.exploration_matrices
        noise.exploration_matrices = whole[1][rows]
        noise.exploration_mat = noise.exploration_matrices[0]
        try:
            yield
        finally:
            noise.exploration_mat, noise.exploration_matrices = whole

    def _note_episodes(self, ends: Ends) -> None:
        """Note the episodes of all workers, in the order of steps and rows."""
        if self.workers.size > 1:
            every = [end for each in self.workers.objects(ends) for end in each]
            found = [info for _, infos in sorted(every, key=lambda end: end[0]) for info in infos]
            self._update_info_buffer(found, np.ones(len(found), dtype=bool))

    def _note_ended(self, step: int, infos: list[dict[str, Any]], ends: Ends) -> None:
        """Note episodes that ended here. With several workers they wait in `ends` for `_note_episodes`."""
        if self.workers.size == 1:
            self._update_info_buffer(infos, np.ones(len(infos), dtype=bool))
        else:
            # the infos' dicts are the environments', which use them again
            ends.append((step, [{name: info.get(name) for name in ("episode", "is_success")} for info in infos]))

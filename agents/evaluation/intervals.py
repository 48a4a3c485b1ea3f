"""A callback that works between iterations, at intervals."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback


class BetweenIterations(BaseCallback):
    """Calls `work` every `every` environment steps, and at the end of training.

    The call comes before the first rollout that starts at or after a multiple of `every`, never inside a rollout.

    Args:
        every: environment steps; 0 for never.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._last = 0

    def work(self) -> None:
        """The work. A subclass defines it."""
        raise NotImplementedError

    def _on_training_start(self) -> None:
        self._last = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.every and self.num_timesteps // self.every > self._last // self.every:
            self.work()
        self._last = self.num_timesteps

    def _on_training_end(self) -> None:
        if self.every:
            self.work()

    def _on_step(self) -> bool:
        return True

"""What SB3 tests of TensorBoard: folders by name and number, and hyperparameters."""

from __future__ import annotations

import pytest
from situations import MEMORIES, agent, counters
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Hyperparameters(BaseCallback):
    """Logs them with the metric to compare them by."""

    def _on_training_start(self) -> None:
        model = self.model
        given = {
            "algorithm": type(model).__name__,
            "gamma": model.gamma,
            "learning rate": model.learning_rate,
            "memory": model.policy.memory_name,
        }
        self.logger.record(
            "hparams", HParam(given, {"rollout/ep_len_mean": 0}), exclude=("stdout", "log", "json", "csv")
        )

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("memory", MEMORIES)
def test_folders_are_numbered(memory, tmp_path):
    model = agent("Mlp", counters(), memory, tensorboard_log=str(tmp_path))
    model.learn(32, Hyperparameters())
    model.learn(32, reset_num_timesteps=False)
    assert [path.name for path in tmp_path.iterdir()] == ["MemoryPPO_1"]
    for _ in range(2):
        model.learn(32, tb_log_name="with [brackets]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "MemoryPPO_1",
        "with [brackets]_1",
        "with [brackets]_2",
    ]


def test_values_are_at_the_steps_of_both_trainings(tmp_path):
    model = agent("Mlp", counters(), tensorboard_log=str(tmp_path)).learn(64, Hyperparameters())
    model.learn(64, reset_num_timesteps=False)
    model.logger.close()
    events = EventAccumulator(str(tmp_path / "MemoryPPO_1"))
    events.Reload()
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [32, 64, 96, 128]
    assert "_hparams_/session_start_info" in events.summary_metadata

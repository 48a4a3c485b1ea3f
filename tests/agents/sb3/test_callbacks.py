"""What SB3 tests of callbacks, done with MemoryPPO."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from situations import MEMORIES, Kept, Look, agent, counters
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from worlds import Counter

from palimpsest.agents import MemoryPPO


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_callback_of_sb3_at_once(memory, tmp_path):
    model = agent("Mlp", counters(2), memory)
    every = CheckpointCallback(save_freq=8, save_path=tmp_path / "every")
    on_event = CheckpointCallback(save_freq=1, save_path=tmp_path / "event", name_prefix="event")
    event = EveryNTimesteps(n_steps=20, callback=on_event)
    evaluation = EvalCallback(
        counters(1),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=1000),
        callback_after_eval=StopTrainingOnNoModelImprovement(max_no_improvement_evals=50, min_evals=1),
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        eval_freq=8,
        n_eval_episodes=2,
        verbose=0,
    )
    looks = [Look(), Look()]
    together = [every, evaluation, event, LogEveryNTimesteps(n_steps=16), StopTrainingOnMaxEpisodes(1000), looks[0]]
    callbacks = CallbackList([*together, looks[1]])
    model.learn(64, callbacks)
    assert looks[0].locals["new_obs"] is looks[1].locals["new_obs"] is every.locals["new_obs"]
    assert on_event.locals["new_obs"] is looks[0].locals["new_obs"]
    assert model.observation_space.contains(looks[0].seen["new_obs"][0])
    assert (event.num_timesteps, event.n_calls) == (model.num_timesteps, model.num_timesteps // 2)
    assert sorted(path.name for path in (tmp_path / "every").iterdir()) == [
        f"rl_model_{steps}_steps.zip" for steps in (16, 32, 48, 64)
    ]
    assert len(list((tmp_path / "event").iterdir())) == 3
    results = np.load(tmp_path / "log" / "evaluations.npz")
    assert results["timesteps"].tolist() == [16, 32, 48, 64]
    assert (results["results"] == 3).all()
    best = MemoryPPO.load(tmp_path / "best" / "best_model", env=counters(2))
    best.learn(32)
    assert best.num_timesteps == 32


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_a_list_a_function_none_and_a_progress_bar():
    model = agent("Mlp", counters())
    seen = []
    model.learn(32, callback=None)
    model.learn(32, callback=[Look(), Look()], progress_bar=True)
    model.learn(32, callback=lambda names, _globals: seen.append(names["n_steps"]) or True)
    assert seen == list(range(16))


@pytest.mark.parametrize("end", [False, np.bool_(False), torch.tensor(False)], ids=["bool", "numpy", "torch"])
def test_a_callback_ends_the_run(end):
    class End(BaseCallback):
        def _on_step(self):
            return end

    callback = End()
    model = agent("Mlp", counters(), n_steps=1, batch_size=1, stats_window_size=1)
    model.learn(10, callback)
    assert (callback.n_calls, model.num_timesteps) == (1, 2)
    model.learn(10)
    assert model.num_timesteps == 10


def test_training_ends_after_so_many_episodes_in_each_row():
    env = DummyVecEnv([lambda: Counter(7) for _ in range(2)])
    callback = StopTrainingOnMaxEpisodes(max_episodes=2)
    model = agent("Mlp", env, n_steps=64, batch_size=64).learn(512, callback)
    assert callback.n_episodes == 4
    assert model.num_timesteps == 2 * 20


@pytest.mark.parametrize("memory", MEMORIES)
def test_evaluation_in_more_rows_than_training(memory):
    evaluation = EvalCallback(
        DummyVecEnv([IdentityEnv] * 3), eval_freq=16, n_eval_episodes=3, warn=False, deterministic=True, verbose=0
    )
    agent("Mlp", IdentityEnv(), memory).learn(32, evaluation)
    assert 0 <= evaluation.last_mean_reward <= 100
    assert evaluation.n_calls == 32


@pytest.mark.parametrize("memory", ["lstm", "rewrite"])
def test_an_evaluation_leaves_the_trainings_memory_as_it_was(memory):
    class Keep(BaseCallback):
        def _init_callback(self):
            self.states = []

        def _on_step(self):
            self.states.append(torch.cat([part.float().flatten() for part in self.model.recall()]))
            return True

    alone, beside = Keep(), Keep()
    agent("Mlp", counters(), memory).learn(32, alone)
    evaluation = EvalCallback(counters(3), eval_freq=4, n_eval_episodes=2, deterministic=True, verbose=0)
    agent("Mlp", counters(), memory).learn(32, [evaluation, beside])
    torch.testing.assert_close(torch.stack(alone.states), torch.stack(beside.states))
    assert torch.stack(alone.states).any()


def test_successes_of_evaluations_are_logged():
    class Succeeding(Counter):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "is_success": True} if self.steps == 3 else info

    evaluation = EvalCallback(
        DummyVecEnv([lambda: Monitor(Succeeding())] * 2), eval_freq=16, n_eval_episodes=4, verbose=0
    )
    model = agent("Mlp", counters())
    model.set_logger(Kept())
    model.learn(32, evaluation)
    assert evaluation._is_success_buffer == [True] * 4
    assert model.logger.name_to_value["eval/success_rate"] == 1


def test_evaluations_are_logged_at_their_own_step(tmp_path):
    evaluation = EvalCallback(counters(1), eval_freq=5, n_eval_episodes=1, verbose=0)
    agent("Mlp", counters(1), tensorboard_log=str(tmp_path)).learn(32, evaluation)
    events = EventAccumulator(str(tmp_path / "MemoryPPO_1"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [5, 10, 15, 20, 25, 30]


def test_an_evaluation_without_the_trainings_wrappers_is_told():
    model = agent("Mlp", VecNormalize(counters()))
    model.learn(32, EvalCallback(VecNormalize(counters(1), training=False, norm_reward=False), eval_freq=8, verbose=0))
    with (
        pytest.warns(UserWarning, match="not of the same type"),
        pytest.raises(AssertionError, match="VecNormalize"),
    ):
        model.learn(32, EvalCallback(Counter(), eval_freq=8, warn=False, verbose=0))


def test_a_checkpoint_beside_statistics_is_whole(tmp_path):
    env = VecNormalize(counters(1))
    checkpoint = CheckpointCallback(save_freq=16, save_path=tmp_path, save_vecnormalize=True, save_replay_buffer=True)
    agent("Mlp", env).learn(16, checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rl_model_16_steps.zip",
        "rl_model_vecnormalize_16_steps.pkl",
    ]
    MemoryPPO.load(tmp_path / "rl_model_16_steps")
    theirs = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_16_steps.pkl"), counters(1))
    np.testing.assert_array_equal(theirs.obs_rms.mean, env.obs_rms.mean)


def test_callbacks_of_an_evaluation_know_their_parent(tmp_path):
    class Child(BaseCallback):
        parents = 0

        def _on_step(self):
            assert isinstance(self.parent, EvalCallback)
            assert hasattr(self.parent, "best_mean_reward")
            self.parents += 1
            return True

    best, after = Child(), Child()
    evaluation = EvalCallback(
        gym.make("Pendulum-v1"),
        best_model_save_path=str(tmp_path),
        eval_freq=16,
        n_eval_episodes=1,
        callback_on_new_best=CallbackList([best, StopTrainingOnRewardThreshold(reward_threshold=100)]),
        callback_after_eval=CallbackList([after]),
        warn=False,
        verbose=0,
    )
    agent("Mlp", "Pendulum-v1").learn(32, evaluation)
    assert after.parents == 2
    assert 1 <= best.parents <= 2


def test_hooks_of_a_callback_are_called_in_sb3s_order():
    class Order(BaseCallback):
        def __init__(self):
            super().__init__()
            self.order = []

        def _on_training_start(self):
            self.order.append("training start")

        def _on_rollout_start(self):
            self.order.append("rollout start")

        def _on_step(self):
            self.order.append("step")
            return True

        def _on_rollout_end(self):
            assert self.locals["rollout_buffer"].full
            self.order.append("rollout end")

        def _on_training_end(self):
            self.order.append("training end")

    order = Order()
    agent("Mlp", counters(), n_steps=2, batch_size=2).learn(8, order)
    rollout = ["rollout start", "step", "step", "rollout end"]
    assert order.order == ["training start", *rollout, *rollout, "training end"]


def test_evaluations_of_sb3_see_the_success_of_our_worlds():
    """In single rows too, as SB3's make_vec_env makes them."""
    venv = make_vec_env("palimpsest:Palimpsest/TMaze-v0", 2, env_kwargs={"length": 2})
    evaluation = EvalCallback(venv, eval_freq=16, n_eval_episodes=3, verbose=0, warn=False)
    agent("Mlp", make_vec_env("palimpsest:Palimpsest/TMaze-v0", 2, env_kwargs={"length": 2})).learn(32, evaluation)
    assert len(evaluation._is_success_buffer) == 3

"""Our worlds in wrappers, from training to pictures: nothing asks a world about observations that it did not show."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console
from small import small_arguments

from palimpsest import envs, train
from palimpsest.agents import MemoryPPO, evaluate
from palimpsest.agents.evaluation.play import play, summary
from palimpsest.agents.run import experiment
from palimpsest.agents.run.callbacks import read_evaluations
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.worlds.vectors import make_environments
from palimpsest.envs.wrappers import VecPreviousActionReward

TMAZE, MINIGRID = "Palimpsest/TMaze-v0", "Palimpsest/MiniGridMemory-S7-v0"
CASES = [
    ("Palimpsest/HideAndSeek-v0", "flatten"),
    (MINIGRID, ""),  # SB3 transposes its pictures
    (MINIGRID, "minigrid-image"),
    (MINIGRID, "time-limit=20"),
    (TMAZE, "frame-stack=3"),
    ("CartPole-v1", "previous-action-reward"),
]


@pytest.mark.parametrize(("env_id", "wrapper"), CASES)
def test_a_run_in_a_wrapper(env_id, wrapper, tmp_path):
    config = TrainConfig(
        env=env_id,
        wrapper=(wrapper,) if wrapper else (),
        memory_args={**small_arguments("rewrite"), "num_heads": 2},
        width=8,
        total_timesteps=256,
        num_envs=4,
        n_steps=32,
        n_epochs=1,
        eval_every=128,
        eval_episodes=2,
        closing_episodes=0,
        run_dir=tmp_path / "run",
        device="cpu",
    )
    run = experiment.train(config, Console(quiet=True))
    ours = env_id != "CartPole-v1"
    assert all(bool(row["success"]) == ours for row in read_evaluations(run.directory / "evaluations.csv"))
    assert (evaluate(run, episodes=2, max_steps=20)["success"] is None) != ours
    assert train.main(["play", str(run.directory), "--max-steps", "2", "--ansi", "--fps", "100"]) == 0
    assert train.main(["inspect", str(run.directory), "--steps", "3", "--episodes", "4", "--lags", "1"]) == 0


def test_stacked_frames_leave_open_what_success_shows():
    """Eight frames at once reach further than the inputs that the memory reads."""
    wrapper, length = ("frame-stack=8",), dict(length=3)
    venv = make_environments(TMAZE, 2, 0, length, wrapper=wrapper)
    model = MemoryPPO("MlpMemoryPolicy", venv, n_steps=16, batch_size=32, policy_kwargs=dict(memory="none"))
    result = evaluate(model, TMAZE, episodes=2, env_args=length, wrapper=wrapper, max_steps=3)
    assert result["memory"] is result["chance"] is None
    assert result["success"] == 0


class Always:
    """The same action at every step."""

    def __init__(self, action):
        self.action = action

    def predict(self, obs, state=None, start=None, deterministic=True):
        return np.full(len(start), self.action), None


def test_an_episode_that_a_wrapper_ends_has_failed():
    venv = make_environments(TMAZE, 2, 0, {}, wrapper=("time-limit=3",))
    assert summary(play(Always(0), venv, 4))["success"] == 0


def test_a_long_corridor_is_no_stall_beside_the_last_action():
    """The horizon is not declared there, but the task still takes as long."""
    venv = VecPreviousActionReward(envs.make_vec(TMAZE, 1, length=600))
    assert not play(Always(2), venv, 1, max_steps=560).stalled.any()


class Wins(gym.Env):
    """An episode is one step, which is a success under a name."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)

    def __init__(self, key="is_success"):
        self.key = key

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, True, False, {self.key: True}


gym.register("Test/Wins-v0", entry_point=f"{__name__}:Wins")


@pytest.mark.parametrize("vec", ["dummy", "async"])
@pytest.mark.parametrize(("key", "success"), [("is_success", 1.0), ("success", None)])
def test_success_has_one_name_wherever_rows_step(key, success, vec):
    venv = make_environments(f"{__name__}:Test/Wins-v0", 2, 0, {"key": key}, vec=vec)
    assert summary(play(Always(0), venv, 4))["success"] == success
    venv.close()


def test_pictures_of_minigrid_are_those_of_the_package():
    with pytest.raises(ValueError, match=r"'minigrid-pixels' does not take .*only the environments of the package"):
        make_environments(MINIGRID, 1, 0, {}, wrapper=("minigrid-pixels",))

"""Evaluation takes only the actions that the environment allows, in every way that it is asked for."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from small import small_agent, small_arguments
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter, Fatal, Guarded

from palimpsest.agents import MaskableEvalCallback, evaluate, evaluate_policy, grid
from palimpsest.agents.evaluation.masked import Masked, masked
from palimpsest.agents.evaluation.play import play
from palimpsest.agents.run import closing, experiment
from palimpsest.agents.run.config import EvaluateConfig, TrainConfig

ID = "Test/Guarded-v0"


@pytest.fixture(autouse=True)
def _registered():
    gym.register(ID, Guarded)
    yield
    del gym.registry[ID]


def rows(count: int = 3) -> DummyVecEnv:
    return DummyVecEnv([Guarded] * count)


class Recorder:
    """Takes the highest action that is allowed, and keeps the masks."""

    def __init__(self) -> None:
        self.masks: list = []

    def predict(self, obs, state, episode_start, deterministic, action_masks=None):
        self.masks.append(action_masks)
        return 3 - action_masks[:, ::-1].argmax(1), (np.arange(len(obs)) if state is None else state[0] + 1,)


def test_play_asks_the_environment_at_every_step():
    env, player = rows(), Recorder()
    played = play(player, env, 5)
    assert (played.lengths == 4).all()
    assert len(player.masks) == 8
    assert all(mask.shape == (3, 4) for mask in player.masks)
    assert not np.array_equal(player.masks[0], player.masks[1])


def test_masks_are_left_out_where_they_are_not_wanted_or_not_known():
    class Unmasked:
        def predict(self, obs, state, episode_start, deterministic):
            return np.zeros(len(obs), int), state

    for player, wanted in ((Unmasked(), True), (small_agent(rows()), False)):
        assert masked(player, rows(), wanted) is player
        with pytest.raises(Fatal):
            play(player, rows(), 40, deterministic=False, use_masking=wanted)
    model = small_agent(DummyVecEnv([Counter]))
    assert masked(model, DummyVecEnv([Counter])) is model
    assert isinstance(masked(model, rows()), Masked)


@pytest.mark.parametrize("make", [rows, Guarded])
def test_evaluate_policy_keeps_the_memory(make):
    class Player(Recorder):
        states: list = []  # noqa: RUF012  filled by the only instance

        def predict(self, obs, state, *args, **kwargs):
            self.states.append(state)
            return super().predict(obs, state, *args, **kwargs)

    _, lengths = evaluate_policy(Player(), make(), 3, return_episode_rewards=True, warn=False)
    assert lengths == [4, 4, 4]
    first, *later = Player.states
    assert first is None
    assert [state[0][0] for state in later] == list(range(len(later)))
    Player.states.clear()


def test_the_callback_evaluates_with_masks_and_saves_the_best(tmp_path):
    model = small_agent(rows())
    arguments = dict(n_eval_episodes=6, eval_freq=8, deterministic=False, verbose=0, warn=False)
    callback = MaskableEvalCallback(
        rows(), log_path=str(tmp_path), best_model_save_path=str(tmp_path / "best"), **arguments
    )
    model.learn(48, callback=callback)
    assert callback.model is model
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[4] * 6, [4] * 6]
    assert type(model).load(tmp_path / "best" / "best_model", device="cpu").num_timesteps in (24, 48)
    with pytest.raises(Fatal):
        model.learn(240, callback=MaskableEvalCallback(rows(), use_masking=False, **arguments))


def test_a_model_in_a_registered_environment():
    model = small_agent(rows())
    assert evaluate(model, ID, episodes=12, deterministic=False)["length_mean"] == 4
    (cell,) = grid([model], {}, ID, episodes=12, deterministic=False)
    assert cell["results"][0]["length_mean"] == 4
    for call in (
        lambda: evaluate(model, ID, episodes=40, deterministic=False, use_masking=False),
        lambda: grid([model], {}, ID, episodes=40, deterministic=False, use_masking=False),
    ):
        with pytest.raises(Fatal):
            call()


def test_a_run_trains_and_is_evaluated_with_masks(tmp_path):
    config = TrainConfig(
        env=ID,
        memory="gru",
        memory_args=small_arguments("gru"),
        total_timesteps=128,
        num_envs=4,
        n_steps=16,
        width=8,
        eval_every=64,
        eval_episodes=8,
        progress=False,
        run_dir=tmp_path / "run",
        device="cpu",
    )
    run = experiment.train(config, Console(quiet=True))
    assert run.model.rollout_buffer.action_masks is not None
    asked = dict(run_dir=tmp_path / "run", episodes=40, deterministic=False, device="cpu")
    assert closing.evaluate(EvaluateConfig(**asked))["length_mean"] == 4
    (cell,) = closing.evaluate_grid(EvaluateConfig(**asked), [tmp_path / "run"], {"last": [2]})
    assert cell["results"][0]["length_mean"] == 3
    with pytest.raises(Fatal):
        closing.evaluate(EvaluateConfig(**asked, use_masking=False))
    with pytest.raises(Fatal):
        closing.evaluate_grid(EvaluateConfig(**asked, use_masking=False), [tmp_path / "run"], {"last": [2]})

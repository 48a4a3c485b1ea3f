"""Evaluation: each episode once, on seeds of its own, with a fresh memory; agents that stall have failed."""

from __future__ import annotations

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter, Reusing

from palimpsest import envs
from palimpsest.agents import MemoryPPO, evaluate
from palimpsest.agents.environments import EVALUATION_SEED
from palimpsest.agents.evaluation import play as playing
from palimpsest.agents.evaluation.play import STALL_STEPS, UNDECLARED_STALL_STEPS, play, summary
from palimpsest.agents.evaluation.plots import learning_curve
from palimpsest.agents.run.callbacks import read_evaluations
from palimpsest.agents.run.closing import evaluate as evaluate_run
from palimpsest.agents.run.config import EvaluateConfig, TrainConfig
from palimpsest.agents.run.experiment import train

MAZE = "Palimpsest/EndlessTMaze-v0"


class Expert:
    """Plays the maze from what it saw alone: the last cue, and the position."""

    def predict(self, obs, state, episode_start, deterministic=True):
        cue = np.zeros(len(obs), int) if state is None else state[0]
        cue = np.where(obs[:, 0] > 0, 1, np.where(obs[:, 1] > 0, 2, cue))
        return np.where(obs[:, 2] >= 1, cue, 0), (cue,)


class Constant:
    """Always the same action."""

    def __init__(self, action: int) -> None:
        self.action = action

    def predict(self, obs, state, episode_start, deterministic=True):
        return np.full(len(obs), self.action), state


def test_every_episode_is_counted_once_however_long_it_is():
    venv = DummyVecEnv([lambda row=row: Counter(row) for row in range(3)])
    played = play(Constant(0), venv, 7)
    assert sorted(played.lengths) == [3, 3, 3, 4, 4, 5, 5]
    np.testing.assert_array_equal(played.returns, played.lengths)
    assert np.isnan(played.successes).all()
    assert summary(played)["success"] is None


def test_a_perfect_player_succeeds_in_every_episode():
    result = summary(play(Expert(), envs.make_vec(MAZE, 16, corridors=3, length=4), 40))
    assert result["success"] == 1.0
    assert result["length_mean"] == 3 * 5
    assert result["return_mean"] == pytest.approx(3 - 0.01 * 12, abs=1e-5)
    assert result["stalled"] == 0


def test_an_agent_that_repeats_itself_is_stopped_and_has_failed():
    played = play(Constant(1), envs.make_vec(MAZE, 4, corridors=500, length=10), 4)
    assert played.stalled.all()
    assert (played.lengths == STALL_STEPS + 1).all()
    assert (played.successes == 0).all()


def test_a_long_walk_without_positions_is_no_stall_and_every_step_is_taken():
    length = 3 * STALL_STEPS
    maze = dict(corridors=1, length=length, position="none")
    played = play(Expert(), envs.make_vec(MAZE, 4, **maze), 8)
    assert (played.successes == 1).all()
    assert (played.lengths == length + 1).all()
    turning = play(Constant(1), envs.make_vec(MAZE, 4, **maze), 4)
    assert turning.stalled.all()
    assert (turning.lengths == length + 2).all()


class Delay(gym.Env):
    """Nothing changes for 600 steps; the last of them brings 1."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == 600
        return np.zeros(1, np.float32), float(over), over, False, {}


def test_a_long_delay_of_an_environment_without_horizons_is_played_to_its_end():
    assert STALL_STEPS < 600 < UNDECLARED_STALL_STEPS
    played = play(Constant(0), DummyVecEnv([Delay] * 2), 2)
    assert not played.stopped.any()
    assert played.returns.tolist() == [1, 1]


def test_an_environment_that_uses_its_arrays_again_does_not_stall(monkeypatch):
    monkeypatch.setattr(playing, "UNDECLARED_STALL_STEPS", 20)
    played = play(Constant(0), Reusing([lambda: Counter(20)]), 1)
    assert not played.stalled.any()
    assert played.lengths.tolist() == [23]


def test_max_steps_ends_an_episode_as_failed():
    played = play(Expert(), envs.make_vec(MAZE, 4, corridors=50, length=10), 4, max_steps=30)
    assert (played.lengths == 30).all()
    assert (played.successes == 0).all()
    assert not played.stalled.any()


def test_waves_have_seeds_of_their_own():
    class Recorder(Counter):
        seeds: list = []  # noqa: RUF012  filled by every instance

        def reset(self, *, seed=None, options=None):
            Recorder.seeds.append(seed)
            return super().reset(seed=seed, options=options)

    play(Constant(0), DummyVecEnv([Recorder, Recorder]), 4, seed=EVALUATION_SEED)
    given = sorted(seed for seed in Recorder.seeds if seed is not None)
    assert given == [EVALUATION_SEED + i for i in range(4)]


def test_a_very_long_episode_is_spoken_of_once(monkeypatch, capsys):
    monkeypatch.setattr(playing, "LONG", 3)
    play(Constant(0), envs.make_vec("CartPole-v1", 2), 2)
    assert capsys.readouterr().err == (
        "an evaluation episode of CartPole-v1 has lasted 3 steps: if it has no end, train with --wrapper time-limit=N, "
        "which ends episodes after N steps\n"
    )
    play(Constant(0), DummyVecEnv([lambda: Counter(1)]), 1)
    assert "this environment has lasted" in capsys.readouterr().err
    play(Constant(0), DummyVecEnv([Counter]), 1)  # it ends at this step
    play(Constant(0), envs.make_vec("CartPole-v1", 2), 2, max_steps=9)
    assert capsys.readouterr().err == ""


def test_the_memory_is_fresh_at_the_beginning():
    starts = []

    class Watcher(Constant):
        def predict(self, obs, state, episode_start, deterministic=True):
            starts.append((state is None, episode_start.copy()))
            return super().predict(obs, state, episode_start)

    play(Watcher(0), DummyVecEnv([Counter, Counter]), 2)
    assert starts[0][0]
    assert starts[0][1].all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(
        env_args={"corridors": 1, "length": 2},
        memory="gru",
        memory_args={"output_size": 8},
        total_timesteps=2048,
        num_envs=8,
        n_steps=32,
        eval_every=512,
        eval_episodes=8,
        checkpoint_every=1024,
        run_dir=directory,
        device="cpu",
        progress=True,
    )
    return train(config)


def test_a_run_directory_holds_everything(run):
    names = {path.name.split(".")[0] for path in run.directory.iterdir()}
    wanted = {
        "config",
        "versions",
        "events",
        "checkpoints",
        "best",
        "model",
        "evaluations",
        "learning_curve",
        "closing",
        "README",
    }
    assert wanted <= names
    assert TrainConfig.load(run.directory) == TrainConfig.from_toml(run.config.to_toml())
    assert [int(row["step"]) for row in read_evaluations(run.directory / "evaluations.csv")] == [512, 1024, 1536, 2048]
    assert [result["env_args"] for result in json.loads((run.directory / "closing.json").read_text())] == [
        {"corridors": 1, "length": 2},
        {"corridors": 100, "length": 2},
        {"corridors": 1000, "length": 2},
    ]


def test_a_run_is_evaluated_by_its_directory(run, tmp_path):
    result = evaluate(run.directory, episodes=20, env_args={"corridors": 2})
    assert result["env_args"] == {"corridors": 2, "length": 2}
    assert result["chance"] == 0.25
    assert result["episodes"] == 20
    assert result == evaluate(run.model, MAZE, episodes=20, env_args={"corridors": 2, "length": 2})
    path = tmp_path / "new" / "out.json"
    config = EvaluateConfig(run_dir=run.directory, episodes=20, env_args={"corridors": 2}, json=path)
    assert evaluate_run(config) == result == json.loads(path.read_text())
    shown = []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        evaluate_run(dataclasses.replace(config, json=tmp_path / "file" / "out.json"), shown.append)
    assert shown == [result]


def test_the_memory_gates_are_logged_at_events_and_elsewhere(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(
        env_args={"corridors": 2, "length": 3},
        memory_args={"output_size": 8, "num_layers": 1, "num_heads": 1, "key_size": 5, "value_size": 4},
        total_timesteps=1024,
        num_envs=8,
        n_steps=32,
        eval_every=0,
        run_dir=tmp_path / "run",
        progress=False,
        device="cpu",
    )
    train(config)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    gates = {f"memory/{gate}_{where}" for gate in ("keep", "rewrite") for where in ("mean", "at_events", "elsewhere")}
    usual = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate", "train/entropy_loss"}
    assert gates | usual <= tags
    assert {"train/approx_kl", "train/explained_variance", "train/value_loss", "train/policy_gradient_loss"} <= tags
    assert {"time/rollout_steps_per_s", "time/update_steps_per_s"} <= tags


def test_wrong_use_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="episodes must be an integer, 1 to 100,000,000; got 0"):
        evaluate(run.model, MAZE, episodes=0)
    with pytest.raises(ValueError, match="env_id is needed"):
        evaluate(run.model)
    with pytest.raises(ValueError, match="observation space"):
        evaluate(run.model, "CartPole-v1")
    with pytest.raises(ValueError, match=r"did you mean 'Palimpsest/EndlessTMaze-v0'"):
        evaluate(run.model, "Palimpsest/EndlesTMaze-v0")
    with pytest.raises(ValueError, match="cannot read"):
        evaluate(tmp_path / "absent")


def test_foreign_environments_are_trained_and_evaluated(tmp_path):
    config = TrainConfig(
        env="CartPole-v1",
        memory="gru",
        memory_args={"output_size": 8},
        total_timesteps=256,
        num_envs=4,
        n_steps=32,
        eval_every=0,
        run_dir=tmp_path / "run",
        progress=False,
        device="cpu",
    )
    done = train(config)
    result = evaluate(done.directory, episodes=5)
    assert result["success"] is None
    assert result["chance"] is None
    assert result["return_mean"] == result["length_mean"]


def test_text_is_dropped_before_it_reaches_a_policy():
    class Talking(gym.Env):
        observation_space = spaces.Dict(mission=spaces.Text(9), x=spaces.Box(0, 1, (2,)))
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return {"mission": "go", "x": np.zeros(2, np.float32)}, {}

        def step(self, action):
            return {"mission": "go", "x": np.ones(2, np.float32)}, 1.0, True, False, {}

    model = MemoryPPO("MultiInputMemoryPolicy", Talking(), n_steps=8, batch_size=8, policy_kwargs={"memory": "gru"})
    model.learn(16)
    assert set(model.observation_space.spaces) == {"x"}
    model.predict({"mission": "go", "x": np.zeros(2, np.float32)})


def test_minigrids_own_environments_are_taken_by_their_ids():
    venv = envs.make_vec("MiniGrid-MemoryS7-v0", 2, seed=0)
    model = MemoryPPO("MultiInputMemoryPolicy", venv, n_steps=16, batch_size=32, policy_kwargs={"memory": "gru"})
    model.learn(32)
    result = evaluate(model, "MiniGrid-MemoryS7-v0", episodes=2)
    assert result["episodes"] == 2


def test_a_learning_curve_without_success_is_drawn(tmp_path):
    (tmp_path / "e.csv").write_text("step,success,return_mean\n1,,2.0\n2,,3.0\n")
    learning_curve(tmp_path / "e.csv", tmp_path / "e.png", "title")
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


class Still(gym.Env):
    """Action 0 does nothing; three times 1 end the episode. Success is reported if `reports`."""

    observation_space = gym.spaces.Box(0, 3, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, reports):
        self.reports = reports

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self._observe(), {}

    def step(self, action):
        self.place += int(action)
        over = self.place == 3
        return self._observe(), -1.0, over, False, {"is_success": True} if over and self.reports else {}

    def _observe(self):
        return np.array([self.place], np.float32)


class Chooses:
    """Row r takes action r at every step."""

    def predict(self, obs, state=None, episode_start=None, deterministic=False):
        return np.arange(len(obs)), None


@pytest.mark.parametrize(("reports", "success"), [(True, 0.5), (False, None)])
def test_an_episode_that_stalls_fails_only_where_success_is_reported(reports, success):
    env = DummyVecEnv([lambda: Still(reports)] * 2)
    played = play(Chooses(), env, 2)
    assert played.stalled.tolist() == [True, False]
    assert summary(played)["success"] == success

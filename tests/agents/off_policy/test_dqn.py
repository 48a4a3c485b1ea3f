"""`MemoryDQN`: acting, its files, and SB3's ways of using it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_policy
from small_dqn import B, counters, make, played
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch import nn
from worlds import Counter, Reusing, Spaces

from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.agents.files.archive import CorruptFile, NamedOnly, read_tree
from palimpsest.agents.off_policy.replay import SequenceReplay


def test_predict_remembers_and_explores():
    model = make()
    obs = np.array([[0, 1], [1, 2], [2, 3]], np.float32)
    _, state = model.predict(obs, deterministic=True)
    _, later = model.predict(obs, state, deterministic=True)
    _, begun = model.predict(obs, state, np.array([True, False, False]), deterministic=True)
    for first, second, again in zip(state, later, begun):
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(again[0], first[0])
        np.testing.assert_array_equal(again[1:], second[1:])
    model.exploration_rate = 1.0
    taken = [model.predict(obs)[0] for _ in range(60)]
    assert set(np.concatenate(taken).tolist()) == {0, 1, 2}
    single, _ = model.predict(obs[0], deterministic=True)
    assert single.shape == ()


def test_rows_explore_each_for_itself_and_remember_all_the_same():
    model = make(learning_starts=0, exploration_initial_eps=0.5, exploration_final_eps=0.5)
    once = np.zeros((2, 4), np.int64)
    random = [(model._explored(np.full(4, 7), 0.5, 1, once) != 7).sum() for _ in range(200)]
    assert {1, 2, 3} <= set(random)
    model.learn(30)
    assert not torch.equal(model._last_state[0], model.policy.initial_state(B)[0])


def test_a_saved_model_acts_and_learns_on(tmp_path):
    model = make(train_freq=(2, "step"), policy=dict(activation_fn=nn.ReLU), prioritized=True, learning_rate=1e-2)
    model.learn(90)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = MemoryDQN.load(tmp_path / "model", env=counters(), device="cpu")
    np.testing.assert_array_equal(played(loaded), played(model))
    for mine, its in zip(model.q_net_target.parameters(), loaded.q_net_target.parameters()):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
    assert loaded.exploration_rate == model.exploration_rate
    loaded.load_replay_buffer(tmp_path / "replay")
    for each in (model, loaded):
        each.learn(60, reset_num_timesteps=False) if each is loaded else each.learn(60)
    assert loaded.num_timesteps == 150
    alone = MemoryDQN.load(tmp_path / "model", device="cpu")
    alone.policy.save(tmp_path / "policy")
    again = type(alone.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(played(again), played(alone))
    with pytest.raises(ValueError, match=r"replay'? is of a replay with burn_in=2; this one has burn_in=1"):
        make(burn_in=1).load_replay_buffer(tmp_path / "replay")
    with pytest.raises(CorruptFile, match="no replay"):
        make().load_replay_buffer(tmp_path / "model")


def test_a_loaded_model_has_an_empty_replay(tmp_path):
    model = make()
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = MemoryDQN.load(tmp_path / "model", device="cpu")
    loaded.predict(np.zeros((B, 2), np.float32))
    assert loaded._replay is None
    assert loaded.replay_buffer.size() == 0
    assert loaded.replay_buffer is loaded.replay_buffer is loaded.replay
    assert loaded.replay_buffer.n_envs == B
    assert "_replay" not in read_tree(tmp_path / "model")


def test_what_load_is_given_is_checked_as_a_whole(tmp_path):
    make(refresh_states=True).save(tmp_path / "model")
    assert MemoryDQN.load(tmp_path / "model", env=counters(), n_step=3).replay.n_steps == 3
    assert MemoryDQN.load(tmp_path / "model", n_step=3, n_steps=3).n_steps == 3
    assert MemoryDQN.load(tmp_path / "model", n_step=None).n_steps == 1
    for given, said in (
        (dict(n_step=3, n_steps=2), "one number; got 3 and 2"),
        (dict(n_step=0), "n_steps must be an integer, 1 to"),
        (dict(burn_in=5), "sequence_length, 4, at most; got burn_in=5"),
        (dict(sequence_length=1), "sequence_length, 1, at most; got burn_in=2"),
        (dict(replay_buffer_kwargs=dict(alpha=1.0)), "has no argument 'alpha'"),
    ):
        with pytest.raises(ValueError, match=said):
            MemoryDQN.load(tmp_path / "model", **given)


class Halved(SequenceReplay):
    def __init__(self, buffer_size, *args, share=0.5, **kwargs):
        super().__init__(int(buffer_size * share), *args, **kwargs)


def test_a_replay_of_ones_own_gets_its_arguments():
    assert make(replay_buffer_class=Halved).replay.buffer_size == 48
    assert make(replay_buffer_class=Halved, replay_buffer_kwargs=dict(share=0.25)).replay.buffer_size == 24
    with pytest.raises(ValueError, match=r"Halved has no argument 'shore' \(did you mean 'share'\?\)"):
        make(replay_buffer_class=Halved, replay_buffer_kwargs=dict(shore=0.25))


def test_a_checkpoint_callbacks_replay_is_found_by_its_name(tmp_path):
    model = make()
    model.learn(36, CheckpointCallback(12, tmp_path, save_replay_buffer=True))
    other = make()
    other.load_replay_buffer(tmp_path / "rl_model_replay_buffer_36_steps")
    assert other.replay.pos > 0  # of the moment before the last step was stored
    make(n_steps=2).save_replay_buffer(tmp_path / "rl_model_replay_buffer_36_steps.zip")
    with pytest.raises(ValueError, match="n_steps=2"):
        other.load_replay_buffer(tmp_path / "rl_model_replay_buffer_36_steps")
    with pytest.raises(FileNotFoundError, match="absent"):
        other.load_replay_buffer(tmp_path / "absent")


class Shifted(nn.Module):
    def forward(self, x):
        return x + 1


def test_what_a_file_knows_by_name_only_is_asked_for():
    model, file = make(policy=dict(activation_fn=Shifted)), io.BytesIO()
    model.save(file)
    with pytest.raises(NamedOnly, match="Shifted"):
        MemoryDQN.load(file, device="cpu")
    loaded = MemoryDQN.load(file, device="cpu", custom_objects={"policy_kwargs.activation_fn": Shifted})
    np.testing.assert_array_equal(played(loaded), played(model))


class Seen(BaseCallback):
    def __init__(self):
        super().__init__()
        self.names, self.starts, self.ends = set(), 0, 0

    def _on_rollout_start(self):
        self.starts += 1

    def _on_step(self):
        self.names |= set(self.locals)
        return self.num_timesteps < 50

    def _on_rollout_end(self):
        self.ends += 1


def test_callbacks_see_sb3s_locals_and_can_stop():
    model, callback = make(), Seen()
    model.learn(500, callback)
    assert {"actions", "buffer_actions", "new_obs", "rewards", "dones", "infos", "replay_buffer"} <= callback.names
    assert callback.starts > callback.ends > 0
    assert 50 <= model.num_timesteps <= 52


def test_logs_have_sb3s_names(tmp_path):
    model = make(prioritized=True)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(120, log_interval=4)
    model.logger.close()
    names = set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))
    assert {"rollout/exploration_rate", "train/n_updates", "train/loss"} <= names
    assert {"train/learning_rate", "time/episodes", "time/fps", "time/total_timesteps"} <= names
    assert {"train/q_mean", "train/td_error", "replay/sampled_age", "replay/state_staleness"} <= names


def test_updates_come_after_episodes_where_asked():
    model = make(env=counters(1), train_freq=(2, "episode"), gradient_steps=-1, learning_starts=0)
    model.learn(60)
    # a row of 3 steps an episode: none until a sequence is whole, then 6 every 6 steps
    assert model._n_updates % 6 == 0
    assert 0 < model._n_updates <= 60


OBSERVATIONS = {
    "dict": ("MultiInputMemoryPolicy", spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})),
    "image": ("CnnMemoryPolicy", spaces.Box(0, 255, (4, 4, 3), np.uint8)),
    "discrete": ("MlpMemoryPolicy", spaces.Discrete(4)),
}


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_every_kind_of_observation_is_learned_from(kind):
    policy, space = OBSERVATIONS[kind]
    env = DummyVecEnv([lambda: Spaces(space, spaces.Discrete(2)) for _ in range(2)])
    settings = dict(sequence_length=3, buffer_size=100, learning_starts=10, batch_size=2, seed=0, device="cpu")
    model = MemoryDQN(policy, env, policy_kwargs=small_policy("gru"), optimize_memory_usage=True, **settings)
    model.learn(60)
    assert model._n_updates > 0
    mean, _ = evaluate_policy(model, VecMonitor(env), n_eval_episodes=2)
    assert np.isfinite(mean)


def test_the_smallest_replay_is_learned_from_at_every_step():
    # 2 + 4 + 1 entries and 3 more, in whole sequences of 4: 12 a row
    model = make(env=counters(1), buffer_size=12, train_freq=1, learning_starts=12)
    model.learn(80)
    assert model._n_updates == 80 - 12


def test_the_size_of_the_replay_is_said(capsys):
    make(verbose=1)
    # 300 // 3 // 4 = 25 sequences a row; 4 steps of 2 floats, an action, a reward, 3 flags; 2 layers of 6 floats
    assert "Replay: 75 sequences of 4 steps, 140 bytes each with the memory's state" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(burn_in=-1), "burn_in"),
        (dict(train_freq=(1, "day")), "train_freq"),
        (dict(tau=2.0), "tau"),
        (dict(n_step=2, n_steps=3), "one number"),
        (dict(refresh_states=True, burn_in=5), "sequence_length, 4, at most; got burn_in=5"),
        (dict(policy=dict(dueling=True)), "argument of MemoryDQN"),
        (dict(policy=dict(normalize_observations=True)), "argument of MemoryDQN"),
        (dict(policy=dict(squash_output=False)), "'squash_output': .* whose noise a replay does not store"),
        (dict(buffer_size=10), "buffer_size must be"),
        (dict(replay_buffer_kwargs=dict(handle_timeout_termination=False)), "truncations are always handled"),
        (dict(replay_buffer_kwargs=dict(burn_in=3)), "'burn_in': the model gives it"),
        (dict(replay_buffer_kwargs=dict(alpha=0.5)), "SequenceReplay has no argument 'alpha'; allowed: none"),
        (dict(env=DummyVecEnv([lambda: Spaces(spaces.Discrete(2), spaces.MultiBinary(2))])), "must be Discrete"),
        (dict(name="sat", policy=dict(memory_kwargs=dict(allocator="adaptive"))), "adaptive"),
    ],
)
def test_what_cannot_be_is_refused_in_words(given, said):
    with pytest.raises(ValueError, match=said):
        make(**given)


def test_counts_may_be_as_large_as_in_sb3():
    model = make("none", buffer_size=2_000_000, learning_starts=10**9, target_update_interval=3 * 10**9)
    assert model.replay.buffer_size * B == pytest.approx(2_000_000, abs=4 * B)
    model.learn(20)
    assert model._n_updates == 0
    with pytest.raises(ValueError, match=r"buffer_size=1,000,000,000,000 steps takes [\d.,]+ GB"):
        make(buffer_size=10**12)


class Masked(Spaces):
    def action_masks(self):
        return np.array([True, False])


@pytest.mark.parametrize("algorithm", [MemoryDQN, MemorySAC])
def test_masks_that_are_not_obeyed_are_told_once(algorithm):
    env = DummyVecEnv([lambda: Masked(spaces.Discrete(2), spaces.Discrete(2))])
    settings = dict(sequence_length=4, burn_in=2, buffer_size=300, policy_kwargs=small_policy("gru"), device="cpu")
    with pytest.warns(UserWarning, match=rf"{algorithm.__name__} does not obey .*action_masks") as told:
        model = algorithm("MlpMemoryPolicy", env, **settings)
    assert len(told) == 1
    model.learn(8)  # a further warning is an error


class Beyond(Spaces):
    """Observation 7 of 4 after `at` steps of an episode of 3."""

    def __init__(self, at):
        super().__init__(spaces.Discrete(4), spaces.Discrete(2))
        self.at = at

    def reset(self, **kwargs):
        self.steps = 0
        return 1, {}

    def step(self, action):
        self.steps += 1
        return 7 if self.steps == self.at else 2, 0.0, False, self.steps == 3, {}


@pytest.mark.parametrize("at", [1, 3])  # acted upon, and the final one
def test_a_category_outside_its_space_is_named(at):
    model = make(env=DummyVecEnv([lambda: Beyond(0), lambda: Beyond(at)]))
    said = rf"observation is 7 in environment row 1 at step {2 * at}, outside its space, which is 0 to 3 there; correct"
    with pytest.raises(ValueError, match=said):
        model.learn(60)


def test_a_policy_of_another_algorithm_is_refused():
    with pytest.raises(ValueError, match="MemoryQPolicy"):
        MemoryDQN(MemoryPPO.policy_aliases["MlpMemoryPolicy"], counters())


def test_a_callback_that_stops_where_an_episode_ends_joins_no_two_episodes():
    model = make(env=DummyVecEnv([lambda: Counter()]), train_freq=50, learning_starts=1000)
    model.learn(1000, callback=StopTrainingOnMaxEpisodes(1))
    assert model.num_timesteps == 3
    model.learn(6, reset_num_timesteps=False)
    replay = model.replay_buffer
    assert replay.observations[:6, 0, 1].tolist() == [0, 1, 2, 0, 1, 2]
    assert replay.memory_start[:6, 0].tolist() == [True, False, False, True, False, False]
    assert replay.terminated[:6, 0].tolist() == [False, False, True, False, False, True]


def test_a_step_at_which_a_callback_stops_counts_as_any_other():
    model = make(env=DummyVecEnv([lambda: Monitor(Counter())]), learning_starts=1000, exploration_fraction=1.0)
    dumped = []
    model.dump_logs = lambda: dumped.append(model._episode_num)
    for _ in range(6):
        model.learn(100, StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
    assert model.num_timesteps == model._n_calls == 18
    assert model._episode_num == 6
    assert [info["l"] for info in model.ep_info_buffer] == [3] * 6
    assert dumped == [4]
    # of the last learn, which began at 15 steps
    assert model._current_progress_remaining == pytest.approx(1 - 18 / 115)
    assert model.exploration_rate == pytest.approx(1 - 0.95 * 18 / 115)


def test_arrays_that_an_environment_uses_again_are_stored_as_they_were():
    rows = [lambda row=row: Counter(row, truncate=row == 0) for row in range(2)]
    own, reused = (make(env=kind(rows)).learn(60).replay.contents() for kind in (DummyVecEnv, Reusing))
    for name in ("observations", "rewards", "memory_start", "acted"):
        np.testing.assert_array_equal(own[name], reused[name])

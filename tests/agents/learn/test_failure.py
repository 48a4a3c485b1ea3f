"""Numbers that go bad stop a training loudly: row, step and tensor are named, and a file raises the error again."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_agent
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import ALWAYS, Broken, Counter, Guarded, Spaces

from palimpsest import train
from palimpsest.agents.files.archive import CorruptFile, read_tree, write_tree
from palimpsest.agents.learn.failure import FILE, main, reproduce
from palimpsest.agents.learn.numerics import NotFinite
from palimpsest.agents.run import experiment
from palimpsest.agents.run.resume import Checkpoints


def dump(tmp_path):
    (found,) = tmp_path.rglob(FILE)
    return found


def raised_again(tmp_path, error: NotFinite) -> None:
    """What training raised is what the dump raises, down to the words."""
    file = dump(tmp_path)
    assert f"python -m palimpsest.agents.learn.failure {file} raises this error again" in str(error)
    with pytest.raises(NotFinite) as again:
        reproduce(file)
    assert str(error).startswith(str(again.value))
    assert again.value.check == error.check


def in_row_two(what: str, at: int, value: float, truncate: bool = False) -> DummyVecEnv:
    return DummyVecEnv([Counter, Counter, lambda: Broken(2, at, what, value, truncate)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_observation(value, tmp_path):
    # Row 2 sees the number after its 11th step: 33 steps were taken before it acts on it.
    with pytest.raises(NotFinite, match=rf"observation holds {value} at index \[2, 1\].*at step 33;") as caught:
        small_agent(in_row_two("observation", 11, value), tmp_path).learn(100)
    raised_again(tmp_path, caught.value)


def test_the_observation_after_a_rollouts_last_step(tmp_path):
    with pytest.raises(NotFinite, match=r"observation holds nan at index \[2, 1\].*at step 24;") as caught:
        small_agent(in_row_two("observation", 8, np.nan), tmp_path).learn(100)
    raised_again(tmp_path, caught.value)


def test_the_final_observation_of_a_truncated_episode(tmp_path):
    with pytest.raises(NotFinite, match=r"the final observation holds nan at index \[2, 1\].*at step 15;") as caught:
        small_agent(in_row_two("observation", 5, np.nan, truncate=True), tmp_path).learn(100)
    raised_again(tmp_path, caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward(value, tmp_path):
    with pytest.raises(NotFinite, match=rf"the reward is {value} in environment row 2 at step 30;") as caught:
        small_agent(in_row_two("reward", 11, value), tmp_path).learn(100)
    raised_again(tmp_path, caught.value)


def test_returns_that_overflow(tmp_path):
    """Rewards that are finite one by one."""
    model = small_agent(in_row_two("reward", ALWAYS, 3e38), tmp_path, gamma=1.0, gae_lambda=1.0)
    with pytest.raises(NotFinite, match=r"returns are inf in environment row 2 at step 0 \(step 0 of the r") as caught:
        model.learn(100)
    raised_again(tmp_path, caught.value)


def test_a_loss_driven_to_infinity_leaves_the_parameters_as_they_were(tmp_path):
    """Returns of 1e25 are finite, their square is not."""
    model = small_agent(DummyVecEnv([lambda: Broken(0, 3, "reward", 1e25)]), tmp_path)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    with pytest.raises(NotFinite, match=r"the loss is not finite: .*value_loss inf") as caught:
        model.learn(100)
    assert all(torch.equal(old, now) for old, now in zip(before, model.policy.parameters()))
    raised_again(tmp_path, caught.value)


@pytest.mark.parametrize("name", ["gru", "rewrite"])
def test_a_gradient(name, tmp_path, monkeypatch):
    """A weight of one minibatch's loss is infinite times zero only in the backward pass."""
    model = small_agent(DummyVecEnv([Counter, Counter]), tmp_path, name)
    weight = model.policy.value_net.weight
    weight.register_hook(lambda grad: grad * np.nan)
    with pytest.raises(NotFinite, match=r"the gradient of value_net.weight holds nan at index \[0, 0\]") as caught:
        model.learn(16)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert caught.value.check == "update"
    # The hook is no part of the file, so that the check passes there, and that is said.
    with pytest.raises(ValueError, match=r"the check passes here; the error was: the gradient of value_net.weight"):
        reproduce(dump(tmp_path))


def test_parameters(tmp_path, monkeypatch):
    """Spoiled by the last gradient step of an update, so that no loss sees them before a checkpoint would."""
    model = small_agent(DummyVecEnv([Counter]), tmp_path, n_epochs=1)
    step = model.policy.optimizer.step

    def spoil():
        step()
        with torch.no_grad():
            model.policy.value_net.bias[0] = np.inf

    monkeypatch.setattr(model.policy.optimizer, "step", spoil)
    with pytest.raises(NotFinite, match=r"parameter value_net.bias holds inf at index \[0\] after step 8;") as caught:
        model.learn(16)
    raised_again(tmp_path, caught.value)


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=["d", "box"])
def test_a_policy_that_cannot_act(action_space, tmp_path):
    env = DummyVecEnv([lambda: Spaces(spaces.Box(0, 1, (2,), np.float32), action_space) for _ in range(2)])
    model = small_agent(env, tmp_path)
    with torch.no_grad():
        model.policy.action_net.weight[1, 2] = np.nan
    with pytest.raises(NotFinite, match=r"parameter action_net.weight holds nan at index \[1, 2\]") as caught:
        model.learn(16)
    raised_again(tmp_path, caught.value)


def test_a_policy_that_cannot_act_among_what_is_allowed(tmp_path):
    model = small_agent(DummyVecEnv([Guarded, Guarded]), tmp_path)
    with torch.no_grad():
        model.policy.action_net.weight[:] = 3e38
        model.policy.action_net.bias[:] = 3e38
        model.policy.mlp_extractor.policy_net[0].bias[:] = 9.0
    with pytest.raises(NotFinite, match=r"no action can be drawn from the logits of row 0: that of action \d is inf"):
        model.learn(16)
    masks = model._last_action_masks
    assert masks is not None
    with pytest.raises(NotFinite, match=rf"that of action {masks[0].argmax()} is inf"):
        reproduce(dump(tmp_path))


def test_a_memory_state_that_was_spoiled(tmp_path):
    model = small_agent(DummyVecEnv([Counter, Counter]), tmp_path)
    model.learn(16)
    model._last_state[0][1, 1] = np.inf
    with pytest.raises(NotFinite, match=r"state holds inf in environment row 1 at step 16") as caught:
        model.learn(16, reset_num_timesteps=False)
    assert caught.value.check in ("step", "rollout", "update")


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small_agent(in_row_two("reward", 3, np.nan))
    model.set_logger(Logger(None, []))
    with pytest.raises(NotFinite, match="set tensorboard_log, or a logger with a directory"):
        model.learn(30)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_gone_is_made_and_one_that_cannot_be_made_does_not_hide_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    for directory, told in (
        ("gone", r"gone/not_finite\.zip raises this error again"),
        ("file", "no dump could be written"),
    ):
        model = small_agent(in_row_two("reward", 3, np.nan))
        model.set_logger(Logger(str(tmp_path / directory), []))
        with pytest.raises(NotFinite, match=rf"the reward is nan .*{told}"):
            model.learn(30)
    with pytest.raises(NotFinite, match="the reward is nan"):
        reproduce(tmp_path / "gone" / "not_finite.zip")


def test_other_files_are_refused(tmp_path):
    model = small_agent(DummyVecEnv([Counter]))
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="is a model, not the dump of a failure"):
        reproduce(tmp_path / "model.zip")
    with pytest.raises(OSError, match="nowhere"):
        reproduce(tmp_path / "nowhere.zip")


def test_a_run_keeps_its_last_good_checkpoint_and_the_dump(tmp_path, monkeypatch, capsys):
    """From the run directory on: exit code, one line, the command that it names."""
    calls = {"steps": 0}
    original = experiment.make_env

    def make_env(config):
        env = original(config)
        step = env.step_wait

        def broken():
            obs, rewards, dones, infos = step()
            calls["steps"] += 1
            if calls["steps"] == 20:
                rewards = rewards.copy()
                rewards[1] = np.nan
            return obs, rewards, dones, infos

        env.step_wait = broken
        return env

    monkeypatch.setattr(experiment, "make_env", make_env)
    run = tmp_path / "run"
    flags = "--num-envs 2 --n-steps 8 --num-minibatches 1 --memory gru --memory-args output_size=4 --no-progress "
    flags += "--eval-every 0 --checkpoint-every 16 --total-timesteps 160 --env-args corridors=1 length=3 --device cpu "
    flags += "--closing-episodes 0"
    assert train.main(["--run-dir", str(run), *flags.split()]) == 1
    assert [path.name for path in Checkpoints(run / "checkpoints", 3).paths()] == [
        "000000000016.zip",
        "000000000032.zip",
    ]
    assert not (run / "model.zip").exists()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["failure", str(run / FILE)])
    monkeypatch.delitem(sys.modules, "palimpsest.agents.learn.failure")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("palimpsest.agents.learn.failure", run_name="__main__")
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (1, 1)
    assert said.startswith("the reward is nan in environment row 1 at step 38;")
    monkeypatch.setattr(experiment, "make_env", original)
    assert train.main(["--resume", str(run)]) == 0


def test_logits_that_overflow_while_every_parameter_is_finite(tmp_path):
    model = small_agent(DummyVecEnv([Counter, Counter]), tmp_path)
    with torch.no_grad():
        model.policy.mlp_extractor.policy_net[0].bias.fill_(50)  # its hyperbolic tangents are 1
        model.policy.action_net.weight[1] = 3e38
    with pytest.raises(NotFinite, match=r"of row 0: that of action 1 is inf at step 0; training stopped") as caught:
        model.learn(32)
    raised_again(tmp_path, caught.value)


@pytest.mark.parametrize("target_kl", [None, 0.01])
def test_a_divergence_that_is_infinite(target_kl, tmp_path, monkeypatch):
    """The ratio of an action that has become impossible is 0, and the loss finite."""
    model = small_agent(DummyVecEnv([Counter]), tmp_path, target_kl=target_kl)
    evaluate = model.policy.evaluate_actions

    def impossible(*args):
        seen = evaluate(*args)
        log_prob = seen.log_prob.clone()
        log_prob[0, 0] = -np.inf
        return seen._replace(log_prob=log_prob)

    monkeypatch.setattr(model.policy, "evaluate_actions", impossible)
    with pytest.raises(NotFinite, match=r"the log-probability of the updated policy is -inf .*; training stopped"):
        model.learn(16)
    assert dump(tmp_path).exists()


def test_a_dump_that_needs_objects_says_what_was_said_and_which(tmp_path, capsys):
    env = in_row_two("reward", 3, np.nan)
    with pytest.raises(NotFinite):
        small_agent(env, tmp_path, learning_rate=lambda progress: 1e-3 * progress).learn(30)
    assert main([str(dump(tmp_path))]) == 2
    said = capsys.readouterr().err
    assert "the reward is nan in environment row 2 at step 6" in said
    assert "learning_rate" in said
    with pytest.raises(NotFinite, match="the reward is nan"):
        reproduce(dump(tmp_path), custom_objects={"learning_rate": 1e-3})


@pytest.mark.parametrize("change", [{"check": "other"}, {"check": None}, {"evidence": 3}, None])
def test_a_dump_that_names_no_known_check(change, tmp_path):
    with pytest.raises(NotFinite):
        small_agent(in_row_two("reward", 3, np.nan), tmp_path).learn(30)
    tree = read_tree(dump(tmp_path))
    write_tree(tmp_path / "evil", tree | {"failure": 3 if change is None else tree["failure"] | change})
    with pytest.raises(CorruptFile, match=r"evil\.zip"):
        reproduce(tmp_path / "evil.zip")

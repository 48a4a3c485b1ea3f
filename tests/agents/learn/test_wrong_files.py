"""Saved models that are refused: files that are damaged or hostile, and what does not fit them."""

from __future__ import annotations

import itertools
import resource
import sys

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from test_checkpoint import counters, make

from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.agents.files.archive import CorruptFile, read_tree, write_tree


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        MemoryPPO.load(tmp_path / "absent")
    PPO("MlpPolicy", counters(), n_steps=16, batch_size=48, device="cpu").save(tmp_path / "theirs")
    with pytest.raises(ValueError, match="stable-baselines3"):
        MemoryPPO.load(tmp_path / "theirs.zip")
    model = make()
    model.save(tmp_path / "model")
    content = bytearray((tmp_path / "model.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "torn.zip").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"torn\.zip"):
        MemoryPPO.load(tmp_path / "torn")
    with pytest.raises(ValueError, match="policy_kwargs must be those of the file"):
        MemoryPPO.load(tmp_path / "model", policy_kwargs={})
    write_tree(tmp_path / "other", {"a": 1})
    with pytest.raises(CorruptFile, match="holds no model"):
        MemoryPPO.load(tmp_path / "other")
    tree = read_tree(tmp_path / "model")
    write_tree(tmp_path / "evil", tree | {"learn": 3})
    with pytest.raises(CorruptFile, match="does not have: learn"):
        MemoryPPO.load(tmp_path / "evil")
    for name in ("env", "_logger", "policy", "predict"):
        write_tree(tmp_path / "evil", tree | {name: 3})
        with pytest.raises(CorruptFile, match=f"does not have: {name}"):
            MemoryPPO.load(tmp_path / "evil")
    model.policy.save(tmp_path / "policy")
    with pytest.raises(CorruptFile, match="holds a policy; use the load of its class"):
        MemoryPPO.load(tmp_path / "policy")


def test_a_file_of_another_version_says_what_to_do(tmp_path):
    """Its memory has other modules than today's."""
    make().save(tmp_path / "model")
    tree = read_tree(tmp_path / "model")
    policy = tree["parameters"]["policy"]
    first = next(name for name in policy if name.startswith("memory."))
    without = {name: each for name, each in policy.items() if name != first}
    for other in (without, policy | {"memory.older": torch.ones(1)}):
        write_tree(tmp_path / "older", tree | {"parameters": tree["parameters"] | {"policy": other}})
        with pytest.raises(
            CorruptFile, match=r"other modules than this version makes; train it again, or load it with"
        ):
            MemoryPPO.load(tmp_path / "older")


HUGE = {
    "units": dict(policy_kwargs={"memory": "gru", "memory_kwargs": {"output_size": 40_000}}),
    "a terabyte": dict(policy_kwargs={"memory": "ffm", "memory_kwargs": {"output_size": 10**9}}),
    "heads": dict(policy_kwargs={"memory": "gru", "net_arch": [50_000, 50_000]}),
    "layers": dict(policy_kwargs={"memory": "gru", "memory_kwargs": {"num_layers": 10**9}}),
    "rollout": dict(n_steps=2**50),
    "environments": dict(n_envs=2**50),
    "observations": dict(observation_space=gym.spaces.MultiBinary(2**40)),
    "another memory": dict(policy_kwargs={"memory": "os.system"}),
    "words for numbers": dict(n_steps="many"),
    "words for a rate": dict(learning_rate="x"),
    "lists for arguments": dict(policy_kwargs=[1]),
    "other parameters": dict(parameters={"policy": {}, "policy.optimizer": {}}),
    "parameters of other things": dict(parameters={"env": {}}),
    "no parameters": dict(parameters=3),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_file_that_describes_no_model_is_refused_before_it_takes_memory(case, tmp_path):
    model = make()
    model.save(tmp_path / "model")
    write_tree(tmp_path / "evil", read_tree(tmp_path / "model") | HUGE[case])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptFile, match=r"evil\.zip|evil describes") as caught:
        MemoryPPO.load(tmp_path / "evil", device="cpu")
    assert "\n" not in str(caught.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000 * (1 if sys.platform != "darwin" else 1024)  # KiB, on macOS bytes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), OSError("gone"), ImportError("no")], ids=repr
)
def test_a_machine_at_fault_is_no_fault_of_the_file(error, tmp_path, monkeypatch):
    make().save(tmp_path / "model")

    def fail(self):
        raise error

    monkeypatch.setattr(MemoryPPO, "_setup_model", fail)
    with pytest.raises(type(error)) as caught:
        MemoryPPO.load(tmp_path / "model")
    assert caught.value is error


@pytest.mark.parametrize("algorithm", [MemoryPPO, MemoryDQN, MemorySAC])
def test_a_model_without_environment_says_so_when_it_shall_learn(algorithm, tmp_path):
    small = {"n_steps": 16} if algorithm is MemoryPPO else {"buffer_size": 300}
    env = gym.make("Pendulum-v1" if algorithm is MemorySAC else "CartPole-v1")
    algorithm("MlpMemoryPolicy", env, policy_kwargs={"memory": "none"}, device="cpu", **small).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match=rf"{algorithm.__name__} has no environment to learn in: .*set_env"):
        loaded.learn(32)
    loaded.set_env(env)
    assert loaded.learn(32).num_timesteps == 32


def test_a_file_of_another_algorithm_is_that(tmp_path):
    classes = MemoryPPO, MemoryDQN, MemorySAC
    policies = {}
    for cls in classes:
        small = {"n_steps": 16} if cls is MemoryPPO else {"buffer_size": 300}
        model = cls("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"memory": "none"}, device="cpu", **small)
        model.save(tmp_path / cls.__name__)
        model.policy.save(tmp_path / f"policy of {cls.__name__}")
        policies[cls] = type(model.policy)
    for cls, other in itertools.permutations(classes, 2):
        said = rf"is a {other.__name__}, not a {cls.__name__}; use {other.__name__}\.load"
        for given in ({}, {"env": gym.make("CartPole-v1")}):
            with pytest.raises(ValueError, match=said) as caught:
                cls.load(tmp_path / other.__name__, device="cpu", **given)
            assert not isinstance(caught.value, CorruptFile)
        with pytest.raises(ValueError, match=rf"not a {policies[cls].__name__}; use the load of its class") as caught:
            policies[cls].load(tmp_path / f"policy of {other.__name__}", device="cpu")
        assert not isinstance(caught.value, CorruptFile)
        with pytest.raises(CorruptFile, match=rf"a model; use {other.__name__}\.load"):
            policies[cls].load(tmp_path / other.__name__, device="cpu")
        assert type(policies[cls].load(tmp_path / f"policy of {cls.__name__}", device="cpu")) is policies[cls]


def test_a_replay_that_is_too_small_for_more_environments_is_no_fault_of_the_file(tmp_path):
    small = dict(sequence_length=4, burn_in=2, buffer_size=30, policy_kwargs={"memory": "none"}, device="cpu")
    env = gym.make("CartPole-v1")
    MemoryDQN("MlpMemoryPolicy", env, **small).save(tmp_path / "model")
    more = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3)
    with pytest.raises(ValueError, match=r"buffer_size must be 36 or more.*got 30") as caught:
        MemoryDQN.load(tmp_path / "model", env=more, device="cpu")
    assert not isinstance(caught.value, CorruptFile)
    assert MemoryDQN.load(tmp_path / "model", env=more, device="cpu", buffer_size=36).replay.n_envs == 3


def test_another_environment_must_fit(tmp_path):
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        MemoryPPO.load(tmp_path / "model", env=gym.make("CartPole-v1"))

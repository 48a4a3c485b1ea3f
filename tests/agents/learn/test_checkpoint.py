"""A model that was saved and loaded acts, learns and normalises as before, and its file runs no code."""

from __future__ import annotations

import io
import resource
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from small import small_arguments
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import Counter

from palimpsest import memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.archive import CorruptFile, read_tree, write_tree


def counters(n: int = 3) -> DummyVecEnv:
    return DummyVecEnv([lambda row=row: Counter(row) for row in range(n)])


def make(name: str = "gru", env=None, **kwargs) -> MemoryPPO:
    policy = {"memory": name, "memory_kwargs": small_arguments(name)} | kwargs.pop("policy", {})
    env = counters() if env is None else env
    return MemoryPPO("MlpMemoryPolicy", env, n_steps=16, n_epochs=1, policy_kwargs=policy, seed=0, **kwargs)


def actions(model: MemoryPPO) -> np.ndarray:
    rng = np.random.default_rng(0)
    state, start, taken = None, np.ones(3, bool), []
    for _ in range(20):
        action, state = model.predict(rng.random((3, 2)).astype(np.float32), state, start, deterministic=True)
        start = rng.random(3) < 0.2
        taken.append(action)
    return np.stack(taken)


@pytest.mark.parametrize("name", memory.names())
def test_saved_and_loaded_models_act_alike(name, tmp_path):
    model = make(name, learning_rate=LinearSchedule(1e-2, 0.0, 1.0))
    model.learn(96)
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(actions(model), actions(loaded))
    for mine, its in zip(model.policy.state_dict().values(), loaded.policy.state_dict().values()):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
    assert loaded.num_timesteps == 96
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)


def test_a_loaded_model_learns_on_with_its_optimiser():
    model = make("lstm")
    model.learn(96)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = MemoryPPO.load(file, env=counters(5))
    steps = [state["step"].item() for state in loaded.policy.optimizer.state_dict()["state"].values()]
    assert min(steps) > 0
    loaded.learn(80, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96 + 80


def test_separate_memories_and_normalisation_are_kept(tmp_path):
    model = make("gru", env=VecNormalize(counters()), policy={"share_memory": False})
    model.learn(96)
    model.save(tmp_path / "model.zip")
    loaded = MemoryPPO.load(tmp_path / "model.zip", env=VecNormalize(counters()))
    mine, its = model.get_vec_normalize_env(), loaded.get_vec_normalize_env()
    np.testing.assert_array_equal(mine.obs_rms.mean, its.obs_rms.mean)
    assert mine.ret_rms.count == its.ret_rms.count
    np.testing.assert_array_equal(actions(model), actions(loaded))


def test_classes_are_asked_for_and_never_imported(tmp_path):
    model = make(policy={"activation_fn": torch.nn.ReLU}, learning_rate=lambda progress: 1e-3 * progress)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.activation\.ReLU.*custom_objects"):
        MemoryPPO.load(tmp_path / "model")
    objects = {"policy_kwargs.activation_fn": torch.nn.ReLU, "learning_rate": 5e-4}
    loaded = MemoryPPO.load(tmp_path / "model", custom_objects=objects)
    assert isinstance(loaded.policy.encoder[1], torch.nn.ReLU)
    assert loaded.lr_schedule(1.0) == 5e-4
    np.testing.assert_array_equal(actions(model), actions(loaded))


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


def test_another_environment_must_fit(tmp_path):
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        MemoryPPO.load(tmp_path / "model", env=gym.make("CartPole-v1"))


def test_parameters_can_be_set_from_a_file(tmp_path):
    model = make()
    model.learn(48)
    model.save(tmp_path / "model")
    other = make()
    other.set_parameters(str(tmp_path / "model.zip"))
    np.testing.assert_array_equal(actions(model), actions(other))

"""What SB3 tests of images: either order of channels, stacked frames, shared or separate extractors, floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from situations import MEMORIES, agent, assert_finite
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)
from worlds import Spaces

from palimpsest.agents import MemoryPPO

SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 8}}


def images(side: int = 40, channels: int = 1, first: bool = False) -> FakeImageEnv:
    return FakeImageEnv(screen_height=side, screen_width=side, n_channels=channels, channel_first=first)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
def test_images_in_either_order(first, memory, tmp_path):
    env = images(first=first)
    model = agent("Cnn", env, memory, SMALL_CNN).learn(32)
    assert_finite(model)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) != first
    obs, _ = env.reset(seed=0)
    for _ in range(3):
        assert env.action_space.contains(int(model.predict(obs, deterministic=False)[0]))
    action, state = model.predict(obs, deterministic=True)
    model.save(tmp_path / "cnn")
    again, its_state = MemoryPPO.load(tmp_path / "cnn").predict(obs, deterministic=True)
    assert action == again
    for part, other in zip(state, its_state):
        np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("share", ["all", "extractor", "nothing"])
def test_extractors_and_memories_are_shared_or_not(share, memory):
    """RecurrentPPO shares no LSTM by default; its extractor is shared."""
    arguments = dict(share_features_extractor=share != "nothing", share_memory=share == "all")
    model = agent("Cnn", images(channels=3), memory, SMALL_CNN | arguments, n_epochs=2).learn(32)
    policy = model.policy
    assert (policy.pi_features_extractor is policy.vf_features_extractor) == (share != "nothing")
    assert (policy.memory is policy.memory_critic) == (share == "all")
    assert_finite(model)


def test_one_memory_reads_one_extractor():
    with pytest.raises(ValueError, match="share_memory=True needs share_features_extractor=True"):
        agent("Cnn", images(), policy_kwargs=SMALL_CNN | {"share_features_extractor": False})


@pytest.mark.filterwarnings("ignore:Treating image space as channels-last")
def test_stacked_frames_that_are_not_transposed():
    """Ten channels times five: SB3 would take the last dimension for the channels."""
    env = FakeImageEnv(screen_height=41, screen_width=40, n_channels=10, channel_first=True)
    venv = VecTransposeImage(VecFrameStack(DummyVecEnv([lambda: env]), 5, channels_order="first"), skip=True)
    model = agent("Cnn", venv, policy_kwargs=SMALL_CNN).learn(32)
    obs = venv.reset()
    assert obs.shape[1:] == model.observation_space.shape == (50, 41, 40)
    model.predict(obs, deterministic=True)
    assert_finite(model)


@pytest.mark.parametrize("memory", MEMORIES)
def test_normalised_images_are_floats_and_need_to_be_told(memory):
    def venv() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: images(36, first=True)]))

    with pytest.raises(ValueError, match="normalize_images=False"):
        agent("Cnn", venv(), memory, SMALL_CNN)
    model = agent("Cnn", venv(), memory, SMALL_CNN | {"normalize_images": False}).learn(32)
    assert_finite(model)


def test_a_rollout_of_bytes_stays_one_and_its_size_is_told(capsys):
    """Frames become floats in the policy, a minibatch at a time."""
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    env = DummyVecEnv([lambda: Spaces(space, spaces.Discrete(2))] * 3)
    model = MemoryPPO(
        "CnnMemoryPolicy", env, n_steps=32, batch_size=32, policy_kwargs={"memory": "none"}, device="cpu", verbose=1
    )
    # a frame, an action of eight bytes, four floats, a flag
    size = 32 * 3 * (4 * 84 * 84 + 8 + 4 * 4 + 1)
    assert f"The rollout of 32 steps of 3 environments takes {size / 1e6:.1f} MB on cpu" in capsys.readouterr().out
    buffer = model.rollout_buffer
    assert buffer.observations.nbytes == 32 * 3 * 4 * 84 * 84
    buffer.pos, buffer.states = 32, [model.policy.initial_state(3)]
    assert {batch.observations.dtype for batch in buffer.get(32, model.rng)} == {torch.uint8}


def test_a_rollout_beyond_the_machines_memory_is_refused(monkeypatch):
    monkeypatch.setattr("palimpsest.agents.device.memory_of", lambda device: 10**6)
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    env = DummyVecEnv([lambda: Spaces(space, spaces.Discrete(2))])
    with pytest.raises(ValueError, match=r"a rollout of 128 steps of 1 environments takes 0.0 GB, .* choose fewer"):
        MemoryPPO("CnnMemoryPolicy", env, policy_kwargs={"memory": "none"}, device="cpu")

"""Agents on another device than the CPU: they train, save, load and act there.

On a device that is not there (`elsewhere`) they draw the CPU's random numbers, so they must end where the CPU's do.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import VARIANTS, small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.testing import assert_close
from worlds import Counter, Guarded, Spaces

from palimpsest import agents, memory
from palimpsest.agents import MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.memory.kernels import torch_only
from palimpsest.refusals import Allowed

ROWS, STEPS = 3, 8
BOX = spaces.Box(-5, 5, (2,), np.float32)
DICT = spaces.Dict({"place": spaces.Discrete(3), "image": spaces.Box(0, 255, (3, 3, 1), np.uint8), "numbers": BOX})


@pytest.fixture
def home(device, monkeypatch):
    """The device, which agents take."""
    if device.type != "cuda":
        monkeypatch.setattr(agents.device, "DEVICE", Allowed("", lambda _: True))
    return device


def counter(row: int) -> gym.Env:
    return Counter(row, truncate=row % 2 == 0)


CASES = {
    **{name: dict(memory=name) for name in memory.names()},
    "adaptive": dict(memory="sat-adaptive"),
    "own": dict(memory="rewrite", policy=dict(share_memory=False)),
    "masks": dict(env=lambda _: Guarded(spaces.MultiDiscrete([3, 2]))),
    "switches": dict(env=lambda _: Spaces(BOX, spaces.MultiBinary(2))),
    "box": dict(env=lambda _: Spaces(BOX, spaces.Box(-1, 2, (2,), np.float32))),
    "gsde": dict(env=lambda _: Spaces(BOX, spaces.Box(-1, 2, (2,), np.float32)), use_sde=True, sde_sample_freq=3),
    "dict": dict(env=lambda _: Spaces(DICT, spaces.Discrete(2)), policy_class="MultiInputMemoryPolicy"),
    "segments": dict(sequence_length=3, refresh_states=True, target_kl=0.01),
    "reconstructing": dict(memory_aux_coef=0.5, clip_range_vf=0.2),
}


def policy_of(name, device, **more):
    """`policy_kwargs`. Adam makes large steps of gradients that are zero but for rounding, and its fused kernel is
    CUDA's and the CPU's alone.
    """
    base, different = VARIANTS.get(name, (name, {}))
    made = small_policy(base, **more)
    made["memory_kwargs"] = made["memory_kwargs"] | different
    if torch.device(device).type != "cuda":
        made |= dict(optimizer_class=torch.optim.SGD, optimizer_kwargs={})
    return made


def trained(case, device):
    """An agent after two rollouts and updates."""
    given = dict(CASES[case])
    env = given.pop("env", counter)
    policy = policy_of(given.pop("memory", "gru"), device, **given.pop("policy", {}))
    settings = dict(n_steps=STEPS, batch_size=2 * STEPS, n_epochs=2, memory_carry_over=0.5, seed=0)
    settings |= dict(normalize_observations=True, normalize_returns=True, learning_rate=3e-3)
    model = MemoryPPO(
        given.pop("policy_class", "MlpMemoryPolicy"),
        DummyVecEnv([lambda row=row: env(row) for row in range(ROWS)]),
        policy_kwargs=policy,
        device=device,
        **settings | given,
    )
    return model.learn(2 * ROWS * STEPS)


def off_policy(kind, device):
    """An agent that has learned a little from its replay."""
    cls, actions = {
        "dqn": (MemoryDQN, spaces.Discrete(3)),
        "sac": (MemorySAC, spaces.Box(-1, 2, (2,), np.float32)),
        "sac-discrete": (MemorySAC, spaces.Discrete(3)),
    }[kind]
    settings = dict(sequence_length=4, burn_in=2, buffer_size=100, learning_starts=20, batch_size=3, seed=0)
    more = dict(prioritized=True, target_update_interval=2) if kind == "dqn" else {}
    model = cls(
        "MlpMemoryPolicy",
        DummyVecEnv([lambda: Spaces(BOX, actions)] * 2),
        policy_kwargs=policy_of("gru", device),
        device=device,
        normalize_observations=True,
        **settings | more,
    )
    return model.learn(36)


def parameters(model):
    return {name: value.detach().cpu() for name, value in model.policy.state_dict().items()}


def check(model, twin, device):
    """All of the agent is on the device; where it drew the CPU's numbers, it is the CPU's."""
    assert all(each.device.type == device.type for each in model.policy.state_dict().values())
    assert all(each.isfinite().all() for each in parameters(model).values())
    if device.type != "cuda":
        assert_close(parameters(model), parameters(twin), rtol=1e-4, atol=2e-5)


def acts_the_same(model, tmp_path, device, **masks):
    """The agent, saved, loads on the device and on the CPU, and acts there as before."""
    model.save(tmp_path / "model")
    obs = model.env.reset()
    for home in (device, "cpu"):
        other = type(model).load(tmp_path / "model", device=home)
        other.policy.compiled = False
        state = its = None
        for start in (np.ones(model.n_envs, bool), None, None):
            action, state = model.predict(obs, state, start, deterministic=True, **masks)
            found, its = other.predict(obs, its, start, deterministic=True, **masks)
            np.testing.assert_allclose(found, action, rtol=1e-3, atol=1e-4)
        other.predict(obs, its)


@pytest.mark.parametrize("case", CASES)
def test_ppo(home, case, tmp_path):
    model = trained(case, home)
    with torch_only():
        twin = trained(case, "cpu") if home.type != "cuda" else None
    check(model, twin, home)
    masks = {"action_masks": np.ones((ROWS, 5), bool)} if case == "masks" else {}
    acts_the_same(model, tmp_path, home, **masks)


@pytest.mark.parametrize("kind", ["dqn", "sac", "sac-discrete"])
def test_off_policy(home, kind, tmp_path):
    model = off_policy(kind, home)
    with torch_only():
        twin = off_policy(kind, "cpu") if home.type != "cuda" else None
    check(model, twin, home)
    acts_the_same(model, tmp_path, home)

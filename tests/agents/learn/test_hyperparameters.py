"""Hyperparameters: one range for `MemoryPPO` and the command line, handed over by name; values that SB3 takes."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from small import small_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.learn.hyperparameters import ARGUMENTS, WEIGHT, Hyperparameters, allowed_of, schedule
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.refusals import check

FIELDS = {spec.name: spec for spec in dataclasses.fields(Hyperparameters)}

PROBES = [-1e300, -1, -1e-9, 0, 0.5, 1, 1 + 1e-9, 2, 10, 10.1, 128, 10**4, 10**4 + 1, 10**6, 10**6 + 1, 1 << 20]
PROBES += [
    1 + (1 << 20),
    1e300,
    math.inf,
    np.float32(math.inf),
    -math.inf,
    math.nan,
    10**400,
    True,
    "1",
    np.float32(0.5),
    np.int64(1),
]
"""Around every bound."""


def agent(n_envs: int = 2, **given) -> MemoryPPO:
    venv = DummyVecEnv([Counter] * n_envs)
    defaults = dict(n_steps=4, batch_size=4, n_epochs=2, seed=0, device="cpu", policy_kwargs=small_policy("gru"))
    return MemoryPPO("MlpMemoryPolicy", venv, **{**defaults, **given})


def refused(make) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return ""


def test_every_argument_says_what_it_may_be():
    checked_elsewhere = {"policy", "env", "device", "_init_setup_model"}
    assert set(ARGUMENTS) == set(inspect.signature(MemoryPPO).parameters) - checked_elsewhere
    assert set(allowed_of(Hyperparameters)) == set(FIELDS) <= set(ARGUMENTS)


@pytest.mark.parametrize("name", FIELDS)
def test_the_command_line_refuses_what_the_agent_refuses(name):
    verdicts = set()
    for value in PROBES:
        ours = refused(lambda v=value: TrainConfig(**{name: v}))
        agents = refused(lambda v=value: check(name, v, ARGUMENTS[name]))
        assert bool(ours) == bool(agents), value
        verdicts.add(bool(ours))
        kind = ours.partition(";")[0].removesuffix(", or None")
        assert agents.startswith(kind), value
    assert verdicts == {True, False}


def test_the_defaults_are_allowed():
    for name, spec in FIELDS.items():
        if spec.default is not None:
            check(name, spec.default, ARGUMENTS[name])


def test_a_configuration_hands_its_fields_over_by_name():
    given = dict(
        n_steps=11, n_epochs=2, learning_rate=0.125, gamma=0.5, gae_lambda=0.25, ent_coef=0.375, clip_range=0.75
    )
    given |= dict(target_kl=0.625, min_advantage_std=0.875, vf_coef=0.0625, max_grad_norm=math.inf)
    given |= dict(normalize_observations=True, normalize_returns=True, use_sde=False, sde_sample_freq=3)
    given |= dict(autocast=True, min_gae_lambda=0.75)
    assert set(given) == set(FIELDS)
    config = TrainConfig(num_envs=4, num_minibatches=2, carry_over=0.5, anneal=False, anneal_entropy=False, **given)
    env = make_env(config)
    model = make_model(config, env)
    env.close()
    for name, value in given.items():
        attribute = getattr(model, name)
        assert (attribute(1.0) if callable(attribute) else attribute) == value, name
    assert (model.batch_size, model.memory_carry_over) == (22, 0.5)
    assert make_model(dataclasses.replace(config, target_kl=0), make_env(config)).target_kl is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda remaining: -remaining, "which at 1.0 gives -1.0"),
        (lambda remaining: None, "which at 1.0 gives None"),
        (lambda remaining: 1 / 0, "which at 1.0 raises ZeroDivisionError"),
        (lambda: 0.1, "which at 1.0 raises TypeError"),
    ],
)
def test_a_schedule_says_what_is_wrong_with_it(value, told):
    with pytest.raises(ValueError, match=rf"^rate must be a number, 0 to 1,000,000, or a function .*; got .*, {told}"):
        check("rate", value, schedule(WEIGHT))


def parameters(model: MemoryPPO) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.policy.parameters()]


def test_an_infinite_norm_is_no_clipping(tmp_path):
    free = agent(max_grad_norm=math.inf).learn(24)
    wide = agent(max_grad_norm=1e12).learn(24)
    for one, other in zip(parameters(free), parameters(wide), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    free.save(tmp_path / "model.zip")
    assert MemoryPPO.load(tmp_path / "model.zip").max_grad_norm == math.inf


@pytest.mark.parametrize("verbose", [True, np.int64(1), np.True_], ids=repr)
def test_verbose_may_be_a_truth_value(verbose, capsys):
    agent(verbose=verbose)
    assert "Using cpu device" in capsys.readouterr().out


@pytest.mark.parametrize("n_envs", [1, 3])
def test_rollouts_of_one_step_train(n_envs):
    model = agent(n_envs, n_steps=1, batch_size=n_envs)
    before = parameters(model)
    model.learn(4 * n_envs)
    after = parameters(model)
    assert model.num_timesteps == 4 * n_envs
    assert all(torch.isfinite(p).all() for p in after)
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


def test_a_cuda_device_that_is_not_there_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        with pytest.raises(
            ValueError, match=r"device 'cuda.*' is not there: torch sees 0 CUDA devices; use device='cpu'"
        ):
            agent(device=device)

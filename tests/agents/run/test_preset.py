"""`preset`: in Python, the arguments with which the command line trains."""

import dataclasses
import tomllib

import pytest
import torch

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO, preset
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.agents.run.presets import ALGORITHMS, usual

ENV = "Palimpsest/EndlessTMaze-v0"


@pytest.mark.parametrize("name", memory.names())
def test_a_memory_is_made_as_the_command_line_makes_it(name):
    config = TrainConfig(env=ENV, memory=name, num_envs=8, device="cpu")
    by_command = make_model(config, make_env(config))
    in_python = MemoryPPO(
        "MlpMemoryPolicy", envs.make_vec(ENV, 8, seed=0), **preset(name, num_envs=8), seed=0, device="cpu"
    )
    for one, other in zip(by_command.policy.state_dict().items(), in_python.policy.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    for argument in set(preset(name)) - {"policy_kwargs", "learning_rate", "ent_coef", "clip_range"}:
        assert getattr(by_command, argument) == getattr(in_python, argument), argument
    for argument in ("lr_schedule", "ent_coef", "clip_range"):
        assert getattr(by_command, argument)(0.3) == getattr(in_python, argument)(0.3)


def test_changes_are_fields_of_a_run():
    changed = preset("gru", num_envs=4, n_steps=16, carry_over=0.0, share_memory=False, learning_rate=0.1, anneal=False)
    assert changed["n_steps"] == 16
    assert changed["memory_carry_over"] == 0.0
    assert changed["learning_rate"] == 0.1
    assert changed["policy_kwargs"]["share_memory"] is False


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_what_learns_from_a_replay_has_layers_of_its_own(algo):
    usual, given = preset("gru", algo=algo), preset("gru", algo=algo, net_arch=(8,), activation="tanh")
    assert usual["policy_kwargs"]["net_arch"] == [128, 128]
    assert usual["policy_kwargs"]["activation_fn"] is torch.nn.ReLU
    assert given["policy_kwargs"]["net_arch"] == [8]
    assert "activation_fn" not in given["policy_kwargs"]
    assert preset("gru")["policy_kwargs"]["net_arch"] == [64]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_discount_is_that_of_the_algorithm(algo):
    chosen = usual("gru", algo).gamma
    config = TrainConfig(memory="gru", algo=algo)
    assert preset("gru", algo=algo)["gamma"] == config.gamma == chosen
    assert tomllib.loads(config.to_toml())["gamma"] == chosen
    given = TrainConfig(memory="gru", algo=algo, gamma=0.5)
    assert TrainConfig.from_toml(given.to_toml()).gamma == preset("gru", algo=algo, gamma=0.5)["gamma"] == 0.5


@pytest.mark.parametrize("memory_name", memory.names())
def test_the_discount_of_ppo_is_the_same_for_every_memory(memory_name):
    assert usual(memory_name).gamma == 0.99


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(n_step=3), r"preset has no argument 'n_step'.*n_steps"),
        (dict(gamma=3.0), "gamma must be"),
        (dict(num_envs=0), "num_envs must be"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(ValueError, match=words):
        preset("gru", **changes)


def test_boxes_of_actions_are_explored_by_gsde():
    discrete, continuous = preset("gru"), preset("gru", use_sde=True)
    assert (discrete["use_sde"], discrete["target_kl"]) == (False, 0.02)
    assert (continuous["use_sde"], continuous["target_kl"]) == (True, 0.1)
    assert continuous["policy_kwargs"]["log_std_init"] == -1
    for env_id, used in (("Palimpsest/PendulumNoVel-v0", True), ("Palimpsest/CartPoleNoVel-v0", False)):
        config = TrainConfig(env=env_id, memory="gru", num_envs=1)
        env = make_env(config)
        model = make_model(config, env)
        assert (model.use_sde, model.target_kl) == (used, 0.1 if used else 0.02)
        assert make_model(dataclasses.replace(config, use_sde=False, target_kl=0.5), env).use_sde is False
        env.close()

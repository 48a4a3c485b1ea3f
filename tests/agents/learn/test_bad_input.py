"""Every public constructor argument of the agent and its policies, and what it must refuse.

The rows are written down here and compared with the signatures, so that an argument without a row fails a test.
"""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from bad_values import (
    CHOICE,
    COUNT,
    FLAG,
    FLOATS,
    FRACTION,
    HUGE,
    NUMBERS,
    SIZE,
    assert_refused,
    without,
)
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.optim import Adam
from worlds import Counter, Spaces

from palimpsest.agents import MemoryActorCriticPolicy, MemoryDQN, MemoryPPO, MemorySAC
from palimpsest.agents.policy.policies import MlpMemoryPolicy
from palimpsest.envs.sb3 import VectorEnvAdaptor

pytestmark = pytest.mark.usefixtures("empty_directory")


POSITIVE = [*NUMBERS, *without(FLOATS, 1.5), -1, -(2**63)]
"""What a finite number of 0 or more is not."""


def raises(progress):
    raise KeyError("a\nb")


SCHEDULE = [*POSITIVE, raises, lambda progress: None, lambda progress: -1.0, lambda progress: float("nan"), lambda: 1.0]
OPTIONAL_SCHEDULE = without(SCHEDULE, None)
NAMED = without([*NUMBERS, *FLOATS, {1: 2}, {None: 1}], None, {"a": 1})
PATHS = ["", " ", "a\0b", 3, 1.5, True, [1], {"a": 1}, b"1", object]

AGENT: dict[str, list] = {
    "policy": [*NUMBERS, *FLOATS, "MlpPolicy", "MlpLstmPolicy", ActorCriticPolicy, int, MemoryPPO],
    "env": [*NUMBERS, *FLOATS, 0, "CartPol-v1", Counter, [Counter()], gym.make_vec("CartPole-v1", 2)],
    "learning_rate": [*SCHEDULE, 11],
    "n_steps": SIZE,
    "batch_size": without(SIZE, None, *HUGE),
    "n_epochs": [*SIZE, 10_001],
    "gamma": FRACTION,
    "gae_lambda": FRACTION,
    "min_gae_lambda": without(FRACTION, None),
    "clip_range": [*SCHEDULE, 10**7],
    "clip_range_vf": OPTIONAL_SCHEDULE,
    "normalize_advantage": FLAG,
    "normalize_observations": FLAG,
    "normalize_returns": without(FLAG, None),
    "min_advantage_std": [*POSITIVE, 10**7],
    "ent_coef": [*SCHEDULE, 10**7],
    "vf_coef": [*POSITIVE, 10**7, 10**400],
    "max_grad_norm": [*without(POSITIVE, float("inf")), 10**400],
    "use_sde": [*FLAG, True],
    "sde_sample_freq": without([*COUNT, -2], -1, *HUGE),
    "target_kl": [*without(POSITIVE, None), 10**7],
    "sequence_length": without(SIZE, None),
    "refresh_states": FLAG,
    "autocast": FLAG,
    "memory_carry_over": FRACTION,
    "memory_aux_coef": [*POSITIVE, 10**7],
    "strategy_epsilon": [*NUMBERS, *FLOATS, (1.0,), (1.0, 1.5), (-0.1, 0.0), (0, 0, 0), ("a", "b"), (None, None)],
    "stats_window_size": SIZE,
    "tensorboard_log": PATHS,
    "policy_kwargs": [*NAMED, {"a": 1}, {"memry": "gru"}, {"observation_space": 1}, {"use_sde": True}, {"self": 1}],
    "verbose": [*without(COUNT, True), 3],
    "seed": without([*COUNT, 2**32], None, 2**31),
    "device": [*NUMBERS, *FLOATS, 0, "tpu", "cuda:99", "cuda:x", "meta"],
}
NAMED_BY = {"use_sde": "generalized State-Dependent Exploration|use_sde"}

KWARGS: dict[str, list] = {
    "memory": [*CHOICE, None, "lstn"],
    "memory_kwargs": [*NAMED, {"a": 1}, {"input_size": 3}, {"output_size": 0}, {"output_size": 10**40}],
    "share_memory": FLAG,
    "encoder_arch": [*NUMBERS, *FLOATS, 64, [0], [-1], [1.5], ["64"], [True], [None], [[64]], [10**40], [2**31]],
    "net_arch": [*without(NUMBERS, None), *FLOATS, 64, [0], [None], {"pi": 64}, {"pi": [0]}, {"actor": [64]}, [10**40]],
    "activation_fn": [*NUMBERS, *FLOATS, "tanh", np.tanh, int],
    "ortho_init": FLAG,
    "log_std_init": [*NUMBERS, *without(FLOATS, -0.5, 1.5), 10**40, -(10**40)],
    "full_std": FLAG,
    "use_expln": FLAG,
    "squash_output": FLAG,
    "features_extractor_class": [*without(NUMBERS, None), *FLOATS, "FlattenExtractor", int],
    "features_extractor_kwargs": [*NAMED, {"a": 1}],
    "share_features_extractor": [*FLAG, False],
    "normalize_images": FLAG,
    "optimizer_class": [*NUMBERS, *FLOATS, "Adam", int],
    "optimizer_kwargs": [*NAMED, {"a": 1}],
}
for rows in (AGENT, KWARGS):
    for key, values in rows.items():
        # [1] is a list of widths and {"a": 1} a dict by name; they have their own bad members.
        rows[key] = without(values, [1]) if key in ("encoder_arch", "net_arch") else values
SET_BY_THE_AGENT = {"observation_space", "action_space", "lr_schedule", "use_sde", "reconstruct"}
SET_BY_THE_AGENT |= {"normalize_observations", "normalize_returns", "mark_starts"}


def test_every_argument_of_the_agent_and_its_policies_has_a_row():
    assert set(AGENT) == set(inspect.signature(MemoryPPO).parameters) - {"_init_setup_model"}
    own = inspect.signature(MemoryActorCriticPolicy).parameters
    parameters = {*own, *inspect.signature(ActorCriticPolicy).parameters} - {"kwargs"}
    assert set(KWARGS) == parameters - SET_BY_THE_AGENT


def agent(**given: Any) -> MemoryPPO:
    small = {"memory": "gru", "memory_kwargs": {"output_size": 4}}
    defaults = dict(policy="MlpMemoryPolicy", env=DummyVecEnv([Counter]), n_steps=4, policy_kwargs=small, device="cpu")
    return MemoryPPO(**{**defaults, **given})


@pytest.mark.parametrize("argument", AGENT)
def test_the_agent_refuses(argument, tmp_path):
    for value in AGENT[argument]:
        name = {"env": "env|module", "policy_kwargs": "policy_kwargs"}.get(argument, NAMED_BY.get(argument, argument))
        assert_refused(lambda v=value: agent(**{argument: v}), name, value, tmp_path)


@pytest.mark.parametrize("argument", KWARGS)
def test_policies_refuse(argument, tmp_path):
    for value in KWARGS[argument]:
        given = {
            "memory": "gru",
            "features_extractor_class": FlattenExtractor,
            "optimizer_class": Adam,
            argument: value,
        }
        name = "argument|output_size" if argument.endswith("_kwargs") and isinstance(value, dict) else argument
        assert_refused(lambda g=given: agent(policy_kwargs=g), f"{argument}|{name}", value, tmp_path)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Discrete(2), spaces.Text(3), "action space must be"),
        (spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,)), "action space must have finite bounds"),
        (spaces.Discrete(2), spaces.Discrete(2, start=1), "counted from 0"),
        (spaces.Discrete(2), spaces.MultiDiscrete([2, 3], start=[0, 1]), "counted from 0"),
        (spaces.Text(3), spaces.Discrete(2), "observation"),
        (spaces.Tuple([spaces.Discrete(2)]), spaces.Discrete(2), "observation"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), spaces.Discrete(2), "observation"),
        (spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2), "observation"),
    ],
    ids=str,
)
def test_spaces_that_no_policy_reads(observation, action, message, tmp_path):
    assert_refused(lambda: agent(env=Spaces(observation, action)), message, None, tmp_path)


def test_actions_that_are_not_counted_from_0_are_taken_as_the_refusal_says():
    env = Spaces(spaces.Discrete(2), spaces.Discrete(2, start=1))
    shifted = gym.wrappers.TransformAction(env, lambda action: action + env.action_space.start, spaces.Discrete(2))
    taken = []
    env.step = lambda action, step=env.step: taken.append(int(action)) or step(action)
    agent(env=shifted, n_steps=8).learn(8)
    assert len(taken) == 8
    assert set(taken) <= {1, 2}


def test_actions_without_bounds_are_taken_as_the_refusal_says():
    env = Spaces(spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match=r"wrappers.TransformAction\(env, lambda action: action, a Box of finite"):
        agent(env=env)
    bounded = gym.wrappers.TransformAction(env, lambda action: action, spaces.Box(-1, 2, (2,)))
    model = agent(env=bounded, n_steps=8).learn(8)
    assert model.action_space == spaces.Box(-1, 2, (2,))


@pytest.mark.parametrize("algorithm", [MemoryPPO, MemoryDQN, MemorySAC])
def test_a_log_interval_that_nothing_can_be_counted_by_is_refused(algorithm):
    own = {} if algorithm is MemoryPPO else dict(buffer_size=300)
    model = algorithm("MlpMemoryPolicy", Counter(), policy_kwargs={"memory": "none"}, device="cpu", **own)
    for wrong in (0, -1, 2.5, True, "4"):
        with pytest.raises(ValueError, match="log_interval must be an integer, 1 or more, or None; got"):
            model.learn(4, log_interval=wrong)
    assert model.num_timesteps == 0
    model.learn(4, log_interval=None)
    assert model.num_timesteps >= 4


def test_a_vector_environment_is_taken_as_the_refusal_says():
    rows, model = SyncVectorEnv([Counter]), agent()
    for refused in (lambda: agent(env=rows), lambda: model.set_env(rows)):
        with pytest.raises(ValueError, match=r"env must be .*: palimpsest.envs.sb3.VectorEnvAdaptor\(env\) makes"):
            refused()
    model.set_env(VectorEnvAdaptor(rows))
    agent(env=VectorEnvAdaptor(SyncVectorEnv([Counter]))).learn(4)


def test_arguments_of_default_classes_are_checked():
    with pytest.raises(ValueError, match="Adam has no argument 'momentum'"):
        agent(policy_kwargs={"optimizer_kwargs": {"momentum": 0.9}})
    with pytest.raises(ValueError, match="FlattenExtractor has no argument 'width'"):
        agent(policy_kwargs={"features_extractor_kwargs": {"width": 3}})


def test_a_name_for_whatever_comes_by_place_is_no_argument():
    class Own(MlpMemoryPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    with pytest.raises(ValueError, match="Own has no argument 'args'"):
        agent(policy=Own, policy_kwargs={"args": 3})


def test_an_environment_made_from_an_id_is_closed_when_refused(monkeypatch):
    closed = []
    env = Spaces(spaces.Text(3), spaces.Discrete(2))
    monkeypatch.setattr(env, "close", lambda: closed.append(1))
    monkeypatch.setattr("stable_baselines3.common.base_class.maybe_make_env", lambda given, verbose: env)
    with pytest.raises(ValueError, match="observation space"):
        agent(env="CartPole-v1")
    assert closed == [1]
    with pytest.raises(ValueError, match="observation space"):
        agent(env=env)
    assert closed == [1]


def test_bounds_themselves_are_taken():
    model = agent(
        gamma=1, gae_lambda=0, ent_coef=0, target_kl=None, clip_range_vf=0.0, seed=2**32 - 1, n_steps=1, batch_size=1
    )
    assert (model.gamma, model.gae_lambda, model.seed, model.n_steps, model.batch_size) == (1, 0, 2**32 - 1, 1, 1)
    model = agent(
        learning_rate=0.0, memory_carry_over=1.0, strategy_epsilon=[0, 0], verbose=np.int64(0), gamma=np.float32(0.5)
    )
    assert (model.memory_carry_over, model.gamma, model.policy.optimizer.param_groups[0]["lr"]) == (1.0, 0.5, 0.0)
    bare = agent(policy_kwargs={"memory": "none", "encoder_arch": [], "net_arch": [], "log_std_init": -2}).policy
    assert len(bare.encoder) == len(bare.mlp_extractor.policy_net) == 0
    small = agent(policy_kwargs={"memory": "none", "encoder_arch": (3,), "net_arch": {"pi": [2], "vf": []}}).policy
    assert [small.encoder[0].out_features, small.action_net.in_features, small.value_net.in_features] == [3, 2, 128]

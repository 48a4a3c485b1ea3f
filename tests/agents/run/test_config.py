"""The configuration of a run: what it refuses, what its file keeps, and what follows from it."""

import dataclasses
import os
from datetime import datetime
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import memory
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model, set_threads
from palimpsest.agents.run.presets import PRESETS, usual

TRAIN_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(
    "name", [n for n in TRAIN_FIELDS if not n.endswith("_args") and n not in ("run_dir", "resume", "start_from")]
)
@pytest.mark.parametrize("value", [None, "x", [1], b"1", -1, 10**40, float("nan")], ids=repr)
def test_the_constructor_refuses_the_same(name, value):
    own_default = (
        "learning_rate",
        "activation",
        "gamma",
        "carry_over",
        "target_kl",
        "n_steps",
        "num_minibatches",
        "share_memory",
        "keep_observations",
        "vec",
    )
    also_none = ("solved", "solved_return", "encoder_arch", "net_arch", "log_std_init", "batch_size")
    if value is None and name in (*own_default, *also_none):
        assert TrainConfig(**{name: value}) == TrainConfig()
        return
    if (name == "threads" and value is None) or (value == "x" and name in ("env", "memory")):
        assert getattr(TrainConfig(**{name: value}), name) == value
        return
    if name in ("solved_return", "log_std_init") and value == -1:
        assert getattr(TrainConfig(**{name: value}), name) == -1.0
        return
    if name == "sde_sample_freq" and value == -1:
        assert TrainConfig(sde_sample_freq=value).sde_sample_freq == -1
        return
    if name in ("keep_observations", "encoder_arch", "net_arch") and value == [1]:
        assert getattr(TrainConfig(**{name: value}), name) == (1,)
        return
    if name == "max_grad_norm" and value == 10**40:
        assert TrainConfig(max_grad_norm=value).max_grad_norm == 1e40  # as good as no clipping, which is allowed
        return
    with pytest.raises(ValueError, match=name) as caught:
        TrainConfig(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "a=1", [("a", 1)], {1: 2}], ids=repr)
def test_arguments_must_be_named(value):
    for name in ("env_args", "memory_args"):
        with pytest.raises(ValueError, match=name):
            TrainConfig(**{name: value})


def test_new_run_directories_are_never_taken_ones(tmp_path):
    now = datetime(2030, 1, 2, 3, 4, 5)
    first = TrainConfig(env="module:Some/Thing-v0", seed=7).new_run_dir(tmp_path, now)
    assert first.name == "Thing-v0-rewrite-7-20300102-030405"
    mine = TrainConfig(env="mine:Some/Thing-v0", memory="my_module:mine", seed=7).new_run_dir(tmp_path, now)
    assert mine.name == "Thing-v0-mine-7-20300102-030405"
    first.mkdir()
    second = TrainConfig(env="Some/Thing-v0", seed=7).new_run_dir(tmp_path, now)
    assert second.name == f"{first.name}-2"


arguments = st.dictionaries(
    st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(min_size=2, max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


@given(arguments, st.floats(0, 1), st.integers(0, 1000), st.booleans(), st.none() | st.integers(1, 9), st.text())
def test_a_configuration_survives_toml(args, gamma, seed, anneal, threads, env):
    config = TrainConfig(
        env=env, env_args=args, memory_args=args, gamma=gamma, seed=seed, anneal=anneal, threads=threads
    )
    assert TrainConfig.from_toml(config.to_toml()) == config


def test_where_a_run_is_is_no_part_of_its_file():
    config = TrainConfig(run_dir=Path("a"), resume=Path("a"))
    assert TrainConfig.from_toml(config.to_toml()) == TrainConfig()
    config = TrainConfig(start_from=Path("a"), wrapper=("flatten",), vec="async")
    assert config.start_from == Path("a").absolute()
    assert TrainConfig.from_toml(config.to_toml()) == config


def test_derived_sizes():
    config = TrainConfig(num_envs=6, n_steps=10, num_minibatches=3, total_timesteps=61)
    assert (config.rollout_size, config.minibatch_size, config.num_iterations) == (60, 20, 2)


@pytest.mark.parametrize("name", [*memory.names(), "a stranger's"])
def test_a_memory_brings_its_preset_where_nothing_is_given(name):
    chosen, config = usual(name), TrainConfig(memory=name)
    assert {field: getattr(config, field) for field in chosen._fields} == chosen._asdict()
    other = not chosen.share_memory
    given = TrainConfig(memory=name, learning_rate=0.1, num_minibatches=2, share_memory=other)
    assert (given.learning_rate, given.num_minibatches, given.share_memory) == (0.1, 2, other)
    assert TrainConfig.from_toml(config.to_toml()) == config


@pytest.mark.parametrize(("rows", "minibatches"), [(16, 4), (18, 2), (20, 5), (64, 16)])
def test_a_minibatch_holds_about_four_environments(rows, minibatches):
    config = TrainConfig(num_envs=rows)
    assert (config.n_steps, config.num_minibatches, config.batch_size) == (128, minibatches, None)


@pytest.mark.parametrize(("rows", "steps"), [(1, 2048), (2, 1024), (3, 640), (4, 512), (7, 256), (10, 256), (11, 128)])
def test_few_environments_have_a_longer_rollout(rows, steps):
    config = TrainConfig(num_envs=rows)
    assert (config.n_steps, config.num_minibatches, config.batch_size) == (steps, None, 512)
    assert 1400 <= config.rollout_size <= 2600
    assert TrainConfig.from_toml(config.to_toml()) == config


def test_a_rollout_that_is_given_is_as_given():
    few = TrainConfig(num_envs=4, n_steps=16)
    assert (few.rollout_size, few.minibatch_size) == (64, 64)
    assert TrainConfig(num_envs=4, num_minibatches=2).minibatch_size == 1024
    assert TrainConfig(num_envs=4, n_steps=1024).minibatch_size == 1024  # whole columns
    assert TrainConfig(num_envs=4, batch_size=64).n_steps == 512
    assert TrainConfig(num_envs=64, n_steps=8).num_minibatches == 16


def test_other_algorithms_have_no_rollout():
    config = TrainConfig(algo="dqn", num_envs=1)
    assert (config.n_steps, config.batch_size, config.num_minibatches) == (128, None, None)
    assert TrainConfig.from_toml(config.to_toml()) == config
    with pytest.raises(ValueError, match="n_steps is an argument of ppo; got 64"):
        TrainConfig(algo="dqn", n_steps=64)


def test_presets_are_of_registered_memories():
    assert PRESETS.keys() <= set(memory.names())


@pytest.mark.parametrize(
    ("cores", "arguments", "threads"),
    [
        (8, {}, 1),
        (8, {"num_envs": 512, "num_minibatches": 4}, 2),
        (8, {"num_envs": 4096, "num_minibatches": 4}, 8),
        (1, {"num_envs": 4096, "num_minibatches": 4}, 1),
        (8, {"num_envs": 512, "num_minibatches": 16}, 1),
        (2, {"threads": 3}, 3),
    ],
)
def test_threads_are_as_many_as_large_minibatches_are_worth(cores, arguments, threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    before = torch.get_num_threads()
    try:
        set_threads(TrainConfig(**arguments))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rate_falls", [False, True])
@pytest.mark.parametrize("entropy_falls", [False, True])
def test_rate_and_entropy_weight_fall_apart(rate_falls, entropy_falls):
    config = TrainConfig(
        learning_rate=0.5, ent_coef=0.25, num_envs=4, num_minibatches=4, anneal=rate_falls, anneal_entropy=entropy_falls
    )
    env = make_env(config)
    model = make_model(config, env)
    env.close()
    weight = model.ent_coef if callable(model.ent_coef) else lambda remaining: model.ent_coef
    assert [model.lr_schedule(remaining) for remaining in (1.0, 0.5, 0.0)] == [
        0.5,
        0.25 if rate_falls else 0.5,
        0.0 if rate_falls else 0.5,
    ]
    assert [weight(remaining) for remaining in (1.0, 0.5, 0.0)] == [
        0.25,
        0.125 if entropy_falls else 0.25,
        0.0 if entropy_falls else 0.25,
    ]

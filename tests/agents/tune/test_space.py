"""Search spaces: the usual ones make every memory, and files restrict or replace them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from palimpsest import memory
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.tune.space import USUAL_PPO, Options, Range, configured, first, load, searched, usual


@pytest.mark.parametrize("name", memory.names())
def test_the_usual_sizes_make_every_memory_in_any_combination(name):
    training = TrainConfig(memory=name)
    sizes = {key: part for key, part in usual(training).items() if key.startswith("memory_args.")}
    assert "memory_args.output_size" in sizes
    # the smallest and the largest of each, as they meet in a design of a few rows
    for row in range(8):
        picked = {key: part.values[-1 if (row >> i % 3) & 1 else 0] for i, (key, part) in enumerate(sizes.items())}
        memory.make(name, 8, **configured(training, picked).memory_args)


@pytest.mark.parametrize("algo", ["ppo", "dqn", "sac"])
def test_every_usual_value_is_allowed_and_the_defaults_are_among_them(algo):
    training = TrainConfig(algo=algo)
    space = searched(usual(training), training, ())
    sizes = {"output_size": 128, "num_layers": 2, "num_heads": 4, "key_size": 16, "value_size": 32, "front_size": 64}
    assert configured(training, first(training, space)) == dataclasses.replace(training, memory_args=sizes)
    assert set(first(training, space)) == set(space)
    assert ("n_steps" in space) == (algo == "ppo")


@pytest.mark.parametrize(
    ("changes", "fixed", "absent"),
    [
        (dict(learning_rate=0.03, gamma=0.97, n_epochs=20, target_kl=0.03, n_steps=100, carry_over=1.0), (), set()),
        (dict(num_envs=20), (), {"num_envs"}),
        (dict(num_envs=10), (), {"num_envs", "num_minibatches"}),
        (dict(num_envs=64), (), {"num_minibatches"}),
        (dict(num_envs=64), ("num_envs",), {"num_envs"}),
        (dict(num_envs=1, batch_size=64), (), {"num_envs", "num_minibatches"}),
        (dict(encoder_arch=(), net_arch=(8,)), (), {"width"}),
    ],
)
def test_the_first_trial_is_the_training_itself_whatever_it_is(changes, fixed, absent):
    training = TrainConfig(memory="none", **changes)
    space = searched(usual(training, fixed), training, fixed)
    assert set(usual(TrainConfig(memory="none"))) - set(space) == absent
    found = configured(training, first(training, space), fixed)
    assert found == dataclasses.replace(training, memory_args={"output_size": 128})


def test_minibatches_divide_environments():
    training = TrainConfig()
    space = searched(usual(training), training, ())
    for envs, minibatches in itertools.product(space["num_envs"].values, space["num_minibatches"].values):
        configured(training, {"num_envs": envs, "num_minibatches": minibatches})
    ten = dataclasses.replace(training, num_envs=10, num_minibatches=2)
    assert searched(usual(ten, {"num_envs"}), ten, {"num_envs"})["num_minibatches"] == Options((1, 2))
    one = dataclasses.replace(training, num_envs=1, num_minibatches=1)
    assert searched(usual(one), one, ())["num_minibatches"] == Options((1,))
    sixteen = dataclasses.replace(training, num_minibatches=16)
    assert searched(USUAL_PPO, sixteen, {"num_minibatches"})["num_envs"] == Options((16, 32, 64))
    # without either, the minibatches follow from the environments
    assert configured(training, {"num_envs": 64}).num_minibatches == 16
    sized = dataclasses.replace(training, num_minibatches=None, batch_size=256)
    assert "num_minibatches" not in searched(USUAL_PPO, sized, {"batch_size"})
    assert searched(usual(sized), sized, ())["batch_size"] == Options((128, 256, 512, 1024))


def test_a_rollout_follows_the_number_of_environments():
    training = TrainConfig()
    one = configured(training, {"num_envs": 1})
    assert (one.n_steps, one.batch_size, one.num_minibatches) == (2048, 512, None)
    many = configured(TrainConfig(num_envs=1), {"num_envs": 64})
    assert (many.n_steps, many.batch_size, many.num_minibatches) == (128, None, 16)
    assert configured(TrainConfig(n_steps=32), {"num_envs": 1}, {"n_steps"}).n_steps == 32
    assert configured(training, {"num_envs": 8, "n_steps": 64}).n_steps == 64


def test_minibatches_of_few_environments_can_be_searched():
    few = TrainConfig(num_envs=8)
    assert configured(few, {"num_minibatches": 2}).minibatch_size == 1024
    assert searched({"num_minibatches": Options((1, 2))}, few, ())["num_minibatches"] == Options((1, 2))
    assert configured(TrainConfig(), {"batch_size": 256}).num_minibatches is None


def test_a_file_replaces_or_restricts(tmp_path):
    training = TrainConfig(memory="lstm")
    path = tmp_path / "space.toml"
    path.write_text(
        "learning_rate = {low = 1e-4, high = 1, log = true}\ngamma = 0.9\nn_epochs = {low = 2, high = 8, step = 2}\n"
        "[memory_args]\noutput_size = [8, 16]\nnum_layers = 2\n"
    )
    space, fixed = load(path, training)
    assert space == {
        "learning_rate": Range(1e-4, 1.0, log=True),
        "n_epochs": Range(2, 8, step=2),
        "memory_args.output_size": Options((8, 16)),
    }
    assert fixed == {"gamma": 0.9, "memory_args.num_layers": 2}
    path.write_text("default = true\n" + path.read_text())
    whole, also_fixed = load(path, training)
    assert also_fixed == fixed
    assert whole == {key: part for key, part in usual(training).items() if key not in fixed} | space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = [1e-3]", "unknown key 'learning_rat' .did you mean 'learning_rate'"),
        ("total_timesteps = [5, 6]", "'total_timesteps' cannot be searched; give it as a flag"),
        ("default = 1\n", "default must be true or false; got 1"),
        ("gamma = []", "gamma: options must be a list of one plain value or more"),
        ("gamma = {low = 0.5}", "gamma: a range has low and high"),
        ("gamma = {low = 0.5, high = 0.4}", "gamma: low must be a number, high one that is not below it"),
        ("gamma = {low = 0, high = 1, log = true}", "gamma: low must be above 0 with log"),
        ("n_epochs = {low = 1, high = 9, step = 0.5}", "n_epochs: step must be above 0"),
        ("gamma", "space.toml: Expected"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, message, tmp_path):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "space.toml", TrainConfig())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"gamma": Range(0.5, 1.5)}, "the space of gamma: gamma must be a number, 0 to 1, or None; got 1.5"),
        ({"n_steps": Options((16, "x"))}, "the space of n_steps: n_steps must be an integer"),
        ({"memory_args.outputsize": Options((8,))}, "has no argument 'outputsize' .did you mean 'output_size'"),
        ({"memory_args.output_size": Options((8, 0))}, "the space of memory_args.output_size: "),
        ({"num_minibatches": Options((3,)), "num_envs": Options((8,))}, "the space of num_minibatches: "),
        ({}, "nothing is left to search"),
    ],
)
def test_a_value_that_no_training_takes_is_refused(space, message):
    with pytest.raises(ValueError, match=message):
        searched(space, TrainConfig(), ())


def test_ranges_and_options_hold_values_of_their_own_kind():
    assert Range(1, 10).holds(10)
    assert not Range(1, 10).holds(2.0)
    assert Range(0.0, 1.0).holds(0.5)
    assert not Range(0.0, 1.0).holds(1.5)
    assert Range(2, 8, step=2).holds(4)
    assert not Range(2, 8, step=2).holds(5)
    assert Options((0, 0.5)).holds(0)
    assert not Options((0, 0.5)).holds(False)
    assert Options((None, 1)).holds(None)

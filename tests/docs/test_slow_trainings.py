"""Trainings of a minute or two: docs/results.md and docs/notebook/memories.md, one seed each (`make test-slow`)."""

import pytest

from palimpsest.agents import evaluate
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model, set_threads

WITHOUT_CARRY_OVER = dict(
    num_envs=16,
    total_timesteps=800_000,
    num_minibatches=4,
    learning_rate=1e-3,
    carry_over=0.0,
    seed=1,
    share_memory=False,
)
"""The setting of `benchmarks/ablation.py`, with a critic apart: one that shares the memory teaches it to count."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "corridors"),
    [({}, 1000), (WITHOUT_CARRY_OVER | {"env_args": {"corridors": 10, "length": 10}}, 100)],
    ids=["the default job", "ten corridors without carry-over"],
)
def test_many_more_corridors_are_held_than_were_trained(settings, corridors):
    config = TrainConfig(progress=False, **settings)
    set_threads(config)
    env = make_env(config)
    model = make_model(config, env)
    model.learn(config.total_timesteps)
    env.close()
    tested = config.env_args | {"corridors": corridors}
    assert evaluate(model, config.env, 100, env_args=tested)["success"] >= 0.95

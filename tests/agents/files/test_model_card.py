"""A model card says what the run's own files say, in the hub's format."""

from __future__ import annotations

import json

import yaml

from palimpsest.agents.files.model_card import model_card, write_model_card

CONFIG = """
env = "Palimpsest/EndlessTMaze-v0"
memory = "rewrite"
total_timesteps = 4000
num_envs = 8
seed = 3
algo = "dqn"

[env_args]
corridors = 2

[memory_args]
"""
VERSIONS = {
    "python": "3.11",
    "commit": None,
    "command": ["/owner/bin/palimpsest", "--env", "a b", "--run-dir", "/owner/run", "--seed", "3"],
}
CLOSING = [
    {
        "env_args": {"corridors": corridors},
        "deterministic": True,
        "seed": 1_000_000_007,
        "episodes": 200,
        "success": success,
        "success_se": 0.01,
        "return_mean": 1.234,
        "return_std": 0.5,
        "chance": 0.25,
    }
    for corridors, success in ((2, 0.875), (100, None))
]
EVALUATIONS = """step,success,return_mean,return_std,length_mean,episodes,stalled
2000,0.1,1.0,2.0,9.0,20,0
4096,,3.0,4.0,9.0,20,0
"""


def written(directory, closing=True, evaluations=True, picture=True):
    """Front matter and text of the card of a run with these files."""
    (directory / "config.toml").write_text(CONFIG)
    (directory / "versions.json").write_text(json.dumps(VERSIONS))
    if closing:
        (directory / "closing.json").write_text(json.dumps(CLOSING))
    if evaluations:
        (directory / "evaluations.csv").write_text(EVALUATIONS)
    if picture:
        (directory / "learning_curve.png").touch()
    write_model_card(directory)
    text = (directory / "README.md").read_text()
    assert text == model_card(directory)
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def metrics(front) -> dict:
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "Palimpsest/EndlessTMaze-v0", "type": "Palimpsest/EndlessTMaze-v0"}
    assert result["task"]["type"] == "reinforcement-learning"
    return {metric["type"]: metric["value"] for metric in result["metrics"]}


def test_figures_are_those_of_the_closing_test(tmp_path):
    front, body = written(tmp_path)
    assert front["library_name"] == "palimpsest-rl"
    assert {"reinforcement-learning", "rewrite", "MemoryDQN", "Palimpsest/EndlessTMaze-v0"} <= set(front["tags"])
    assert metrics(front) == {"mean_reward": "1.23 +/- 0.50", "success_rate": 0.875}
    assert "| corridors=2 | 0.875 ± 0.010 | 0.25 | 1.23 ± 0.50 | 200 |" in body
    assert "| corridors=100 | - | 0.25 | 1.23 ± 0.50 | 200 |" in body
    assert "seeds from 1000000007 on (`closing.json`)" in body
    assert "![Learning curve](learning_curve.png)" in body
    assert "`MemoryDQN`, 4,096 environment steps, seed 3" in body
    assert 'MemoryDQN.load("model.zip")' in body
    # where the run lay is its owner's business
    assert "palimpsest --env 'a b' --seed 3\n" in body
    assert "/owner" not in body


def test_without_a_closing_test_they_are_those_of_the_last_evaluation(tmp_path):
    front, body = written(tmp_path, closing=False, picture=False)
    assert metrics(front) == {"mean_reward": "3.00 +/- 4.00"}
    assert "| corridors=2 | - | - | 3.00 ± 4.00 | 20 |" in body
    assert "at step 4,096" in body
    assert "learning_curve.png" not in body


def test_without_evaluations_there_are_none(tmp_path):
    front, body = written(tmp_path, closing=False, evaluations=False)
    assert "model-index" not in front
    assert "nothing was evaluated" in body
    assert "about 4,000 environment steps" in body

"""Finished runs: load them, and evaluate them on seeds that training never uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from palimpsest import envs
from palimpsest.agents.environments import EVALUATION_SEED, chance_level, make_environments
from palimpsest.agents.evaluation.horizons import describe_test
from palimpsest.agents.evaluation.play import check_spaces, play, summary
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.run.config import EPISODES, TrainConfig
from palimpsest.agents.run.presets import algorithm_class
from palimpsest.refusals import check_integer

MOST_ROWS = 256
"""The largest number of rows in which episodes of our environments are played."""


@dataclass(frozen=True)
class Run:
    """A finished run, loaded from its directory."""

    directory: Path
    config: TrainConfig
    model: SavedAlgorithm


def load_run(directory: Path, device: str = "auto") -> Run:
    """Load a run's configuration and final model; ValueError if there is none."""
    config = TrainConfig.load(directory)
    path = directory / "model.zip"
    if not path.exists():
        raise ValueError(f"{str(directory)!r} holds no model.zip: its training has not finished")
    return Run(directory, config, algorithm_class(config.algo).load(path, device=device))


def evaluate(
    model_or_run: BaseAlgorithm | Run | str | Path,
    env_id: str | None = None,
    episodes: int = 200,
    deterministic: bool = True,
    env_args: dict[str, Any] | None = None,
    seed: int = EVALUATION_SEED,
    device: str = "auto",
    max_steps: int | None = None,
    previous_action_reward: bool = False,
    keep_observations: Sequence[int] | None = None,
    antialias: bool = False,
    fully_observed: bool = False,
    use_masking: bool = True,
) -> dict[str, Any]:
    """Play `episodes` whole episodes and report the results.

    Every episode has its own seed (`seed`, `seed + 1`, ...) and starts with a fresh memory. A row whose episode has
    ended waits for the others, so that short episodes are not counted more often than long ones.

    Args:
        model_or_run: a trained model, a run, or a run directory.
        env_id: a registered id; default the environment of the run.
        episodes: number of episodes, 1 or more.
        deterministic: take the most likely actions instead of samples.
        env_args: the environment's arguments. For a run they replace its own arguments one by one.
        seed: seed of the first episode.
        device: device of a model that is loaded from a run directory.
        max_steps: steps after which an episode is stopped and counted as failed; None for the environment's limit.
        previous_action_reward: whether the model was trained with the previous action and reward in its observations.
            For a run, its configuration says this.
        keep_observations: the numbers of an observation that the model was trained on; None for all. For a run, its
            configuration says this.
        antialias: whether the first observation of an episode was marked in training. For a run, its configuration says
            this.
        fully_observed: whether the model was trained with the hidden state in its observations. For a run, its
            configuration says this.
        use_masking: whether the environment's action masks are used, if it has `action_masks()`.

    Returns:
        env, env_args, episodes, deterministic, seed, success (fraction, None if the environment does not report it),
        success_se (its standard error over episodes), return_mean, return_std, return_se, length_mean (steps), stalled
        (episodes that were stopped because nothing changed any more, counted as failed), success_by (right answers by
        kind, `agents.evaluation.success.success_by`), chance (success without memory, None if not known), memory (the
        kind of memory that this tests, `agents.evaluation.horizons.describe_test`).

    Raises:
        ValueError: an unknown id or argument, a number of episodes below 1, or spaces that do not fit the model.
    """
    episodes = check_integer("episodes", episodes, 1, EPISODES)
    if isinstance(model_or_run, str | Path):
        model_or_run = load_run(Path(model_or_run), device)
    if isinstance(model_or_run, Run):
        run = model_or_run
        previous_action_reward = run.config.previous_action_reward
        keep_observations = run.config.keep_observations
        antialias = run.config.antialias
        fully_observed = run.config.fully_observed
        if env_id is None or env_id == run.config.env:
            env_id = run.config.env
            env_args = {**run.config.env_args, **(env_args or {})}
        model: Any = run.model
    else:
        model = model_or_run
    if env_id is None:
        raise ValueError("env_id is needed with a model; only a run directory knows its environment")
    env_args = dict(env_args or {})
    rows = min(episodes, MOST_ROWS if env_id in envs.ids() else 8)
    env = SavedAlgorithm._wrap_env(
        make_environments(
            env_id, rows, seed, env_args, previous_action_reward, keep_observations, antialias, fully_observed
        )
    )
    try:
        check_spaces(model, env)
        played = play(model, env, episodes, deterministic, seed, max_steps, use_masking)
        chance, memory = chance_level(env), describe_test(model, env)
    finally:
        env.close()
    return {
        "env": env_id,
        "env_args": env_args,
        "deterministic": deterministic,
        "seed": seed,
        **summary(played),
        "chance": chance,
        "memory": memory,
    }

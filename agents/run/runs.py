"""Trained agents: find them in run directories and files, load them, and evaluate them on seeds unseen in training."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from palimpsest import memory
from palimpsest.agents.environments import EVALUATION_SEED, chance_level
from palimpsest.agents.evaluation.horizons import describe_test
from palimpsest.agents.evaluation.play import check_spaces, play, summary
from palimpsest.agents.files import shelf
from palimpsest.agents.files.archive import CorruptFile, read_contents
from palimpsest.agents.files.statistics import normalized, trained_under
from palimpsest.agents.learn.model_file import CLASSES, SavedAlgorithm, read_parameters
from palimpsest.agents.policy.policy_file import algorithm_of
from palimpsest.agents.run.config import CONFIG_FILE, EPISODES, PATH, TrainConfig
from palimpsest.agents.run.presets import ALGORITHMS, algorithm_class
from palimpsest.agents.worlds.vectors import make_environments, most_rows
from palimpsest.refusals import check, check_integer

MOST_ROWS = 256
"""The largest number of rows in which episodes of our environments are played."""


@dataclass(frozen=True)
class Run:
    """A trained agent, with the run directory that it is of."""

    directory: Path
    config: TrainConfig
    model: SavedAlgorithm


@dataclass(frozen=True)
class Place:
    """Where a trained agent lies."""

    files: tuple[Path, ...]
    """The model's file; of a run that has not finished its checkpoints, the newest first."""
    directory: Path | None
    """The run directory; None for a file that is in none."""
    config: TrainConfig | None
    """The configuration of the run."""
    finished: bool = True
    """Whether `files` is the one file that was meant."""


def find(path: Path) -> Place:
    """Where the agent is that a path names: a run directory, a model's file in one or elsewhere, or `shelf:NAME`.

    Raises:
        ValueError: there is no such agent, or the run's configuration cannot be read.
    """
    check("the path", path, PATH)
    path = shelf.taken(path)
    file = path if os.path.isfile(path) else Path(f"{path}.zip")
    if not path.is_dir() and os.path.isfile(file):
        if file.suffix != ".zip" and not zipfile.is_zipfile(file):  # a torn one is told by who reads it
            raise ValueError(f"{str(path)!r} is neither a run's directory nor a model's file (.zip)")
        above = file.absolute().parents
        directory = above[1] if above[0].name == "checkpoints" else above[0]
        known = (directory / CONFIG_FILE).exists()
        return Place((file,), *((directory, TrainConfig.load(directory)) if known else (None, None)))
    config = TrainConfig.load(path)
    if not path.is_dir():
        raise ValueError(f"{str(path)!r} is neither a run's directory nor a model's file (.zip)")
    if (path / "model.zip").exists():
        return Place((path / "model.zip",), path, config)
    checkpoints = sorted((path / "checkpoints").glob("*.zip"), reverse=True)
    return Place(tuple(checkpoints), path, config, finished=False)


def load_agent(path: Path, device: str = "auto") -> Run | SavedAlgorithm:
    """Load the agent that a path names (`find`); a `Run` where its run is known.

    Of a run that has not finished, the newest intact checkpoint is taken, and a message on standard error says so.

    Raises:
        CorruptFile: the file is torn, altered or not one of ours.
        ValueError: there is no such agent.
    """
    place = find(path)
    if place.config is None or place.directory is None:
        (file,) = place.files
        return algorithm_class(_algorithm_of(file)).load(file, device=device)
    memory.register_from(place.config.memory)
    algorithm = algorithm_class(place.config.algo)
    return Run(place.directory, place.config, _intact(place, lambda file: algorithm.load(file, device=device)))


def environments(config: TrainConfig, num_envs: int, rank: int = 0, overlap: bool = False) -> VecEnv:
    """Rows of a configuration's environment, with what it does to the observations: those of worker `rank`."""
    return make_environments(
        config.env,
        num_envs,
        config.seed + rank * num_envs,
        config.env_args,
        config.previous_action_reward,
        config.keep_observations,
        config.antialias,
        config.fully_observed,
        config.wrapper,
        config.vec,
        overlap,
    )


def load_run(directory: Path, device: str = "auto") -> Run:
    """Load a finished run's configuration and final model; ValueError if there is none."""
    if not (directory / "model.zip").exists():
        TrainConfig.load(directory)
        raise ValueError(f"{str(directory)!r} holds no model.zip: its training has not finished")
    run = load_agent(directory, device)
    assert isinstance(run, Run)
    return run


def give_weights(model: SavedAlgorithm, path: Path) -> None:
    """Copy the weights of the agent that a path names (`find`) into `model`, its running moments included.

    Raises:
        CorruptFile: the file is torn, altered or not one of ours.
        ValueError: there is no such agent, or its weights do not fit.
    """
    weights = _intact(find(path), lambda file: read_parameters(file, str(model.device))["policy"])
    try:
        model.policy.load_state_dict(weights)
        if model.policy.return_scale is not None:
            model.policy.return_scale.check_own()
    except RuntimeError as error:
        first = " ".join(str(error).partition("\n")[2].split("\n")[0].split())
        raise ValueError(
            f"the weights of {str(path)!r} do not fit this agent: {first}; give the environment, memory and widths it "
            "was trained with"
        ) from None


def _intact(place: Place, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of the file, or of the newest checkpoint that is neither torn nor altered."""
    for file in place.files:
        try:
            made = read(file)
        except CorruptFile as error:
            if place.finished:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if not place.finished:
            print(f"{str(place.directory)!r} has not finished: its {file.name} is taken", file=sys.stderr)
        return made
    raise ValueError(f"{str(place.directory)!r} holds neither model.zip nor an intact checkpoint: it has no agent yet")


def _algorithm_of(file: Path) -> str:
    """The algorithm of a model's file that is in no run directory."""
    tree = read_contents(file, classes=CLASSES).tree
    found = algorithm_of(tree)
    if found is None:
        raise CorruptFile(f"{str(file)!r} holds no model of ppo, dqn or sac")
    return next(algo for algo, place in ALGORITHMS.items() if place.endswith(f":{found}"))


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
    wrapper: Sequence[str] = (),
    vec: str | None = None,
    watch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Play `episodes` whole episodes and report the results.

    Observations are normalised as the model's `VecNormalize` does now, or did in the training of its file.
    Every episode has its own seed (`seed`, `seed + 1`, ...) and starts with a fresh memory. A row whose episode has
    ended waits for the others, so that short episodes are not counted more often than long ones.

    Args:
        model_or_run: a trained model, a run, or the path of a run directory or of a model's file.
        env_id: a registered id; default the environment of the run.
        episodes: number of episodes, 1 or more.
        deterministic: take the most likely actions instead of samples.
        env_args: the environment's arguments. For a run they replace its own arguments one by one.
        seed: seed of the first episode.
        device: device of a model that is loaded from a path.
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
        wrapper: names of the wrappers that the model was trained in (`agents.worlds.wrappers`). For a run, its
            configuration says this.
        vec: where environments that are not ours step (`agents.worlds.vectors.VECS`). For a run, its configuration says
            this.
        watch: called after every step with the number of episodes that have ended.

    Returns:
        env, env_args, episodes, deterministic, seed, success (fraction, None if the environment does not report it),
        success_se (its standard error over episodes), return_mean, return_std, return_se, length_mean (steps), stalled
        (episodes that were stopped because nothing changed any more, counted as failed), success_by (right answers by
        kind, `agents.evaluation.success.success_by`), chance (success without memory, None if not known), memory (the
        kind of memory that this tests, `agents.evaluation.horizons.describe_test`).

    Raises:
        ValueError: an unknown id or argument, a number of episodes below 1, or spaces that do not fit the model.
    """
    episodes, processes = check_integer("episodes", episodes, 1, EPISODES), 8
    if isinstance(model_or_run, str | Path):
        model_or_run = load_agent(Path(model_or_run), device)
    if isinstance(model_or_run, Run):
        run = model_or_run
        previous_action_reward = run.config.previous_action_reward
        keep_observations = run.config.keep_observations
        antialias = run.config.antialias
        fully_observed = run.config.fully_observed
        wrapper, processes = run.config.wrapper, run.config.num_envs
        if env_id is None or env_id == run.config.env:
            env_id = run.config.env
            vec = run.config.vec
            env_args = {**run.config.env_args, **(env_args or {})}
        model: Any = run.model
    else:
        model = model_or_run
    if env_id is None:
        raise ValueError("env_id is needed with a model; only a run knows its environment")
    env_args = dict(env_args or {})
    env = SavedAlgorithm._wrap_env(
        make_environments(
            env_id,
            min(episodes, most_rows(env_id, wrapper, vec, MOST_ROWS, 8, processes)),
            seed,
            env_args,
            previous_action_reward,
            keep_observations,
            antialias,
            fully_observed,
            wrapper,
            vec,
        )
    )
    try:
        check_spaces(model, env)
        env = normalized(env, trained_under(model))
        played = play(model, env, episodes, deterministic, seed, max_steps, use_masking, watch)
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

"""Generalisation grids: test agents in many settings, with the mean and the standard error over runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from palimpsest.agents.evaluation.statistics import estimate_iqm, mean_and_error
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.runs import Run, evaluate, load_agent

MAY_DIFFER = frozenset({"seed", "device", "threads", "vec", "progress", "eval_every", "eval_episodes"}) | {
    "overlap",
    "checkpoint_every",
    "keep_checkpoints",
    "closing_episodes",
}
"""Fields that may differ between averaged runs. Apart from the seed they do not change the training."""


def grid(
    models_or_runs: Sequence[BaseAlgorithm | Run | str | Path],
    axes: Mapping[str, Sequence[Any]],
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    device: str = "auto",
    **options: Any,
) -> list[dict[str, Any]]:
    """Test every model in every combination of settings.

    Args:
        models_or_runs: one or more, or their paths. Runs of one configuration with different seeds give a standard
            error over seeds.
        axes: argument of the environment -> the values to test, as those of `agents.run.key_values.GRIDS`. Without axes
            there is one cell.
        env_id: as for `evaluate`.
        env_args: further arguments, the same in every cell.
        device: device of the models that are loaded from run directories.
        **options: `episodes`, `deterministic`, `seed`, `max_steps`, `previous_action_reward`, `keep_observations`,
            `antialias`, `fully_observed`, `use_masking`, `wrapper` and `vec` of `evaluate`.

    Returns:
        One dict per cell; the last axis changes fastest. Its keys are setting (axis -> value), those of `over_runs`,
        and results (what `evaluate` returned, one per model).

    Raises:
        ValueError: no model; an axis without values, or one that is also in `env_args`; runs that differ in more than
            their seed; or an argument that `evaluate` refuses.
    """
    env_args = dict(env_args or {})
    check_axes(axes, env_args)
    models = [load_agent(Path(m), device) if isinstance(m, str | Path) else m for m in models_or_runs]
    check_alike([model for model in models if isinstance(model, Run)])
    cells = []
    for values in itertools.product(*axes.values()):
        setting = dict(zip(axes, values, strict=True))
        results = [evaluate(model, env_id, env_args={**env_args, **setting}, **options) for model in models]
        cells.append({"setting": setting, **over_runs(results), "results": results})
    return cells


def over_runs(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of evaluations that differ only in their run.

    Returns:
        runs (their number), success, success_se, success_iqm, return_mean, return_se, return_iqm, chance. The standard
        errors (se) are over runs; for a single run they are over its episodes. An iqm is the interquartile mean over
        runs with its 95 % bootstrap interval, [value, low, high]; None for a single run. A value is None if it is not
        known.

    Raises:
        ValueError: `results` is empty.
    """
    if not results:
        raise ValueError("results must hold one evaluation or more; got none")
    means: dict[str, Any] = {"runs": len(results)}
    for name, error, middle in (
        ("success", "success_se", "success_iqm"),
        ("return_mean", "return_se", "return_iqm"),
    ):
        values = [result[name] for result in results]
        means[name] = means[error] = means[middle] = None
        if len(values) == 1:
            means[name], means[error] = values[0], results[0][error]
        elif None not in values:
            means[name], means[error] = mean_and_error(values)
            means[middle] = list(estimate_iqm({name: values}))
    return {**means, "chance": results[0]["chance"]}


def check_axes(axes: Mapping[str, Sequence[Any]], env_args: Mapping[str, Any]) -> None:
    """Refuse an axis without values, and one that `env_args` fixes."""
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"the grid's {name!r} must be a list of one value or more; got {values!r}")
        if name in env_args:
            raise ValueError(f"{name!r} is an axis of the grid and is also fixed, to {env_args[name]!r}; leave one out")


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs that cannot be averaged: their configurations must differ in the seed and in nothing else."""
    seeds: dict[int, int] = {}
    for i, run in enumerate(runs):
        for spec in dataclasses.fields(TrainConfig):
            if spec.name in MAY_DIFFER | TrainConfig.UNSAVED:
                continue
            first, here = getattr(runs[0].config, spec.name), getattr(run.config, spec.name)
            if first != here:
                raise ValueError(
                    f"runs that are averaged must differ only in their seed; {spec.name} is {first!r} in "
                    f"{str(runs[0].directory)!r} and {here!r} in {str(run.directory)!r}: evaluate them one by one"
                )
        first_with_it = seeds.setdefault(run.config.seed, i)
        if first_with_it != i:
            raise ValueError(
                f"runs that are averaged must have different seeds; {str(runs[first_with_it].directory)!r} and "
                f"{str(run.directory)!r} have seed {run.config.seed}"
            )

"""Write an agent as a file, which stays only if it acts as the agent does."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium import Env
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from palimpsest.agents.environments import EVALUATION_SEED, around_normalize
from palimpsest.agents.evaluation.play import check_spaces
from palimpsest.agents.export.check import Checked, Drawn, Played, Rows, check
from palimpsest.agents.export.config import FORMATS, ExportCommand
from palimpsest.agents.export.formats import NotExported, read, write
from palimpsest.agents.export.step import Signature, Step
from palimpsest.agents.learn.model_file import SavedAlgorithm
from palimpsest.agents.masks import is_masking_supported
from palimpsest.agents.run.resume import RunFailed
from palimpsest.agents.run.runs import Run, load_agent
from palimpsest.agents.worlds.vectors import make_environments
from palimpsest.refusals import check_integer, refuse

ROWS = 3
"""Rows of a run's environment in which a file is checked."""


class Exported(NamedTuple):
    """A file, and how far it was checked."""

    file: Path
    signature: Signature
    checked: Checked


def export_policy(
    model_or_run: SavedAlgorithm | Run | str | Path,
    file: str | Path,
    format: str | None = None,
    env: Env | VecEnv | None = None,
    episodes: int = 10,
    use_masking: bool = True,
) -> Exported:
    """Write one greedy step of an agent as a file that acts without this package.

    The file is a function (observations, state, episode_start, mask) -> (action, state) for any number of rows, with
    all that `predict` does to observations and actions inside: `Signature` names its tensors and is in its metadata.
    It is then played against `predict`. A file that acts differently is removed.

    Args:
        model_or_run: a `MemoryPPO`, `MemoryDQN` or `MemorySAC`, a run, or the path of a run directory or
            of a model's file.
        file: where to; a file that is there is replaced.
        format: "onnx" (needs the extra "export") or "torch" for a program of `torch.export`, which torch alone runs.
            Default: by the file's name, *.onnx or *.pt2.
        env: what the file is checked in; default a run's environment, and for a model random observations. With a
            `VecNormalize`, of this or of the model's environment, its statistics are part of the file.
        episodes: how many are played, 1 or more.
        use_masking: whether the step takes a mask of actions, if the environment has `action_masks()` and `predict`
            takes it.

    Raises:
        NotExported: the agent cannot be written in this format, or the file acts differently.
        ValueError: an unknown format, a missing package, or spaces that do not fit.
    """
    file = Path(file)
    if format is None:
        format = next((kind for kind, suffix in FORMATS.items() if suffix == file.suffix), None)
    if format not in FORMATS:
        refuse("format", "onnx or torch, or a file named *.onnx or *.pt2", format or file.name)
    if file.is_dir():
        refuse("the file to write", "a file, not a folder", str(file), "; name a file in it")
    check_integer("episodes", episodes, 1)
    if isinstance(model_or_run, str | Path):
        model_or_run = load_agent(Path(model_or_run), "cpu")
    if isinstance(model_or_run, Run):
        model = model_or_run.model
        made = _environments(model_or_run) if env is None else None
    else:
        model, made = model_or_run, None
    try:
        venv: Any = made if env is None else env
        return _exported(
            model, None if venv is None else SavedAlgorithm._wrap_env(venv), file, format, episodes, use_masking
        )
    finally:
        if made is not None:
            made.close()


def _environments(run: Run) -> VecEnv:
    config = run.config
    return make_environments(
        config.env,
        ROWS,
        EVALUATION_SEED,
        config.env_args,
        config.previous_action_reward,
        config.keep_observations,
        config.antialias,
        config.fully_observed,
        config.wrapper,
    )


def _exported(
    model: SavedAlgorithm, env: VecEnv | None, file: Path, kind: str, episodes: int, use_masking: bool
) -> Exported:
    known = [each for each in (env, model.env) if each is not None]
    if env is not None:
        check_spaces(model, env)
    if name := next(filter(None, map(around_normalize, known)), None):
        raise ValueError(
            f"a file holds what VecNormalize does, not what {name} around it does; wrap the other way round, as "
            f"VecNormalize({name}(...)), and train the agent so"
        )
    takes_masks = use_masking and "action_masks" in inspect.signature(model.predict).parameters
    masked = takes_masks and bool(known) and is_masking_supported(known[0])
    normalize = next(filter(None, map(unwrap_vec_normalize, known)), None)
    step = Step(model.policy, masked, normalize)
    rows: Rows = Drawn(step.space, model.action_space) if env is None else Played(env, step.space)
    seen = (lambda obs: obs) if normalize is None else normalize.normalize_obs
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        write(step, part, kind)
        checked = check(model, read(part, kind), rows, episodes, seen)
        os.replace(part, file)
    except NotExported as error:
        raise NotExported(f"{error}; no file is written") from None
    finally:
        part.unlink(missing_ok=True)
    return Exported(file, step.signature, checked)


def export(config: ExportCommand) -> None:
    """Export a run as configured, and say what was checked."""
    try:
        file, signature, checked = export_policy(config.run_dir, config.file, config.format, episodes=config.episodes)
    except NotExported as error:
        raise RunFailed(str(error)) from None
    inputs, outputs = (", ".join(port.name for port in ports) for ports in (signature.inputs(), signature.outputs()))
    print(f"{file}: ({inputs}) -> ({outputs})")
    print(
        f"acts as the agent does over {checked.episodes} episodes, {checked.steps:,} steps; states differ by "
        f"{checked.difference:.1g} at most, equally likely actions at {checked.ties} steps"
    )

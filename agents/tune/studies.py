"""Optuna's part: storage, sampler, pruner, distributions. Optuna is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.agents.tune.space import Range, Space

WAIT_SECONDS = 60
"""How long a process waits for another one that writes to the same SQLite file."""

STARTUP_TRIALS = 5
"""Trials that the median pruner lets finish before it compares."""

UNPRUNED_EVALUATIONS = 2
"""Evaluations of a trial that the median pruner lets pass: the first ones say little."""


def optuna() -> Any:
    """The package, silent but for errors; ValueError with the remedy if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("tune needs Optuna; install it with: pip install 'palimpsest-rl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def address(study: str | None, folder: Path) -> str:
    """The URL of a study's storage: of a database as it is given, of a file, or of the file in the search's folder.

    Raises:
        ValueError: the file's path has a question mark.
    """
    if study is not None and "://" in study:
        return study
    path = Path(study) if study is not None else folder / "study.db"
    if "?" in str(path.absolute()):
        raise ValueError(
            f"the study's file cannot have '?' in its path, as a URL ends there; got {str(path.absolute())!r}: choose "
            "another --out, or name a file with --study"
        )
    return f"sqlite:///{path.absolute()}"


def storage(url: str, known: bool = False) -> Any:
    """The storage at a URL; ValueError, without the URL's password, if it cannot be opened.

    Optuna looks for tables and their version first, unless the storage is `known` to hold them.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    package = optuna()
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        raise ValueError(
            "study must be a file or the URL of a database, as sqlite:///FILE; this URL cannot be read"
        ) from None
    options = {"connect_args": {"timeout": WAIT_SECONDS}} if url.startswith("sqlite") else {}
    try:
        return package.storages.RDBStorage(
            url, engine_kwargs=options, skip_compatibility_check=known, skip_table_creation=known
        )
    except (SQLAlchemyError, ImportError, RuntimeError) as error:
        why = str(getattr(error, "orig", None) or error).replace(url, shown)
        raise ValueError(f"the study's storage {shown!r} cannot be opened: {why}") from None


def study(url: str, name: str, pruner: str, seed: int) -> Any:
    """The study of this name, made if there is none.

    The sampler is TPE. Its random numbers follow from the seed and from the number of trials that the study has, so
    that a search that continues does not draw the same ones again.
    """
    package = optuna()
    made = package.create_study(
        study_name=name,
        storage=storage(url),
        direction="maximize",
        load_if_exists=True,
        pruner=_pruner(pruner),
        sampler=package.samplers.RandomSampler(seed),
    )
    trials = len(made.get_trials(deepcopy=False))
    # constant_liar: trials side by side keep away from each other
    made.sampler = package.samplers.TPESampler(seed=seed + trials, constant_liar=True)
    return made


def opened_trial(url: str, name: str, pruner: str, trial_id: int) -> Any:
    """A trial that another process has made: it takes reports, and says whether to prune."""
    package = optuna()
    # nothing is sampled here
    sampler = package.samplers.RandomSampler(0)
    found = package.load_study(
        study_name=name, storage=storage(url, known=True), pruner=_pruner(pruner), sampler=sampler
    )
    return package.trial.Trial(found, trial_id)


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's words."""
    of = optuna().distributions
    found = {}
    for name, part in space.items():
        if not isinstance(part, Range):
            found[name] = of.CategoricalDistribution(part.values)
        elif isinstance(part.low, int):
            found[name] = of.IntDistribution(part.low, part.high, log=part.log, step=part.step or 1)
        else:
            found[name] = of.FloatDistribution(part.low, part.high, log=part.log, step=part.step)
    return found


def finished(trial: Any) -> bool:
    """Whether a trial needs no further attempt: it has a value, was pruned, or died by itself."""
    return trial.state.name in ("COMPLETE", "PRUNED") or (trial.state.name == "FAIL" and "died" in trial.user_attrs)


def ranked(study: Any) -> list[Any]:
    """The trials with a value, the best first, the earliest of equals first."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return sorted(complete, key=lambda trial: (-trial.value, trial.number))


def check_same(study: Any, asked: Mapping[str, Any]) -> None:
    """Refuse a study that searches something else. A new study takes note of what it searches."""
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", dict(asked))
        return
    for key, value in asked.items():
        if key in known and known[key] != value:
            raise ValueError(
                f"the study {study.study_name!r} was begun with {key} {known[key]!r}; got {value!r}: give the same "
                "flags, or another --study-name and --out"
            )


def _pruner(name: str) -> Any:
    pruners = optuna().pruners
    if name == "median":
        return pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=UNPRUNED_EVALUATIONS + 1)
    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return pruners.NopPruner()

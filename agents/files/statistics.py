"""The running statistics of a `VecNormalize`, which a model's file keeps, and the `VecNormalize` that gets them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from palimpsest.agents.files.archive import CorruptFile


def statistics_of(normalize: VecNormalize) -> dict[str, Any]:
    """The means, variances and counts of observations (by key where they are a Dict) and of returns, and how
    observations are clipped.
    """
    moments = {key: (rms.mean, rms.var, rms.count) for key, rms in _observed(normalize).items()}
    returns = normalize.ret_rms
    return {
        "obs": moments,
        "ret": (returns.mean, returns.var, returns.count),
        "returns": np.array(normalize.returns),
        "clip_obs": float(normalize.clip_obs),
        "epsilon": float(normalize.epsilon),
    }


def trained_under(model: Any) -> dict[str, Any] | None:
    """The statistics of the `VecNormalize` around a model's environments, or that its file kept; None for none."""
    normalize = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    return getattr(model, "_kept_statistics", None) if normalize is None else statistics_of(normalize)


def normalized(env: VecEnv, statistics: dict[str, Any] | None) -> VecEnv:
    """`env` with observations that are normalised by what `statistics_of` gave, and rewards as they are.

    Nothing that is played there changes the statistics. Without any it is `env` itself.

    Raises:
        CorruptFile: the statistics are none.
        ValueError: they are of other observations.
    """
    if statistics is None or not statistics.get("obs"):
        return env
    # files of before lack how observations were clipped
    clipped = {name: statistics[name] for name in ("clip_obs", "epsilon") if name in statistics}
    keys = sorted(key for key in statistics["obs"] if key)
    normalize = VecNormalize(env, training=False, norm_reward=False, norm_obs_keys=keys or None, **clipped)
    _restore(normalize, statistics, "the model")
    return normalize


def give_statistics(env: VecEnv, statistics: dict[str, Any] | None, label: str) -> bool:
    """Put what `statistics_of` gave into the `VecNormalize` around `env`; whether there is one.

    Args:
        env: may be wrapped further.
        statistics: None where a model was trained without a `VecNormalize`.
        label: the model, for messages.

    Warns:
        UserWarning: the model was trained under a `VecNormalize` and `env` has none, or the other way round.

    Raises:
        CorruptFile: the statistics are none.
        ValueError: the `VecNormalize` normalises other observations.
    """
    normalize = unwrap_vec_normalize(env)
    if normalize is None:
        if statistics is not None:
            warnings.warn(
                f"{label} was trained under VecNormalize and env has none, so the model sees numbers of another scale; "
                "wrap env in VecNormalize with the arguments of the training, and it gets the statistics of the file",
                stacklevel=4,
            )
        return False
    if statistics is None:
        if any(rms.count < 1 for rms in _observed(normalize).values()):
            warnings.warn(
                f"{label} was trained without VecNormalize, or its file lacks the statistics, and the VecNormalize "
                "around env has seen nothing yet, so the model sees numbers of another scale; leave VecNormalize out, "
                "or load its statistics with VecNormalize.load",
                stacklevel=4,
            )
        return True
    _restore(normalize, statistics, label)
    return True


def _observed(normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """The moments of the observations that are normalised, by key; under "" where they are no Dict."""
    obs = getattr(normalize, "obs_rms", None) if normalize.norm_obs else None
    return obs if isinstance(obs, dict) else {} if obs is None else {"": obs}


def _restore(normalize: VecNormalize, statistics: dict[str, Any], label: str) -> None:
    observed = _observed(normalize)
    try:
        obs, ret, returns = statistics["obs"], statistics["ret"], np.asarray(statistics["returns"], float)
        moments = {key: _moments(*obs[key]) for key in obs}
        of_returns = _moments(*ret)
    except (LookupError, TypeError, ValueError) as error:
        raise CorruptFile(f"{label} holds no statistics of a VecNormalize: {error}") from None
    shapes = {key: rms.mean.shape for key, rms in observed.items()}
    if shapes != {key: mean.shape for key, (mean, _, _) in moments.items()}:
        raise ValueError(
            f"{label} was trained under a VecNormalize that normalises {_told(moments)}, and the one around env "
            f"normalises {_told(observed)}; make it with {_remedy(moments)}"
        )
    for key, rms in observed.items():
        rms.mean, rms.var, rms.count = moments[key]
    normalize.ret_rms.mean, normalize.ret_rms.var, normalize.ret_rms.count = of_returns
    if len(returns) == normalize.num_envs:
        normalize.returns = returns


def _moments(mean: Any, var: Any, count: Any) -> tuple[np.ndarray, np.ndarray, float]:
    mean, var = np.asarray(mean, float), np.asarray(var, float)
    if mean.shape != var.shape:
        raise ValueError(f"a mean of shape {mean.shape} with a variance of shape {var.shape}")
    return mean, var, float(count)


def _told(parts: dict[str, Any]) -> str:
    if not parts:
        return "no observations"
    return "the observations" if set(parts) == {""} else f"the observations {sorted(parts)}"


def _remedy(parts: dict[str, Any]) -> str:
    if not parts:
        return "norm_obs=False"
    return "norm_obs=True" if set(parts) == {""} else f"norm_obs_keys={sorted(parts)}"

"""Environments for agents: find them by id, make rows of them, read what they declare.

Importing this module imports neither torch nor stable-baselines3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from palimpsest.imports import imported
from palimpsest.refusals import closest, refuse

if TYPE_CHECKING:
    import numpy as np
    from gymnasium import Space
    from gymnasium.envs.registration import EnvSpec
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

EVALUATION_SEED = 1_000_000_007
"""First seed of evaluation episodes. All seeds of training are below it."""


def environment_spec(env_id: str) -> EnvSpec:
    """The registration of an id; ValueError with the closest known id if it is unknown."""
    import gymnasium

    from palimpsest.envs.registration import import_owner

    module, name = imported(env_id, "environment") if ":" in env_id else (None, env_id)
    import_owner(name)
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    unknown = f"unknown environment {env_id!r}{closest(name, gymnasium.registry)}; "
    if module is not None:
        raise ValueError(f"{unknown}{module.__name__!r} must call gymnasium.register({name!r}, entry_point=...)")
    raise ValueError(
        f"{unknown}any id registered with gymnasium works, as module:id if a module must be imported first, and "
        "`palimpsest list` shows ours"
    )


def check_environment(env: Any) -> None:
    """Refuse an `env` that an agent cannot be trained in. None is allowed here."""
    from gymnasium import Env
    from gymnasium.vector import VectorEnv
    from stable_baselines3.common.vec_env import VecEnv

    if isinstance(env, str):
        environment_spec(env)
    elif env is not None and not isinstance(env, Env | VecEnv):
        refuse(
            "env",
            "a gymnasium Env, a VecEnv of stable-baselines3 (envs.make_vec gives one) or a registered id",
            env,
            ": palimpsest.envs.sb3.VectorEnvAdaptor(env) makes a VecEnv of it" if isinstance(env, VectorEnv) else "",
        )


def made_environment(env: Any, verbose: int, needed: bool, check: Callable[[Space, Space], None]) -> Any:
    """The environment that an agent's constructor was given, made where it is an id; None for None.

    Args:
        env: see `check_environment`.
        verbose: whether SB3 says that it makes one.
        needed: whether None is refused.
        check: refuses an observation and an action space, the former without its texts.

    Raises:
        ValueError: an unknown id, spaces that are refused, or None.
    """
    from stable_baselines3.common.base_class import maybe_make_env

    from palimpsest.envs.text import without_text

    check_environment(env)
    if env is None:
        if needed:
            raise ValueError("env must be given, as the policy is made for its spaces; got None")
        return None
    made = maybe_make_env(env, verbose)
    try:
        check(without_text(made.observation_space), made.action_space)
    except ValueError:
        if made is not env:
            made.close()
        raise
    return made


def innermost(env: VecEnv) -> Any:
    """The VecEnv under all wrappers."""
    from stable_baselines3.common.vec_env import VecEnvWrapper

    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def around_normalize(env: VecEnv) -> str | None:
    """The name of a wrapper around a VecNormalize that may change what it gives; None if there is none.

    Wrappers of SB3 and those that agents add are known to change neither rewards nor what is scaled: images and texts
    never are.
    """
    from stable_baselines3.common import vec_env

    from palimpsest.envs.sb3_wrappers import VecDropText

    watching = (vec_env.VecMonitor, vec_env.VecCheckNan, vec_env.VecVideoRecorder)
    normalize = vec_env.unwrap_vec_normalize(env)
    while normalize is not None and env is not normalize:
        assert isinstance(env, vec_env.VecEnvWrapper)
        if not isinstance(env, (*watching, vec_env.VecTransposeImage, VecDropText)):
            return type(env).__name__
        env = env.venv
    return None


def check_normalize(env: VecEnv) -> None:
    """Refuse a VecNormalize inside a wrapper that may change what it gives, as a replay keeps what it is given."""
    if name := around_normalize(env):
        raise ValueError(
            f"a replay keeps what VecNormalize is given, so VecNormalize must be around {name}; got {name} around "
            f"VecNormalize: exchange them, as VecNormalize({name}(...)), or leave VecNormalize out and set "
            "normalize_observations=True"
        )


def unscaled(seen: Any, normalize: VecNormalize | None) -> Any:
    """The latest observations [B, ...] as they were `seen`, but what VecNormalize scales as it was given.

    Args:
        seen: a tree of arrays, in environments without an `around_normalize`.
        normalize: the VecNormalize around them, None for none.
    """
    if normalize is None or not normalize.norm_obs:
        return seen
    given: Any = normalize.get_original_obs()
    return seen | {key: given[key] for key in normalize.norm_obs_keys or ()} if isinstance(seen, dict) else given


def declares(env: VecEnv, name: str) -> bool:
    """Whether the rows have an attribute, and it holds for what an agent sees.

    A VecEnv that answers to any name, or to none, declares nothing. What is declared of observations
    (`envs.declared.DECLARED`) does not hold under wrappers that change them.
    """
    try:
        return env.has_attr(name) and not env.has_attr("a name that no environment has") and not _undone(env, name)
    except NotImplementedError:
        return False


def _undone(env: VecEnv, name: str) -> bool:
    from gymnasium.wrappers import FlattenObservation
    from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize, VecTransposeImage

    from palimpsest.envs.declared import DECLARED, ChangesObservations
    from palimpsest.envs.sb3_wrappers import VecHiding

    if name not in DECLARED:
        return False
    *wrappers, inner = _layers(env)
    for wrapper in wrappers:
        if isinstance(wrapper, VecNormalize):
            undone = name == "event_mask" and wrapper.norm_obs  # its statistics move on, so it is not reckoned back
        elif isinstance(wrapper, VecHiding | VecTransposeImage) or not isinstance(wrapper, VecEnvWrapper):
            undone = False
        else:
            undone = wrapper.observation_space != wrapper.venv.observation_space
        if undone:
            return True
    kinds: list[Any] = [ChangesObservations, *([FlattenObservation] if name == "event_mask" else [])]
    return any(any(inner.env_is_wrapped(kind)) for kind in kinds)


def _layers(env: VecEnv) -> Iterator[VecEnv]:
    """A VecEnv and those that it wraps, the outermost first; of two halves the first one."""
    inner: Any = env
    while inner is not None:
        yield inner
        halves = getattr(inner, "halves", None)
        inner = halves[0].settled() if halves else getattr(inner, "venv", None)


def event_mask(env: VecEnv, obs: Any) -> np.ndarray:
    """Which observations show an event, of an environment that `declares` its "event_mask".

    Args:
        env: the environments, in the wrappers of SB3 in which the agent sees them.
        obs: the agent's observations, an array [..., *shape] or a dict of such.

    Returns:
        [...] bool.
    """
    import numpy as np
    from stable_baselines3.common.vec_env import VecTransposeImage

    from palimpsest.envs.sb3_wrappers import VecPreviousActionReward

    for layer in _layers(env):
        if isinstance(layer, VecTransposeImage) and not layer.skip:
            if isinstance(obs, dict):
                obs = {**obs, **{key: np.moveaxis(obs[key], -3, -1) for key in layer.image_space_keys}}
            else:
                obs = np.moveaxis(obs, -3, -1)
        elif isinstance(layer, VecPreviousActionReward):
            obs = layer.joined.part(obs)
    return np.asarray(layer.env_method("event_mask", obs, indices=[0])[0], bool)


def registered_id(env: VecEnv) -> str | None:
    """The id with which the rows were made; None if they do not say it, or are in processes of their own.

    A registration can hold what does not go through a pipe, and asking for it would end the process.
    """
    inner = innermost(env)
    if not (hasattr(inner, "envs") or hasattr(inner, "world")) or not declares(env, "spec"):
        return None
    spec = env.get_attr("spec", [0])[0]
    return None if spec is None else spec.id


def longest_horizon(env: VecEnv) -> int | None:
    """The largest correlation horizon that the environment declares, in steps; None if it declares none."""
    if not declares(env, "memory_horizons"):
        return None
    return max(env.env_method("memory_horizons", indices=[0])[0])


def longest_wait(env: VecEnv) -> int | None:
    """For how many steps the task may show the same before something happens, whatever an agent sees beside it.

    None where the environment does not say it.
    """
    if declares(env, "longest_wait"):
        return env.env_method("longest_wait", indices=[0])[0]
    return longest_horizon(env)


def chance_level(env: VecEnv) -> float | None:
    """Success of the best player without memory; None if the environment does not declare it, or does not know it."""
    if not declares(env, "chance_level"):
        return None
    return env.env_method("chance_level", indices=[0])[0]


def closing_settings(env: VecEnv) -> list[dict[str, Any]]:
    """Further settings (arguments) in which the environment asks to test a finished agent."""
    return list(env.get_attr("closing_settings")[0]) if declares(env, "closing_settings") else []

"""What SB3's VecEnvs lack for us: text keys left out, and questions about the worlds behind them."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from envs.text import DropText, has_text, without_text


class VecDropText(VecEnvWrapper):
    """A VecEnv without the text keys of its Dict observations (MiniGrid's `mission`), which no policy reads."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, observation_space=without_text(venv.observation_space))

    @staticmethod
    def where_needed(env: Any) -> Any:
        """`env` (gymnasium or VecEnv) as it is, or without its text keys."""
        if not has_text(env.observation_space):
            return env
        return VecDropText(env) if isinstance(env, VecEnv) else DropText(env)

    def _keep(self, obs: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.observation_space, spaces.Dict)
        return {key: obs[key] for key in self.observation_space.spaces}

    def reset(self) -> dict[str, Any]:
        """The first observations, without text."""
        return self._keep(self.venv.reset())  # type: ignore[arg-type]

    def step_wait(self) -> VecEnvStepReturn:
        """One step, without text, in `terminal_observation` too."""
        obs, rewards, dones, infos = self.venv.step_wait()
        for row in dones.nonzero()[0]:
            infos[row]["terminal_observation"] = self._keep(infos[row]["terminal_observation"])
        return self._keep(obs), rewards, dones, infos  # type: ignore[arg-type]


def longest_horizon(env: VecEnv) -> int | None:
    """The largest correlation horizon that the environment declares, in steps; None where it declares none."""
    if not env.has_attr("memory_horizons"):
        return None
    return max(env.env_method("memory_horizons", indices=[0])[0])


def chance_level(env: VecEnv) -> float | None:
    """Success of the best player without memory, where the environment declares it."""
    if not env.has_attr("chance_level"):
        return None
    return float(env.env_method("chance_level", indices=[0])[0])


def closing_settings(env: VecEnv) -> list[dict[str, Any]]:
    """Arguments under which the environment wants a finished agent tested, beside those it was trained with."""
    return list(env.get_attr("closing_settings")[0]) if env.has_attr("closing_settings") else []

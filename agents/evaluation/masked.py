"""Evaluation of a model in an environment that says which actions it allows."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
from stable_baselines3.common import evaluation
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from palimpsest.agents.masks import get_action_masks, is_masking_supported


class Masked:
    """A model that asks an environment for its action masks before each prediction. The rest is the model's.

    Args:
        model: its `predict` takes `action_masks`.
        env: the environments that it plays in, with `action_masks()`.
    """

    def __init__(self, model: Any, env: VecEnv) -> None:
        self._model, self._env, self._steps = model, env, 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """As the model's, among the actions that are allowed now."""
        masks = get_action_masks(self._env, self._steps)
        self._steps += 1
        return self._model.predict(observation, state, episode_start, deterministic, action_masks=masks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def masked(model: Any, env: VecEnv, use_masking: bool = True) -> Any:
    """`model`, as `Masked` where masks are wanted, `env` has them and the model's `predict` takes them."""
    parameters = inspect.signature(model.predict).parameters.values()
    takes_masks = any(each.name == "action_masks" or each.kind is each.VAR_KEYWORD for each in parameters)
    return Masked(model, env) if use_masking and takes_masks and is_masking_supported(env) else model


def evaluate_policy(
    model: Any, env: gym.Env | VecEnv, *args: Any, use_masking: bool = True, **kwargs: Any
) -> tuple[float, float] | tuple[list[float], list[int]]:
    """SB3's `evaluate_policy`, with action masks where the environment has them.

    sb3-contrib's function of this name drops the memory's state where it uses masks.

    Args:
        model: a model or a policy.
        env: a gymnasium Env or a VecEnv.
        *args: those of SB3's `evaluate_policy`: n_eval_episodes, deterministic, ...
        use_masking: whether masks are used.
        **kwargs: the same by name.
    """
    venv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    return evaluation.evaluate_policy(masked(model, venv, use_masking), venv, *args, **kwargs)


class MaskableEvalCallback(EvalCallback):
    """SB3's `EvalCallback`, with action masks where the environment has them.

    Args:
        *args: those of SB3's `EvalCallback`.
        use_masking: whether masks are used.
        **kwargs: the same by name.
    """

    def __init__(self, *args: Any, use_masking: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_masking = use_masking

    def _init_callback(self) -> None:
        super()._init_callback()
        self._player = masked(self.model, self.eval_env, self.use_masking)

    def _on_step(self) -> bool:
        model, self.model = self.model, self._player
        try:
            return super()._on_step()
        finally:
            self.model = model

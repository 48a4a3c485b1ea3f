"""Play episodes one step at a time, and keep of each step what a picture of it shows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import EVALUATION_SEED, declares, environment_spec, event_mask
from palimpsest.agents.evaluation.play import check_spaces
from palimpsest.agents.masks import get_action_masks, is_masking_supported
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.spaces import greedy_strategy
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.key_values import environment_arguments
from palimpsest.agents.run.runs import Run, load_agent
from palimpsest.agents.tree import tree_map
from palimpsest.agents.worlds.vectors import make_environments
from palimpsest.memory.base import Panel


@dataclass(frozen=True)
class Scores:
    """What an agent thinks of its choices at one step."""

    title: str
    values: np.ndarray
    """[n] floats: probabilities, values of actions, or means of the numbers of a Box."""
    chosen: np.ndarray
    """[n] bool, what was taken; all false for a Box."""
    names: list[str]
    """n of them."""


@dataclass(frozen=True)
class Moment:
    """One step of an episode: what was seen and remembered before the action, and what the action gave."""

    episode: int
    """From 1."""
    step: int
    """From 0."""
    world: np.ndarray | str | None
    """[H, W, 3] uint8, or text; None where the environment does not render."""
    panels: list[Panel]
    """Of the actor's memory, of one row."""
    scores: Scores
    action: np.ndarray
    value: float
    """What the critic expects from here on."""
    reward: float
    """Of the action."""
    total: float
    """The episode's return, this reward included."""
    end: str
    """How the episode ended with this step: "success", "failure", "end", "stopped"; "" if it goes on."""
    event: bool
    """Whether the observation shows an event, where the environment says so."""


def render_modes(env_id: str) -> list[str]:
    """The render modes that an environment's class declares and takes as an argument; [] if it has none."""
    entry = environment_spec(env_id).entry_point
    creator: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    parameters = inspect.signature(creator).parameters.values()
    takes = any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in parameters)
    return list(getattr(creator, "metadata", {}).get("render_modes", [])) if takes else []


def load_watched(path: Path, device: str) -> Run:
    """The agent that a path names: a run directory, or a model's file in one.

    Raises:
        ValueError: there is none, or the file is in no run directory.
    """
    run = load_agent(path, device)
    if not isinstance(run, Run):
        raise ValueError(f"{str(path)!r} is in no run directory, which would say what the agent sees; name one that is")
    return run


def make_watched(
    run: Run, env_id: str | None, env_args: dict[str, Any], rows: int = 1, mode: str | None = None
) -> tuple[VecEnv, str, bool]:
    """The environments to watch a run in, their id, and whether they render in `mode`.

    Args:
        run: the run, whose configuration says what is done to observations.
        env_id: another environment than the run's; None for the run's own.
        env_args: texts or values; in the run's own environment they replace its arguments one by one.
        rows: B.
        mode: "rgb_array", "ansi", or None to draw nothing.

    Raises:
        ValueError: an unknown id or argument, or spaces that do not fit the model.
    """
    config: TrainConfig = run.config
    name = config.env if env_id is None else env_id
    own = config.env_args if name == config.env else {}
    arguments = {**own, **environment_arguments(name, env_args)}
    renders = mode is not None and mode in render_modes(name)
    env = make_environments(
        name,
        rows,
        EVALUATION_SEED,
        {**arguments, "render_mode": mode} if renders else arguments,
        config.previous_action_reward,
        config.keep_observations,
        config.antialias,
        config.fully_observed,
        config.wrapper,
    )
    env = type(run.model)._wrap_env(env)
    check_spaces(run.model, env)
    return env, name, renders


def moments(
    model: Any,
    env: VecEnv,
    episodes: int = 1,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    max_steps: int = 500,
    render: bool = False,
) -> Iterator[Moment]:
    """Play `episodes` episodes; the actions are those of `predict`.

    Args:
        model: a `MemoryPPO`, `MemoryDQN` or `MemorySAC`. Its policy computes by torch's operations afterwards, so that
            nothing is compiled for a single row.
        env: one row, with the observation wrappers of the training.
        episodes: 1 or more.
        seed: of the first episode; each further one has the next.
        deterministic: the likeliest action instead of a sample.
        max_steps: steps after which an episode is stopped.
        render: whether to call the environment's `render`.
    """
    policy: MemoryActorCriticPolicy = model.policy
    policy.compiled = False
    names = action_names(env)
    has_events = declares(env, "event_mask")
    masking = is_masking_supported(env)
    for episode in range(episodes):
        env.seed(seed + episode)
        obs: Any = env.reset()
        state, start, total = None, np.ones(1, bool), 0.0
        for step in range(max_steps):
            try:
                world = _picture(env.env_method("render")[0]) if render else None
            except NotImplementedError:  # gymnasium's own, where a class declares modes and has no render()
                world, render = None, False
            masks = get_action_masks(env, step) if masking else None
            before = policy.initial_state(1) if state is None else as_tensors(state, policy.device)
            panels, scores, judged = _look(policy, obs, before, start, masks, names)
            taken = {} if masks is None else {"action_masks": masks}
            action, state = model.predict(obs, state, start, deterministic, **taken)
            event = has_events and bool(event_mask(env, obs)[0])
            obs, rewards, dones, infos = env.step(action)
            total += float(rewards[0])
            end = _end(infos[0]) if dones[0] else "stopped" if step == max_steps - 1 else ""
            chosen = chosen_flags(env.action_space, action[0])
            yield Moment(
                episode=episode + 1,
                step=step,
                world=world,
                panels=panels,
                scores=Scores(scores.title, scores.values, chosen, scores.names),
                action=action[0],
                value=float(judged[chosen.argmax()] if judged.ndim else judged),
                reward=float(rewards[0]),
                total=total,
                end=end,
                event=event,
            )
            start = np.zeros(1, bool)
            if dones[0]:
                break


def _picture(rendered: Any) -> Any:
    """What `render` has returned; ValueError for what is neither a picture [H, W, 3] uint8, nor text, nor None."""
    if rendered is None or isinstance(rendered, str):
        return rendered
    if isinstance(rendered, np.ndarray):
        if rendered.dtype == np.uint8 and rendered.ndim == 3 and rendered.shape[2] == 3 and rendered.size:
            return rendered
        got = f"{rendered.dtype} {list(rendered.shape)}"
    else:
        got = f"a {type(rendered).__name__}"
    raise ValueError(
        f"render() must return uint8 [H, W, 3]; got {got}: mend the environment's render, or play with --ansi"
    )


def _look(
    policy: MemoryActorCriticPolicy, obs: Any, before: Any, start: np.ndarray, masks: Any, names: list[str]
) -> tuple[list[Panel], Scores, np.ndarray]:
    """Panels, scores without a choice, and what the critic says: a value [], or one of each action [A]."""
    tensors = policy.obs_to_tensor(obs)[0]
    strategy = greedy_strategy(policy.memory, tensors, 1)
    with torch.no_grad():
        look = policy.look(
            tree_map(lambda leaf: leaf.unsqueeze(0), tensors),
            before,
            torch.as_tensor(start, device=policy.device).unsqueeze(0),
            None if strategy is None else strategy.unsqueeze(0),
            None if masks is None else torch.as_tensor(masks, device=policy.device).unsqueeze(0),
        )
        old, new = (before, look.state) if policy.shares_memory else (before[0], look.state[0])
        panels = policy.memory.panels(old, new)
        panels.append(Panel("given out (y)", look.latent.actor[0, 0]))
        panels = [panel._replace(values=panel.values.detach().float().cpu()) for panel in panels]
        judged = look.judged[0, 0].cpu().numpy()
        if policy.acts_by_values:
            title, values = "value of each action", judged
        else:
            title, values = score_values(policy.action_space, look.distribution)
    return panels, Scores(title, values, np.zeros(len(values), bool), _numbered(names, len(values))), judged


def as_tensors(state: Any, device: torch.device) -> Any:
    """A state as `predict` returns it, as the policy's methods take it."""
    return tree_map(lambda leaf: torch.as_tensor(leaf, device=device), state)


def score_values(space: spaces.Space, distribution: Distribution) -> tuple[str, np.ndarray]:
    """What to show of the distribution of one action: a title and [n] numbers."""
    if isinstance(space, spaces.Box):
        return "mean of each number", distribution.mode()[0].cpu().numpy()
    made: Any = distribution.distribution
    parts = made if isinstance(made, list) else [made]
    title = "probability of 1" if isinstance(space, spaces.MultiBinary) else "probability"
    return title, np.concatenate([part.probs[0].cpu().numpy() for part in parts])


def chosen_flags(space: spaces.Space, action: np.ndarray) -> np.ndarray:
    """[n] bool, which of the numbers of `score_values` the action took."""
    if isinstance(space, spaces.Discrete):
        return np.arange(space.n) == action
    if isinstance(space, spaces.MultiDiscrete):
        parts = zip(space.nvec.reshape(-1), np.ravel(action))
        return np.concatenate([np.arange(size) == value for size, value in parts])
    if isinstance(space, spaces.MultiBinary):
        return np.asarray(action).reshape(-1) > 0
    return np.zeros(int(np.prod(space.shape or ())), bool)


def action_names(env: VecEnv) -> list[str]:
    """What the actions are called: `action_names` of the environment, or Atari's `get_action_meanings()`; else []."""
    if declares(env, "action_names"):
        return list(env.get_attr("action_names", indices=[0])[0])
    if declares(env, "get_action_meanings"):
        return list(env.env_method("get_action_meanings", indices=[0])[0])
    return []


def _numbered(names: list[str], n: int) -> list[str]:
    return list(names) if len(names) == n else [str(i) for i in range(n)]


def _end(info: dict[str, Any]) -> str:
    success = info.get("is_success")
    return "end" if success is None else "success" if success else "failure"

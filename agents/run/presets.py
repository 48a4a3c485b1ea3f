"""Presets: defaults of `train.py` that depend on the algorithm and the memory. A flag replaces them."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

ALGORITHMS = {
    "ppo": "palimpsest.agents.learn.ppo:MemoryPPO",
    "dqn": "palimpsest.agents.off_policy.dqn:MemoryDQN",
    "sac": "palimpsest.agents.off_policy.sac:MemorySAC",
}
"""Name on the command line -> class."""


def algorithm_class(name: str) -> Any:
    """The class of an algorithm; this imports torch."""
    module, _, cls = ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


OF_PPO = (
    *("n_steps", "n_epochs", "gae_lambda", "ent_coef", "clip_range", "target_kl", "min_advantage_std", "vf_coef"),
    *("min_gae_lambda", "max_grad_norm", "num_minibatches", "anneal_entropy", "carry_over"),
    *("use_sde", "sde_sample_freq", "batch_size", "anneal_clip_range", "ortho_init", "log_std_init"),
    *("workers", "overlap", "autocast"),
)
"""Fields of `TrainConfig` that are without effect with another algorithm."""

WRITTEN_AT_ONCE = frozenset({"n_epochs", "gae_lambda", "ent_coef", "clip_range", "min_advantage_std", "vf_coef"})
"""Fields of ppo that every run's file once held, whatever its algorithm."""


def own_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration's file says, without ppo's fields where the program wrote them for another algorithm.

    They are the defaults of that day, which may be others today. In a file written by hand somebody meant them.
    """
    of_another = document.get("algo", "ppo") != "ppo" and document.keys() >= WRITTEN_AT_ONCE
    return {name: value for name, value in document.items() if not (of_another and name in OF_PPO)}


ENGINES = ("processes", "ray")
"""What starts the workers of a training, or the runs of a sweep."""


CARRY_OVER = 0.9
"""Probability that a memory is kept when an episode ends."""


class Preset(NamedTuple):
    """The hyperparameters whose best values differ between memories or algorithms; fields of `TrainConfig`."""

    learning_rate: float
    share_memory: bool = True
    net_arch: tuple[int, ...] | None = None
    activation: str = "tanh"
    gamma: float = 0.99
    carry_over: float = CARRY_OVER


PRESETS = {
    "gru": Preset(2e-3),
    "hcam": Preset(5e-4),
    "sat": Preset(3e-4),
    "gtrxl": Preset(3e-4),
    "trxl": Preset(3e-4),
    # Its matrix keeps its size in expectation only: products of more steps than an episode has overflow.
    "shm": Preset(1.5e-3, carry_over=0.0),
    "elmur": Preset(7e-4),
    "mom": Preset(7e-4),
    # The gradient through its own learning explodes sooner with larger steps.
    "titans": Preset(7e-4),
}
"""Memory -> its preset, where it is not `DEFAULT`; found by trial on the default job
(docs/notebook/generalisation.md)."""

DEFAULT = Preset(1.5e-3)
"""The preset of every other memory, found by trial in control without velocities (docs/notebook/defaults.md)."""

OFF_POLICY = {
    "dqn": Preset(5e-4, True, (128, 128), "relu"),
    "sac": Preset(1e-3, False, (128, 128), "relu"),
}
"""Algorithm -> its preset for every memory. One tanh layer of 64 cannot tell the values of a junction from those of the
cell before it (docs/notebook/off-policy.md)."""


TARGET_KL, TARGET_KL_OF_A_BOX = 0.02, 0.1
"""The KL divergence that an update may reach; that of normal distributions grows faster with a step than that of
choices."""

LOG_STD_INIT = -1.0
"""The logarithm of gSDE's weights at the start. Each of 64 units adds to the noise."""


def usual(memory: str, algo: str = "ppo") -> Preset:
    """The preset of a registered memory with an algorithm."""
    return OFF_POLICY[algo] if algo in OFF_POLICY else PRESETS.get(memory, DEFAULT)


COLUMN, SAMPLES, MINIBATCH = 128, 2048, 512
"""Steps of a rollout's column, and samples of a rollout and of a minibatch, about."""


def rolled_out(num_envs: int, n_steps: int | None, is_cut: bool) -> dict[str, int]:
    """Fields of `TrainConfig` that a rollout of ppo has by default; `is_cut` says whether its minibatches are given.

    A rollout has about `SAMPLES` samples, 1,400 to 2,600, or more. 128 steps of one environment are less than an
    episode of many tasks. The moments of their returns and advantages, which scale an update, tell of one situation
    (docs/notebook/defaults.md).
    """
    steps = n_steps or COLUMN * max(1, round(SAMPLES / COLUMN / num_envs))
    if is_cut:
        return {"n_steps": steps}
    if num_envs * COLUMN < SAMPLES:
        # whole columns where the steps are given, so that gradients reach as far as was asked for
        return {"n_steps": steps, "batch_size": min(max(MINIBATCH, n_steps or 0), steps * num_envs)}
    return {"n_steps": steps, "num_minibatches": math.gcd(num_envs // 4, num_envs)}


GO_BY = ("algo", "memory", "num_envs", "n_steps", "num_minibatches", "batch_size")
"""Fields of `TrainConfig` by which others are filled in."""


def filled_anew(old: Any, changed: Collection[str]) -> dict[str, Any]:
    """Fields of a run's `TrainConfig` that were filled in by `GO_BY`, as None: a change of those fills them in anew.

    A run's file holds what the presets filled in beside what its user gave. What equals a preset counts as filled in. A
    file that leaves fields of the preset out was written by hand: all in it was given. What is of one algorithm alone
    is not taken over by another, whoever gave it.
    """
    others: dict[str, Any] = {}
    if "algo" in changed:
        theirs = ("algo_args", *OF_PPO)
        others = {spec.name: _default_of(spec) for spec in dataclasses.fields(old) if spec.name in theirs}
    held = ("n_steps",) if old.algo == "ppo" else ()
    preset = {name: value for name, value in usual(old.memory, old.algo)._asdict().items() if value is not None}
    if old.algo != "ppo":
        preset = {name: value for name, value in preset.items() if name not in OF_PPO}
    if any(getattr(old, name) is None for name in (*preset, *held)):
        return others
    filled: dict[str, Any] = {}
    if {"algo", "memory"}.intersection(changed):
        filled |= preset
    if old.algo == "ppo" and "num_envs" in changed:
        filled["n_steps"] = rolled_out(old.num_envs, None, True)["n_steps"]
    if old.algo == "ppo" and set(changed) - {"memory"}:
        cut = rolled_out(old.num_envs, old.n_steps, False)
        filled |= {name: cut[name] for name in ("num_minibatches", "batch_size") if name in cut}
    return {name: None for name, value in filled.items() if getattr(old, name) == value} | others


def _default_of(spec: dataclasses.Field) -> Any:
    return spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()


def replaying(algo: str, num_envs: int) -> dict[str, Any]:
    """Arguments of an off-policy algorithm with this number of environments; `--algo-args` replaces them one by one.

    Updates come as often, by environment steps, whatever the number of environments: one every four.
    """
    shared = dict(
        buffer_size=100_000,
        learning_starts=1000,
        batch_size=16,
        sequence_length=32,
        burn_in=8,
        tau=0.05,
        train_freq=max(1, 4 // num_envs),
        gradient_steps=max(1, num_envs // 4),
    )
    if algo == "sac":
        return shared | dict(n_steps=3, ent_coef="auto_0.01", pink_noise=True)
    return shared | dict(
        n_steps=10,
        refresh_states=True,
        prioritized=True,
        target_update_interval=max(16, num_envs),
        exploration_fraction=0.2,
        exploration_final_eps=0.02,
    )

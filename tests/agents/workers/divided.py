"""Small trainings in float64 that one worker or several do, and processes that do them together."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from small import VARIANTS, small_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from palimpsest import memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.policy.extractors import DictExtractor
from palimpsest.agents.workers.group import WorkerLost, here, joined
from palimpsest.envs.halves import VecHalves
from palimpsest.memory.kernels import torch_only

ROWS, STEPS = 4, 8


class Wide(FlattenExtractor):
    """Features in float64."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations).double()


class WideDict(DictExtractor):
    """Features in float64."""

    def forward(self, observations: Any) -> torch.Tensor:
        return super().forward(observations).double()


class Recall(gym.Env):
    """Give back the number shown at the start of an episode, which lasts 2 to 6 steps; in plain Python."""

    def __init__(self, actions: spaces.Space, told: bool) -> None:
        shown = spaces.Box(-5, 5, (3,), np.float32)
        self.observation_space = spaces.Dict({"shown": shown, "parity": spaces.Discrete(2)}) if told else shown
        self.action_space, self.told = actions, told

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.item, self.length, self.t = int(self.np_random.integers(2)), int(self.np_random.integers(2, 7)), 0
        return self.seen(), {}

    def seen(self) -> Any:
        shown = np.array([self.item if self.t == 0 else -1, self.t, self.np_random.normal()], np.float32)
        return {"shown": shown, "parity": self.t % 2} if self.told else shown

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        reward = 1.0 - abs(float(np.mean(action)) - self.item)
        over = self.t >= self.length
        return self.seen(), reward, over and self.item == 0, over and self.item == 1, {"is_success": reward > 0.5}


ACTIONS = {
    "one": spaces.Discrete(2),
    "several": spaces.MultiDiscrete([2, 3]),
    "switches": spaces.MultiBinary(2),
    "box": spaces.Box(-1, 2, (2,), np.float32),
}

CASES: dict[str, dict[str, Any]] = {
    **{f"memory-{name}": dict(memory=name) for name in memory.names()},
    "adaptive": dict(memory="sat-adaptive"),
    "dict": dict(memory="rewrite", told=True, share_memory=False),
    "several": dict(actions="several"),
    "switches": dict(actions="switches"),
    "box": dict(actions="box"),
    "gsde": dict(actions="box", use_sde=True, sde_sample_freq=3, target_kl=None),
    "segments": dict(sequence_length=3, refresh_states=True),
    "one-column": dict(batch_size=STEPS),
    "undone": dict(target_kl=1e-4, learning_rate=0.1),
    "reconstructing": dict(memory_aux_coef=0.5, told=True),
    "no-carry": dict(memory_carry_over=0.0, clip_range_vf=0.2),
    "lambda": dict(min_gae_lambda=0.5),
}


class Kept(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, values: dict, excluded: dict, step: int = 0) -> None:
        self.written.append({key: value for key, value in values.items() if isinstance(value, int | float)})


def environments(actions: spaces.Space, told: bool, halves: bool) -> VecEnv:
    """The rows of this worker, here or as two halves in other processes."""
    rows = [lambda: Monitor(Recall(actions, told)) for _ in range(ROWS // here().size)]
    if not halves:
        return DummyVecEnv(rows)
    # of unequal size, so that one is of a single row
    return VecHalves(SubprocVecEnv(rows[1:], start_method="fork"), SubprocVecEnv(rows[:1], start_method="fork"))


def agent(case: str, halves: bool = False) -> MemoryPPO:
    """The agent of a case, with the rows of this worker."""
    arguments = CASES[case]
    given = {key: value for key, value in arguments.items() if key not in ("memory", "actions", "told", "share_memory")}
    told, actions = arguments.get("told", False), ACTIONS[arguments.get("actions", "one")]
    name, more = VARIANTS.get(arguments.get("memory", "gru"), (arguments.get("memory", "gru"), {}))
    kwargs = small_policy(name, share_memory=arguments.get("share_memory", True))
    kwargs["memory_kwargs"] |= more
    kwargs["features_extractor_class"] = WideDict if told else Wide
    defaults = dict(batch_size=2 * STEPS, target_kl=0.05, memory_carry_over=0.5, learning_rate=3e-3)
    model = MemoryPPO(
        "MultiInputMemoryPolicy" if told else "MlpMemoryPolicy",
        environments(actions, told, halves),
        n_steps=STEPS,
        n_epochs=2,
        ent_coef=0.01,
        policy_kwargs=kwargs,
        seed=0,
        device="cpu",
        stats_window_size=10,
        normalize_observations=True,
        normalize_returns=True,
        **defaults | given,
    )
    model.policy.double()
    return model


def trained(case: str, iterations: int = 3, halves: bool = False) -> dict[str, Any]:
    """Parameters, statistics, the rollout and the logs of a training of three iterations."""
    torch.set_num_threads(1)
    model = agent(case, halves)
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    with torch_only():
        model.learn(iterations * ROWS * STEPS)
    model.env.close()
    found = {name: value.numpy().copy() for name, value in model.policy.state_dict().items()}
    columns = model.rollout_buffer.columns
    found["rollout.actions"], found["rollout.starts"] = columns.actions.numpy(), columns.memory_start.numpy()
    found["rollout.advantages"] = columns.advantages.numpy()
    logs = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in kept.written]
    return {"numbers": found, "logs": logs, "episodes": [episode["r"] for episode in model.ep_info_buffer]}


def together(work: Any, size: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gives in each of `size` workers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["palimpsest.agents.learn.ppo", "torch.distributed"])
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_work, args=(work, rank, size, folder / "meet", pipes[rank][1], arguments))
        for rank in range(size)
    ]
    for process, (_, sender) in zip(processes, pipes):
        process.start()
        sender.close()
    answers = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return answers


def _work(work: Any, rank: int, size: int, file: Path, sender: Any, arguments: Any) -> None:
    with joined(rank, size, file):
        sender.send(work(*arguments))


def all_trained(cases: list[str]) -> dict[str, Any]:
    """`trained` of each case, where rank 0 keeps the results."""
    found = {case: trained(case) for case in cases}
    return found if here().rank == 0 else {}


def refused() -> str:
    """What is said of a VecNormalize, whose statistics would be one worker's."""
    env = VecNormalize(DummyVecEnv([lambda: Recall(ACTIONS["one"], False)]))
    try:
        MemoryPPO("MlpMemoryPolicy", env, policy_kwargs=small_policy("none"), device="cpu")
    except ValueError as error:
        return str(error)
    return ""


def deserted() -> str:
    """What the first worker is told once the second is gone."""
    if here().rank == 0:
        try:
            for _ in range(1000):
                here().add(torch.zeros(1))
        except WorkerLost as error:
            return str(error)
    return ""

"""Speed of training, compared with sb3-contrib and torch's own recurrences on the same work in the same process.

    python benchmarks/speed.py --quick          # under three minutes
    python benchmarks/speed.py --out docs/speed.md

Contestants take turns. Every figure is the median of its repeats after a warm-up. Compile time is not included.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces
from measure import machine, markdown, matrix_work, side_by_side
from plain import PlainEndlessTMaze
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.versions import versions
from palimpsest.memory.base import Memory
from palimpsest.memory.kernels import torch_only

N_STEPS, N_EPOCHS, MINIBATCHES = 128, 4, 4
HEADS = {"pi": [64], "vf": [64]}
WIDTH = 128
STACKS = (
    "mingru",
    "s5",
    "mamba",
    "cmru",
    "linear",
    "gla",
    "mlstm",
    "based",
    "mom",
    "deltaproduct",
    "elmur",
    "dnc",
    "titans",
    "miras",
    "aler",
    "larimar",
    "memoria",
)


@dataclass(frozen=True)
class Options:
    """Compare speeds."""

    quick: bool = False
    """Fewer sizes and repeats."""
    threads: int = 1
    """Threads for torch, for every contestant."""
    only: tuple[str, ...] = ("training", "own", "threads", "scans", "acting")
    """Tables to make."""
    out: Path | None = None
    """A Markdown file to write as well; the raw figures also go to a JSON file of the same name."""


def training(options: Options) -> list[list[Any]]:
    """Env steps per second of whole iterations, rollout and update, on plain-Python environments."""
    rows = []
    for n_envs in (64,) if options.quick else (8, 64):
        contestants: dict[str, Any] = {
            "sb3-contrib, default (two LSTMs)": theirs(n_envs),
            "sb3-contrib, shared LSTM": theirs(n_envs, shared_lstm=True, enable_critic_lstm=False),
            "ours, lstm (default, shared)": ours(n_envs, "lstm"),
            "ours, lstm, share_memory=False": ours(n_envs, "lstm", share_memory=False),
            "ours, ffm": ours(n_envs, "ffm"),
            "ours, rewrite (one layer)": ours(n_envs, "rewrite", memory_kwargs={"num_layers": 1}),
        }
        steps = N_STEPS * n_envs
        calls = {name: learner(model, steps) for name, model in contestants.items()}
        calls["matrix products of lstm alone"] = floor_of(contestants["ours, lstm (default, shared)"])
        seconds = side_by_side(calls, 2 if options.quick else 5)
        base = seconds["sb3-contrib, default (two LSTMs)"]
        shared = seconds["sb3-contrib, shared LSTM"]
        for name, found in seconds.items():
            rows.append([n_envs, name, steps / found, base / found, shared / found])
    return rows


def theirs(n_envs: int, **policy: Any) -> RecurrentPPO:
    """sb3-contrib's RecurrentPPO on plain-Python environments."""
    return RecurrentPPO(
        "MlpLstmPolicy",
        plain_envs(n_envs),
        n_steps=N_STEPS,
        batch_size=N_STEPS * n_envs // MINIBATCHES,
        n_epochs=N_EPOCHS,
        policy_kwargs={"lstm_hidden_size": WIDTH, "net_arch": HEADS, **policy},
        device="cpu",
        seed=0,
    )


def ours(
    n_envs: int, name: str, memory_kwargs: dict[str, Any] | None = None, compiled: bool = False, **policy: Any
) -> MemoryPPO:
    """MemoryPPO on the same environments, or on `compiled` ones. It has no encoder, because RecurrentPPO has none."""
    return MemoryPPO(
        "MlpMemoryPolicy",
        envs.make_vec("Palimpsest/EndlessTMaze-v0", n_envs, seed=0) if compiled else plain_envs(n_envs),
        n_steps=N_STEPS,
        batch_size=N_STEPS * n_envs // MINIBATCHES,
        n_epochs=N_EPOCHS,
        policy_kwargs={
            "memory": name,
            "memory_kwargs": {"output_size": WIDTH, **(memory_kwargs or {})},
            "encoder_arch": [],
            "net_arch": HEADS,
            **policy,
        },
        device="cpu",
        seed=0,
    )


def plain_envs(n_envs: int) -> DummyVecEnv:
    """Plain-Python environments in a DummyVecEnv, as SB3 users have them."""
    return DummyVecEnv([lambda: Monitor(PlainEndlessTMaze())] * n_envs)


def learner(model: Any, steps: int) -> Callable[[], Any]:
    """A function that runs one whole iteration."""
    return lambda: model.learn(steps, reset_num_timesteps=False)


def own(options: Options) -> list[list[Any]]:
    """Env steps per second of whole iterations on our own environments, and the share of the floor.

    The floor is the time of the matrix products alone.
    """
    rows = []
    repeats = 2 if options.quick else 5
    for n_envs in (64,) if options.quick else (8, 64):
        made = {
            "lstm": ours(n_envs, "lstm", compiled=True),
            "ffm": ours(n_envs, "ffm", compiled=True),
            "rewrite (one layer)": ours(n_envs, "rewrite", memory_kwargs={"num_layers": 1}, compiled=True),
            "rewrite": ours(n_envs, "rewrite", compiled=True),
        }
        steps = N_STEPS * n_envs
        whole = side_by_side({name: learner(model, steps) for name, model in made.items()}, repeats)
        floor = side_by_side({name: floor_of(model) for name, model in made.items()}, repeats)
        rows += [[n_envs, name, steps / whole[name], floor[name] / whole[name]] for name in made]
    return rows


def floor_of(model: MemoryPPO) -> Callable[[], None]:
    """A function that computes the matrix products of one iteration."""
    return matrix_work(model.policy, model.n_envs, N_STEPS, N_EPOCHS, MINIBATCHES)


def threads(options: Options) -> list[list[Any]]:
    """Env steps per second of whole iterations on our own environments, by number of threads."""
    rows = []
    cores = os.cpu_count() or 1
    counts = sorted({1, cores} | {2**power for power in range(1, 8) if 2**power < cores})
    for n_envs in (64,) if options.quick else (8, 64, 512):
        for name in ("lstm", "ffm", "rewrite"):
            models = {count: ours(n_envs, name, compiled=True) for count in counts}
            calls = {str(count): _on_threads(count, learner(m, N_STEPS * n_envs)) for count, m in models.items()}
            seconds = side_by_side(calls, 2 if options.quick else 5)
            rows += [[n_envs, name, count, N_STEPS * n_envs / s, seconds["1"] / s] for count, s in seconds.items()]
    torch.set_num_threads(options.threads)
    return rows


def _on_threads(count: int, run: Callable[[], Any]) -> Callable[[], None]:
    def call() -> None:
        torch.set_num_threads(count)
        run()

    return call


def scans(options: Options) -> list[list[Any]]:
    """Tokens per second, forward and backward. Episodes start with probability 1/50; nn.LSTM and nn.GRU have no resets.

    A loop over steps is `Memory.scan` of the base class. With gradients, only the step of `rewrite` has a kernel; one
    line has it without the kernel.
    """
    rows = []
    sizes = [(256, 16)] if options.quick else [(T, B) for T in (64, 256, 1024) for B in (16, 64)]
    for T, B in sizes:
        x = torch.randn(T, B, 64)
        start = torch.rand(T, B) < 1 / 50
        contestants: dict[str, Callable[[], Any]] = {
            "nn.LSTM, no resets": plain_recurrence(nn.LSTM(64, WIDTH), x),
            "nn.GRU, no resets": plain_recurrence(nn.GRU(64, WIDTH), x),
        }
        made = {
            "lstm": memory.make("lstm", 64),
            "gru": memory.make("gru", 64),
            "ffm": memory.make("ffm", 64),
            "rewrite (1 layer, 4 x 16 x 16)": memory.make("rewrite", 64, num_layers=1, value_size=16),
            "rewrite": memory.make("rewrite", 64),
            "hcam": memory.make("hcam", 64),
            "gtrxl": memory.make("gtrxl", 64),
            **{name: memory.make(name, 64) for name in STACKS},
        }
        for label, each in made.items():
            contestants[label] = scanner(each, x, start, type(each).scan)
        for label in ("lstm", "ffm", "rewrite (1 layer, 4 x 16 x 16)", "rewrite"):
            loop = scanner(made[label], x, start, Memory.scan)
            contestants[f"{label}, loop over steps"] = loop
            # with gradients, the steps of the other memories have no kernel
            if (T, B) == (256, 16) and label.startswith("rewrite"):
                contestants[f"{label}, loop over steps of torch's operations"] = torch_only()(loop)
        seconds = side_by_side(contestants, 3 if options.quick else 7)
        for name, found in seconds.items():
            rows.append([T, B, name, T * B / found, seconds["nn.LSTM, no resets"] / found])
    return rows


def plain_recurrence(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """A function that runs torch's own recurrence, forward and backward."""

    def run() -> None:
        module.zero_grad()
        module(x)[0].square().mean().backward()

    return run


def scanner(made: Memory, x: Tensor, start: Tensor, scan: Callable[..., Any]) -> Callable[[], None]:
    """A function that runs a memory's scan, forward and backward."""
    state = made.initial_state(x.shape[1])

    def run() -> None:
        made.zero_grad()
        scan(made, x, start, state)[0].square().mean().backward()

    return run


def acting(options: Options) -> list[list[Any]]:
    """Milliseconds of one policy step with 64 rows, from the array of observations to the array of actions.

    "In a row": the mean of as many successive steps as a rollout has. "Single": each step comes after one step of every
    other contestant, which has replaced what was in the processor's caches.
    """
    B, obs = 64, np.random.default_rng(0).random((64, 3)).astype(np.float32)
    contrib = theirs(B)
    zeros = torch.zeros(1, B, WIDTH)
    states = RNNStates((zeros, zeros), (zeros, zeros))
    starts = torch.zeros(B)

    def their_step() -> None:
        with torch.no_grad():
            contrib.policy(torch.as_tensor(obs), states, starts)[0].numpy()

    def our_step(model: MemoryPPO) -> Callable[[], None]:
        state = model.policy.initial_state(B)

        def run() -> None:
            with torch.no_grad():
                model.policy(torch.as_tensor(obs), state)[0].numpy()

        return run

    contestants = {"sb3-contrib": their_step} | {
        "lstm": our_step(ours(B, "lstm")),
        "ffm": our_step(ours(B, "ffm")),
        "rewrite (one layer)": our_step(ours(B, "rewrite", memory_kwargs={"num_layers": 1})),
        "rewrite": our_step(ours(B, "rewrite")),
    }
    in_a_row = side_by_side(
        {name: repeated(step, N_STEPS) for name, step in contestants.items()}, 10 if options.quick else 50
    )
    single = side_by_side(contestants, 200 if options.quick else 1000)
    rows = []
    for name in contestants:
        row: list[Any] = [name]
        for seconds, steps in ((in_a_row, N_STEPS), (single, 1)):
            row += [1e3 * seconds[name] / steps, seconds["sb3-contrib"] / seconds[name]]
        rows.append(row)
    return rows


def repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    """A function that makes `times` calls."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


TABLES: dict[str, tuple[Callable[[Options], list[list[Any]]], list[str]]] = {
    "training": (training, ["envs", "agent", "env steps/s", "x sb3-contrib default", "x sb3-contrib shared"]),
    "own": (own, ["envs", "agent", "env steps/s", "share of the floor"]),
    "threads": (threads, ["envs", "memory", "threads", "env steps/s", "x one thread"]),
    "scans": (scans, ["T", "B", "scan", "tokens/s", "x nn.LSTM"]),
    "acting": (acting, ["policy step, 64 rows", "ms, in a row", "x sb3-contrib", "ms, single", "x sb3-contrib"]),
}


def main(options: Options) -> None:
    """Measure, print, save."""
    assert isinstance(PlainEndlessTMaze().action_space, spaces.Discrete)
    torch.set_num_threads(options.threads)
    record = {**machine(), **versions()}
    parts = [f"# Speed of training, scans and acting\n\nMedians of repeats taken in turns; {json.dumps(record)}"]
    raw: dict[str, Any] = {"versions": record}
    for name in options.only:
        measure, head = TABLES[name]
        raw[name] = rows = measure(options)
        summary = inspect.getdoc(measure)
        parts.append(f"### {name}\n\n{summary}\n\n{markdown(head, rows)}")
        print(parts[-1], flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n\n".join(parts) + "\n")
        options.out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))

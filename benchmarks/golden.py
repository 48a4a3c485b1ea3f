"""Hashes of what trainings and worlds give, to tell whether a change to the code changed any number.

    python benchmarks/golden.py > before.json      # then make the change
    python benchmarks/golden.py --against before.json

A pure move leaves every hash as it was. Hashes hold on one machine with one set of versions: they are made before and
after a change, and kept nowhere.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO

TASK = "Palimpsest/EndlessTMaze-v0"
ROWS, STEPS, ITERATIONS = 8, 64, 2


@dataclass(frozen=True)
class Options:
    """Hash trainings and worlds."""

    against: Path | None = None
    """What this script printed before: says what differs, and fails if anything does."""
    only: tuple[str, ...] = ()
    """Names to hash; all where none is given."""


def trained(name: str, share_memory: bool) -> str:
    """Of all parameters after two iterations, seed 0."""
    torch.set_num_threads(1)
    model = MemoryPPO(
        "MlpMemoryPolicy",
        envs.make_vec(TASK, ROWS, seed=0, corridors=3, length=5),
        n_steps=STEPS,
        batch_size=STEPS * ROWS // 2,
        n_epochs=2,
        ent_coef=0.01,
        memory_carry_over=0.5,
        policy_kwargs=dict(memory=name, share_memory=share_memory),
        seed=0,
        device="cpu",
    )
    model.learn(ITERATIONS * STEPS * ROWS)
    return digest(parameter.detach().numpy() for parameter in model.policy.parameters())


def played(id: str) -> str:
    """Of observations, rewards and ends of random players in three rows, seed 0."""
    venv = envs.make_vec(id, 3, seed=0)
    actions: Any = venv.action_space
    rng = np.random.default_rng(0)
    seen = leaves(venv.reset())
    for _ in range(100):
        obs, rewards, dones, _ = venv.step(rng.integers(actions.n, size=3))
        seen += [*leaves(obs), rewards, dones]
    return digest(seen)


def leaves(obs: object) -> list[np.ndarray]:
    """Arrays of an observation."""
    return [np.array(leaf) for leaf in (obs.values() if isinstance(obs, dict) else [obs])]


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Of types, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def main(options: Options) -> int:
    """Print hashes, or what differs from earlier ones."""
    calls: dict[str, Callable[[], str]] = {}
    for name in memory.names():
        calls[f"memory {name}"] = partial(trained, name, True)
    for name in ("rewrite", "lstm", "ffm"):
        calls[f"memory {name}, a critic's own"] = partial(trained, name, False)
    for id in envs.ids():
        calls[f"world {id}"] = partial(played, id)
    found = {name: call() for name, call in calls.items() if not options.only or name in options.only}
    if options.against is None:
        print(json.dumps(found, indent=1))
        return 0
    before = json.loads(options.against.read_text())
    differ = [name for name in found if found[name] != before.get(name)]
    print("\n".join(f"{name}: {before.get(name)} -> {found[name]}" for name in differ) or f"{len(found)} as before")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

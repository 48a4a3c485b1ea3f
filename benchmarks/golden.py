"""Hash the results of trainings and environments, to find out whether a change to the code changed any number.

    python benchmarks/golden.py > before.json      # then make the change
    python benchmarks/golden.py --against before.json

Code that only moves does not change a hash. Hashes are valid for one machine and one set of versions: make them before
and after a change, and do not commit them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO
from palimpsest.envs.actions import random_actions

TASK = "Palimpsest/EndlessTMaze-v0"
ROWS, STEPS, ITERATIONS = 8, 64, 2


@dataclass(frozen=True)
class Options:
    """Hash trainings and environments."""

    against: Path | None = None
    """An earlier output of this script. The script prints the differences and exits with 1 if there are any."""
    only: tuple[str, ...] = ()
    """Names to hash; none for all."""


def trained(name: str, share_memory: bool) -> str:
    """Hash of all parameters after two iterations, seed 0."""
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
    """Hash of observations, rewards and ends of episodes for random actions in three rows, seed 0."""
    venv = envs.make_vec(id, 3, seed=0)
    rng = np.random.default_rng(0)
    seen = leaves(venv.reset())
    for _ in range(100):
        obs, rewards, dones, _ = venv.step(random_actions(venv.action_space, rng, 3))
        seen += [*leaves(obs), rewards, dones]
    return digest(seen)


def leaves(obs: object) -> list[np.ndarray]:
    """The arrays of an observation."""
    return [np.array(leaf) for leaf in (obs.values() if isinstance(obs, dict) else [obs])]


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Hash of dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def main(options: Options) -> int:
    """Print hashes, or differences from earlier ones."""
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

"""How far a replay's stored states are from those that the network has now, in values of MemoryDQN.

Trainings with the command line's defaults, with and without `refresh_states`, are stopped early. Then the network reads
each row from its first entry, and again single sequences from their stored states and from the initial state. The table
shows the mean distance of the largest differences between the values, at some entries of the oldest and the newest of
these sequences, in the units of scaled rewards. The gap is the median difference between the values of the best action
and the worst. The return is the mean of 30 greedy episodes that training never saw.

    python benchmarks/stale_states.py --seeds 0 1 2
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measure import report
from stable_baselines3.common.callbacks import BaseCallback

from palimpsest.agents import MemoryDQN, evaluate
from palimpsest.agents.run.config import TrainConfig
from palimpsest.agents.run.experiment import make_env, make_model
from palimpsest.agents.tree import tree_map

ENTRIES = 0, 8, 20, 40
"""Entries of a sequence; with the defaults the first 8 are the burn-in."""


@dataclass(frozen=True)
class Options:
    """What is trained."""

    env: str = "Palimpsest/CartPoleNoVel-v0"
    memory: str = "lstm"
    units: int = 64
    steps: int = 10_000
    """Steps after which the training is stopped."""
    whole: int = 50_000
    """Steps of the whole training, by which rates and exploration fall."""
    uniform: bool = False
    """Train without `prioritized`."""
    seeds: tuple[int, ...] = (0,)
    out: Path | None = None
    """File for the table."""


class Until(BaseCallback):
    """Stops a training after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


def trained(options: Options, refresh: bool, seed: int) -> MemoryDQN:
    """A model after the first part of a training."""
    config = TrainConfig(
        env=options.env,
        memory=options.memory,
        memory_args={"output_size": options.units},
        algo="dqn",
        algo_args={"refresh_states": refresh, "prioritized": not options.uniform},
        total_timesteps=options.whole,
        seed=seed,
        device="cpu",
    )
    env = make_env(config)
    model = make_model(config, env)
    model.learn(options.whole, Until(options.steps), log_interval=10**9)
    env.close()
    assert isinstance(model, MemoryDQN)
    return model


@torch.no_grad()
def distances(model: MemoryDQN) -> tuple[list[list[str]], float]:
    """Age in updates and distances from the stored and from the initial state of two sequences; the gap."""
    policy, replay = model.policy, model.replay
    L, B = replay.sequence_length, replay.n_envs
    T = int(replay.written.min()) // L * L
    obs = tree_map(lambda array: torch.from_numpy(array[:T]), replay.observations)
    start = torch.from_numpy(replay.memory_start[:T])
    now = policy.q_scan(obs, policy.initial_state(B), start)
    rows = []
    # the second, as the first begins with the initial state; and the last that is whole
    for cut in (1, (T - replay.whole) // L):
        part = slice(cut * L, cut * L + replay.whole)
        stored = tree_map(lambda array, cut=cut: torch.from_numpy(array[cut]), replay.states)
        row = [f"{model._n_updates - replay.state_updates[cut].mean():.0f}"]
        for state in (stored, policy.initial_state(B)):
            q = policy.q_scan(tree_map(lambda leaf, part=part: leaf[part], obs), state, start[part])
            away = (q - now[part]).abs().amax(-1).mean(1)
            row.append(", ".join(f"{away[entry]:.2f}" for entry in ENTRIES))
        rows.append(row)
    return rows, float((now.amax(-1) - now.amin(-1)).median())


def main(options: Options) -> None:
    """Train, measure and print."""
    table: list[list[str]] = []
    for seed in options.seeds:
        for refresh in (False, True):
            model = trained(options, refresh, seed)
            found, gap = distances(model)
            reached = evaluate(model, options.env, 30)["return_mean"]
            for row in found:
                table.append([str(seed), "yes" if refresh else "no", *row, f"{gap:.2f}", f"{reached:.1f}"])
    where = f"at entries {', '.join(map(str, ENTRIES))}"
    head = ["seed", "refreshed", "age in updates", f"from the stored state, {where}", "from the initial one"]
    report("Stored states", options, [*head, "gap", "return"], table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

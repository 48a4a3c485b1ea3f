"""How far a replay's stored states are from those that the network has now, in values of MemoryDQN.

A training with the command line's defaults is stopped early. Then the network reads each row from its first entry, and
again single sequences from their stored states and from the initial state. The table shows the mean distance of the
largest differences between the values, at some entries of the sequences, in the units of scaled rewards. The gap is the
median difference between the values of the best action and the worst.

    python benchmarks/stale_states.py --steps 10000 --keep-stale
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from measure import markdown
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
    keep_stale: bool = False
    """Train without `refresh_states`."""
    uniform: bool = False
    """Train without `prioritized`."""
    seed: int = 0


class Until(BaseCallback):
    """Stops a training after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


@torch.no_grad()
def distances(model: MemoryDQN) -> list[list[str]]:
    """Rows of the table, for some of the sequences; the gap is the last row's."""
    policy, replay = model.policy, model.replay
    L, B = replay.sequence_length, replay.n_envs
    T = int(replay.written.min()) // L * L
    obs = tree_map(lambda array: torch.from_numpy(array[:T]), replay.observations)
    start = torch.from_numpy(replay.memory_start[:T])
    now = policy.q_scan(obs, policy.initial_state(B), start)
    rows = []
    last = (T - replay.whole) // L
    for cut in range(1, last, max(1, last // 6)):
        part = slice(cut * L, cut * L + replay.whole)
        stored = tree_map(lambda array, cut=cut: torch.from_numpy(array[cut]), replay.states)
        row = [f"{model._n_updates - replay.state_updates[cut].mean():.0f}"]
        for state in (stored, policy.initial_state(B)):
            q = policy.q_scan(tree_map(lambda leaf, part=part: leaf[part], obs), state, start[part])
            away = (q - now[part]).abs().amax(-1).mean(1)
            row.append(", ".join(f"{away[entry]:.3f}" for entry in ENTRIES))
        rows.append(row)
    gap = (now.amax(-1) - now.amin(-1)).median()
    return [*rows, ["gap", f"{gap:.3f}", ""]]


def main(options: Options) -> None:
    """Train, measure and print."""
    config = TrainConfig(
        env=options.env,
        memory=options.memory,
        memory_args={"output_size": options.units},
        algo="dqn",
        algo_args={"refresh_states": not options.keep_stale, "prioritized": not options.uniform},
        total_timesteps=options.whole,
        seed=options.seed,
        device="cpu",
    )
    env = make_env(config)
    model = make_model(config, env)
    model.learn(options.whole, Until(options.steps), log_interval=10**9)
    env.close()
    assert isinstance(model, MemoryDQN)
    where = f"at entries {', '.join(map(str, ENTRIES))}"
    heads = ["updates since the state was stored", f"from the stored state, {where}", "from the initial one"]
    print(markdown(heads, distances(model)))
    print("mean return of 30 episodes:", evaluate(model, options.env, 30)["return_mean"])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

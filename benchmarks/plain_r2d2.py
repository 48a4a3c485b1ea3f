"""Updates per CPU second of MemoryDQN beside a plain R2D2 loop in torch, of the same sizes, environment steps included.

The plain loop is what one writes with `nn.LSTM`: it acts with it, cuts what each row plays into sequences that end with
the episode, pads them, keeps the state before each, and learns by double Q-learning with a burn-in, n-step returns and
a mask. Both take turns in one process on the same environments, and learn after as many steps. Seconds are those of the
processor, so that other programs do not count.

    python benchmarks/plain_r2d2.py --steps 4000 --repeats 3
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from measure import machine, markdown
from torch import Tensor, nn
from torch.nn import functional

from palimpsest import envs
from palimpsest.agents import MemoryDQN, preset


@dataclass(frozen=True)
class Options:
    """What is measured."""

    env: str = "Palimpsest/CartPoleNoVel-v0"
    num_envs: int = 16
    size: int = 64
    """Units of the LSTM."""
    steps: int = 4000
    """Environment steps of a run, after as many to warm up."""
    repeats: int = 3
    """Runs of each, by turns; the median is told."""


class Network(nn.Module):
    """Encoder, `nn.LSTM` and dueling heads, of the sizes of the command line's."""

    def __init__(self, inputs: int, size: int, actions: int, width: int = 64, head: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        self.lstm = nn.LSTM(width, size)

        def layers(outputs: int) -> nn.Sequential:
            first, second = nn.Linear(size, head), nn.Linear(head, head)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(head, outputs))

        self.advantage, self.value = layers(actions), layers(1)

    def forward(self, obs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Values [T, B, A] of observations [T, B, F], and the state after them, [1, B, size] twice."""
        y, state = self.lstm(self.encoder(obs), state)
        advantage = self.advantage(y)
        return self.value(y) + advantage - advantage.mean(-1, keepdim=True), state


class Replay:
    """Padded sequences [T, ...] of single episodes, each with the LSTM's state before it."""

    def __init__(self, capacity: int, length: int, inputs: int, size: int) -> None:
        self.obs = np.zeros((capacity, length, inputs), np.float32)
        self.actions = np.zeros((capacity, length), np.int64)
        self.rewards, self.ended, self.mask = (np.zeros((capacity, length), np.float32) for _ in range(3))
        self.state = np.zeros((2, capacity, size), np.float32)
        self.count = 0

    def add(self, part: list[tuple[Any, ...]], state: np.ndarray) -> None:
        """Keep the steps (observation, action, reward, ended) of a sequence, which may be short."""
        at = self.count % len(self.obs)
        n = len(part)
        arrays: list[np.ndarray] = [self.obs, self.actions, self.rewards, self.ended]
        for array, column in zip(arrays, zip(*part)):
            array[at, :n], array[at, n:] = np.stack(column), 0
        self.mask[at, :n], self.mask[at, n:] = 1, 0
        self.state[:, at] = state
        self.count += 1

    def sample(self, batch_size: int, rng: np.random.Generator) -> list[Tensor]:
        """Tensors [T, batch_size, ...], and the states [2, 1, batch_size, size]."""
        rows = rng.integers(min(self.count, len(self.obs)), size=batch_size)
        columns = (self.obs, self.actions, self.rewards, self.ended, self.mask)
        tensors = [torch.from_numpy(np.moveaxis(array[rows], 0, 1)) for array in columns]
        return [*tensors, torch.from_numpy(self.state[:, rows])[:, None]]


class PlainR2D2:
    """The plain loop, with the arguments of the command line's dqn."""

    def __init__(self, env: Any, size: int, arguments: dict[str, Any]) -> None:
        self.env, self.arguments = env, arguments
        inputs, actions = env.observation_space.shape[0], int(env.action_space.n)
        self.network, self.target = (Network(inputs, size, actions) for _ in range(2))
        self.target.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=arguments["learning_rate"], eps=1e-5)
        self.length = sum(arguments[name] for name in ("burn_in", "sequence_length", "n_steps"))
        self.replay = Replay(arguments["buffer_size"] // self.length, self.length, inputs, size)
        self.rng = np.random.default_rng(0)
        self.parts: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
        self.before = np.zeros((2, env.num_envs, size), np.float32)
        self.state = (torch.zeros(1, env.num_envs, size), torch.zeros(1, env.num_envs, size))
        self.obs = env.reset()
        self.updates = self.turns = 0

    def learn(self, steps: int) -> None:
        """Play and learn for this many environment steps."""
        B, arguments = self.env.num_envs, self.arguments
        for _ in range(steps // B):
            with torch.no_grad():
                q, state = self.network(torch.from_numpy(self.obs)[None], self.state)
            random = self.rng.random(B) < 0.1
            actions = np.where(random, self.rng.integers(q.shape[-1], size=B), q[0].argmax(-1).numpy())
            obs, rewards, dones, _ = self.env.step(actions)
            for row, part in enumerate(self.parts):
                if not part:
                    self.before[:, row] = [each[0, row].numpy() for each in self.state]
                part.append((self.obs[row], actions[row], rewards[row], dones[row]))
                if dones[row] or len(part) == self.length:
                    self.replay.add(part, self.before[:, row])
                    part.clear()
            keep = torch.from_numpy(~dones).float()[None, :, None]
            self.obs, self.state = obs, (state[0] * keep, state[1] * keep)
            self.turns += 1
            if self.turns % arguments["train_freq"] == 0 and self.replay.count:
                for _ in range(arguments["gradient_steps"]):
                    self.update()

    def update(self) -> None:
        """One update, and now and then a copy of the network."""
        burn_in, n = self.arguments["burn_in"], self.arguments["n_steps"]
        obs, actions, rewards, ended, mask, state = self.replay.sample(self.arguments["batch_size"], self.rng)
        start = tuple(state)
        with torch.no_grad():
            target, _ = self.target(obs, start)
            _, refreshed = self.network(obs[:burn_in], start)
        values, _ = self.network(obs[burn_in:], refreshed)
        actions, rewards, ended, mask = (each[burn_in:] for each in (actions, rewards, ended, mask))
        with torch.no_grad():
            best = values.argmax(-1, keepdim=True)
            goals = target[burn_in:].gather(-1, best).squeeze(-1)
            for _ in range(n):
                T = len(goals) - 1
                goals = rewards[:T] + self.arguments["gamma"] * (1 - ended[:T]) * goals[1:]
        L = len(goals)
        chosen = values[:L].gather(-1, actions[:L, :, None]).squeeze(-1)
        loss = (functional.smooth_l1_loss(chosen, goals, reduction="none") * mask[:L]).sum() / mask[:L].sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 10)
        self.optimizer.step()
        self.updates += 1
        if self.updates % 250 == 0:
            self.target.load_state_dict(self.network.state_dict())


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    arguments = preset("lstm", options.num_envs, algo="dqn", memory_args={"output_size": options.size})
    arguments |= {"learning_rate": 1e-3, "learning_starts": 0}

    def world() -> Any:
        return envs.make_vec(options.env, options.num_envs, seed=0)

    plain = PlainR2D2(world(), options.size, arguments)
    ours = MemoryDQN("MlpMemoryPolicy", world(), **arguments, seed=0, device="cpu")
    contestants: dict[str, tuple[Any, Callable[[], int]]] = {
        "plain torch loop": (plain, lambda: plain.updates),
        "MemoryDQN": (ours, lambda: ours._n_updates),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(options.repeats + 1):
        for name, (learner, updates) in contestants.items():
            before, began = updates(), time.process_time()
            if learner is ours:
                ours.learn(options.steps, log_interval=10**9, reset_num_timesteps=False)
            else:
                learner.learn(options.steps)
            if turn:
                rates[name].append((updates() - before) / (time.process_time() - began))
    found = {name: statistics.median(each) for name, each in rates.items()}
    base = found["plain torch loop"]
    rows = [[name, f"{rate:.1f}", f"{rate / base:.2f}"] for name, rate in found.items()]
    print(machine())
    print(markdown(["loop", "updates per CPU second", "ratio"], rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

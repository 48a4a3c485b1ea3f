"""What TensorBoard's histograms, pictures and curves cost: their share of a training's CPU time (docs/tensorboard.md).

    python benchmarks/board.py

Trains on KeyValueRewrite with 16 environments in one thread. Every 50,000 steps the callback writes what it writes in
`palimpsest train`; the clock is the process's CPU time. Evaluations, which both would need, are left out; the curves
are drawn from one evaluation made before.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from measure import machine, markdown
from stable_baselines3.common.logger import configure

from palimpsest import envs
from palimpsest.agents import MemoryPPO, TensorBoardCallback, evaluate, preset
from palimpsest.agents.files.versions import versions

TASK = "Palimpsest/KeyValueRewrite-v0"


@dataclass(frozen=True)
class Options:
    """Measure what TensorBoard's pages cost."""

    memories: tuple[str, ...] = ("rewrite", "lstm", "hcam")
    """Names of memories."""
    steps: int = 100_000
    """Environment steps of each training."""
    every: int = 50_000
    """Environment steps between histograms and pictures."""


class Timed(TensorBoardCallback):
    """The callback, with the CPU seconds that it takes."""

    def __init__(self, every: int, result: dict[str, Any]) -> None:
        super().__init__(every)
        self.result = result
        self.seconds = {"beginning": 0.0, "intervals": 0.0}

    def _on_training_start(self) -> None:
        self._clock("beginning", super()._on_training_start)

    def work(self) -> None:
        self._clock("intervals", super().work)
        self._clock("intervals", lambda: self.seen(self.result))

    def _clock(self, name: str, run: Callable[[], Any]) -> None:
        began = time.process_time()
        run()
        self.seconds[name] += time.process_time() - began


def line(memory: str, options: Options) -> list[Any]:
    """Train one memory and give its row of the table."""
    model = MemoryPPO("MlpMemoryPolicy", envs.make_vec(TASK, 16, seed=0), **preset(memory, num_envs=16), seed=0)
    model.learn(model.n_steps * 16)  # compiles
    callback = Timed(options.every, evaluate(model, TASK, episodes=20))
    with tempfile.TemporaryDirectory() as folder:
        model.set_logger(configure(folder, ["tensorboard"]))
        began = time.process_time()
        model.learn(options.steps, callback)
        whole = time.process_time() - began
    parts = callback.seconds
    return [memory, whole, parts["beginning"], parts["intervals"], 100 * parts["intervals"] / whole]


def main(options: Options) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    head = ["memory", "training, CPU s", "beginning, CPU s", "histograms and pictures, CPU s", "their share, %"]
    print(json.dumps({**machine(), **versions()}))
    print(markdown(head, [line(memory, options) for memory in options.memories]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

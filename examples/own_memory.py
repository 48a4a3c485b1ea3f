"""A memory of your own: a window of the last inputs. It needs a class and one `register` line.

The task is POPGym's RepeatPrevious: name the card that was dealt some inputs ago. A window that holds it is enough.

    python examples/own_memory.py --total-timesteps 200000
"""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO, evaluate, preset

ENV = "Palimpsest/POPGym-RepeatPrevious-Easy-v0"


class WindowState(NamedTuple):
    """The last inputs, the oldest first."""

    inputs: Tensor  # [B, length, F]


class Window(memory.Memory):
    """A layer over the last `length` inputs, side by side, as frame stacking has it."""

    def __init__(self, input_size: int, output_size: int = 64, length: int = 4) -> None:
        super().__init__(input_size, output_size)
        self.length = length
        self.layer = nn.Linear(length * input_size, output_size)

    def initial_state(self, batch_size: int) -> WindowState:
        """An empty window."""
        return WindowState(torch.zeros(batch_size, self.length, self.input_size, dtype=self.dtype, device=self.device))

    def step(self, x, state, place=None, strategy=None):
        """Read x [B, F]; give features [B, D] and the window with x in it."""
        inputs = torch.cat([state.inputs[:, 1:], x[:, None]], 1)
        return torch.tanh(self.layer(inputs.flatten(1))), WindowState(inputs)

    def context(self) -> memory.Context:
        """It reads its window directly, and nothing beyond."""
        return memory.Context(self.length, self.length)


if "window" not in memory.names():
    memory.register("window", f"{__name__}:Window", "The last inputs, side by side.")


def main() -> None:
    """Train the window, and `none` beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-timesteps", type=int, default=200_000)
    parser.add_argument("--length", type=int, default=4, help="inputs that the window holds")
    arguments = parser.parse_args()
    for name, sizes in (("window", {"length": arguments.length}), ("none", {})):
        venv = envs.make_vec(ENV, num_envs=16, seed=0)
        settings = preset(name, num_envs=16)
        settings["policy_kwargs"] |= {"memory_kwargs": sizes}
        model = MemoryPPO("MlpMemoryPolicy", venv, **settings, seed=0)
        model.learn(arguments.total_timesteps)
        result = evaluate(model, ENV, episodes=50)
        print(f"{name}: mean return {result['return_mean']:.2f} of 1; this tests {result['memory']['tests']}")


if __name__ == "__main__":
    main()

"""Profile one training iteration by part, and compare it with the time of its matrix products alone.

    python benchmarks/iteration.py --quick
    python benchmarks/iteration.py --out docs/iteration.md

The clock of a part stops while a part inside it runs, so the parts add up to the whole. The floor is the work of the
matrix products at the speed of torch's product of two 512 x 512 matrices, measured in the same run. The work is two
floating-point operations per weight and step: once for acting, and in each epoch once forward and twice backward.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import machine, markdown, side_by_side
from torch import Tensor, nn

from palimpsest import envs
from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.versions import versions
from palimpsest.agents.learn import ppo as learner

N_STEPS, N_EPOCHS, MINIBATCHES = 128, 4, 4
PARTS = (
    "rollout: environments",
    "rollout: memory step",
    "rollout: encoder, heads, sampling",
    "rollout: buffer, checks, callbacks",
    "update: minibatches",
    "update: memory scan, forward",
    "update: memory scan, backward",
    "update: encoder, heads, loss, forward",
    "update: encoder, heads, loss, backward",
    "update: clipping, optimiser",
    "update: rest",
    "logging",
)
ENVS, STEP, ACT, ROLLOUT, GATHER, SCAN, SCAN_BACK, HEADS, HEADS_BACK, OPTIMISER, UPDATE, LOGGING = PARTS


@dataclass(frozen=True)
class Options:
    """Profile one training iteration."""

    quick: bool = False
    """Fewer repeats."""
    memories: tuple[str, ...] = ("lstm", "ffm", "rewrite", "hcam")
    """Names of memories."""
    num_envs: tuple[int, ...] = (8, 64)
    """Numbers of environments."""
    threads: int = 1
    """Threads for torch."""
    out: Path | None = None
    """A Markdown file to write as well."""


class Stopwatch:
    """Seconds spent in each part, without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0

    def enter(self, part: str) -> None:
        """Start the clock of a part; stop the clock of the part around it."""
        self._note()
        self._inside.append(part)

    def leave(self) -> None:
        """Stop the clock of a part; continue the clock of the part around it."""
        self._note()
        self._inside.pop()

    def _note(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function `call`, timed as `part`."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return timed

    def through(self, items: Iterator[Any], part: str) -> Iterator[Any]:
        """Yield `items`; the time to produce each is timed as `part`."""
        following = self.around(lambda: next(items, None), part)
        while (item := following()) is not None:
            yield item


@contextmanager
def watched(model: MemoryPPO, watch: Stopwatch) -> Iterator[None]:
    """Within it, the parts of a model's iterations are timed."""
    policy, memory, buffer = model.policy, model.policy.memory, model.rollout_buffer
    parts = [
        (model.env, "step", ENVS),
        (memory, "step", STEP),
        (memory, "advance", STEP),
        (policy, "forward", ACT),
        (policy, "predict_values", ACT),
        (model, "collect_rollouts", ROLLOUT),
        (learner, "ppo_loss", HEADS),
        (policy.optimizer, "step", OPTIMISER),
        (policy.optimizer, "zero_grad", OPTIMISER),
        (nn.utils, "clip_grad_norm_", OPTIMISER),
        (model, "train", UPDATE),
        (model, "dump_logs", LOGGING),
        (model, "_record_update", LOGGING),
        (learner, "record_memory", LOGGING),
    ]
    timed: list[tuple[Any, str, Any]] = [(o, name, watch.around(getattr(o, name), part)) for o, name, part in parts]
    timed.append((memory, "scan", _scan_with_backward(memory.scan, watch)))
    timed.append((Tensor, "backward", watch.around(Tensor.backward, HEADS_BACK)))
    get = buffer.get
    timed.append((buffer, "get", lambda *args: watch.through(get(*args), GATHER)))
    # some of these are attributes of the instance, some of its class: what the instance did not have is deleted again
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in timed]
    for owner, name, replacement in timed:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, old in before:
            if old is None:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


def _scan_with_backward(scan: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    """A memory's scan, timed. Its backward pass is timed from the gradient of the output to that of the input."""
    forward = watch.around(scan, SCAN)

    def timed(x: Tensor, *args: Any) -> Any:
        y, state = forward(x, *args)
        if y.requires_grad:
            x.register_hook(lambda _: watch.leave())
            y.register_hook(lambda _: watch.enter(SCAN_BACK))
        return y, state

    return timed


def profile(options: Options, gigaflops: float) -> list[list[Any]]:
    """Milliseconds of one iteration (128 steps, 4 epochs, 4 minibatches) by part."""
    names = [(name, n_envs) for n_envs in options.num_envs for name in options.memories]
    columns = [_column(name, n_envs, gigaflops, 2 if options.quick else 7) for name, n_envs in names]
    return [[part, *(column[part] for column in columns)] for part in columns[0]]


def _column(name: str, n_envs: int, gigaflops: float, repeats: int) -> dict[str, float]:
    model = MemoryPPO(
        "MlpMemoryPolicy",
        envs.make_vec("Palimpsest/EndlessTMaze-v0", n_envs, seed=0),
        n_steps=N_STEPS,
        batch_size=N_STEPS * n_envs // MINIBATCHES,
        n_epochs=N_EPOCHS,
        policy_kwargs={"memory": name},
        device="cpu",
        seed=0,
    )
    steps = N_STEPS * n_envs
    model.learn(steps)
    found = []
    for _ in range(repeats):
        watch = Stopwatch()
        with watched(model, watch):
            model.learn(steps, reset_num_timesteps=False)
        found.append(watch.seconds)
    column = {part: 1e3 * statistics.median(seconds[part] for seconds in found) for part in PARTS}
    whole = 1e3 * statistics.median(sum(seconds.values()) for seconds in found)
    weights = sum(p.numel() for p in model.policy.parameters() if p.ndim == 2)
    floor = 1e3 * 2 * weights * steps * (1 + 3 * N_EPOCHS) / (1e9 * gigaflops)
    return column | {"whole": whole, "env steps/s": 1e3 * steps / whole, "floor": floor, "share": floor / whole}


def measured_gigaflops() -> float:
    """Speed of torch's product of two 512 x 512 matrices, in GFlop/s."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    return 2e-9 * 512**3 / side_by_side({"": lambda: torch.mm(a, b)}, 50)[""]


def main(options: Options) -> None:
    """Measure, print, save."""
    torch.set_num_threads(options.threads)
    gigaflops = measured_gigaflops()
    rows = profile(options, gigaflops)
    head = ["ms per iteration", *(f"{name}, {n}" for n in options.num_envs for name in options.memories)]
    record = {**machine(), "product 512^3, GFlop/s": round(gigaflops, 1), **versions()}
    text = f"# One training iteration\n\n{profile.__doc__} {json.dumps(record)}\n\n{markdown(head, rows)}"
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))

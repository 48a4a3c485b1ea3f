"""The parts of `gpu`, one a process: what the machine is, its tests, scans, whole training loops.

    python benchmarks/gpu_parts.py scans --folder FOLDER

A figure is a line of FOLDER/figures.jsonl, written as soon as it is known. What fails is a line with its error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu import SECONDS, note
from measure import machine
from torch import nn

from palimpsest import envs, memory
from palimpsest.agents import MemoryPPO, preset
from palimpsest.agents.files.versions import versions
from palimpsest.memory.kernels.arithmetic.dispatch import kernels_may_run

ENV = "Palimpsest/EndlessTMaze-v0"
PLAIN = "nn.LSTM, no resets"
LONGEST_PASS = 2.0
"""Seconds that a pass may be expected to take; a slower one is left out."""
TESTS = ("tests/laws/test_devices.py", "tests/agents/test_other_devices.py", "tests/laws/test_autocast.py")

Options = argparse.Namespace


def say(options: Options, **figures: Any) -> None:
    """Write a line of figures of this part."""
    note(options.folder, **figures)


@contextmanager
def written_down(options: Options, **about: Any) -> Iterator[None]:
    """An error within it becomes a line, and the next thing is measured."""
    try:
        yield
    except Exception as error:
        say(options, **about, error=f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:500])


def describe(options: Options) -> None:
    """What computes: the card, its driver, versions, the processor."""
    found: dict[str, Any] = {**machine(), **versions()}
    found["commit"] = os.environ.get("COMMIT") or found["commit"]
    del found["command"], found["threads"]
    card = "a CPU"
    if options.device == "cuda":
        card = torch.cuda.get_device_name()
        asked = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found["driver and memory"] = subprocess.run(
                asked, capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    say(options, part="machine", card=card, **found, **{"kernels compile": kernels_may_run()})


class Recorder:
    """A pytest plugin that writes the outcome of each test down."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after each phase of a test."""
        if report.when != "call" and report.outcome == "passed":
            return
        line = dict(part="tests", test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2))
        if report.failed:
            told = [each[1:].strip() for each in report.longreprtext.splitlines() if each.startswith("E ")]
            line["error"] = " / ".join(told[:4])[:500] or report.longreprtext[-500:]
        say(self.options, **line)

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest for each file."""
        if report.failed:
            told = report.longreprtext.splitlines()[-1:]
            say(self.options, part="tests", test=report.nodeid, outcome="failed", error=" ".join(told)[:500])


def tests(options: Options) -> None:
    """The tests that are marked `cuda`."""
    import pytest

    chosen = ["-m", "cuda", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", *TESTS]
    # releases of other packages warn of other things
    chosen += ["-o", "filterwarnings=default"]
    if importlib.util.find_spec("xdist") is not None:
        chosen += ["-n", str(max(1, min(6, (os.cpu_count() or 1) // 2)))]
    code = pytest.main(chosen, plugins=[Recorder(options)])
    if code > 1:  # 1: some failed, which is written down
        raise RuntimeError(f"pytest ended with code {code}")


def scans(options: Options) -> None:
    """Tokens per second of every memory's scan, forward and backward, beside nn.LSTM."""
    lengths, B, H = ((4, 8), 3, 16) if options.tiny else ((128, 1024), 128, 256)
    out_of_time = time.monotonic() + SECONDS["scans"] - 15
    names = [PLAIN, *(["mingru"] if options.tiny else memory.names())]
    expected: dict[str, float] = {}
    for T in lengths:
        torch.manual_seed(0)
        x, start = torch.randn(T, B, H).to(options.device), (torch.rand(T, B) < 0.03).to(options.device)
        for name in names:
            for autocast in (False, True):
                about = dict(part="scans", memory=name, T=T, B=B, H=H, autocast=autocast)
                with written_down(options, **about):
                    guess = expected.get(name, 0.0) * T / lengths[0]
                    if time.monotonic() > out_of_time:
                        raise TimeoutError("no time was left")
                    if guess > LONGEST_PASS or (autocast and guess > LONGEST_PASS / 4):
                        raise TimeoutError(f"left out: a pass would take about {guess:.1f} s")
                    seconds, peak = _pass(name, x, start, autocast)
                    if name not in expected:
                        expected[name] = seconds
                    say(options, **about, ms=1e3 * seconds, tokens_per_s=T * B / seconds, peak_gib=peak)


def _pass(name: str, x: torch.Tensor, start: torch.Tensor, autocast: bool) -> tuple[float, float | None]:
    """Median seconds of a pass, and the peak of allocated memory in GiB."""
    H, cuda = x.shape[2], x.is_cuda
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if name == PLAIN:
        module: nn.Module = nn.LSTM(H, H).to(x.device)
        scan: Callable[[], torch.Tensor] = lambda: module(x)[0]  # noqa: E731
    else:
        made = module = memory.make(name, H, output_size=H).to(x.device)
        state = made.initial_state(x.shape[1])
        scan = lambda: made.scan(x, start, state)[0]  # noqa: E731

    def run() -> None:
        module.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            y = scan()
        y.float().square().mean().backward()

    seconds = median_of(run, cuda)
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else None


def median_of(run: Callable[[], Any], cuda: bool, most: int = 10, about: float = 0.6) -> float:
    """Median seconds of calls after one that warms up: as many as take `about` so long, at most `most`."""
    run()
    times = [_seconds(run, cuda)]
    while len(times) < most and sum(times) < about:
        times.append(_seconds(run, cuda))
    return statistics.median(times)


def _seconds(run: Callable[[], Any], cuda: bool) -> float:
    if not cuda:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def loops(options: Options, on_cpu: bool = False) -> None:
    """Env steps per second of whole training iterations, split into acting and updating."""
    threads = [1, os.cpu_count() or 1] if on_cpu else [0]
    names = ("lstm",) if options.tiny else ("lstm", "ffm", "rewrite")
    # all memories on all cores before any on one: the slow ones come last, where time may run out
    for count in sorted(set(threads), reverse=True):
        for name in names:
            on = f"CPU, {count} thread{'s' * (count > 1)}" if on_cpu else options.device
            sizes = dict(envs=8, n_steps=4) if options.tiny else dict(envs=4096, n_steps=64)
            about = dict(part="loops", memory=name, on=on, **sizes, n_epochs=4, minibatches=4)
            with written_down(options, **about):
                torch.set_num_threads(max(count, 1))
                say(options, **about, **_iterations(name, "cpu" if on_cpu else options.device, *sizes.values()))


def _iterations(name: str, device: str, rows: int, n_steps: int) -> dict[str, Any]:
    """Median seconds of iterations: acting, updating, steps per second."""
    compiled(name, device)
    model = agent(name, device, rows, n_steps)
    cuda = device == "cuda"
    spent: dict[str, list[float]] = {"acting_s": [], "updating_s": []}
    model.collect_rollouts = _clocked(model.collect_rollouts, spent["acting_s"], cuda)  # type: ignore[method-assign]
    model.train = _clocked(model.train, spent["updating_s"], cuda)  # type: ignore[method-assign]
    steps = rows * n_steps
    if cuda:
        # cuDNN and the allocator find their feet
        model.learn(steps)
        for times in spent.values():
            times.clear()
    began = time.perf_counter()
    wholes: list[float] = []
    while len(wholes) < 3 and time.perf_counter() - began < 4:
        since = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        wholes.append(time.perf_counter() - since)
    found: dict[str, Any] = {part: statistics.median(times) for part, times in spent.items()}
    return found | {"steps_per_s": steps / statistics.median(wholes), "iterations": len(wholes)}


def agent(name: str, device: str, rows: int, n_steps: int) -> MemoryPPO:
    """An agent as `palimpsest train` makes it, whose updates always make all their passes."""
    chosen = preset(name, rows, n_steps=n_steps, num_minibatches=4, target_kl=0)
    return MemoryPPO("MlpMemoryPolicy", envs.make_vec(ENV, rows, seed=0), **chosen, seed=0, device=device)


def compiled(name: str, device: str) -> None:
    """Train a little, so that what is compiled is there."""
    agent(name, device, 8, 16).learn(8 * 16)


def _clocked(call: Callable[..., Any], times: list[float], cuda: bool) -> Callable[..., Any]:
    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)

    return run


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="+", help="machine, tests, scans, loops, loops cpu, compile MEMORY")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    part, *rest = options.part
    with written_down(options, part=part):
        if options.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        torch.set_num_threads(1)
        run = {"machine": describe, "tests": tests, "scans": scans}.get(part)
        if run is not None:
            run(options)
        elif part == "loops":
            loops(options, bool(rest))
        else:
            compiled(rest[0], "cpu")


if __name__ == "__main__":
    main()

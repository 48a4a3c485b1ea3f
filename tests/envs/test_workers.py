"""Environments in processes of their own: the death of one ends training with a clear error, never in a wait."""

from __future__ import annotations

import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from program import Program
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor
from worlds import Counter

from palimpsest.agents import MemoryPPO
from palimpsest.agents.files.archive import read_tree
from palimpsest.agents.run import experiment
from palimpsest.envs.sb3 import VectorEnvAdaptor
from palimpsest.envs.sb3_wrappers import watch_workers

ROWS = 3


@pytest.fixture(autouse=True)
def _no_wait_lasts():
    """A hang becomes a failure."""

    def out_of_patience(number, frame):
        raise TimeoutError("this test hangs")

    before = signal.signal(signal.SIGALRM, out_of_patience)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Mortal(Counter):
    """Row 1 dies at its fifth step, in the way that `end` names."""

    end = "kill"
    lived = 0

    def step(self, action):
        self.lived += 1
        if self.row == 1 and self.lived == 5:
            if self.end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return super().step(action)


class Quitter(Mortal):
    end = "exit"


def subproc(kind=Counter, method: str = "fork", rows: int = ROWS):
    env = SubprocVecEnv([lambda row=row: kind(row) for row in range(rows)], start_method=method)
    return env, env.processes


def adapted(kind=Counter, mode=AutoresetMode.SAME_STEP):
    env = AsyncVectorEnv([lambda row=row: kind(row) for row in range(ROWS)], autoreset_mode=mode)
    return VectorEnvAdaptor(env), env.processes


def model_of(env) -> MemoryPPO:
    return MemoryPPO("MlpMemoryPolicy", env, n_steps=16, policy_kwargs={"memory": "none"}, seed=0, device="cpu")


class Killer(BaseCallback):
    """SIGKILL for a worker that waits for its next action."""

    def __init__(self, process, at: int) -> None:
        super().__init__()
        self.process, self.at = process, at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            os.kill(self.process.pid, signal.SIGKILL)
        return True


def assert_all_gone(env, processes) -> None:
    assert not any(process.is_alive() for process in processes)
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 5


KILLED = r"worker of environment {} \(process \d+\) was killed by SIGKILL \(exit code -9\).*fewer environments"


@pytest.mark.parametrize("make", [subproc, adapted])
@pytest.mark.parametrize("row", range(ROWS))
def test_a_waiting_worker_that_is_killed_ends_training(make, row):
    env, processes = make()
    with pytest.raises(ChildProcessError, match=KILLED.format(row)):
        model_of(env).learn(960, Killer(processes[row], at=9 + 3 * row))
    assert_all_gone(env, processes)


@pytest.mark.parametrize("make", [subproc, adapted])
def test_a_worker_that_is_killed_at_work_ends_training(make):
    env, processes = make(Mortal)
    with pytest.raises(ChildProcessError, match=KILLED.format(1)):
        model_of(env).learn(960)
    assert_all_gone(env, processes)


def test_a_worker_that_ends_by_itself_is_told_with_its_exit_code():
    env, processes = subproc(Quitter)
    with pytest.raises(ChildProcessError, match=r"environment 1 .* ended with exit code 3; .*standard error"):
        model_of(VecMonitor(env)).learn(960)
    assert_all_gone(env, processes)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="a system without real-time signals")
def test_a_signal_without_a_name_is_told_by_its_number():
    env, processes = subproc()
    watch_workers(env)
    env.reset()
    os.kill(processes[1].pid, signal.SIGRTMIN + 1)
    number = int(signal.SIGRTMIN) + 1
    with pytest.raises(
        ChildProcessError, match=rf"environment 1 .* was killed by signal {number} \(exit code -{number}\)"
    ):
        env.get_attr("row")
    assert_all_gone(env, processes)


class Unreadable:
    """Something that a worker sends and that the parent cannot unpickle."""

    def __reduce__(self):
        return os.stat, ("no such file",)


class Sender(Counter):
    sent = Unreadable()


def test_an_error_in_reading_a_living_worker_s_message_is_told_as_it_is():
    env, processes = subproc(Sender)
    watch_workers(env)
    try:
        with pytest.raises(FileNotFoundError, match="no such file"):
            env.get_attr("sent", indices=[1])
        assert all(process.is_alive() for process in processes)
        assert env.get_attr("row") == [0, 1, 2]
    finally:
        env.close()


@pytest.mark.learning
def test_the_default_start_method():
    """Workers that share nothing with each other; each imports everything anew, which takes seconds."""
    env, processes = subproc(method=None, rows=1)
    with pytest.raises(ChildProcessError, match=KILLED.format(0)):
        model_of(env).learn(960, Killer(processes[0], at=20))
    assert_all_gone(env, processes)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_questions_and_resets_tell_too(mode):
    env, processes = adapted(mode=mode)
    env.reset()
    os.kill(processes[2].pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=KILLED.format(2)):
        env.get_attr("row")
    with pytest.raises(ClosedEnvironmentError):
        env.reset()
    assert_all_gone(env, processes)


def test_watching_changes_nothing_else():
    env, _ = subproc()
    plain, _ = subproc()
    watch_workers(VecMonitor(env))
    watched = env.remotes
    watch_workers(env)
    assert env.remotes is watched
    try:
        np.testing.assert_array_equal(env.reset(), plain.reset())
        for actions in np.random.default_rng(0).integers(3, size=(20, ROWS)):
            for one, other in zip(env.step(actions)[:3], plain.step(actions)[:3]):
                np.testing.assert_array_equal(one, other)
        assert env.get_attr("row") == [0, 1, 2]
    finally:
        processes = env.processes + plain.processes
        env.close()
        plain.close()
    assert [process.exitcode for process in processes] == [0] * 2 * ROWS


def in_processes(config):
    venv = SubprocVecEnv([lambda: Monitor(gym.make("CartPole-v1"))] * 3, start_method="fork")
    print(*[process.pid for process in venv.processes], flush=True)
    return venv


def train_in_processes():
    experiment.make_env = in_processes


@pytest.mark.learning
def test_the_program_exits_with_1_and_keeps_its_last_checkpoint(tmp_path):
    """A worker of a running training is killed from outside, wherever it is."""
    run = tmp_path / "run"
    flags = [
        *("--env", "CartPole-v1", "--memory", "gru", "--num-envs", "3", "--num-minibatches", "1", "--n-steps", "16"),
        *("--total-timesteps", "10000000", "--eval-every", "0", "--checkpoint-every", "48", "--run-dir", str(run)),
        *("--device", "cpu", "--threads", "1"),
    ]
    program = Program(tmp_path / "printed", *flags, before=train_in_processes)
    try:
        program.wait_until(lambda: len(list((run / "checkpoints").glob("*.zip"))) >= 2)
        time.sleep(float(np.random.default_rng().random()) * 0.2)
        workers = [int(word) for word in program.printed.split()[:3]]
        os.kill(workers[1], signal.SIGKILL)
        code, _, error = program.wait()
    finally:
        program.kill()
    assert code == 1
    assert error.splitlines()[-1].startswith("palimpsest: the worker of environment 1 (process ")
    assert "Traceback" not in error
    for path in (run / "checkpoints").glob("*.zip"):
        assert read_tree(path)["num_timesteps"] == int(path.stem)
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

"""Environments in worker processes: a dead worker is reported at once, and nothing waits for it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any

PATIENCE = 5.0
"""Seconds that a process has to end after it was asked to."""


class Watched:
    """The parent's end of a pipe to a worker. It waits for an answer only while the worker lives.

    The pipe of a dead worker may stay open: with the start method "fork", the other workers hold copies of its other
    end. A plain read would then wait for ever.

    Args:
        pipe: a `multiprocessing` connection.
        process: the worker at the other end.
        died: returns the exception to raise if the worker is dead.
    """

    def __init__(self, pipe: Any, process: Any, died: Callable[[], Exception]) -> None:
        self._pipe, self._process, self._died = pipe, process, died
        self._poll = select.poll()
        self._poll.register(pipe.fileno(), select.POLLIN)
        self._poll.register(process.sentinel, select.POLLIN)

    def send(self, message: Any) -> None:
        """Send a message; ChildProcessError if the worker is dead."""
        try:
            self._pipe.send(message)
        except OSError:
            raise self._died() from None

    def recv(self) -> Any:
        """The next message; ChildProcessError if the worker died before it sent one."""
        try:
            ready = [] if self._pipe.closed else self._poll.poll()
            if not any(descriptor != self._process.sentinel for descriptor, _ in ready):
                raise EOFError
            message = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._died() from None
        return pickle.loads(message)  # outside `try`: an error here, even an OSError, does not mean a dead worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def leave_signals_to_parent() -> None:
    """Called in a worker: Ctrl-C and SIGTERM, which may reach all processes of a job, are its parent's alone.

    The parent ends it by closing its pipe, or kills it (`kill_at_once`). A worker whose parent is gone obeys SIGTERM.
    """
    parent, number_of_parent = multiprocessing.parent_process(), os.getppid()

    def obey_if_orphaned(number: int, frame: Any) -> None:
        if os.getppid() != number_of_parent or parent is None or not parent.is_alive():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # no SIG_IGN, which a program that the environment starts would keep
    signal.signal(signal.SIGTERM, obey_if_orphaned)


def kill_at_once(owner: Any) -> None:
    """Let `terminate()` of the workers `owner.processes` kill them: SIGTERM means nothing to them."""
    for process in owner.processes:
        process._popen.terminate = process._popen.kill


def watch(owner: Any, pipes: str) -> None:
    """Guard a vector environment whose workers are `owner.processes`. A second call changes nothing.

    If a worker is dead, the others are stopped and `owner` is marked as closed. A ChildProcessError says which worker
    it was and how it ended.

    Args:
        owner: SB3's SubprocVecEnv or gymnasium's AsyncVectorEnv.
        pipes: name of the attribute with the parent's ends of the pipes, one per process.
    """
    ends: Sequence[Any] = getattr(owner, pipes)
    if not hasattr(select, "poll") or any(isinstance(end, Watched) for end in ends):
        return  # a system without poll() has no "fork" either; there a plain read notices a broken pipe

    def death(row: int, told: list[str]) -> Exception:
        if not told:
            owner.processes[row].join(PATIENCE)
            told.append(_obituary(row, owner.processes[row]))
            _stop(owner, ends)
        return ChildProcessError(told[0])

    told: list[str] = []
    guarded = [
        Watched(end, process, lambda row=row: death(row, told))  # type: ignore[misc]
        for row, (end, process) in enumerate(zip(ends, owner.processes, strict=True))
    ]
    setattr(owner, pipes, type(ends)(guarded))  # type: ignore[call-arg]


def _obituary(row: int, process: Any) -> str:
    code = process.exitcode
    if code is None:
        how = "closed its pipe without an answer"
    elif code < 0:
        why = "; the system does this when memory runs out" if -code == getattr(signal, "SIGKILL", 9) else ""
        how = f"was killed by {_signal_name(-code)} (exit code {code}){why}"
    else:
        how = f"ended with exit code {code}; see standard error for its output, perhaps a traceback"
    return (
        f"the worker of environment {row} (process {process.pid}) {how}. The other workers were stopped; fix "
        "the cause, or use fewer environments"
    )


def _signal_name(number: int) -> str:
    """A name such as SIGKILL. Of the real-time signals only the first and the last have names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(owner: Any, ends: Sequence[Any]) -> None:
    for process in owner.processes:
        process.terminate()
    for process in owner.processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join(PATIENCE)
    for end in ends:
        end.close()
    owner.closed = True  # its own close() would wait for answers of dead workers

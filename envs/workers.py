"""Environments in processes of their own: the death of one is told at once, and nothing waits for it."""

from __future__ import annotations

import pickle
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any

PATIENCE = 5.0
"""Seconds that a process is given to end once it was asked to."""


class Watched:
    """The parent's end of a pipe to a worker; waits for an answer only while the worker lives.

    A dead worker's pipe need not tell: under the start method "fork" its siblings hold copies of the other end, so
    that reading from it would last for ever.

    Args:
        pipe: a `multiprocessing` connection.
        process: the worker at its other end.
        died: gives the exception to raise where the worker is found dead.
    """

    def __init__(self, pipe: Any, process: Any, died: Callable[[], Exception]) -> None:
        self._pipe, self._process, self._died = pipe, process, died
        self._poll = select.poll()
        self._poll.register(pipe.fileno(), select.POLLIN)
        self._poll.register(process.sentinel, select.POLLIN)

    def send(self, message: Any) -> None:
        """Send; ChildProcessError where the worker is dead."""
        try:
            self._pipe.send(message)
        except OSError:
            raise self._died() from None

    def recv(self) -> Any:
        """The next message; ChildProcessError where the worker died before it was sent."""
        try:
            ready = [] if self._pipe.closed else self._poll.poll()
            if not any(descriptor != self._process.sentinel for descriptor, _ in ready):
                raise EOFError
            message = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._died() from None
        return pickle.loads(message)  # what it raises is no death, an OSError neither

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def watch(owner: Any, pipes: str) -> None:
    """Guard a vector environment whose workers are `owner.processes`; one guarded already stays as it is.

    Where a worker is found dead, the others are stopped, `owner` counts as closed, and a ChildProcessError says which
    worker it was and how it ended.

    Args:
        owner: SB3's SubprocVecEnv or gymnasium's AsyncVectorEnv.
        pipes: the attribute that holds the parent's ends, one per process.
    """
    ends: Sequence[Any] = getattr(owner, pipes)
    if not hasattr(select, "poll") or any(isinstance(end, Watched) for end in ends):
        return  # a system without poll() has no "fork" either, and an end that breaks is noticed there

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
        how = f"was killed by {_signal_name(-code)} (exit code {code}), as the system does where memory runs out"
    else:
        how = f"ended with exit code {code}; what it said, a traceback perhaps, is on standard error"
    return (
        f"the worker of environment {row} (process {process.pid}) {how}. The other workers were stopped; mend "
        "the cause, or use fewer environments"
    )


def _signal_name(number: int) -> str:
    """Such as SIGKILL; real-time signals have no names but the first and the last."""
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
    owner.closed = True  # its own close() would ask the dead for an answer

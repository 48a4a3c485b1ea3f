"""Imported by the server of multiprocessing that forks processes: it outlives the SIGTERM that ends its client.

A scheduler sends SIGTERM to every process of a job. Without its server a client takes all processes that this has
forked for dead, though they live. The server ends with its last client. What it forks takes the signal as usual.
"""

from __future__ import annotations

import os
import signal
import sys


def _as_usual() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    # no SIG_IGN, which a program that is started from here would keep
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    os.register_at_fork(after_in_child=_as_usual)

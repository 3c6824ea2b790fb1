"""Processes of this host: whether one lives, and since when. By the system's word, so never of another container."""

from __future__ import annotations

import os
import time
from typing import NamedTuple


class _Stat(NamedTuple):
    """What the system keeps of a process (``proc_pid_stat(5)``)."""

    is_over: bool
    ticks: int


def ticks_at_start(pid: int) -> int | None:
    """Return when process *pid* started, in clock ticks since boot; None if it is over, or nobody says."""
    found = _stat(pid)
    return None if found is None or found.is_over else found.ticks


def is_alive(pid: int, ticks: int) -> bool:
    """Return whether process *pid* lives, and is the one that started at *ticks*; 0 for not known."""
    if os.name != "posix":
        # There, this is no question but a signal.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        # Somebody else's. So it is another one only if it started at another time.
        pass
    found = _stat(pid)
    return found is None or not (found.is_over or (ticks and found.ticks != ticks))


def started(pid: int) -> float | None:
    """Return when process *pid* started, as a Unix time; None if the system does not say."""
    ticks = ticks_at_start(pid)
    if ticks is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name, in parentheses, with whatever it likes in it.
            fields = file.read().rpartition(b")")[2].split()
            # A zombie has ended, whoever has yet to ask for its status.
            return _Stat(fields[0] in (b"Z", b"X"), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None

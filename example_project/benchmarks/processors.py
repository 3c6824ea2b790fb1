"""Which processor runs what.

A query is a game of ping-pong between two processes. If they share a processor, the ball takes 50 µs; if the scheduler
has put them on two, 100 µs. It keeps to its choice for minutes, so that the one who was lucky would win. While single
queries are timed, all that take part are on one processor.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def sharing_one(processes: Iterable[int]) -> Iterator[None]:
    """Keep the processes on one processor until the block ends, where that can be done."""
    pinned = []
    try:
        for process in processes:
            # Other systems have no such thing, and other users' processes are their own.
            with contextlib.suppress(AttributeError, OSError):
                everywhere = os.sched_getaffinity(process)
                os.sched_setaffinity(process, {min(everywhere)})
                pinned.append((process, everywhere))
        yield
    finally:
        for process, everywhere in pinned:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(process, everywhere)


def sessions(url: str) -> list[int]:
    """Return the server's processes that work for a database, and their parent; none of a server elsewhere.

    Whatever the parent starts meanwhile runs where it does: a contender without a pool connects anew.
    """
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    with psycopg.connect(url) as connection:
        if not connection.info.host.startswith("/"):
            return []
        found = {pid for (pid,) in connection.execute(query)}
        parent = parent_of(connection.info.backend_pid)
    return [pid for pid in sorted(found | {parent}) if name(pid) == "postgres"]


def name(process: int) -> str:
    return proc(process, "comm")


def parent_of(process: int) -> int:
    # The name, in parentheses, may have anything in it; after it come the state and the parent.
    fields = proc(process, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def proc(process: int, file: str) -> str:
    """Return what Linux tells of a process; nothing on other systems."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/{file}").read_text().strip()
    return ""

"""What the tests of a module leave behind (sessions, threads, descriptors, children), and whose it is."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from asgiref.sync import SyncToAsync
from django.db.backends.postgresql.base import DatabaseWrapper

from conn_hygiene.reports import answering
from example_project import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

# What ends by itself has ended by then: a session whose client is gone, a thread that was told to stop.
PATIENCE = 5

_DESCRIPTORS = Path("/proc/self/fd")

_SESSIONS = """
    SELECT pid, format('%%s in %%s, %%s since %%s, by %%s: %%s', pid, datname, coalesce(state, 'starting'),
                       state_change::time(0), coalesce(nullif(application_name, ''), 'no name'), left(query, 100))
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND (%s OR datname = current_database())
"""


class Leftovers:
    """Knows what was there before a module's tests, and tells what is there after them that was not.

    Only the thread that runs the tests may use it. A pool's own sessions and threads are no leftovers, nor is what the
    toolkit, asgiref and multiprocessing keep for as long as the process lives.
    """

    def __init__(self) -> None:
        # Names of the descriptors' targets; by number they would be mistaken for each other.
        self._descriptors = set(_descriptors())
        self._threads = set(threading.enumerate())
        self._sessions: dict[int, str] = {}

    def found(self) -> list[str]:
        """Return a line for each thing that is left, after some time for it to go; what is told once is known then."""
        deadline = time.monotonic() + PATIENCE
        while (left := list(self._look())) and time.monotonic() < deadline:
            # What only the garbage collector ends, belongs to nobody any more.
            gc.collect()
            time.sleep(0.02)
        self._descriptors |= set(_descriptors())
        self._threads = set(threading.enumerate())
        self._sessions = dict(_sessions_but(_pooled_connections()))
        return left

    def _look(self) -> Iterator[str]:
        pooled = _pooled_connections()
        yield from (text for pid, text in _sessions_but(pooled) if pid not in self._sessions)
        for thread in set(threading.enumerate()) - self._threads - set(_lasting_threads()):
            yield f"thread {thread.name!r}, which is here:\n{_stack_of(thread)}"
        lasting = {_target(number) for number in [*(c.fileno() for c in pooled), *_lasting_descriptors()]}
        for target, number in _descriptors().items():
            if target not in self._descriptors | lasting:
                yield f"descriptor {number}, {target}: {_owner_of(number)}"
        for child in multiprocessing.active_children():
            yield f"process {child.pid}, {child.name}"


def _sessions_but(pooled: list[psycopg.Connection[Any]]) -> Iterator[tuple[int, str]]:
    known = {connection.info.backend_pid for connection in pooled}
    # On a server that others use as well, theirs are not for us to judge.
    with psycopg.connect(embedded.database_url()) as watcher:
        for pid, text in watcher.execute(_SESSIONS, [embedded.is_own_server()]):
            if pid not in known:
                holders = [repr(thing) for thing in _all_of(psycopg.Connection) if _session_of(thing) == pid]
                yield pid, f"session {text} ({holders or 'no connection of this process has it'})"


def _pooled_connections() -> list[psycopg.Connection[Any]]:
    pools = DatabaseWrapper._connection_pools.values()
    return [connection for pool in pools for connection in list(pool._pool)]


def _all_of(*kinds: type) -> list[Any]:
    # By the type and not by isinstance(), for which a lazy object would be made.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def _lasting_threads() -> Iterator[threading.Thread]:
    yield from SyncToAsync.single_thread_executor._threads
    names = tuple(f"{pool.name}-" for pool in DatabaseWrapper._connection_pools.values())
    for thread in threading.enumerate():
        if thread.name.startswith((*names, "conn-hygiene-reaper", "conn-hygiene-status")):
            yield thread


def _stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "(it has just ended)"


def _lasting_descriptors() -> Iterator[int]:
    kept: list[Any] = [
        resource_tracker._resource_tracker._fd,
        forkserver._forkserver._forkserver_alive_fd,
    ]
    yield from (number for number in kept if number is not None)
    current = answering._answering
    if current is not None and current._socket is not None:
        yield current._socket.fileno()


def _descriptors() -> dict[str, int]:
    """Return the open descriptors by what they lead to; none where the system does not tell."""
    if not _DESCRIPTORS.exists():
        return {}
    return {target: int(name) for name in os.listdir(_DESCRIPTORS) if (target := _target(int(name)))}


def _target(number: int) -> str:
    try:
        return os.readlink(_DESCRIPTORS / str(number))
    except OSError:
        return ""  # The one that listed the directory, or one that another thread has closed.


def _owner_of(number: int) -> str:
    owners = [repr(thing) for thing in _all_of(psycopg.Connection, socket.socket) if _number_of(thing) == number]
    return f"{owners or 'no connection or socket of this process has it'}"


def _number_of(thing: Any) -> int:
    try:
        number: int = thing.fileno()
    except psycopg.Error:
        return -1
    return number


def _session_of(connection: psycopg.Connection[Any]) -> int:
    return 0 if connection.closed else connection.info.backend_pid

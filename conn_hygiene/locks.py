"""The order of all locks, and how to have it asserted.

A thread that has one of these locks takes only such as stand further down::

    INSTALLING   installation: install() and uninstall(), for as long as they run
    WRAPPERS     leases/attaching: the list of wrappers that were made, or have connected
    START        reaper/reaper: the start and the end of the timer's thread
    LEASE        leases/claim: one lease
    REGISTRY     reaper/registry: which leases hold a connection, and what is on its way back
    LEAF         counters, a request's times, lanes of workers, a time limit: nothing is taken inside

Under none of them is anything called that is not ours: no server is asked, nothing logged, no signal sent, no callback
of a pool made. What may still run inside, wherever Python likes, are finalisers and signal handlers of others, which
may query. So all of them are reentrant, and what one guards is changed in such steps that a query in between finds
nothing half done, and undoes nothing. Two leases' locks are never held at once, but by such.

The locks of others that are taken inside: psycopg's of a connection and psycopg_pool's of a pool, by no code of ours;
those that CPython has inside of threading, for the start of a thread, under START and LEAF; logging's, under none.
``conn_hygiene.futures`` has a lock of its own in worker processes, held while a job runs, which is none of these.

After a fork, the child makes all of them anew: whoever had one is no more (see :mod:`conn_hygiene.forks.hooks`).

With the environment variable ``CONN_HYGIENE_DEBUG=1``, each lock asserts this order when it is taken, each lease
asserts who writes to it (see :mod:`conn_hygiene.leases.invariants`), and what is not ours is not called under a lock.
That costs time at every query; it is for tests.
"""

from __future__ import annotations

import enum
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: Whether all is asserted that can be.
DEBUG = os.environ.get("CONN_HYGIENE_DEBUG") == "1"


class Rank(enum.IntEnum):
    """Where a lock stands in the order."""

    INSTALLING = 0
    WRAPPERS = 1
    START = 2
    LEASE = 3
    REGISTRY = 4
    LEAF = 5


_held = threading.local()


def _mine() -> list[RankedLock]:
    """Return the locks that the running thread has, the last taken last."""
    locks: list[RankedLock] | None = getattr(_held, "locks", None)
    if locks is None:
        locks = _held.locks = []
    return locks


class RankedLock:
    """A lock that asserts the order when it is taken, and calls *on_release* ahead of the last release."""

    def __init__(self, rank: Rank, *, on_release: Callable[[], None] | None = None) -> None:
        self.rank = rank
        self._lock: Any = threading.RLock()
        self._on_release = on_release

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock as Python's own are taken; only who waits can be in the wrong order."""
        mine = _mine()
        if blocking and self not in mine:
            above = [lock.rank.name for lock in mine if lock.rank >= self.rank]
            assert not above, f"{self.rank.name} is taken by a thread that has {', '.join(above)}"
        taken: bool = self._lock.acquire(blocking, timeout)
        if taken:
            mine.append(self)
        return taken

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()
        mine = _mine()
        # The last of them: it may be there more than once.
        del mine[len(mine) - 1 - mine[::-1].index(self)]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            # An exception may have come at any line, and what it left half done is mended outside.
            if exc_type is None and self._on_release is not None and _mine().count(self) == 1:
                self._on_release()
        finally:
            self.release()

    def locked(self) -> bool:
        """Return whether anybody has it."""
        return self in _mine() or not self._is_free()

    def _is_free(self) -> bool:
        free: bool = self._lock.acquire(False)
        if free:
            self._lock.release()
        return free

    # Of a condition, as Python's own have them.

    def _is_owned(self) -> bool:
        # The name is not public, and what asserts must not need it. The list is a line behind, which a handler may see.
        is_owned = getattr(self._lock, "_is_owned", None)
        return self in _mine() if is_owned is None else bool(is_owned())

    def _release_save(self) -> tuple[Any, int]:
        mine = _mine()
        times = mine.count(self)
        _held.locks = [lock for lock in mine if lock is not self]
        return self._lock._release_save(), times

    def _acquire_restore(self, saved: tuple[Any, int]) -> None:
        self._lock._acquire_restore(saved[0])
        _mine().extend([self] * saved[1])


def make(rank: Rank, *, on_release: Callable[[], None] | None = None) -> Any:
    """Return a new lock of *rank*; where nothing is asserted, it is one of Python's own."""
    return RankedLock(rank, on_release=on_release) if DEBUG else threading.RLock()


def assert_none_held() -> None:
    """Assert that the running thread has none of the locks: what is not ours is about to be called."""
    if DEBUG:
        held = [lock.rank.name for lock in _mine()]
        assert not held, f"what is not ours is called under {', '.join(held)}"

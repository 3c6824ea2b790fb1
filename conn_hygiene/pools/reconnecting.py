"""A pool whose server was away connects anew as soon as the server is back.

psycopg_pool tries each connection that it could not open again after a second, and then after twice as long each time,
for as long as ``reconnect_timeout``. A server that was away for 20 seconds is found after 31. Here one of them is tried
twice a second, on behalf of all, and when it connects, so do the others. For a server that is away, that is fewer
attempts than the pool's own as long as these are young, and for one that comes back no crowd: it is met by one
connection of each pool.
"""

from __future__ import annotations

import weakref
from typing import Any

from conn_hygiene import internals

#: Seconds after which the first of a pool's failed connections is tried again.
RETRY_AFTER = 0.5


class _Retry:
    """Stands for a task that failed to connect, and runs it once: in time, or when another one has connected."""

    __slots__ = ("_retries", "task")

    def __init__(self, retries: _Retries, task: Any) -> None:
        self._retries = retries
        self.task = task

    def tick(self) -> None:
        """Called by the pool's scheduler."""
        self._retries.run(self)


class _Retries:
    """Stands for the ``schedule_task()`` of a pool. Each step is one of a dictionary: several workers come here."""

    __slots__ = ("_failed", "_first", "_whose")

    def __init__(self, pool: Any) -> None:
        self._whose = weakref.ref(pool)
        self._failed: dict[_Retry, None] = {}
        self._first: _Retry | None = None

    def __call__(self, task: Any, delay: float) -> None:
        """Have *task* run in *delay* seconds, or sooner if it is to connect once more."""
        pool: Any = self._whose()
        if getattr(task, "attempt", None) is None:
            type(pool).schedule_task(pool, task, delay)
            return
        retry = _Retry(self, task)
        self._failed[retry] = None
        # Of two workers that come at the same time, both may be the first, once.
        if self._first is None:
            self._first, delay = retry, min(delay, RETRY_AFTER)
        type(pool).schedule_task(pool, retry, delay)

    def run(self, retry: _Retry) -> None:
        """Hand the task of *retry* to a worker, if that has not been done."""
        if retry in self._failed and self._failed.pop(retry, self) is None:
            if self._first is retry:
                self._first = None
            retry.task.tick()

    def connected(self) -> None:
        """Try the others, since one has connected."""
        for retry in list(self._failed):
            self.run(retry)


def watch(pool: Any) -> None:
    """Have *pool* connect anew as soon as its server is back. Does nothing for other pools than psycopg's."""
    if internals.RECONNECTS.available and hasattr(pool, "schedule_task"):
        pool.schedule_task = _Retries(pool)


def unwatch(pool: Any) -> None:
    """Give *pool* its own way back; what waits goes the way that it has begun."""
    if type(vars(pool).get("schedule_task")) is _Retries:
        del pool.schedule_task


def connected(pool: Any) -> None:
    """Take note that *pool* has just opened a connection. Called in a thread of its own, mostly."""
    retries = getattr(pool, "schedule_task", None)
    if type(retries) is _Retries:
        retries.connected()

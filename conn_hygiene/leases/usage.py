"""For how long one request has waited for connections, held them, and used them.

The leases tell: each joins the request in whose context it is used. The context follows a request into
``sync_to_async`` and ``asyncio.to_thread``; a thread that the request starts by itself begins without one.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from conn_hygiene import locks
from conn_hygiene.locks import Rank

_now = time.monotonic


class Timing:
    """Adds up the time of all connections of one request, as it passes. Its lock is a leaf: nothing is taken inside."""

    __slots__ = ("_held", "_holding", "_lock", "_since", "_used", "_using", "_waited")

    def __init__(self) -> None:
        self._lock = locks.make(Rank.LEAF)
        self._holding = self._using = 0
        self._waited = self._held = self._used = 0.0
        self._since = _now()

    def change(self, *, held: int = 0, used: int = 0) -> None:
        """Take note that from now on *held* more connections are held, and *used* more are in use."""
        with self._lock:
            self._catch_up()
            self._holding += held
            self._using += used

    def waited(self, seconds: float) -> None:
        """Take note that the request has waited for *seconds* for a connection, whether it got one or not."""
        with self._lock:
            self._waited += seconds

    def read(self) -> tuple[float, float, float]:
        """Return the seconds for which connections have been waited for, held, and used, until now.

        Who waits at this moment is not included.
        """
        with self._lock:
            self._catch_up()
            return self._waited, self._held, self._used

    def _catch_up(self) -> None:
        now = _now()
        self._held += self._holding * (now - self._since)
        self._used += self._using * (now - self._since)
        self._since = now


# None wherever nobody asks.
current: ContextVar[Timing | None] = ContextVar("conn_hygiene_timing", default=None)


def begin_anew() -> None:
    """Measure nothing in a forked child: the request is its parent's, and another thread may have held the lock."""
    current.set(None)


def server_timing(timing: Timing, before: str | None) -> str:
    """Return the value of a ``Server-Timing`` header with what *timing* says, after what was there *before*."""
    waited, held, used = timing.read()
    metrics = [
        f'db-wait;dur={waited * 1000:.1f};desc="waited for a database connection"',
        f'db-held;dur={held * 1000:.1f};desc="database connection held"',
        f'db-used;dur={used * 1000:.1f};desc="database connection used"',
    ]
    return ", ".join([before, *metrics] if before else metrics)

"""For how long one request has waited for connections, held them, and used them.

The leases tell, and who wants more than sums listens by a subclass. Each lease joins the request in whose context it is
used. The context follows a request into ``sync_to_async`` and ``asyncio.to_thread``; a thread that the request starts
by itself begins without one.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from conn_hygiene import locks
from conn_hygiene.locks import Rank

if TYPE_CHECKING:
    from conn_hygiene.events import Ending
    from conn_hygiene.leases.claim import Claim

_now = time.monotonic


class Timing:
    """Adds up the time of all connections of one request, as it passes. Its lock is a leaf: nothing is taken inside.

    *around* is the one that was there before, of a part of the request that is larger, and is told of everything too.
    """

    __slots__ = ("_held", "_holding", "_lock", "_since", "_used", "_using", "_waited", "around")

    def __init__(self, around: Timing | None = None) -> None:
        self.around = around
        self._lock = locks.make(Rank.LEAF)
        self._holding = self._using = 0
        self._waited = self._held = self._used = 0.0
        self._since = _now()

    @property
    def is_told(self) -> bool:
        """Whether somebody tells the browser what is measured, here or around."""
        return True

    def change(
        self, lease: Claim, *, held: int = 0, used: int = 0, ending: Ending | None = None, now: float | None = None
    ) -> None:
        """Take note that from *now* on *held* more connections are held, and *used* more are in use.

        It is the one of *lease*, under whose lock this is called. *ending* tells why its checkout ends, if it does.
        """
        if now is None:
            now = _now()
        with self._lock:
            self._catch_up(now)
            self._holding += held
            self._using += used
        if self.around is not None:
            self.around.change(lease, held=held, used=used, ending=ending, now=now)

    def waited(self, seconds: float, alias: str, *, in_vain: bool = False) -> None:
        """Take note that the running thread has waited for *seconds* for a connection of *alias*; *in_vain* or not."""
        with self._lock:
            self._waited += seconds
        if self.around is not None:
            self.around.waited(seconds, alias, in_vain=in_vain)

    def read(self) -> tuple[float, float, float]:
        """Return the seconds for which connections have been waited for, held, and used, until now.

        Who waits at this moment is not included.
        """
        with self._lock:
            self._catch_up(_now())
            return self._waited, self._held, self._used

    def _catch_up(self, now: float) -> None:
        # One of another thread may have come first.
        now = max(now, self._since)
        self._held += self._holding * (now - self._since)
        self._used += self._using * (now - self._since)
        self._since = now


# None wherever nobody asks.
current: ContextVar[Timing | None] = ContextVar("conn_hygiene_timing", default=None)


def after_fork_in_child() -> None:
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

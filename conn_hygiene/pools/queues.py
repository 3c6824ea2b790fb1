"""The queue of those who wait for a connection of one of psycopg's pools: two lines, which are served by turns.

psycopg_pool serves first who came first. But an owner in the middle of a burst of queries gives its connection back
while others wait, and asks for one again at once. Under load there are many such owners, and a short page would wait
behind all of them for its one query. So they have a line of their own, in which the oldest burst is served first.

A *place* is a moment on the monotonic clock: that at which the burst asked for its first connection.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from contextvars import ContextVar
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from conn_hygiene import internals
from conn_hygiene.pools.experience import Experience, kind
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# The running code's queue, and its place there. With the queue, since a receiver of "connection_created" may query
# another alias on the way.
_place: ContextVar[tuple[object, float] | None] = ContextVar("conn_hygiene_place", default=None)


class WaitingQueue(deque[Any]):
    """The ``_waiting`` of a pool. Only the pool changes it, under its own lock; anybody may look.

    In front is the line of new waiters, in the order in which they came; behind it that of bursts, the oldest first. A
    new waiter whose kind of request uses a connection for long (see :mod:`.experience`) joins the bursts at once, by
    the moment at which it comes. The lines are served by turns, so that a flood of new waiters keeps no burst from
    coming to its end.
    """

    def __init__(self, waiting: Iterable[Any] = ()) -> None:
        super().__init__(waiting)
        self.experience = Experience()
        # The places in the line of bursts, by the id() of who waits there.
        self._places: dict[int, float] = {}
        # Whether the last one that was served was new, while a burst waited: then it is a burst's turn.
        self._has_overtaken = False
        # The place of the first burst. Other threads read it under no lock.
        self._first = math.inf

    def append(self, position: Any) -> None:
        """Have *position*, psycopg_pool's ``WaitingClient``, wait in the line where the running code belongs."""
        if not self:
            # An exception of a signal handler may have left places of which nobody is there any more.
            self._forget()
        place = place_in(self)
        if place is None and not self.experience.wants_little(kind(serving.label, get_ident())):
            place = monotonic()
        # What changes the queue comes last: an exception of a signal handler behind it would leave a place in it that
        # nobody waits at.
        if place is None:
            self.insert(self._anew(), position)
            return
        at, insert, key = self._behind(place), super().insert, id(position)
        first = min(self._first, place)
        # Nothing is called in between but that.
        self._places[key] = place
        self._first = first
        insert(at, position)

    def _anew(self) -> int:
        return len(self) - len(self._places)

    def _behind(self, place: float) -> int:
        """Return the index at which a burst of that *place* belongs."""
        at = len(self)
        while at and self._places.get(id(self[at - 1]), -math.inf) > place:
            at -= 1
        return at

    def popleft(self) -> Any:
        """Take out who is next. The pool serves it, or finds that it has given up."""
        if not self._places:
            return super().popleft()
        anew = self._anew()
        at = anew if self._has_overtaken else 0
        self._has_overtaken = at < anew
        position = self[at]
        if self._places.pop(id(position), None) is not None:
            self._first = self._places.get(id(self[at + 1]), math.inf) if at + 1 < len(self) else math.inf
        del self[at]
        return position

    def clear(self) -> None:
        """Forget all, as a pool does that closes."""
        super().clear()
        self._forget()

    def _forget(self) -> None:
        self._places.clear()
        self._first = math.inf

    def is_ahead(self, place: float) -> bool:
        """Return whether a new waiter, or an older burst than that of *place*, waits. In any thread; a moment late."""
        return len(self) > len(self._places) or self._first < place


def is_ahead(queue: Sequence[Any], place: float) -> bool:
    """Return whether anybody waits in a pool's *queue* who is ahead of that *place*, as far as that is known."""
    return queue.is_ahead(place) if type(queue) is WaitingQueue else bool(queue)


def experience_of(queue: Sequence[Any]) -> Experience:
    """Return what is known of those who wait in a pool's *queue*; nothing yet, for other pools than psycopg's."""
    return queue.experience if type(queue) is WaitingQueue else Experience()


def place_in(queue: Sequence[Any]) -> float | None:
    """Return the place in *queue* of the running code, if it is in a burst; None if it is new there."""
    found = _place.get()
    return None if found is None or found[0] is not queue else found[1]


@contextlib.contextmanager
def going_on(queue: Sequence[Any], place: float) -> Iterator[None]:
    """Have whoever asks inside for a connection, and waits in *queue*, wait there as the burst of that *place*."""
    before = _place.get()
    try:
        # Inside, and without a token: an exception of a signal handler may come as soon as it is set.
        _place.set((queue, place))
        yield
    finally:
        _place.set(before)


def watch(pool: Any) -> None:
    """Have those who wait for *pool* be served in this order. Does nothing for other pools than psycopg's."""
    if internals.TURNS.available and type(getattr(pool, "_waiting", None)) is deque:
        _replace(pool, WaitingQueue)


def unwatch(pool: Any) -> None:
    """Make the queue of *pool* what it was."""
    if type(getattr(pool, "_waiting", None)) is WaitingQueue:
        _replace(pool, deque)


def _replace(pool: Any, kind: type[deque[Any]]) -> None:
    # Before psycopg_pool 3.3.1, one that has yet to open has no lock, and nobody waits for it.
    with getattr(pool, "_lock", None) or contextlib.nullcontext():
        before, pool._waiting = pool._waiting, kind(pool._waiting)
        # A lease may look at that one still, and nobody will leave it any more.
        before.clear()

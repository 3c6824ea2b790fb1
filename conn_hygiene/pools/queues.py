"""The queue of those who wait for a connection of psycopg's pools: by turns, those who come anew and those who go on.

psycopg_pool serves who has waited for longest. Whoever lets go in the middle of a burst of queries, since others wait,
comes back at once, and it would stand between a short page and its one query with all others like it. So these wait in
a line of their own, by the age of their bursts.
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

# For one queue only: receivers of "connection_created" may query other aliases on the way.
_place: ContextVar[tuple[object, float] | None] = ContextVar("conn_hygiene_place", default=None)


class WaitingQueue(deque[Any]):
    """Stands for the ``_waiting`` of a pool, and is used by the pool alone, under its lock; others only look.

    First are those who come anew, in the order in which they came, then those who go on. The two lines take turns, so
    that no flood of the former keeps the latter from coming to an end. Whoever is known to want much stands with the
    latter at once, by the time at which it comes.
    """

    def __init__(self, waiting: Iterable[Any] = ()) -> None:
        super().__init__(waiting)
        self.experience = Experience()
        # The places of those who go on, or want much, by identity. They are the last, the oldest first.
        self._places: dict[int, float] = {}
        # Whether the last one that was served came anew, and somebody waited who goes on.
        self._has_overtaken = False
        # The place of the first who goes on. Read by others.
        self._first = math.inf

    def append(self, position: Any) -> None:
        """Put whoever asks in its place."""
        if not self:
            # What an exception of a signal handler may have left.
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
        """Return where somebody belongs who goes on, and has that *place*."""
        at = len(self)
        while at and self._places.get(id(self[at - 1]), -math.inf) > place:
            at -= 1
        return at

    def popleft(self) -> Any:
        """Return who is served next, or has given up."""
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
        """Return whether anybody waits who comes anew, or is ahead of *place*. In any thread; a moment late."""
        return len(self) > len(self._places) or self._first < place


def is_ahead(queue: Sequence[Any], place: float) -> bool:
    """Return whether anybody waits in a pool's *queue* who is ahead of that *place*, as far as that is known."""
    return queue.is_ahead(place) if type(queue) is WaitingQueue else bool(queue)


def experience_of(queue: Sequence[Any]) -> Experience:
    """Return what is known of those who wait in a pool's *queue*; nothing yet, for other pools than psycopg's."""
    return queue.experience if type(queue) is WaitingQueue else Experience()


def place_in(queue: Sequence[Any]) -> float | None:
    """Return the place in *queue* of the running code, if it goes on with what it had a connection for just now."""
    found = _place.get()
    return None if found is None or found[0] is not queue else found[1]


@contextlib.contextmanager
def going_on(queue: Sequence[Any], place: float) -> Iterator[None]:
    """Have who asks for a connection inside, and waits in *queue*, stand by that *place* in it."""
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

"""The queue of those who wait for a connection of psycopg's pools: whoever comes anew is ahead of who had a turn.

psycopg_pool serves who has waited for longest. Whoever lets go in the middle of a burst of queries, since others wait,
comes back at once, and it would stand between a short page and its one query with all others like it. So these are
behind, unless they have waited for long: nobody's turn is put off for ever.
"""

from __future__ import annotations

import contextlib
from collections import deque
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

from conn_hygiene import internals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Seconds after which nobody is put ahead of who waits, whoever comes.
PATIENCE = 0.1

_goes_on: ContextVar[bool] = ContextVar("conn_hygiene_goes_on", default=False)


class Order(deque[Any]):
    """Stands for the ``_waiting`` of a pool, and is used by the pool alone, under its lock; others only look."""

    def __init__(self, waiting: Iterable[Any] = ()) -> None:
        super().__init__(waiting)
        # Of those that had a turn, by identity: since when they wait. Nobody else is behind them but their like.
        self._had_turns: dict[int, float] = {}

    def append(self, position: Any) -> None:
        """Put whoever asks in its place."""
        # What changes the queue comes last: an exception of a signal handler behind it would leave a place in it that
        # nobody waits at.
        if is_going_on():
            # Nothing is called in between but that.
            append, since, key = super().append, monotonic(), id(position)
            self._had_turns[key] = since
            append(position)
        else:
            self.insert(self._place(monotonic() - PATIENCE) if self._had_turns else len(self), position)

    def _place(self, since: float) -> int:
        """Return where somebody who comes anew belongs: ahead of those who had a turn and wait *since* then only."""
        at = len(self)
        while at and self._had_turns.get(id(self[at - 1]), since) > since:
            at -= 1
        return at

    def popleft(self) -> Any:
        """Return who is served next, or has given up."""
        if self._had_turns and self:
            self._had_turns.pop(id(self[0]), None)
        return super().popleft()

    def clear(self) -> None:
        """Forget all, as a pool does that closes."""
        super().clear()
        self._had_turns.clear()

    def is_for_newcomers(self) -> bool:
        """Return whether anybody waits who has not had a turn just now. In any thread; a moment late."""
        return len(self) > len(self._had_turns)


def newcomers_in(queue: Sequence[Any]) -> bool:
    """Return whether anybody waits in a pool's *queue* who has not had a turn, as far as that is known."""
    return queue.is_for_newcomers() if type(queue) is Order else bool(queue)


#: Whether the running code asks for a connection to go on with what it had one for until a moment ago.
is_going_on = _goes_on.get


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Have who asks for a connection inside be behind those who have not had one."""
    before = _goes_on.get()
    try:
        # Inside, and without a token: an exception of a signal handler may come as soon as it is set.
        _goes_on.set(True)
        yield
    finally:
        _goes_on.set(before)


def watch(pool: Any) -> None:
    """Have those who wait for *pool* be served in this order. Does nothing for other pools than psycopg's."""
    if internals.TURNS.available and type(getattr(pool, "_waiting", None)) is deque:
        _replace(pool, Order)


def unwatch(pool: Any) -> None:
    """Make the queue of *pool* what it was."""
    if type(getattr(pool, "_waiting", None)) is Order:
        _replace(pool, deque)


def _replace(pool: Any, kind: type[deque[Any]]) -> None:
    # Before psycopg_pool 3.3.1, one that has yet to open has no lock, and nobody waits for it.
    with getattr(pool, "_lock", None) or contextlib.nullcontext():
        before, pool._waiting = pool._waiting, kind(pool._waiting)
        # A lease may look at that one still, and nobody will leave it any more.
        before.clear()

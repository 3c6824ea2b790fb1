"""What happened in this process, in numbers, for each alias.

What happens at every checkout is counted by the lease itself, which has its alias's :class:`Tally`; all else is counted
as the event of a report is published, so that the numbers are those of the reports.

Who may touch what: each tally has a lock, for all that it counts, and so has what was told. The locks are leaves:
nothing is taken inside. Tallies are never replaced, since leases keep them; a forked child and a new installation set
them back to nothing, and replace what was told.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from conn_hygiene import events, locks
from conn_hygiene.locks import Rank

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# What is counted; seconds as float, the rest as int.
COUNTED = (
    "checkouts",
    "releases",
    "reclaimed",
    "pinned",
    "seconds_held",
    "seconds_in_use",
    "idle_in_transaction",
    "held_too_long",
    "unclosed_cursors",
    "replaced",
    "discarded",
    "left_open",
    "transactions_retried",
    "pool_timeouts",
    "seconds_waited",
)

# Upper bounds in seconds, inclusive; the last bucket has none. To take a connection that a pool has left takes less
# than the first, and who waits for longer than the last of the others has met an outage.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, math.inf)


class Series(NamedTuple):
    """How many values fell into each bucket of :data:`BOUNDS`, and the sum of them all."""

    counts: list[int]
    total: float


class Tally:
    """What happened on one alias, since the toolkit was installed or the process forked."""

    __slots__ = (
        "_held",
        "_in_vain",
        "_lock",
        "_releases",
        "_seconds_held",
        "_seconds_used",
        "_seconds_waited",
        "_unseen",
        "_used",
        "_values",
        "_waited",
    )

    def __init__(self) -> None:
        self._lock = locks.make(Rank.LEAF)
        self.reset()

    def reset(self) -> None:
        """Set all to nothing."""
        with self._lock:
            # All but what is counted at every checkout.
            self._values: dict[str, Any] = dict.fromkeys(COUNTED, 0)
            # Checkouts by bucket, which is how they are counted; and those whose wait was not seen.
            self._waited, self._held, self._used = [0] * len(BOUNDS), [0] * len(BOUNDS), [0] * len(BOUNDS)
            self._unseen = self._releases = 0
            self._seconds_waited = self._seconds_held = self._seconds_used = 0.0
            # Seconds waited after which there was no connection.
            self._in_vain = 0.0

    def after_fork_in_child(self) -> None:
        """Count from nothing in a forked child, where another thread may have held the lock."""
        self._lock = locks.make(Rank.LEAF)
        self.reset()

    def checked_out(self, waited: float | None) -> None:
        """Count a checkout that was waited for for *waited* seconds, None if that is not known."""
        with self._lock:
            if waited is None:
                self._unseen += 1
            else:
                self._seconds_waited += waited
                self._waited[bisect_left(BOUNDS, waited)] += 1

    def checked_in(self, held: float, used: float, *, released: bool) -> None:
        """Count the end of a checkout, of *held* seconds, *used* of them; *released* between queries."""
        with self._lock:
            self._seconds_held += held
            self._seconds_used += used
            if released:
                self._releases += 1
            self._held[bisect_left(BOUNDS, held)] += 1
            self._used[bisect_left(BOUNDS, used)] += 1

    def exhausted(self, waited: float) -> None:
        """Count a checkout that failed after *waited* seconds."""
        with self._lock:
            self._values["pool_timeouts"] += 1
            self._in_vain += waited

    def add(self, name: str, amount: int = 1) -> None:
        """Add to one of the numbers that are :data:`COUNTED`."""
        with self._lock:
            self._values[name] += amount

    def read(self) -> dict[str, Any]:
        """Return the numbers, all as of one moment."""
        with self._lock:
            return self._values | {
                "checkouts": sum(self._waited) + self._unseen,
                "releases": self._releases,
                "seconds_waited": self._seconds_waited + self._in_vain,
                "seconds_held": self._seconds_held,
                "seconds_in_use": self._seconds_used,
            }

    def series(self) -> dict[str, Series]:
        """Return how the checkouts that are over are distributed by their length, all as of one moment."""
        with self._lock:
            return {
                "waited": Series(list(self._waited), self._seconds_waited),
                "held": Series(list(self._held), self._seconds_held),
                "used": Series(list(self._used), self._seconds_used),
            }


class Told:
    """What was told last of totals that go on while connections are held, which is the least that is told next.

    What is counted of a checkout at its end may come to a little less than what was told of it before, as floats are
    rounded in another order then. And of many that end while they are looked at, one may be in neither part. But a
    counter that falls has begun anew to whoever adds up by how much it grows, and is added as a whole.
    """

    def __init__(self) -> None:
        self._lock = locks.make(Rank.LEAF)
        self._seconds: dict[tuple[frozenset[str] | None, str], float] = {}

    def at_least(self, using: frozenset[str] | None, name: str, seconds: float) -> float:
        """Return *seconds*, or what was returned for the number *name* of these aliases before, if that is more."""
        with self._lock:
            most = self._seconds[using, name] = max(seconds, self._seconds.get((using, name), 0.0))
            return most


#: Another one where all is set back to nothing. Who reads the tallies takes hold of it before: it goes with their past.
told = Told()


# By alias. Only ever added to, by setdefault(), which two threads may do at once.
_tallies: dict[str, Tally] = {}


def of(alias: str) -> Tally:
    """Return the tally of *alias*: the same object at each call."""
    return _tallies.get(alias) or _tallies.setdefault(alias, Tally())


def chosen(using: Collection[str] | None) -> list[Tally]:
    """Return the tallies of the aliases *using*, of all for None."""
    return [tally for alias, tally in list(_tallies.items()) if using is None or alias in using]


def reset() -> None:
    """Set all to nothing, when the toolkit is installed."""
    global told  # noqa: PLW0603 - one process, one count
    for tally in chosen(None):
        tally.reset()
    told = Told()


def after_fork_in_child() -> None:
    """Count from nothing in a forked child: what happened before is its parent's."""
    global told  # noqa: PLW0603 - as above
    for tally in chosen(None):
        tally.after_fork_in_child()
    told = Told()


# ##### Events #####


def _pinned(event: events.Pinned) -> None:
    if event.first:
        of(event.alias).add("pinned")


def _connections_discarded(event: events.ConnectionsDiscarded) -> None:
    for alias, number in event.discarded.items():
        of(alias).add("discarded", number)


def _adds(name: str) -> Callable[[Any], None]:
    return lambda event: of(event.alias).add(name)


_LISTENERS: dict[type[events.Event], Callable[[Any], None]] = {
    events.PoolExhausted: lambda event: of(event.alias).exhausted(event.waited_for),
    events.Pinned: _pinned,
    events.Reclaimed: _adds("reclaimed"),
    events.Replaced: _adds("replaced"),
    events.IdleInTransaction: _adds("idle_in_transaction"),
    events.LeftOpen: _adds("left_open"),
    events.HeldTooLong: _adds("held_too_long"),
    events.UnclosedCursor: _adds("unclosed_cursors"),
    events.TransactionRetried: _adds("transactions_retried"),
    events.ConnectionsDiscarded: _connections_discarded,
}


def listen() -> None:
    """Have these events counted from now on."""
    for kind, listener in _LISTENERS.items():
        events.listen(kind, listener)

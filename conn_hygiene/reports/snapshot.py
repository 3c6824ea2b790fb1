"""What this process holds and has done: :func:`snapshot`, :func:`pool_stats`, :func:`stats`, :func:`histograms`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from conn_hygiene import callsite, conf
from conn_hygiene.leases.description import describe
from conn_hygiene.pools import backends, sqlalchemy
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import counters
from conn_hygiene.reports.counters import BOUNDS, COUNTED
from conn_hygiene.using import aliases
from conn_hygiene.work import thread_names

if TYPE_CHECKING:
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.reports.counters import Series
    from conn_hygiene.using import Using


# How often stats() looks again for two moments between which no lease ends; with any number of threads, once mostly.
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class LeaseInfo:
    """One connection that is checked out."""

    alias: str
    #: ``"in use"`` (a cursor is open or a transaction runs), ``"idle"``, or ``"pinned"`` (idle, but must stay).
    state: str
    #: The pid of the server process, as in ``pg_stat_activity``.
    server_pid: int
    thread_id: int
    #: ``None`` for a thread that has ended, or that Python's threading module does not know.
    thread_name: str | None
    #: A label of the request or task, such as ``"GET /orders/7/"``, or ``"task shop.tasks.sync[id]"``; ``None`` outside
    #: of both.
    request: str | None
    #: Seconds since it was checked out.
    held_for: float
    #: Seconds of those in which a cursor was open or a transaction ran.
    in_use_for: float
    #: Seconds since it was last used: since a cursor closed, a statement began on its handle, or it was checked out. 0
    #: while a statement runs. With a cursor open, it counts from the reaper's look that saw nothing run, and so may be
    #: too short by a quarter of the limit (``IDLE_IN_TRANSACTION_AFTER`` or ``HELD_TOO_LONG_AFTER``, the shorter one).
    idle_for: float
    #: How many cursors are open; those that were made on the psycopg connection itself are not counted.
    open_cursors: int
    #: Whether a transaction runs, in the eyes of Django or of libpq.
    in_transaction: bool
    #: What pins it, by reason, with the place in the code.
    pinned_by: dict[str, str]
    #: For how many seconds the transaction has been open; 0 outside of one.
    transaction_for: float
    #: The last statement, without its parameters, and as ``LOG_STATEMENTS`` says: with ``?`` for each value in it.
    statement: str | None
    #: Places in the code, such as ``"/app/shop/views.py:12 in pay"``: where the connection was checked out, where the
    #: transaction began, and where its thread is now. ``None`` where it is not known, or ``CAPTURE_STACKS`` is off.
    where_checked_out: str | None
    where_began: str | None
    where_now: str | None
    #: The whole stacks at these three places, as tracebacks show them; ``None`` without ``FULL_STACKS``.
    stack_checked_out: str | None = None
    stack_began: str | None = None
    stack_now: str | None = None
    #: What keeps it with its thread outside of a transaction, besides *pinned_by*: ``"hold_connection is around"``,
    #: ``"no release scope is around"``, ``"a cursor is open"``, ``"a transaction is open in which nothing has run"``
    #: and the like, several joined by "and". ``None`` if it is about to go back, or if nothing is known.
    kept_because: str | None = None


@dataclasses.dataclass(frozen=True)
class Stats:
    """What happened in this process since the toolkit was installed, or since it was forked. All are numbers.

    Reports are counted as they are made: each is one log record, and one signal where there is one for it.
    """

    #: Connections taken from a pool, or opened where there is none.
    checkouts: int
    #: Connections given back between queries.
    releases: int
    #: Connections taken back from threads that had ended.
    reclaimed: int
    #: Checkouts that became pinned.
    pinned: int
    #: Seconds that connections were checked out, over all threads.
    seconds_held: float
    #: Seconds of those in which a cursor was open or a transaction ran.
    seconds_in_use: float
    #: Reports of transactions that ran no statement.
    idle_in_transaction: int
    #: Reports of connections that were held too long.
    held_too_long: int
    #: Cursors that were garbage-collected without being closed, if ``REPORT_UNCLOSED_CURSORS`` is on.
    unclosed_cursors: int
    #: Broken connections that were replaced by another one.
    replaced: int
    #: Connections that this process inherited by its fork, and discarded.
    discarded: int
    #: Reports of transactions that a request, a task or a block of ``closing_connections`` left open.
    left_open: int
    #: Attempts of ``retry_transaction`` that failed and were repeated.
    transactions_retried: int
    #: Checkouts that failed because the pool had no connection in time (``PoolTimeout``), or because as many threads as
    #: its ``max_waiting`` allows were waiting already (``TooManyRequests``).
    pool_timeouts: int
    #: Seconds that threads waited for a connection, from a pool or to be opened: also for checkouts that failed in the
    #: end. Waits that are not over yet are not included.
    seconds_waited: float


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A distribution of durations in cumulative buckets, as Prometheus defines them (its docs, "Histogram")."""

    #: ``(upper bound in seconds, number of durations up to it)``, in rising order. The bounds never change: 0.0005,
    #: 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30 and infinity.
    buckets: tuple[tuple[float, int], ...]
    #: The sum of all durations, in seconds.
    sum: float

    @property
    def count(self) -> int:
        """How many durations were observed."""
        return self.buckets[-1][1]


@dataclasses.dataclass(frozen=True)
class Histograms:
    """How long the checkouts of this process took to get, and how long they lasted."""

    #: How long each checkout waited for its connection: for the pool, or for the connection to be opened. Checkouts
    #: that failed are not included, nor those whose wait was not measured; see :class:`.events.CheckedOut`.
    waited: Histogram
    #: How long each checkout lasted. Those that have not ended yet are not included.
    held: Histogram
    #: The part of that time in which a cursor was open or a transaction ran.
    used: Histogram


def snapshot() -> list[LeaseInfo]:
    """Return the connections that are checked out in this process right now, the one held for longest first.

    The list is empty if the toolkit is not installed.
    """
    return [info for info, _ in with_leases()]


def with_leases() -> list[tuple[LeaseInfo, Lease]]:
    """Return what :func:`snapshot` does, each entry with the lease that it describes."""
    names = thread_names()
    # One moment for all, so that their order is that of their checkouts.
    now = time.monotonic()
    found = [(_info(lease, names, now), lease) for lease in _leases()]
    return sorted(((info, lease) for info, lease in found if info is not None), key=lambda each: -each[0].held_for)


def _info(lease: Lease, names: dict[int | None, str], now: float) -> LeaseInfo | None:
    seen = describe(lease, now)
    if seen is None:
        return None
    # Its owner may have used it between the look at the clock and the look at the lease.
    held_for = max(0.0, seen.held_for)
    began = seen.transaction.place if seen.transaction else None
    running = callsite.of_thread(lease.thread_id, full=conf.current.FULL_STACKS)
    return LeaseInfo(
        alias=lease.alias,
        state=seen.state,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        thread_name=names.get(lease.thread_id),
        request=lease.request,
        held_for=held_for,
        in_use_for=min(max(0.0, seen.used_for), held_for),
        idle_for=min(max(0.0, seen.idle_for), held_for),
        open_cursors=seen.open_cursors,
        in_transaction=seen.in_transaction,
        pinned_by=seen.pins,
        transaction_for=max(0.0, seen.open_for),
        statement=seen.statement,
        where_checked_out=callsite.text(lease.checked_out_by),
        where_began=callsite.text(began),
        where_now=callsite.text(running),
        stack_checked_out=callsite.stack_text(lease.checked_out_by),
        stack_began=callsite.stack_text(began),
        stack_now=callsite.stack_text(running),
        kept_because=seen.kept_because,
    )


@dataclasses.dataclass(frozen=True)
class PoolInfo:
    """One pool of this process, Django's native one or that of django-db-connection-pool, as it is now."""

    alias: str
    #: Connections of the pool: idle in it, checked out, or being opened.
    size: int
    #: Connections that are idle in the pool, ready to be checked out.
    available: int
    #: Threads that wait for a connection; those that have timed out are not counted.
    waiting: int
    #: From ``OPTIONS["pool"]``; 0 for django-db-connection-pool, which has no minimum.
    min_size: int
    #: From ``OPTIONS["pool"]``; ``POOL_SIZE`` plus ``MAX_OVERFLOW`` for django-db-connection-pool. 0 means no limit.
    #: After a ``resize()`` of the pool, *size* may exceed it for a while.
    max_size: int
    #: Seconds after which a checkout that got no connection fails with ``PoolTimeout``, or with the ``TimeoutError`` of
    #: SQLAlchemy for django-db-connection-pool, where ``TIMEOUT`` may be ``None``: that is infinite here.
    timeout: float


def pool_stats(using: Using = None) -> list[PoolInfo]:
    """Return the pools that this process has opened, sorted by alias, without waiting and without opening one.

    The numbers are psycopg_pool's own (its documentation, "Pool stats"), or SQLAlchemy's, with or without the toolkit
    installed. Only *waiting* may be lower than psycopg_pool's number, which includes threads that have timed out.

    :param using: an alias of DATABASES, or several; by default all.
    :raises TypeError: *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    chosen = aliases(using, "pool_stats")
    opened = sorted([*pools.native_pools().items(), *sqlalchemy.opened().items()], key=itemgetter(0))
    return [_pool_info(alias, pool) for alias, pool in opened if chosen is None or alias in chosen]


def _pool_info(alias: str, pool: Any) -> PoolInfo:
    numbers, timeout = pools.numbers_of(pool), sqlalchemy.timeout_of(pool)
    return PoolInfo(
        alias=alias,
        size=numbers["pool_size"],
        available=numbers["pool_available"],
        waiting=numbers["requests_waiting"],
        min_size=numbers["pool_min"],
        max_size=numbers["pool_max"],
        timeout=math.inf if timeout is None else timeout,
    )


def stats(using: Using = None) -> Stats:
    """Return the totals of this process; they include the checkouts that have not ended yet.

    All are zero if the toolkit is not installed.

    :param using: an alias of DATABASES, or several; by default all.
    :raises TypeError: *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    chosen = aliases(using, "stats")
    running = reaper.running
    if running is None:
        return Stats(**dict.fromkeys(COUNTED, 0))
    told = counters.told
    for _ in range(_TRIES):
        totals = _totals(chosen)
        now = time.monotonic()
        leases = [lease for lease in running.leases() if chosen is None or lease.alias in chosen]
        seen = [found for lease in leases if (found := describe(lease, now)) is not None]
        # A lease that ended meanwhile would be counted neither here nor there, and the totals must not shrink.
        if _totals(chosen)["seconds_held"] == totals["seconds_held"]:
            break
    totals["seconds_held"] += sum(max(0.0, found.held_for) for found in seen)
    totals["seconds_in_use"] += sum(max(0.0, found.used_for) for found in seen)
    for name in ("seconds_held", "seconds_in_use"):
        totals[name] = told.at_least(chosen, name, totals[name])
    return Stats(**totals)


def stats_by_alias() -> dict[str, Stats]:
    """Return :func:`stats` of each alias of DATABASES that is on PostgreSQL, zeros included, as ordered there."""
    return {alias: stats(alias) for alias in backends.on_postgresql()}


def _totals(chosen: frozenset[str] | None) -> dict[str, Any]:
    read = [tally.read() for tally in counters.chosen(chosen)]
    return {name: sum(values[name] for values in read) for name in COUNTED}


def histograms(using: Using = None) -> Histograms:
    """Return how long the checkouts of this process were waited for, held and used.

    All counts are zero if the toolkit is not installed.

    :param using: an alias of DATABASES, or several; by default all.
    :raises TypeError: *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    chosen = aliases(using, "histograms")
    read = [] if reaper.running is None else [tally.series() for tally in counters.chosen(chosen)]
    return Histograms(**{name: _histogram([series[name] for series in read]) for name in ("waited", "held", "used")})


def histograms_by_alias() -> dict[str, Histograms]:
    """Return :func:`histograms` of each alias of DATABASES that is on PostgreSQL, zeros included, as ordered there."""
    return {alias: histograms(alias) for alias in backends.on_postgresql()}


def held_by_alias() -> dict[str, Counter[str]]:
    """Return how many connections of each alias are checked out now, by :attr:`LeaseInfo.state`.

    Dearer than counting and cheaper than :func:`snapshot`: no stack is looked at.
    """
    held: dict[str, Counter[str]] = {alias: Counter() for alias in backends.on_postgresql()}
    now = time.monotonic()
    for lease in _leases():
        seen = describe(lease, now)
        if seen is not None:
            held.setdefault(lease.alias, Counter())[seen.state] += 1
    return held


def _histogram(series: list[Series]) -> Histogram:
    counts = [sum(each.counts[bucket] for each in series) for bucket in range(len(BOUNDS))]
    return Histogram(tuple(zip(BOUNDS, accumulate(counts), strict=True)), sum(each.total for each in series))


def _leases() -> list[Lease]:
    running = reaper.running
    return [] if running is None else running.leases()

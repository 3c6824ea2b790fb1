"""What this process holds and has done: :func:`snapshot` and :func:`stats`."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from conn_hygiene import callsite
from conn_hygiene.leases.description import describe
from conn_hygiene.reaper import reaper
from conn_hygiene.reports.counters import COUNTED

if TYPE_CHECKING:
    from conn_hygiene.callsite import Place
    from conn_hygiene.leases.lease import Lease


# How often stats() looks again for two moments between which no lease ends; with any number of threads, once mostly.
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class LeaseInfo:
    """One connection that is checked out; times in seconds."""

    alias: str
    #: ``"in use"`` (a cursor is open or a transaction runs), ``"idle"``, or ``"pinned"`` (idle, but must stay).
    state: str
    #: The pid of the server process, as in ``pg_stat_activity``.
    server_pid: int
    thread_id: int
    #: ``None`` for a thread that has ended, or that Python's threading module does not know.
    thread_name: str | None
    #: Such as ``"GET /orders/7/"``, or ``"task shop.tasks.sync[id]"``; ``None`` outside of both.
    request: str | None
    held_for: float
    in_use_for: float
    idle_for: float
    open_cursors: int
    in_transaction: bool
    #: What pins it, by reason, with the place in the code.
    pinned_by: dict[str, str]
    #: For how long the transaction has been open; 0 outside of one.
    transaction_for: float
    #: The last statement, without its parameters.
    statement: str | None
    #: Places in the code, such as ``"/app/shop/views.py:12 in pay"``: where the connection was checked out, where the
    #: transaction began, and where its thread is now. ``None`` where it is not known, or ``CAPTURE_STACKS`` is off.
    where_checked_out: str | None
    where_began: str | None
    where_now: str | None


@dataclasses.dataclass(frozen=True)
class Stats:
    """What happened in this process since the toolkit was installed."""

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
    #: Cursors that were collected without being closed, where ``REPORT_UNCLOSED_CURSORS`` says so.
    unclosed_cursors: int
    #: Broken connections that another one took the place of.
    replaced: int
    #: Connections that this process inherited by its fork, and discarded.
    discarded: int


def snapshot() -> list[LeaseInfo]:
    """Return what every thread of this process holds right now, longest first; empty without the toolkit installed."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = [_info(lease, names) for lease in _leases()]
    return sorted((info for info in found if info is not None), key=lambda info: -info.held_for)


def _info(lease: Lease, names: dict[int | None, str]) -> LeaseInfo | None:
    seen = describe(lease, time.monotonic())
    if seen is None:
        return None
    # Its owner may have used it between the look at the clock and the look at the lease.
    held_for = max(0.0, seen.held_for)
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
        where_checked_out=_text(lease.checked_out_by),
        where_began=_text(seen.transaction.place) if seen.transaction else None,
        where_now=_text(callsite.of_thread(lease.thread_id)),
    )


def _text(place: Place | None) -> str | None:
    return None if place is None else str(place)


def stats() -> Stats:
    """Return this process's totals; what is checked out now is included. All zero without the toolkit installed."""
    running = reaper.running
    if running is None:
        return Stats(**dict.fromkeys(COUNTED, 0))
    for _ in range(_TRIES):
        totals = running.counters.read()
        now = time.monotonic()
        seen = [found for lease in running.leases() if (found := describe(lease, now)) is not None]
        # A lease that ended meanwhile would be counted neither here nor there, and the totals must not shrink.
        if running.counters.read()["seconds_held"] == totals["seconds_held"]:
            break
    totals["seconds_held"] += sum(max(0.0, found.held_for) for found in seen)
    totals["seconds_in_use"] += sum(max(0.0, found.used_for) for found in seen)
    return Stats(**totals)


def _leases() -> list[Lease]:
    running = reaper.running
    return [] if running is None else running.leases()

"""What this process holds and has done: :func:`snapshot` and :func:`stats`."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from conn_hygiene import reaper

if TYPE_CHECKING:
    from conn_hygiene.lease import Lease


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
    #: Such as ``"GET /orders/7/"``; ``None`` outside of requests.
    request: str | None
    held_for: float
    in_use_for: float
    idle_for: float
    open_cursors: int
    in_transaction: bool
    #: What pins it, by reason, with the place in the code.
    pinned_by: dict[str, str]


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


def snapshot() -> list[LeaseInfo]:
    """Return what every thread of this process holds right now, longest first; empty without the toolkit installed."""
    now = time.monotonic()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = [_info(lease, now, names) for lease in _leases()]
    return sorted((info for info in found if info is not None), key=lambda info: -info.held_for)


def _info(lease: Lease, now: float, names: dict[int | None, str]) -> LeaseInfo | None:
    seen = lease.describe(now)
    if seen is None:
        return None
    return LeaseInfo(
        alias=lease.alias,
        state=seen.state,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        thread_name=names.get(lease.thread_id),
        request=lease.request,
        held_for=seen.held_for,
        in_use_for=seen.used_for,
        idle_for=seen.idle_for,
        open_cursors=seen.open_cursors,
        in_transaction=seen.in_transaction,
        pinned_by=seen.pins,
    )


def stats() -> Stats:
    """Return this process's totals; what is checked out now is included. All zero without the toolkit installed."""
    running = reaper.running
    totals: dict[str, float] = {} if running is None else running.counters.read()
    now = time.monotonic()
    seen = [found for lease in _leases() if (found := lease.describe(now)) is not None]
    return Stats(
        checkouts=int(totals.get("checkouts", 0)),
        releases=int(totals.get("releases", 0)),
        reclaimed=int(totals.get("reclaimed", 0)),
        pinned=int(totals.get("pinned", 0)),
        seconds_held=totals.get("seconds_held", 0.0) + sum(found.held_for for found in seen),
        seconds_in_use=totals.get("seconds_in_use", 0.0) + sum(found.used_for for found in seen),
    )


def _leases() -> list[Lease]:
    running = reaper.running
    return [] if running is None else running.leases()

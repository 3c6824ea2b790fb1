"""Which metrics there are, and their values now.

Names are by Prometheus' conventions (its documentation, "Metric and label naming"): seconds, ``_total`` for what only
grows, and one label for all, ``alias``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene.reports.counters import COUNTED
from conn_hygiene.reports.snapshot import held_by_alias, histograms_by_alias, pool_stats, stats_by_alias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conn_hygiene.reports.snapshot import Histogram


class Family(NamedTuple):
    """A metric of several series."""

    #: Without the suffixes of its samples, such as ``_total``.
    name: str
    help: str
    labels: tuple[str, ...] = ("alias",)


HELD = Family(
    "conn_hygiene_connections_held",
    "Connections that are checked out now: in_use (a cursor is open or a transaction runs), idle, or pinned.",
    ("alias", "state"),
)

# As LeaseInfo.state has them, and as labels.
_STATES = {"in use": "in_use", "idle": "idle", "pinned": "pinned"}

_POOL = {
    "size": "Connections of the pool: those in it, those that are checked out, and those that are being opened.",
    "idle": "Connections in the pool, for whoever asks.",
    "used": "Connections of the pool that are checked out or being opened.",
    "waiting": "Threads that wait for a connection of the pool.",
    "min_size": "The least number of connections that the pool keeps.",
    "max_size": "The greatest number of connections that the pool opens; +Inf without a limit.",
}

_COUNTED = {
    "checkouts": "Connections taken from a pool, or opened where there is none.",
    "releases": "Connections given back between queries.",
    "reclaimed": "Connections taken back from threads that had ended.",
    "pinned": "Checkouts that became pinned to their owner by session state.",
    "seconds_held": "Seconds that connections were checked out, over all threads.",
    "seconds_in_use": "Seconds of those in which a cursor was open or a transaction ran.",
    "idle_in_transaction": "Reports of transactions that ran no statement.",
    "held_too_long": "Reports of connections that were held too long.",
    "unclosed_cursors": "Cursors that were collected without being closed.",
    "replaced": "Broken connections that another one took the place of.",
    "discarded": "Connections that were inherited by a fork, and discarded.",
    "left_open": "Reports of transactions that a request or task left open.",
    "transactions_retried": "Attempts of retry_transaction that failed and were repeated.",
    "pool_timeouts": "Checkouts that failed, since the pool had no connection in time.",
    "seconds_waited": "Seconds that threads waited for a connection, in vain or not.",
}

_TIMES = {
    "waited": ("wait", "Seconds from asking for a connection to having it."),
    "held": ("hold", "Seconds from a checkout to its end."),
    "used": ("use", "Seconds of a checkout in which a cursor was open or a transaction ran."),
}


def _counted_name(name: str) -> str:
    # What Stats calls seconds_held is held_seconds by the conventions: the unit comes last.
    what = name.removeprefix("seconds_")
    return f"conn_hygiene_{what}" if what == name else f"conn_hygiene_{what}_seconds"


_pools = {name: Family(f"conn_hygiene_pool_{name}", help) for name, help in _POOL.items()}
_counted = {name: Family(_counted_name(name), _COUNTED[name]) for name in COUNTED}
_times = {name: Family(f"conn_hygiene_{verb}_seconds", help) for name, (verb, help) in _TIMES.items()}

GAUGES = (HELD, *_pools.values())
COUNTERS = tuple(_counted.values())
HISTOGRAMS = tuple(_times.values())


def gauges() -> Iterator[tuple[Family, tuple[str, ...], float]]:
    """Yield each gauge with the values of its labels and its own. Of pools, those that this process has opened."""
    for alias, states in held_by_alias().items():
        for state, label in _STATES.items():
            yield HELD, (alias, label), states[state]
    for pool in pool_stats():
        yield _pools["size"], (pool.alias,), pool.size
        yield _pools["idle"], (pool.alias,), pool.available
        yield _pools["used"], (pool.alias,), max(0, pool.size - pool.available)
        yield _pools["waiting"], (pool.alias,), pool.waiting
        yield _pools["min_size"], (pool.alias,), pool.min_size
        yield _pools["max_size"], (pool.alias,), pool.max_size or math.inf


def counters() -> Iterator[tuple[Family, tuple[str, ...], float]]:
    """Yield each counter, zeros included: of a series that begins with 1, nobody sees the increase."""
    for alias, stats in stats_by_alias().items():
        for name, family in _counted.items():
            yield family, (alias,), getattr(stats, name)


def histograms() -> Iterator[tuple[Family, tuple[str, ...], Histogram]]:
    """Yield each histogram."""
    for alias, times in histograms_by_alias().items():
        for name, family in _times.items():
            yield family, (alias,), getattr(times, name)

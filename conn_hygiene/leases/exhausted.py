"""What is told where a pool had no connection in time: who holds those that it has.

It is found out in the thread that gets the exception, before that has it, and written onto it as a note (PEP 678).
Nobody is waited for: leases are looked at as :func:`.snapshot` does, one after the other, and texts are made under no
lock. What fails on the way is logged, and the exception stays what it was.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import OperationalError

from conn_hygiene import callsite
from conn_hygiene.events import Holder, PoolExhausted, publish_to_others
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.leases import usage
from conn_hygiene.leases.description import describe
from conn_hygiene.pools import base as pools
from conn_hygiene.work import serving, thread_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.keeper import Keeper
    from conn_hygiene.leases.lease import Lease

logger = logging.getLogger("conn_hygiene.pools")

#: How many holders are named.
MOST = 10

#: Seconds for which what was found of a pool serves for others as well: with ``max_waiting``, many may fail at once.
FRESH = 0.1

# What a pool raises that has no connection; by name, since neither need be installed.
_NONE_TO_BE_HAD = frozenset(
    {("psycopg_pool", "PoolTimeout"), ("psycopg_pool", "TooManyRequests"), ("sqlalchemy.exc", "TimeoutError")}
)

# Django's debug page, sentry_sdk and Python 3.11 read notes from here; Python 3.10 has no add_note().
_NOTES = "__notes__"
# On an exception that has one of ours: which it is.
_OURS = "_conn_hygiene_note"


class _Found(NamedTuple):
    """What was found of a pool, and when."""

    pool: weakref.ref[Any]
    at: float
    facts: dict[str, Any]


# Any thread may replace it. It is looked at once, and never changed.
_last: _Found | None = None


def tell_if_exhausted(
    wrapper: BaseDatabaseWrapper, keeper: Keeper, asked_at: float | None, error: BaseException
) -> None:
    """Tell of *error*, if it is that the pool of *wrapper* had no connection for who asked for one at *asked_at*.

    It gets a note that names the holders. Called under no lock.
    """
    kind: Any = type(error).__name__
    if (type(error).__module__, kind) not in _NONE_TO_BE_HAD:
        return
    waited = 0.0 if asked_at is None else monotonic() - asked_at
    request = usage.current.get()
    if request is not None:
        request.waited(waited, wrapper.alias, in_vain=True)
    event = PoolExhausted(
        alias=wrapper.alias,
        thread_id=threading.get_ident(),
        thread_name=thread_names().get(threading.get_ident()),
        request=serving.label,
        waited_for=waited,
        error=kind,
        **_facts(wrapper, keeper),
    )
    with _harmless(wrapper.alias):
        _note(error, "\n".join(event.lines))
    publish_to_others(event)


@contextlib.contextmanager
def _harmless(alias: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_of_handler(error):
            raise
        # A logging handler may fail as well.
        with contextlib.suppress(Exception):
            logger.exception("It could not be found out who holds the connections of the pool of %r.", alias)


# ##### Who holds them #####


def _facts(wrapper: BaseDatabaseWrapper, keeper: Keeper) -> dict[str, Any]:
    global _last  # noqa: PLW0603 - replaced as a whole
    with _harmless(wrapper.alias):
        pool = pools.opened_for(wrapper)
        now = monotonic()
        last = _last
        if last is None or last.pool() is not pool or now - last.at > FRESH:
            last = _last = _Found(weakref.ref(pool), now, _look(pool, keeper, now))
        return last.facts
    return {}


def _look(pool: Any, keeper: Keeper, now: float) -> dict[str, Any]:
    """Return what can be told of *pool* and of those who hold its connections, by the names that the event has."""
    seen = [(lease, found) for lease in keeper.leases() if (found := describe(lease, now)) is not None]
    held = [(lease, found) for lease, found in seen if pools.pool_of(found.connection) is pool]
    held.sort(key=lambda each: -each[1].held_for)
    # In this order, and each once: some go back meanwhile.
    still = {id(found.connection) for _, found in held}
    returning = sum(id(connection) not in still for connection in keeper.returning_to(pool))
    numbers = pools.numbers_of(pool)
    names = thread_names()
    return {
        "waiting": numbers["requests_waiting"],
        "size": numbers["pool_size"],
        "max_size": numbers["pool_max"],
        "available": numbers["pool_available"],
        "held": len(held),
        "returning": returning,
        # psycopg_pool has no entry for what has never happened.
        "connect_errors": numbers.get("connections_errors", 0),
        "holders": tuple(_holder(lease, found, names) for lease, found in held[:MOST]),
    }


def _holder(lease: Lease, found: Description, names: dict[int | None, str]) -> Holder:
    # Its owner may have used it between the look at the clock and the look at the lease.
    held_for = max(0.0, found.held_for)
    return Holder(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        thread_name=names.get(lease.thread_id),
        request=lease.request,
        state=found.state,
        held_for=held_for,
        idle_for=min(max(0.0, found.idle_for), held_for),
        in_transaction=found.in_transaction,
        pinned_by=tuple(found.pins),
        statement=found.statement,
        where_checked_out=callsite.text(lease.checked_out_by),
        where_began=callsite.text(found.transaction.place) if found.transaction else None,
        where_now=callsite.text(callsite.of_thread(lease.thread_id)),
        # What a statement that runs needs is no news.
        kept_because=found.kept_because if found.idle_for else None,
    )


# ##### Notes #####


def _note(error: BaseException, note: str) -> None:
    setattr(error, _NOTES, [*getattr(error, _NOTES, ()), note])
    setattr(error, _OURS, note)


def take_over_note(error: BaseException) -> None:
    """Have *error*, which Django raises in the place of a pool's, take over the note from that; nothing without one.

    A traceback shows the notes of all exceptions of a chain. Django's debug page shows those of the last one only, and
    that is where a person looks first.
    """
    cause = error.__cause__
    note = getattr(cause, _OURS, None)
    if cause is None or note is None:
        return
    with contextlib.suppress(Exception):
        _note(error, note)
        setattr(cause, _NOTES, [each for each in getattr(cause, _NOTES, ()) if each is not note])
        delattr(cause, _OURS)


def ensure_noted(ensure_connection: Callable[[], None]) -> None:
    """Call *ensure_connection*; what Django makes of a pool's exception has the note that this one has got."""
    try:
        ensure_connection()
    except OperationalError as error:
        take_over_note(error)
        raise

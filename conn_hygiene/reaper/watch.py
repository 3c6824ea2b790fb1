"""What should not be: transactions that sit idle or are left open, connections that are held too long.

The reaper and the end of a request find them. Here the events are made of what they found: all but the last statement,
whose text is made when the event is published, since that may call code that is not ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conn_hygiene import callsite, conf, events
from conn_hygiene.events import HeldTooLong, IdleInTransaction, LeftOpen
from conn_hygiene.work import thread_names

if TYPE_CHECKING:
    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease


def idle_in_transaction(lease: Lease, found: Description) -> IdleInTransaction:
    """Return what is to be told of a transaction that runs no statement."""
    return IdleInTransaction(
        **_transaction(lease, found),
        **_now(lease),
        action=conf.current.IDLE_IN_TRANSACTION_ACTION,
    )


def left_open(lease: Lease, found: Description, left_by: str) -> LeftOpen:
    """Return what is to be told of a transaction that *left_by*, now over, has left open, once it is rolled back."""
    return LeftOpen(**_transaction(lease, found), left_by=left_by)


def held_too_long(lease: Lease, found: Description) -> HeldTooLong:
    """Return what is to be told of a connection that nobody uses, if nothing is done about it."""
    begun = found.transaction
    return HeldTooLong(
        **_owner(lease),
        held_for=found.held_for,
        idle_for=found.idle_for,
        where_checked_out=callsite.text(lease.checked_out_by),
        stack_checked_out=callsite.stack(lease.checked_out_by),
        **_now(lease),
        pins=found.pins,
        action="log",
        kept_because=found.kept_because,
        where_began=callsite.text(begun.place) if begun else None,
    )


def publish(event: IdleInTransaction | LeftOpen | HeldTooLong, found: Description) -> None:
    """Publish *event*, with the last statement of what was *found*. Called under no lock, and not by the timer."""
    events.publish(replace(event, statement=found.statement))


def _transaction(lease: Lease, found: Description) -> dict[str, Any]:
    begun = found.transaction
    return _owner(lease) | {
        "open_for": found.open_for,
        "idle_for": found.idle_for,
        "where_began": callsite.text(begun.place) if begun else None,
        "stack_began": callsite.stack(begun.place) if begun else None,
        "by_atomic_requests": begun is not None and begun.by_atomic_requests,
    }


def _now(lease: Lease) -> dict[str, Any]:
    place = callsite.of_thread(lease.thread_id, full=conf.current.FULL_STACKS)
    return {"where_now": callsite.text(place), "stack_now": callsite.stack(place)}


def _owner(lease: Lease) -> dict[str, Any]:
    return {
        "alias": lease.alias,
        "server_pid": lease.server_pid,
        "thread_id": lease.thread_id,
        "thread_name": thread_names().get(lease.thread_id),
        "request": lease.request,
        "statement": None,
    }

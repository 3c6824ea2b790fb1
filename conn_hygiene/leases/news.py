"""What is told of a lease, as events. Made where it is decided, under the lock or not; published under none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import callsite
from conn_hygiene.events import CameBack, CheckedIn, CheckedOut, Followed, Pinned, Reclaimed, Replaced, publish
from conn_hygiene.pools import base as pools

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg

    from conn_hygiene.events import Ending
    from conn_hygiene.leases.claim import Claim
    from conn_hygiene.leases.session_claim import SessionClaim


def checked_out(lease: Claim, waited_for: float | None) -> CheckedOut:
    """Return what is told of a checkout that begins. Called under the lock."""
    return CheckedOut(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        pooled=lease.pooled,
        waited_for=waited_for,
    )


def checked_in(lease: Claim, reason: Ending, held_for: float) -> CheckedIn:
    """Return what is told of a checkout that ends. Called under the lock."""
    return CheckedIn(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        pooled=lease.pooled,
        held_for=held_for,
        used_for=lease._used,
        reason=reason,
    )


def came_back(lease: Claim, connection: psycopg.Connection[Any], held_for: float) -> CameBack:
    """Return what is told of a checkout that ends after it was reported. Called under the lock."""
    return CameBack(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        held_for=held_for,
        reported_as=tuple(lease.reported),
        ended=lease.ended_because is not None or connection.closed,
    )


def reclaimed(lease: Claim, connection: psycopg.Connection[Any]) -> Reclaimed:
    """Return what is told of a checkout whose owner is no more. Called under the lock."""
    # What runs need not be in one, and what is closed does not tell any more.
    in_transaction = pools.is_idle_in_transaction(connection) or (
        lease._transaction is not None and not pools.is_idle(connection)
    )
    begun = lease._transaction.place if in_transaction and lease._transaction is not None else None
    checked_out = lease.checked_out_by
    return Reclaimed(
        alias=lease.alias,
        thread_id=lease.thread_id,
        thread_name=lease.thread_name,
        request=lease.request,
        server_pid=lease.server_pid,
        held_for=time.monotonic() - lease.checked_out_at,
        in_transaction=in_transaction,
        thread_runs=callsite.text(lease.thread_runs),
        where_checked_out=callsite.text(checked_out),
        where_began=callsite.text(begun),
        stack_checked_out=callsite.stack(checked_out),
        stack_began=callsite.stack(begun),
    )


def publish_pins(lease: SessionClaim, added: list[str]) -> None:
    """Tell what pins the connection from now on, with *added* as reasons. Called without the lock."""
    if not added:
        return
    pins = lease.pins
    # Whether there were none before.
    first = len(pins) == len(added)
    for reason in added:
        publish(
            Pinned(
                alias=lease.alias,
                server_pid=lease.server_pid,
                thread_id=lease.thread_id,
                request=lease.request,
                pinned_by=reason,
                where=pins.get(reason, callsite.UNKNOWN),
                first=first,
            )
        )
        first = False


def replaced(lease: Claim, server_pid: int, idle_for: float) -> Replaced:
    """Return what is told of a connection to *server_pid* that was broken, and whose place another one takes."""
    return Replaced(
        alias=lease.alias,
        server_pid=server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        idle_for=idle_for,
        could_not_write=lease.could_not_write,
    )


def followed(lease: Claim, settings: Iterable[str]) -> Followed:
    """Return what is told of a session in which *settings* of the one before were set again."""
    return Followed(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        settings=tuple(sorted(settings)),
    )

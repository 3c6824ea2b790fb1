"""What is told of a lease, as events. Made where it is decided, under the lock or not; published under none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conn_hygiene import callsite
from conn_hygiene.events import CameBack, CheckedIn, CheckedOut, Pinned, Replaced, publish

if TYPE_CHECKING:
    from conn_hygiene.events import Ending
    from conn_hygiene.leases.lease import Lease


def checked_out(lease: Lease, waited_for: float | None) -> CheckedOut:
    """Return what is told of a checkout that begins. Called under the lock."""
    return CheckedOut(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        pooled=lease.pooled,
        waited_for=waited_for,
    )


def checked_in(lease: Lease, reason: Ending, held_for: float) -> CheckedIn:
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


def came_back(lease: Lease, held_for: float) -> CameBack:
    """Return what is told of a checkout that ends after it was reported. Called under the lock."""
    return CameBack(
        alias=lease.alias,
        server_pid=lease.server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        held_for=held_for,
        reported_as=tuple(lease.reported),
    )


def publish_pins(lease: Lease, added: list[str]) -> None:
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


def replaced(lease: Lease, server_pid: int, idle_for: float) -> Replaced:
    """Return what is told of a connection to *server_pid* that was broken, and whose place another one takes."""
    return Replaced(
        alias=lease.alias,
        server_pid=server_pid,
        thread_id=lease.thread_id,
        request=lease.request,
        idle_for=idle_for,
    )

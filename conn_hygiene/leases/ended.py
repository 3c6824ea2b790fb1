"""Sessions that have ended under their owners: by the server, which is found, or by the toolkit, which is done here."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import conf, green
from conn_hygiene.leases import news, policy, read_only
from conn_hygiene.pools import base as pools
from conn_hygiene.sessions import following, known

if TYPE_CHECKING:
    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.leases.returns import Return

#: Seconds after which an idle connection is looked at again before it is used.
QUIET = 0.005


def close_if_broken(lease: Lease) -> bool:
    """Close an idle connection that is of no more use, for another one to take its place; return whether it was one.

    That is one on which the server has hung up, or that has outlived its server's right to write. Looks at the socket,
    which is a system call, and only at the first use in a checkout and after a quiet moment. What a network silently
    lost is not found like this; ``CONN_HEALTH_CHECKS`` asks the server. Owner only.
    """
    if lease.open_cursors or (lease.trusted and time.monotonic() - lease.idle_since < QUIET):
        return False
    with lease._lock:
        connection = lease._connection
        if connection is None or not conf.current.REPLACE_BROKEN:
            return False
        # Its owner has been told, by the error of the statement that has found it.
        was_told = connection.closed
        if _matters(lease) if was_told else _may_have_state(lease, connection):
            return False
        is_outlived = False
        if not was_told:
            # A transaction.
            if not pools.is_idle(connection):
                return False
            is_outlived = read_only.is_outlived(lease.alias, connection)
            lease.trusted = not (is_outlived or pools.is_hung_up(connection))
            if lease.trusted:
                return False
        if not _may_be_replaced(lease, was_told=was_told):
            return False
        lease.could_not_write = is_outlived
        # Of no use for anybody else, too: its pool is not to hand it out again.
        connection.pgconn.finish()
        return True


def _may_have_state(lease: Lease, connection: psycopg.Connection[Any]) -> bool:
    """Return whether the session has, or had, what another one would not have of its owner; note what follows."""
    # What functions may have left, and what libpq sees of it.
    if lease.last_statement is not None and (
        known.state_matters(lease.alias) or lease.session_state.note_changes(connection)
    ):
        return True
    # Seen in statements, or just now. One that listens may wait for a notification, which must not be read.
    return lease.session_state.carries()


def _matters(lease: Lease) -> bool:
    """Return whether the session may have had what decides whose data its owner sees: nothing runs without that."""
    return (lease.last_statement is not None and known.state_matters(lease.alias)) or bool(lost_for_good(lease))


def lost_for_good(lease: Lease) -> list[str]:
    """Return the names of what its owner has set in a session that decide whose data it sees."""
    return sorted(filter(following.decides, lease.missing_elsewhere()))


def refuse_if_lost(lease: Lease) -> None:
    """Say what is lost with the session, where the connection is closed and no other may take its place. Owner only.

    :raises psycopg.OperationalError: that is so.
    """
    connection = lease._connection
    if connection is None or not connection.closed or not conf.current.REPLACE_BROKEN:
        return
    with lease._lock:
        names = lost_for_good(lease) if _may_be_replaced(lease, was_told=True) else None
    if names:
        raise following.lost_with_session(names)


def lost_in_transaction(lease: Lease) -> list[str]:
    """Return what :func:`lost_for_good` does if the session has ended in a transaction, of what was set before it.

    What was set in it is undone, as it is where the session lives on. Owner only.
    """
    with lease._lock:
        connection, transaction = lease._connection, lease._transaction
        if connection is None or not connection.closed or transaction is None:
            return []
        return [name for name in lost_for_good(lease) if name in transaction.set_before]


def _may_be_replaced(lease: Lease, *, was_told: bool) -> bool:
    """Return whether nothing goes unnoticed if another connection takes the place of one that is broken."""
    wrapper = lease.wrapper()
    if wrapper is None or lease._setting_up(wrapper):
        return False
    # State that was told of, though it cannot be seen.
    if not was_told and lease.last_statement is not None and policy.holds(lease.alias):
        return False
    return not wrapper.in_atomic_block and wrapper.autocommit and lease._transaction is None


def take_if_hung_up(lease: Lease) -> Return | None:
    """Take the connection from an owner that is idle with it, if the server has hung up and nobody would miss anything.

    Returns it, to be carried back: it keeps a place in its pool that somebody may wait for. Called by whoever waits, or
    watches. What the owner has left in the session keeps it there until the owner has been told.
    """
    # First without the lock, and then not waiting for it; see Lease.end_if_due().
    if not lease.pooled or time.monotonic() - lease.idle_since < _RESTING or lease._lock._is_owned():
        return None
    try:
        if not lease._lock.acquire(blocking=False):
            return None
        connection = lease._connection
        if connection is None or not _is_at_rest(lease) or _may_have_state(lease, connection):
            return None
        if not (connection.closed or (pools.is_idle(connection) and pools.is_hung_up(connection))):
            return None
        idle_for = lease.idle_for()
        returning = lease._leave()
        if returning is not None:
            lease.could_not_write = False
            returning.news += (news.replaced(lease, lease.server_pid, idle_for),)
        return returning
    finally:
        try:  # noqa: SIM105 - at a call, the next signal is handled
            lease._lock.release()
        except RuntimeError:
            pass


def _is_at_rest(lease: Lease) -> bool:
    """Return whether the owner is about nothing, as far as another thread can tell. Under the lock."""
    # The handle first, and the cursors after it: in this order, one of them tells of an owner that is at work.
    if not conf.current.REPLACE_BROKEN or lease._handle_is_out() or lease.open_cursors:
        return False
    wrapper = lease.wrapper()
    # Scopes are those of the running thread, so the owner's are known by what they were when it was last seen.
    if wrapper is None or lease._setting_up(wrapper) or lease._wish == policy.HOLD:
        return False
    return wrapper.autocommit and not wrapper.in_atomic_block and lease._transaction is None


# Seconds after which an idle owner's connection is looked at for the sake of others.
_RESTING = 0.1


def call_in_handle(lease: Lease) -> None:
    """Have whoever uses the handle next read it anew, so that :func:`terminate` can tell whether anybody has."""
    with lease._lock:
        lease.handle = None


def is_left(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has closed its end of *connection*; what it said before is left for the owner to read.

    False where the system does not tell.
    """
    make = green.real_poll()
    if make is None:
        return False
    poller = make()
    try:
        poller.register(connection.pgconn.socket, _CLOSED)
    except (psycopg.OperationalError, ValueError):
        # It is closed on this side.
        return False
    return bool(poller.poll(0))


# Told by Linux and FreeBSD. Elsewhere the end of the stream is a hang-up, which is told unasked; or it is not told.
_CLOSED = getattr(select, "POLLRDHUP", 0)


def terminate(lease: Lease, found: Description, reason: str) -> bool:
    """End the session that was *found* if it still idles in that transaction; return whether it did.

    Not a word goes to the server: it ends a session whose socket is shut, and rolls its transaction back
    (PostgreSQL documentation, "Message Flow", "Termination"). It takes no rights and no further connection. The
    owner gets *reason* as the error of its next statement. Called by the reaper, which has called the handle in
    a while ago.
    """
    with lease._lock:
        if found.connection is not lease._connection or found.last_statement is not lease.last_statement:
            return False
        # A handle that was read since may have run a statement unseen.
        if lease._handle_is_out():
            lease.handle = None
            return False
        if not pools.is_idle_in_transaction(found.connection):
            return False
        lease.ended_because = reason
        try:
            with socket.socket(fileno=os.dup(found.connection.pgconn.socket)) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.Error):
            # The network has ended it, as its owner will find; or there is no descriptor left just now.
            lease.ended_because = None
            return False
        return True

"""Sessions that have ended under their owners: by the server, which is found, or by the toolkit, which is done here."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import conf
from conn_hygiene.leases import policy
from conn_hygiene.pools import base as pools
from conn_hygiene.sessions import known

if TYPE_CHECKING:
    import psycopg

    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease

#: Seconds after which an idle connection is looked at again before it is used.
QUIET = 0.005


def is_broken(lease: Lease) -> bool:
    """Return whether the server has hung up on an idle connection, so that another one can take its place unseen.

    Looks at the socket, which is a system call, and only at the first use in a checkout and after a quiet
    moment. What a network silently lost is not found like this; ``CONN_HEALTH_CHECKS`` asks the server. Owner only.
    """
    if lease.open_cursors or (lease.trusted and time.monotonic() - lease.idle_since < QUIET):
        return False
    with lease._lock:
        connection = lease._connection
        if connection is None or not conf.current.REPLACE_BROKEN or _may_have_state(lease, connection):
            return False
        if not connection.closed:
            # A transaction.
            if not pools.is_idle(connection):
                return False
            lease.trusted = not pools.is_hung_up(connection)
            if lease.trusted:
                return False
        return _may_be_replaced(lease)


def _may_have_state(lease: Lease, connection: psycopg.Connection[Any]) -> bool:
    """Return whether the session has, or had, something of its owner's that another one would not."""
    # What functions may have left, and what libpq sees of it.
    if lease.last_statement is not None and (
        known.state_matters(lease.alias) or lease.session_state.changed(connection)
    ):
        return True
    # Seen in statements, or just now. One that listens may wait for a notification, which must not be read.
    return lease.session_state.carries()


def _may_be_replaced(lease: Lease) -> bool:
    """Return whether nothing goes unnoticed if another connection takes the place of one that is broken."""
    wrapper = lease.wrapper()
    if wrapper is None or lease._setting_up(wrapper):
        return False
    # State that was told of, though it cannot be seen.
    if lease.last_statement is not None and policy.holds(lease.alias):
        return False
    return not wrapper.in_atomic_block and wrapper.autocommit and lease._transaction is None


def call_in_handle(lease: Lease) -> None:
    """Have whoever uses the handle next read it anew, so that :meth:`terminate` can tell whether anybody has."""
    with lease._lock:
        lease.__dict__.clear()


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
            lease.__dict__.clear()
            return False
        if not pools.is_idle_in_transaction(found.connection):
            return False
        lease.ended_because = reason
        with socket.socket(fileno=os.dup(found.connection.pgconn.socket)) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        return True

"""What a forked process inherits, and how it lets go of it without harming its parent.

A child shares the sockets of its parent's connections. Closing one sends a Terminate message down the shared socket,
and the parent's session dies. So inherited connections are *discarded*: the descriptor is pointed at /dev/null first,
and what libpq writes when it finishes goes nowhere. An inherited pool is dropped without calling into it: its threads
did not survive the fork, and its lock may have been held.

Everything here runs in the thread that forked, which is the only one there is in the child.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.transaction import TransactionManagementError

from conn_hygiene import reaper, signals
from conn_hygiene.reaper import send
from conn_hygiene.wrapper import lease_of, reset_transaction_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conn_hygiene.lease import Lease

logger = logging.getLogger("conn_hygiene.forks")

# The process whose connections need no discarding: the one that imported this module, or a child that has done it.
_home_pid = os.getpid()

# Leases that the running process has inherited and not yet discarded.
_inherited_leases: list[Lease] = []

# Inherited connections and pools, never to be collected: a finaliser would call into them.
_graveyard: list[Any] = []


def close_all_after_fork() -> int:
    """Discard every connection that this process inherited by a fork; return how many there were.

    Covers every PostgreSQL alias, in every thread's storage, checked out or idle in a native pool. Not a byte reaches
    the server; the parent's sessions stay as they are. What the child does next with the ORM starts clean: on a
    connection of its own, outside of any ``atomic()`` of the parent, without the parent's ``on_commit`` hooks.

    Does nothing in a process that did not fork, and nothing the second time. The toolkit does this by itself after
    ``os.fork`` unless ``DISCARD_AFTER_FORK`` is off; import ``conn_hygiene`` before the fork.
    """
    global _home_pid  # noqa: PLW0603 - one process, one home
    if os.getpid() == _home_pid:
        return 0
    _home_pid = os.getpid()
    found: list[tuple[str, psycopg.Connection[Any]]] = []
    found += _take_leases()
    found += _take_wrappers()
    found += _take_pools()
    for _, connection in found:
        discard(connection)
    _graveyard.extend(found)
    _report([alias for alias, _ in found])
    return len(found)


def close_all_before_fork() -> int:
    """Close this thread's connections and this process's pools, ahead of a fork; return how many there were of both.

    The parent's half: with the pools closed, none of their threads is alive during the fork, nor the toolkit's own;
    Python 3.12 and later warn about those. The next query starts all of it again. Connections that other threads hold
    are left to them.

    :raises django.db.transaction.TransactionManagementError: an alias is inside ``atomic()``. Nothing is closed then.
    """
    wrappers = [wrapper for wrapper in connections.all(initialized_only=True) if wrapper.vendor == "postgresql"]
    for wrapper in wrappers:
        if wrapper.in_atomic_block:
            raise TransactionManagementError(
                f"close_all_before_fork() was called inside atomic() on {wrapper.alias!r}. Fork outside of the block."
            )
    closed = 0
    for wrapper in wrappers:
        closed += _is_open(wrapper)
        wrapper.close()
        if getattr(wrapper, "_connection_pools", {}).get(wrapper.alias) is not None:
            closed += 1
            wrapper.close_pool()  # type: ignore[attr-defined]
    if reaper.running is not None:
        reaper.running.stop(for_good=False)
    return closed


def discard(connection: psycopg.Connection[Any]) -> None:
    """Drop an inherited *connection*: nothing that libpq sends on finishing, TLS included, reaches the socket.

    The descriptor's number stays libpq's own, which closes it; closing it here would let libpq close whatever gets the
    number next.
    """
    try:
        descriptor = connection.pgconn.socket
    except psycopg.Error:
        return  # closed before the fork
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)
    connection.pgconn.finish()


def inherit(leases: Iterable[Lease]) -> None:
    """Take note of what the running process has inherited. Called in the child, right after the fork."""
    _inherited_leases.extend(leases)


def _take_leases() -> list[tuple[str, psycopg.Connection[Any]]]:
    taken = [(lease.alias, lease.disown()) for lease in _inherited_leases]
    _inherited_leases.clear()
    return [(alias, connection) for alias, connection in taken if connection is not None]


def _take_wrappers() -> list[tuple[str, psycopg.Connection[Any]]]:
    """Take what the running thread's wrappers hold without a lease, and make all of them as good as new."""
    taken = []
    for wrapper in connections.all(initialized_only=True):
        if not isinstance(wrapper, DatabaseWrapper):
            continue
        lease = lease_of(wrapper)
        connection = wrapper.connection if lease is None else lease.disown()
        if isinstance(connection, psycopg.Connection):
            taken.append((wrapper.alias, connection))
        wrapper.connection = None
        reset_transaction_state(wrapper)
    return taken


def _take_pools() -> list[tuple[str, psycopg.Connection[Any]]]:
    taken = []
    pools = DatabaseWrapper._connection_pools  # type: ignore[attr-defined]
    for alias, pool in list(pools.items()):
        del pools[alias]
        taken += [(alias, connection) for connection in list(pool._pool)]
        # Its finaliser would wait for threads that are no more.
        pool._closed = True
        _graveyard.append(pool)
    return taken


def _is_open(wrapper: Any) -> bool:
    lease = lease_of(wrapper)
    return bool(wrapper.connection is not None if lease is None else lease.holds_connection())


def _report(aliases: list[str]) -> None:
    if not aliases:
        return
    names = sorted(set(aliases))
    facts = {"count": len(aliases), "aliases": names}
    logger.info("Discarded %d inherited connections of %s after a fork.", len(aliases), ", ".join(names), extra=facts)
    send(signals.connections_discarded, **facts)

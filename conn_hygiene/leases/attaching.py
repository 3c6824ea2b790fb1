"""How a wrapper gets its lease when it has connected, and loses it again; which wrappers there are.

The instance is moved to a subclass of its own class (see :mod:`.wrapper`), and back.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper

from conn_hygiene import internals, locks
from conn_hygiene.events import LeftAlone, publish
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.leases import first_connect, proxied
from conn_hygiene.leases.connecting import Incoming
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.states import GIVEN_BACK
from conn_hygiene.leases.wrapper import LEASE, LeasedWrapper, lease_of, leased_class, plain_class
from conn_hygiene.locks import Rank
from conn_hygiene.pools import backends
from conn_hygiene.pools import base as pools

if TYPE_CHECKING:
    from conn_hygiene.leases.keeper import Keeper

logger = logging.getLogger("conn_hygiene.lease")

# What an instance's class is, past a class that hides it.
_class_of = object.__dict__["__class__"]

# All threads' wrappers that were made or have connected since install(), leased or left alone; under the lock.
# Reentrant: a signal handler may fork while its thread is inside.
_known: weakref.WeakSet[BaseDatabaseWrapper] = weakref.WeakSet()
_known_lock = locks.make(Rank.WRAPPERS)


def known() -> list[BaseDatabaseWrapper]:
    """Return all threads' wrappers that were made, or have connected, since the toolkit was installed."""
    with _known_lock:
        return list(_known)


def _note(wrapper: BaseDatabaseWrapper) -> None:
    with _known_lock:
        _known.add(wrapper)


def forget_known() -> list[BaseDatabaseWrapper]:
    """Return what :func:`known` does, and begin a new list. Of which backends are left alone, all may be said again."""
    with _known_lock:
        wrappers = list(_known)
        _known.clear()
    backends.reset()
    return wrappers


def after_fork_in_child() -> None:
    """Replace in a forked child the locks that another thread may have held."""
    global _known_lock  # noqa: PLW0603 - nobody holds the new one yet
    backends.reset()
    _known_lock = locks.make(Rank.WRAPPERS)
    for wrapper in list(_known):
        lease = lease_of(wrapper)
        if lease is not None:
            lease.after_fork_in_child()


def measure_first_connect(wrapper: BaseDatabaseWrapper, keeper: Keeper) -> None:
    """Have the wait of *wrapper*, which has no connection, for its first one be known to :func:`attach`."""
    if internals.WAITS.available and isinstance(wrapper, DatabaseWrapper):
        _note(wrapper)
        first_connect.put_on(wrapper, keeper)


def attach(
    wrapper: BaseDatabaseWrapper, keeper: Keeper, thread_end: weakref.ref[Any] | None, *, connecting: bool
) -> Lease | None:
    """Give *wrapper*, which has just connected, a lease. Return None if its backend is one that is left alone.

    *thread_end* refers to what is collected when the thread ends that alone uses *wrapper*. *connecting* tells that its
    ``connect()`` is still running, which is the case in ``connection_created``.
    """
    _note(wrapper)
    waited, replaced = first_connect.take_off(wrapper)
    lease = _attach(wrapper, keeper, thread_end, waited, connecting=connecting)
    # Who listens may query, which the wrapper can by now.
    for event in replaced:
        publish(event)
    return lease


def _attach(
    wrapper: BaseDatabaseWrapper,
    keeper: Keeper,
    thread_end: weakref.ref[Any] | None,
    waited: float | None,
    *,
    connecting: bool,
) -> Lease | None:
    if isinstance(wrapper, LeasedWrapper):
        return None
    if not pools.understands(wrapper):
        _tell_of_one_left_alone(wrapper)
        return None
    lease = Lease(wrapper, keeper, thread_end)
    if connecting:
        lease.mark_connect()
    lease.manual_transactions(not wrapper.autocommit and not wrapper.in_atomic_block)
    before, incoming = wrapper.connection, Incoming()
    connection = proxied.taken_from(wrapper, lease, before)
    if not connection.closed:
        # Django reads it from the connection when it is first asked for, and keeps it. Later, there may be none.
        wrapper.__dict__.setdefault("pg_version", connection.pgconn.server_version)
    plain = type(wrapper)
    leased = leased_class(plain)
    try:
        setattr(wrapper, LEASE, lease)
        _class_of.__set__(wrapper, leased)
        # The class has a data descriptor of that name by now, which would hide the instance's own. No call comes
        # between this and assign(), so that hardly a signal is handled there.
        del wrapper.__dict__["connection"]
        lease.assign(connection, waited if connecting else None, incoming=incoming)
    except BaseException:
        # Of a signal handler. A plain one has its connection still; without both, nothing could be done with it.
        if not incoming.is_taken:
            _class_of.__set__(wrapper, plain)
            wrapper.__dict__.pop(LEASE, None)
            wrapper.__dict__["connection"] = before
        raise
    if not connecting:
        lease.pin_for_its_past()
    return lease


def _tell_of_one_left_alone(wrapper: Any) -> None:
    """Say why *wrapper* gets no lease, once for its alias; nothing of another vendor, of which nobody expects any.

    Nor of what is no wrapper of Django's: a backend's asynchronous one has the alias, too, and the signal, but is not
    what is behind ``django.db.connections``. Those that are may well have leases.
    """
    if internals.LEASES.available and isinstance(wrapper, BaseDatabaseWrapper) and wrapper.vendor == "postgresql":
        reason = backends.refusal(wrapper)
        engine = str(wrapper.settings_dict["ENGINE"])
        if reason is not None and backends.leave_alone(wrapper.alias, engine, reason):
            publish(LeftAlone(alias=wrapper.alias, engine=engine, reason=reason))


def close_books(wrapper: BaseDatabaseWrapper) -> None:
    """Run the ``close()`` that the backend of *wrapper* has of its own, if it has one; its connection is gone already.

    For when a session has ended and nobody will call it: whatever the backend believes to have set is not in the next
    one. For the running thread's wrapper, or with no other thread about. What fails is the backend's, and only logged.
    """
    # Of a leased one, too, the backend's own.
    cls = wrapper.__class__
    if not backends.has_own_close(cls):
        return
    wrapper.inc_thread_sharing()
    try:
        cls.close(wrapper)
    except Exception as error:
        if is_of_handler(error):
            raise
        logger.exception("The close() of %r failed.", wrapper.alias)
    finally:
        wrapper.dec_thread_sharing()


def _is_ours(name: str, method: Any) -> bool:
    function = getattr(method, "__func__", None)
    return function is not None and function is getattr(LeasedWrapper, name, None)


def detach(wrapper: BaseDatabaseWrapper) -> None:
    """Make *wrapper* what it was before :func:`attach`; a connection that it has stays."""
    first_connect.take_off(wrapper)
    lease = lease_of(wrapper)
    if lease is not None:
        was_given_back = lease.state == GIVEN_BACK
        wrapper.__dict__["connection"] = pools.shown(lease.detach())
        # Django's test classes put methods of the class onto the instance. Ours would not work without a lease.
        plain = plain_class(type(wrapper))
        for name, value in list(wrapper.__dict__.items()):
            if _is_ours(name, value):
                del wrapper.__dict__[name]
            elif _is_ours(name, getattr(value, "wrapped", None)):
                # They have forbidden it, and will put back what they found.
                value.wrapped = getattr(plain, name).__get__(wrapper)
        _class_of.__set__(wrapper, plain)
        del wrapper.__dict__[LEASE]
        if was_given_back:
            close_books(wrapper)

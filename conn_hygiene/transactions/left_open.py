"""What a request left open when it ended: rolled back, closed and reported before Django does so in silence."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import Error, connections

from conn_hygiene import callsite, internals
from conn_hygiene.events import RequestOver, publish
from conn_hygiene.leases import policy, returns
from conn_hygiene.leases.description import describe
from conn_hygiene.leases.djangos import reset_transaction_state
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.masking import printable
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import watch
from conn_hygiene.work import Request, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.leases.lease import Lease

logger = logging.getLogger("conn_hygiene.transactions")

# Where the handlers are that send the signals for it.
_TEST_CLIENT = "django.test.client"


def request_started(
    *, sender: Any = None, environ: dict[str, Any] | None = None, scope: dict[str, Any] | None = None, **kwargs: Any
) -> None:
    """Note the request, and which transactions are not its own: a test may run one around its client's requests."""
    around = serving.request
    if around is not None and not _is_in_the_middle(around):
        around = None
    # Paths come from strangers, and go into logs and onto terminals.
    if environ is not None:
        serving.label = printable(f"{environ.get('REQUEST_METHOD', '?')} {environ.get('PATH_INFO', '?')}")
    elif scope is not None:
        serving.label = printable(f"{scope.get('method', '?')} {scope.get('path', '?')}")
    in_transaction: list[str] = []
    with_state: list[str] = []
    # The session is that of the test, or of the view, around it.
    looks_for_state = around is not None or getattr(sender, "__module__", None) == _TEST_CLIENT
    for wrapper in _wrappers() if internals.LEASES.available else ():
        lease = lease_of(wrapper)
        if around is None and lease is not None and lease.serves():
            # The last one's end was not told.
            lease.end_with_other_request()
        if wrapper.in_atomic_block or (lease is not None and lease.in_transaction()):
            in_transaction.append(wrapper.alias)
        elif looks_for_state and lease is not None and _carries_state(lease):
            with_state.append(wrapper.alias)
        if lease is not None:
            # One that outlives a request tells which one it serves now.
            lease.request = serving.label
            lease.comes_anew()
            lease.outlives_request = False
    serving.request = Request(serving.label, in_transaction, with_state, policy.entered.get(), around)


def _is_in_the_middle(request: Request) -> bool:
    """Return whether the middleware is around what runs, so that *request*, which is this thread's, goes on."""
    return policy.request_of(policy.entered.get()[len(request.scopes) :]) is not None


def _carries_state(lease: Lease) -> bool:
    return lease.carried is not None or lease.carries_state()


def request_finished(**kwargs: Any) -> None:
    """Roll back and report what the request left in a transaction, before Django closes or keeps it in silence.

    A connection that outlives the request (``CONN_MAX_AGE``) is closed if the request left state in its session. Any
    other with a pool goes back to it, cleaned, when Django closes it right after this.
    """
    request = serving.request
    if request is None or (policy.entered.get() is not request.scopes and _is_in_the_middle(request)):
        # A signal that was sent by hand, or sent twice: what is open now belongs to somebody else. Or that of another
        # response, which a view has made and closes.
        return
    told: list[Callable[[], None]] = []
    label = request.around.label if request.around is not None else None
    for wrapper in _wrappers():
        lease = lease_of(wrapper)
        if lease is None:
            continue
        if lease.reported:
            told.append(_tells_that_over(lease, serving.label))
        lease.request_is_over()
        if wrapper.alias in request.in_transaction or (wrapper.in_atomic_block and _goes_on(lease, told)):
            lease.request = label
            continue
        if wrapper.closed_in_transaction:
            # The transaction ended with the connection, but the wrapper believes to be inside atomic() for ever.
            reset_transaction_state(wrapper)
            wrapper.close()
        elif lease.in_transaction():
            told.append(end_transaction(wrapper, lease, serving.label or "A request"))
        elif wrapper.alias in request.with_state:
            pass
        elif not lease.pooled:
            _end_unpooled(wrapper, lease)
        elif _outlives_request(wrapper) and _carries_state(lease):
            wrapper.close()
        lease.request = label
    serving.request, serving.label = request.around, label
    for tell in told:
        tell()


def _goes_on(lease: Lease, told: list[Callable[[], None]]) -> bool:
    """Return whether the ``atomic()`` of *lease* is of a function that has not ended; add to *told* what says so.

    A test may read a streaming body in its own transaction, and a view close a response that it has made itself.
    """
    found = describe(lease, time.monotonic())
    opener = found.transaction.opener if found is not None and found.transaction is not None else None
    if opener is None or not callsite.is_running(opener):
        return False
    told.append(
        partial(logger.info, "A request has ended in the middle of a transaction of %r, which goes on.", lease.alias)
    )
    return True


def _end_unpooled(wrapper: BaseDatabaseWrapper, lease: Lease) -> None:
    """Close a connection with state in its session; have another one closed at its age if no request comes by then."""
    if _carries_state(lease):
        wrapper.close()
        return
    lease.outlives_request = True
    close_at = lease.close_at()
    # Else, Django closes it right after this.
    if close_at is not None and close_at > time.monotonic():
        lease.keeper.outlives_request(close_at)


def _tells_that_over(lease: Lease, request: str | None) -> Callable[[], None]:
    """Return what tells that *request* is over, if its connection, which was reported, is still there then."""
    over = RequestOver(alias=lease.alias, server_pid=lease.server_pid, thread_id=lease.thread_id, request=request)

    def tell() -> None:
        if lease.holds_connection() and lease.server_pid == over.server_pid:
            publish(over)

    return tell


def _outlives_request(wrapper: BaseDatabaseWrapper) -> bool:
    # Django refuses it with a pool of its own, and django-db-connection-pool does not.
    return bool(wrapper.settings_dict["CONN_MAX_AGE"] != 0)


def _wrappers() -> Sequence[BaseDatabaseWrapper]:
    return connections.all(initialized_only=True)


def end_transaction(wrapper: BaseDatabaseWrapper, lease: Lease, who: str) -> Callable[[], None]:
    """Roll back what *who* left open, and make *wrapper* fit for what comes next; return what says so.

    It is to be called when there is no such transaction left on any alias: a logging handler may write into the
    database, and must not write into what is rolled back.
    """
    found = describe(lease, time.monotonic())
    # A statement that an exception of a signal handler has interrupted, such as a time limit's, runs by itself.
    is_one = found is not None and (found.in_transaction or found.is_untouched)
    event = watch.left_open(lease, found, who) if found is not None and is_one else None
    failed: psycopg.Error | None = None
    if not _would_wait(wrapper):
        connection = wrapper.connection
        try:
            with returns.TimeLimit(connection, lease.keeper, returns.TIME_LIMIT):
                connection.rollback()
        except psycopg.Error as error:
            failed = error
    reset_transaction_state(wrapper)
    wrapper.close()

    def tell() -> None:
        if event is not None and found is not None:
            watch.publish(event, found)
        if failed is not None:
            logger.info("The rollback failed; the connection is closed.", exc_info=failed)

    return tell


def _would_wait(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether a rollback would wait for a COPY or a generator (``stream()``) that was left in the middle.

    Such a one has psycopg's lock of the connection. What is open then ends with the connection, which is closed.
    """
    return isinstance(wrapper.connection, psycopg.Connection) and pools.is_locked(wrapper.connection)


def end_unleased_transaction(wrapper: BaseDatabaseWrapper, who: str) -> Callable[[], None]:
    """Do what :func:`end_transaction` does, on a connection without a lease, of which no more is known.

    It is another vendor's, for one.
    """
    failed: Error | None = None
    try:
        if not _would_wait(wrapper):
            with wrapper.wrap_database_errors:
                wrapper._rollback()  # type: ignore[attr-defined]
    except Error as error:
        failed = error
    reset_transaction_state(wrapper)
    wrapper.close()
    return partial(
        logger.warning,
        "%s left a transaction open on %r; it is rolled back.",
        who,
        wrapper.alias,
        extra={"alias": wrapper.alias},
        exc_info=failed,
    )

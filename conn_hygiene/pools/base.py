"""What differs between a native pool, another pool and no pool when a connection goes back."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from psycopg.pq import ConnStatus, TransactionStatus

from conn_hygiene import internals
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.masking import printable
from conn_hygiene.pools import backends, configuring, keeping, sqlalchemy
from conn_hygiene.sessions import cleaning, client, effects, login

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper
    from psycopg_pool import ConnectionPool

    from conn_hygiene.sessions.login import Login
    from conn_hygiene.sessions.plan import Plan

logger = logging.getLogger("conn_hygiene.pools")

# What psycopg_pool says as it gives out and takes back goes here.
_pool_logger = logging.getLogger("psycopg.pool")

# Of the numbers of a pool, those that follow what somebody has written.
_SIZES = frozenset({"pool_size", "pool_min", "pool_max"})


def understands(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether giving back is known to be safe for *wrapper*: psycopg 3, closed in the way that Django closes it.

    A backend that closes connections in a way of its own (a pool from before Django had one) is left alone.
    """
    if not internals.LEASES.available or backends.refusal(wrapper) is not None:
        return False
    connection = sqlalchemy.driver_connection(wrapper.connection)
    internals.look_at(connection, pooled=getattr(wrapper, "pool", None) is not None)
    return internals.LEASES.available


def pool_of(connection: psycopg.Connection[Any]) -> Any:
    """Return the pool that *connection* is checked out of, a psycopg_pool or one of SQLAlchemy's; or None.

    psycopg_pool keeps it on the connection, which is how Django's own ``_close()`` finds it. The pool that the settings
    name now may be another one.
    """
    pool = getattr(connection, "_pool", None)
    return sqlalchemy.pool_of(connection) if pool is None else pool


def shown(connection: psycopg.Connection[Any] | None) -> Any:
    """Return what Django has of *connection*: itself, or the proxy that its pool has given out; forget that one."""
    return None if connection is None else sqlalchemy.let_go(connection)


def queue_and_spare(pool: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the live lists of those who wait for a connection of *pool*, and of those that nobody has checked out."""
    if pool is None or not internals.TURNS.available:
        return (), ()
    try:
        # The pool has them under no public names.
        return pool._waiting, pool._pool
    except AttributeError:
        # Not of the class that was looked at when the wrapper got its lease.
        return sqlalchemy.queue_and_spare(pool) if sqlalchemy.is_pool(pool) else ((), ())


def waiting_in(queue: Sequence[Any]) -> int:
    """Return how many wait in a pool's *queue*; those who have given up stay in psycopg_pool's until their turn."""
    try:
        return sum(getattr(each, "error", None) is None for each in tuple(queue))
    except RuntimeError:
        # It has changed meanwhile: somebody does.
        return len(queue)


def opened_for(wrapper: BaseDatabaseWrapper) -> Any:
    """Return the pool that *wrapper* has its connections from; None without one, or before it is opened."""
    pool = getattr(wrapper, "pool", None)
    return sqlalchemy.opened().get(wrapper.alias) if pool is None else pool


def numbers_of(pool: Any) -> dict[str, Any]:
    """Return the numbers of *pool* by psycopg_pool's names for them (its documentation, "Pool stats").

    But who has given up does not wait, and sizes are whole numbers, with 0 for no limit.
    """
    numbers = dict(sqlalchemy.numbers_of(pool) if sqlalchemy.is_pool(pool) else pool.get_stats())
    for name in _SIZES & numbers.keys():
        numbers[name] = _whole(numbers[name])
    if numbers["requests_waiting"]:
        queue, _ = queue_and_spare(pool)
        numbers["requests_waiting"] = waiting_in(queue) if internals.TURNS.available else numbers["requests_waiting"]
    return numbers


def _whole(size: Any) -> int:
    """Return *size* as psycopg_pool goes by it, which takes any number: while there are less, it opens one more."""
    return math.ceil(size) if math.isfinite(size) else 0


def native_pools() -> dict[str, ConnectionPool[Any]]:
    """Return Django's native pools that this process has opened, by alias."""
    if not internals.POOL_STATS.available:
        return {}
    return dict(PostgreSQLWrapper._connection_pools)  # type: ignore[attr-defined]


def may_block(pool: Any) -> bool:
    """Return whether giving an idle connection back to *pool* may wait, or call code that is neither its own nor ours.

    That is a pool of another class, or a logging handler: psycopg_pool logs what it does, some of it under its lock.
    Its ``reset`` is called by a thread of its own. A pool that keeps nothing connects under its lock, for which whoever
    gives something back waits, too. Without a pool, closing waits for nobody.
    """
    if pool is None or isinstance(pool, _NoPool):
        return False
    if not keeping.keeps(pool):
        return True
    return type(pool).__module__.partition(".")[0] != "psycopg_pool" or _pool_logger.isEnabledFor(logging.INFO)


class _Deferring(logging.Filter):
    """Keeps records of a thread that has asked for it from the handlers. Each thread has its own list."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        records: list[logging.LogRecord] | None = getattr(self._local, "records", None)
        if records is None:
            return True
        records.append(record)
        return False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[list[logging.LogRecord]]:
        """Collect what psycopg_pool logs inside, in the running thread; nobody else is told."""
        _pool_logger.addFilter(self)
        outer = getattr(self._local, "records", None)
        records: list[logging.LogRecord] = []
        self._local.records = records
        try:
            yield records
        finally:
            self._local.records = outer


_deferring = _Deferring()

#: Have psycopg_pool log nothing of what the running thread does inside.
unlogged = _deferring.deferred


def restore_logging() -> None:
    """Take away what was added to psycopg_pool's logger."""
    _pool_logger.removeFilter(_deferring)


def is_idle(connection: psycopg.Connection[Any]) -> bool:
    """Return whether libpq sees no transaction, no running command and no pipeline on *connection*; asks no server."""
    pgconn = connection.pgconn
    return pgconn.transaction_status == TransactionStatus.IDLE and not pgconn.pipeline_status


def is_active(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a statement is running on *connection* right now."""
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE


def is_idle_in_transaction(connection: psycopg.Connection[Any]) -> bool:
    """Return whether *connection* is in a transaction, failed or not, and runs no statement."""
    return connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def is_locked(connection: psycopg.Connection[Any]) -> bool:
    """Return whether psycopg's lock of *connection* is held, or whether that cannot be told; asks no server.

    A COPY or a generator (``stream()``, ``notifies()``) holds it until its owner ends that. Whoever asks the server
    something then may wait for ever.
    """
    lock = getattr(connection, "lock", None)
    return lock is None or lock.locked()


def is_hung_up(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has ended the session of an idle *connection*; asks nothing of the server.

    Reads what has come, without waiting, and without letting another thread run meanwhile, which may take long: a
    select() would. Of an idle session that is nothing, a notification, or the server's goodbye.
    """
    pgconn = connection.pgconn
    try:
        # The goodbye and the end of the stream may take a read each, and what came before them another.
        for _ in range(_READS):
            pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return bool(pgconn.status == ConnStatus.BAD)


_READS = 3


def roll_back(connection: psycopg.Connection[Any]) -> None:
    """Roll back what is open on *connection*, whose owner is no more; close it where that cannot be done at once.

    A COPY or a generator that its owner has left behind holds psycopg's lock of the connection for ever. Never raises:
    its pool replaces a connection that is closed.
    """
    try:
        if is_idle_in_transaction(connection) and internals.ROLLBACKS.available and not is_locked(connection):
            connection.rollback()
        else:
            connection.pgconn.finish()
    except psycopg.Error:
        logger.info("A transaction could not be rolled back; its connection is closed.", exc_info=True)
        connection.pgconn.finish()


class Giving(Protocol):
    """Who gives a connection back, and does that again if an exception of a signal handler has kept it from it."""

    #: Whether the pool was called: put twice, the connection would be two threads'.
    is_put: bool


def give_back(connection: psycopg.Connection[Any], giving: Giving | None = None) -> list[logging.LogRecord]:
    """Return *connection* to its pool, or close it where there is none.

    *giving* is told when the pool is about to be called. Raises nothing, since nobody could mend it, but for what a
    signal handler raises, or another thread raises in this one when the pool has it already: it may be somebody else's
    by then.

    Returns what the pool would have logged meanwhile, for :func:`tell`: a handler may take long, or need a connection
    itself, of which there may be no other.
    """
    try:
        restore(connection)
    except BaseException:
        # Of a signal handler, in the middle of it. Its pool replaces what is closed.
        connection.pgconn.finish()
        if giving is None:
            _give_back_restored(connection, None)
        # Else it comes back for it.
        raise
    return _give_back_restored(connection, giving)


def _give_back_restored(connection: psycopg.Connection[Any], giving: Giving | None) -> list[logging.LogRecord]:
    pool = pool_of(connection)
    records: list[logging.LogRecord] = []
    try:
        was_open = not connection.closed
        if pool is None:
            _note_put(giving)
            connection.close()
        elif sqlalchemy.proxy_of(connection) is not None:
            _note_put(giving)
            sqlalchemy.give_back(connection)
            # It closes what is beyond its size, and keeps all else.
            return records
        elif connection.closed or _pool_logger.isEnabledFor(logging.INFO):
            with _deferring.deferred() as records:
                _note_put(giving)
                pool.putconn(connection)
        else:
            _note_put(giving)
            pool.putconn(connection)
        if was_open:
            keeping.came_back(pool, connection)
        else:
            # psycopg_pool leaves it on what it replaces, and would replace it again for who gives it back once more.
            connection._pool = None
    except Exception as error:
        if is_of_handler(error) or _is_taken(pool, connection):
            raise
        logger.exception("Giving back a connection failed; it is closed instead.")
        connection.pgconn.finish()
    return records


def _note_put(giving: Giving | None) -> None:
    if giving is not None:
        giving.is_put = True


def put_back(connection: psycopg.Connection[Any], giving: Giving) -> list[logging.LogRecord]:
    """Do as :func:`give_back` with one that is open, and was seen to be as its pool has given it out."""
    pool: Any = getattr(connection, "_pool", None)
    if (
        pool is None
        or not keeping.is_psycopgs(pool.__class__)
        or not client.has_nothing_new(connection)
        or _pool_logger.isEnabledFor(logging.INFO)
    ):
        return give_back(connection, giving)
    try:
        giving.is_put = True
        pool.putconn(connection)
    except Exception as error:
        if is_of_handler(error) or _is_taken(pool, connection):
            raise
        logger.exception("Giving back a connection failed; it is closed instead.")
        connection.pgconn.finish()
    return []


def _is_taken(pool: Any, connection: psycopg.Connection[Any]) -> bool:
    return keeping.is_psycopgs(pool.__class__) and connection._pool is None and not connection.closed


def vacate(connection: psycopg.Connection[Any]) -> list[logging.LogRecord]:
    """Let the pool have another one in the place of *connection*, which is closed and stays with its owner.

    Whoever gives it back later does that to no pool. Returns the same as :func:`give_back`.
    """
    pool: Any = pool_of(connection)
    if pool is None or isinstance(pool, _NoPool):
        return []
    with _deferring.deferred() as records:
        try:
            if sqlalchemy.proxy_of(connection) is not None:
                sqlalchemy.give_back(connection)
            else:
                pool.putconn(connection)
        except Exception as error:
            if is_of_handler(error):
                raise
            logger.exception("A pool did not take a closed connection back.")
        finally:
            connection._pool = _NoPool(pool)  # type: ignore[assignment]
    return records


class _NoPool:
    """Stands for the pool of a closed connection, whose place is another's."""

    def __init__(self, pool: Any) -> None:
        # SQLAlchemy's have none.
        self.name = getattr(pool, "name", "")

    def putconn(self, connection: psycopg.Connection[Any]) -> None:
        """Do nothing: Django gives a connection back to what is found on it."""


def restore(connection: psycopg.Connection[Any]) -> None:
    """Put back what psycopg keeps of *connection* to what its pool has given out, or close it.

    Raises only what a signal handler does.
    """
    if not client.restore(connection):
        connection.pgconn.finish()


def tell(records: list[logging.LogRecord]) -> None:
    """Hand what psycopg_pool has logged to its handlers."""
    for record in records:
        _pool_logger.handle(record)


def make_ready(connection: psycopg.Connection[Any]) -> bool:
    """Roll back what is open on *connection* and turn autocommit on; return whether its session can be asked something.

    False where the connection is closed, or a COPY or a generator (``stream()``, ``notifies()``) has psycopg's lock of
    it: nothing is tried then. False as well where the rollback fails, or a pipeline is open.
    """
    if connection.closed or is_locked(connection):
        return False
    try:
        cleaning.begin(connection)
    except psycopg.Error:
        return False
    return is_idle(connection)


def scrub(
    connection: psycopg.Connection[Any],
    plan: Plan,
    fresh: tuple[bytes | None, ...],
    of_login: Login | None = login.NOTHING,
) -> dict[str, str | None]:
    """Make *connection* fit for somebody else before it returns to its pool; close it if that cannot be had.

    Returns the values that its owner is to find again, as *plan* says. Has the pool configure the connection anew where
    what that has set was reset (time zone, role). What triggers on ``login`` leave in each session, *of_login*, None if
    that is not known, is there for the next, or the session is closed. A pool replaces a closed connection on its own.
    Without a pool there is nothing to clean, since giving back is closing.

    :raises psycopg.Error: a value that follows could not be read. All other failures end with the connection closed.
    """
    pool = pool_of(connection)
    try:
        # A COPY or a stream that is under way holds psycopg's lock of the connection, mostly for the thread that is
        # here.
        if connection.closed or is_locked(connection):
            raise psycopg.OperationalError("the connection is closed, or a COPY is under way")
        if pool is not None and not plan.left & effects.INDELIBLE and internals.CLEANING.available:
            # What the pool has done to the session cannot be done again without knowing what that is.
            if not sqlalchemy.is_pool(pool):
                configure = configuring.configure_of(pool)
                more = not configuring.is_djangos(configure)
                return cleaning.clean(connection, plan, fresh, configure, configures_more=more, of_login=of_login)
            if not sqlalchemy.sets_sessions_up(pool):
                # Django sets each checkout up anew.
                return cleaning.clean(connection, plan, fresh, None, configures_more=False, of_login=of_login)
        if of_login is not None:
            # What its owner has set back to the default, the next session does not begin with.
            plan = plan._replace(at_default=plan.at_default | of_login.may_set(plan.follow))
        values = cleaning.read(connection, plan, fresh) if plan.follow else {}
        if pool is not None:
            connection.pgconn.finish()
    except Exception as error:
        connection.pgconn.finish()
        if plan.follow or is_of_handler(error):
            raise
        logger.info("A session could not be cleaned and was closed: %s", printable(str(error)), exc_info=True)
        return {}
    return values

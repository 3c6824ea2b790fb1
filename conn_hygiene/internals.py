"""The names of others that the package uses and that nobody has promised: all of them, and what happens without.

Django, psycopg, psycopg_pool and asgiref document much, and not what is needed here: which list of the pool has those
who wait, which attribute of the wrapper tells its thread. Any release may rename these. So each has an entry in
:data:`NAMES`, with the reason for its use, and belongs to a :class:`Feature` that says what is done without it.

:func:`look` looks for all of them when the toolkit is installed. What is missing turns its feature off as a whole, with
one warning in the log and one of ``manage.py check``: there is no half of a feature, and no default in silence. Where
the safety of sessions is concerned, the toolkit then does less, and never guesses.

The code reads the names where it needs them and asks a feature's :attr:`~Feature.available` at most once a checkout, so
that a query pays nothing for this.
"""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import pkgutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger("conn_hygiene.internals")


class Feature:
    """What needs names that may go, and what is done without it. Compared by identity."""

    __slots__ = ("available", "key", "missing", "without")

    def __init__(self, key: str, without: str) -> None:
        self.key = key
        #: One or more sentences.
        self.without = without
        #: Whether all of its names were found when they were last looked for.
        self.available = True
        #: Those that were not, as in ``"psycopg_pool.ConnectionPool._waiting"``.
        self.missing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Feature {self.key!r}, {'on' if self.available else 'off'}>"

    def update(self, *, found: Iterable[str] = (), missing: Iterable[str] = ()) -> None:
        """Take note of names that were looked for, and say so when the feature goes off."""
        was_available = self.available
        # Each once, in their order.
        self.missing = tuple(dict.fromkeys([name for name in self.missing if name not in found] + [*missing]))
        self.available = not self.missing
        if was_available and not self.available:
            extra = {"feature": self.key, "missing": list(self.missing)}
            logger.warning("Not found: %s. %s", ", ".join(self.missing), self.without, extra=extra)


LEASES = Feature(
    "leases",
    "Database wrappers are left as Django made them: connections stay with their threads until the request ends, and "
    "nothing is released, reported, cleaned or reclaimed.",
)
LOOKS = Feature(
    "looks",
    "Code that only tests connection.connection, as in `if connection.connection:`, checks a connection out if it was "
    "given back, and may have to wait for the pool.",
)
CHECKOUTS = Feature(
    "checkouts",
    "The whole of Django's connect() runs at each checkout, which takes longer.",
)
TURNS = Feature(
    "turns",
    "It is not seen whether a thread waits for a connection, or whether a pool has any left: idle connections go back "
    "when the reaper gets to it, some milliseconds late.",
)
CLEANING = Feature(
    "cleaning",
    "A pooled session that carries state is closed instead of cleaned, and its pool connects anew.",
)
FOLLOWING = Feature(
    "following",
    "Settings do not follow their owner: a SET keeps its connection to the end of the request, whatever ON_SET says, "
    "and so does each query where FOLLOWED_SETTINGS, or the catalogue, has something that should follow.",
)
ROLLBACKS = Feature(
    "rollbacks",
    "A transaction that a thread left behind ends with its connection, which is closed instead of rolled back.",
)
CLIENT = Feature(
    "client-state",
    "Of what psycopg keeps of a pooled connection, only the documented attributes are looked at when it goes back; it "
    "is closed if one has changed. Handlers and adapters that were registered there reach the next owner.",
)
NOTIFICATIONS = Feature(
    "notifications",
    "Notifications (NOTIFY) that one request received and did not read reach the next user of its connection, from "
    "psycopg 3.2.4 on; older versions drop them.",
)
POOL_CHECKS = Feature(
    "pool-checks",
    "With CONN_HEALTH_CHECKS each checkout asks the server, and after a restart of the server the pool waits, longer "
    "each time, between one dead connection and the next.",
)
RECONNECTS = Feature(
    "reconnects",
    "A pool whose server was away tries again at its own intervals, which grow to minutes.",
)
PARAMETERS = Feature(
    "parameters",
    "A pool connects with the parameters that it was made with, also where the backend's have changed since.",
)
OPENED = Feature(
    "opened",
    "There are no ConnectionOpened events for what pools open, and no db.client.connection.create_time of pools.",
)
NULL_POOLS = Feature(
    "null-pools",
    "A thread that waits for a connection of a full NullConnectionPool may get one that is idle only after "
    "UNPOOLED_RELEASE_AFTER seconds.",
)
FORKED_POOLS = Feature(
    "forked-pools",
    "A forked process cannot replace a native pool: what is idle in it is discarded, and checkouts from it fail. "
    "Call close_all_before_fork() before each fork.",
)
POOL_STATS = Feature(
    "pool-stats",
    "pool_stats() finds no native pools.",
)
CLOSED_POOLS = Feature(
    "closed-pools",
    "Where the list of native pools is missing as well, none is closed ahead of a fork or at the end of a worker.",
)
IDLE_IN_POOLS = Feature(
    "idle-in-pools",
    "A forked process drops a native pool with the connections that are idle in it, which stay open, unused and "
    "uncounted, until the process ends.",
)
SQLALCHEMY_POOLS = Feature(
    "sqlalchemy-pools",
    "Pools of django-db-connection-pool are left alone at a fork.",
)
SQLALCHEMY = Feature(
    "sqlalchemy",
    "Aliases behind django-db-connection-pool are left alone.",
)
SQLALCHEMY_TURNS = Feature(
    "sqlalchemy-turns",
    "For pools of django-db-connection-pool it is not seen whether a thread waits for a connection, or whether any are "
    "left: idle connections go back when the reaper gets to it, some milliseconds late.",
)
DESCRIPTORS = Feature(
    "descriptors",
    "A forked process leaves connections of PyMySQL open, unused, until it ends.",
)
CONNECT_OPTIONS = Feature(
    "connect-options",
    "SESSION_TIMEOUTS and TAG_SESSIONS have no effect, the system checks do not look at DATABASES, and an alias in "
    "using= that DATABASES does not have is not refused at once.",
)
WAITS = Feature(
    "waits",
    "The wait for a wrapper's first connection is not measured, and not counted if its pool had none.",
)
STREAMING = Feature(
    "streaming",
    "The bodies of streaming responses are not covered: their connections are held until the body ends.",
)
RETRIES = Feature(
    "retries",
    "retry_transaction runs its function once, and does not repeat it.",
)
TIMEOUTS = Feature(
    "timeouts",
    "query_timeout() and session_settings() raise NotSupportedError.",
)
BLAME = Feature(
    "blame",
    "Reports do not know the transactions that ATOMIC_REQUESTS has opened from others.",
)
CALLERS = Feature(
    "callers",
    "Reports name an execute wrapper of the project where they should name the caller of its statement, or "
    "a library's line where they should name the view.",
)
ASYNC_TASKS = Feature(
    "async-tasks",
    "Code under asyncio.run in a Celery task, and asynchronous actors of Dramatiq, query in the process's one thread "
    "for it, whose connections stay open; reports do not name the sockets of Channels.",
)
ASYNC_TESTS = Feature(
    "async-tests",
    "assert_released and slow= of the pytest marker do not find what an async view holds in the thread of its queries.",
)
GREEN_THREADS = Feature(
    "green-threads",
    "It is not seen whether gevent or eventlet has patched too late, and greenlets share connections then.",
)
CELERY = Feature(
    "celery",
    "The fixup is Celery's own: a task is no scope, and pools are closed after each.",
)
UWSGI = Feature(
    "uwsgi",
    "Processes that uWSGI forks discard nothing. Call close_all_after_fork() in each.",
)
UNINSTALLING = Feature(
    "uninstalling",
    "After uninstall() inside of a SimpleTestCase, an alias that the test may not use is not usable after it either.",
)
PROCESSES = Feature(
    "processes",
    "conn_hygiene.futures cannot be imported.",
)
AUDITS = Feature(
    "audits",
    "AUDIT_SESSIONS finds nothing.",
)
COMMAND = Feature(
    "command",
    "manage.py connections refuses to run.",
)
TABLES = Feature(
    "tables",
    "manage.py connections prints plain text on terminals, too.",
)

FEATURES = (
    LEASES,
    LOOKS,
    CHECKOUTS,
    TURNS,
    CLEANING,
    FOLLOWING,
    ROLLBACKS,
    CLIENT,
    NOTIFICATIONS,
    POOL_CHECKS,
    RECONNECTS,
    PARAMETERS,
    OPENED,
    NULL_POOLS,
    FORKED_POOLS,
    POOL_STATS,
    CLOSED_POOLS,
    IDLE_IN_POOLS,
    SQLALCHEMY_POOLS,
    SQLALCHEMY,
    SQLALCHEMY_TURNS,
    DESCRIPTORS,
    CONNECT_OPTIONS,
    WAITS,
    STREAMING,
    RETRIES,
    TIMEOUTS,
    BLAME,
    CALLERS,
    ASYNC_TASKS,
    ASYNC_TESTS,
    GREEN_THREADS,
    CELERY,
    UWSGI,
    UNINSTALLING,
    PROCESSES,
    AUDITS,
    COMMAND,
    TABLES,
)


class Owner(NamedTuple):
    """What has the names, and where they can be found."""

    #: A class or a module, by its dotted path.
    path: str
    #: Returns an instance, where the names are attributes that ``__init__`` sets.
    make: Callable[[], Any] | None = None
    #: Looked at only where somebody else has imported it: it is another product, or too much to import for this.
    only_if_loaded: bool = False
    #: Only a connection that is open has the names; see :func:`look_at`.
    only_when_connected: bool = False
    #: Nobody can look: it is there only once it was set.
    unseen: bool = False


class Name(NamedTuple):
    """One use of one name. Where *name* is ``method(argument)``, an argument of that name."""

    owner: Owner
    name: str
    feature: Feature
    #: Why it is used.
    why: str

    @property
    def without_it(self) -> str:
        """What happens where it is missing."""
        return self.feature.without

    def __str__(self) -> str:
        return f"{self.owner.path}.{self.name}"


def _wrapper() -> Any:
    from django.db.backends.postgresql.base import DatabaseWrapper

    # None of the settings is read before it connects, which it never does.
    return DatabaseWrapper({}, "conn_hygiene")


def _pool() -> Any:
    from psycopg_pool import ConnectionPool

    return ConnectionPool(open=False)


def _add_connection() -> Any:
    from psycopg_pool.pool import AddConnection

    return AddConnection(_pool())


def _adapters() -> Any:
    from psycopg.adapt import AdaptersMap

    return AdaptersMap()


def _types() -> Any:
    from psycopg.types import TypesRegistry

    return TypesRegistry()


def _prepared() -> Any:
    from psycopg._preparing import PrepareManager

    return PrepareManager()


def _streaming_response() -> Any:
    from django.http import StreamingHttpResponse

    return StreamingHttpResponse(content_type="text/plain")


def _signal() -> Any:
    from django.dispatch import Signal

    return Signal()


def _atomic() -> Any:
    from django.db.transaction import Atomic

    return Atomic(using=None, savepoint=True, durable=False)


def _forbidden() -> Any:
    from django.test.testcases import _DatabaseFailure

    return _DatabaseFailure(None, "")


def _stream() -> Any:
    from django.core.management.base import OutputWrapper

    return OutputWrapper(io.StringIO())


def _databases() -> Any:
    from django.db.utils import ConnectionHandler

    return ConnectionHandler({})


def _local() -> Any:
    from asgiref.local import Local

    return Local(thread_critical=True)


def _current_thread_executor() -> Any:
    from asgiref.current_thread_executor import CurrentThreadExecutor

    return CurrentThreadExecutor(None)


def _thread_pool() -> Any:
    # It starts no thread before it has something to do.
    return ThreadPoolExecutor(1)


def _rlock() -> Any:
    # Looked up anew each time, as by whoever makes a lock.
    return threading.RLock()


def _sqlalchemy_pool() -> Any:
    return pkgutil.resolve_name("sqlalchemy.pool.QueuePool")(lambda: None)


def _sqlalchemy_record() -> Any:
    return pkgutil.resolve_name("sqlalchemy.pool.base._ConnectionRecord")(_sqlalchemy_pool(), connect=False)


def _sqlalchemy_proxy() -> Any:
    make = pkgutil.resolve_name("sqlalchemy.pool.base._ConnectionFairy")
    proxy = make(_sqlalchemy_pool(), None, _sqlalchemy_record(), False)
    finalizer = getattr(proxy, "_finalizer", None)
    if finalizer is not None:
        # From SQLAlchemy 2.1 on. What it holds was never checked out.
        finalizer.detach()
    return proxy


def _sqlalchemy_queue() -> Any:
    return pkgutil.resolve_name("sqlalchemy.util.queue.Queue")()


def _condition() -> Any:
    return threading.Condition()


_WRAPPER = Owner("django.db.backends.base.base.BaseDatabaseWrapper", _wrapper)
_POSTGRESQL = Owner("django.db.backends.postgresql.base.DatabaseWrapper", _wrapper)
_PROXY = Owner("django.utils.connection.ConnectionProxy")
_SIGNAL = Owner("django.dispatch.Signal", _signal)
_DATABASES = Owner("django.db.utils.ConnectionHandler", _databases)
_DB_UTILS = Owner("django.db.utils")
_ASYNCIO = Owner("django.utils.asyncio")
_ATOMIC = Owner("django.db.transaction.Atomic", _atomic)
_HANDLER = Owner("django.core.handlers.base.BaseHandler")
_RESPONSE = Owner("django.http.StreamingHttpResponse", _streaming_response)
_FORBIDDEN = Owner("django.test.testcases._DatabaseFailure", _forbidden, only_if_loaded=True)
_CURSOR_WRAPPER = Owner("django.db.backends.utils.CursorWrapper")
_STREAM = Owner("django.core.management.base.OutputWrapper", _stream, only_if_loaded=True)
_PGCONN = Owner("psycopg.pq.PGconn")
_PQ = Owner("psycopg.pq")
_CONNECTION = Owner("psycopg.Connection", only_when_connected=True)
_ADAPTERS = Owner("psycopg.adapt.AdaptersMap", _adapters)
_TYPES = Owner("psycopg.types.TypesRegistry", _types)
_PREPARED = Owner("psycopg._preparing.PrepareManager", _prepared)
_CURSOR = Owner("psycopg.Cursor")
_POOL = Owner("psycopg_pool.ConnectionPool", _pool)
_ADD_CONNECTION = Owner("psycopg_pool.pool.AddConnection", _add_connection)
_SYNC_TO_ASYNC = Owner("asgiref.sync.SyncToAsync")
_ASYNC_TO_SYNC = Owner("asgiref.sync.AsyncToSync")
_CURRENT_THREAD = Owner("asgiref.current_thread_executor.CurrentThreadExecutor", _current_thread_executor)
_ASGIREF = Owner("asgiref.sync")
_LOCAL = Owner("asgiref.local.Local", _local)
_THREAD_POOL = Owner("concurrent.futures.ThreadPoolExecutor", _thread_pool)
_RLOCK = Owner("threading.RLock", _rlock)
_MULTIPROCESSING = Owner("multiprocessing.util", only_if_loaded=True)
_PICKLING = Owner("multiprocessing.reduction", only_if_loaded=True)
_DJ_DB_CONN_POOL = Owner("dj_db_conn_pool.core", only_if_loaded=True)
_CONTAINER = Owner("dj_db_conn_pool.core.PoolContainer", only_if_loaded=True)
_QUEUE_POOL = Owner("sqlalchemy.pool.QueuePool", _sqlalchemy_pool, only_if_loaded=True)
_RECORD = Owner("sqlalchemy.pool.ConnectionPoolEntry", _sqlalchemy_record, only_if_loaded=True)
_PROXIED = Owner("sqlalchemy.pool.PoolProxiedConnection", _sqlalchemy_proxy, only_if_loaded=True)
_QUEUE = Owner("sqlalchemy.util.queue.Queue", _sqlalchemy_queue, only_if_loaded=True)
_CONDITION = Owner("threading.Condition", _condition)
_PYMYSQL = Owner("pymysql.connections.Connection", only_if_loaded=True)
_CELERY = Owner("celery.fixups.django.DjangoFixup", only_if_loaded=True)
_CELERY_WORKER = Owner("celery.fixups.django.DjangoWorkerFixup", only_if_loaded=True)
_UWSGI = Owner("uwsgi", only_if_loaded=True, unseen=True)


def _names(owner: Owner, feature: Feature, whys: dict[str, str]) -> Iterator[Name]:
    return (Name(owner, name, feature, why) for name, why in whys.items())


#: Every name, one entry for each feature that uses it.
NAMES: tuple[Name, ...] = (
    # ##### Django #####
    *_names(
        _WRAPPER,
        LEASES,
        {
            "connection": "The one attribute that every use goes by; a property takes its place.",
            "autocommit": "What the application has set, which is set again after a release.",
            "in_atomic_block": "Nothing goes back inside of atomic().",
            "atomic_blocks": "Forgotten where a transaction was ended from outside, as in a forked process.",
            "savepoint_ids": "As above.",
            "needs_rollback": "As above.",
            "closed_in_transaction": "As above; and Django leaves it set where a connection broke in a transaction.",
            "run_on_commit": "Hooks that have yet to run keep the connection; a new list of them ends connect().",
            "settings_dict": "AUTOCOMMIT and ATOMIC_REQUESTS of the alias, as this wrapper has them.",
            "_thread_ident": "Whose end strands the connection, and who may check one out again.",
            "_thread_sharing_count": "What several threads use does not go back: any of them may hold the handle.",
            "allow_thread_sharing": "As above, for who looks at it from outside.",
            "inc_thread_sharing": "A close() of the backend's own runs for a thread that is gone.",
            "dec_thread_sharing": "As above.",
            "close_at": "What was given back is closed after a request where Django would close it.",
            "errors_occurred": "As above; connect() resets it.",
            "validate_no_atomic_block": "Turning autocommit on inside of atomic() is refused, given back or not.",
            "validate_thread_sharing": "A given back connection is refused to other threads as one that is there.",
            "wrap_database_errors": "A checkout that fails raises Django's errors, as connecting does.",
            "ensure_connection": "Extended: Django's own only looks, and what is parked is to be taken back for a use.",
            "_cursor": "Written anew, without two of three questions for an event loop; not where it is another.",
            "_prepare_cursor": "Called by it.",
            "close_if_health_check_failed": "Called by it.",
            "connect": "Extended: a checkout goes on in the transaction management that a release interrupted.",
            "close": "Extended: what was given back is closed by forgetting it. What overrides it is called as ever.",
            "_close": "Extended: the session is cleaned before it goes. Who overrides it is left alone.",
            "set_autocommit": "Extended: tells that a transaction begins or ends.",
            "set_autocommit(force_begin_transaction_with_broken_autocommit)": "Passed by atomic(), and by nobody else.",
            "_set_autocommit": "Extended: as set_autocommit(), where that is under way when the lease comes.",
            "get_autocommit": "Extended: Django's own would check a connection out for the answer.",
            "commit": "Extended: under manual transaction management it may end what kept the connection.",
            "_commit": "Extended: refuses where the toolkit has ended the session.",
            "rollback": "Extended, as commit().",
            "_rollback": "Extended: needs no connection where one was given back.",
            "is_usable": "Extended: what was given back is, and to ask is no use.",
            "run_and_clear_commit_hooks": "Extended: the connection goes back before the hooks, which may be slow.",
            "close_if_unusable_or_obsolete": "Extended: Django asks it around each request, and that is no use.",
        },
    ),
    *_names(
        _POSTGRESQL,
        LEASES,
        {"create_cursor": "Extended: an open cursor keeps the connection, and its end is what lets it go."},
    ),
    *_names(_POSTGRESQL, LOOKS, {"pg_version": "Kept from the first connection, as Django would when it is asked."}),
    *_names(_PROXY, LOOKS, {"__getattr__": "django.db.connection reads for its caller, who may only look."}),
    *_names(
        _SIGNAL,
        LEASES,
        {
            "receivers": "Its receivers come first: what others do to a new session has to be seen.",
            "lock": "Guards them.",
            "sender_receivers_cache": "Is to be emptied when they change.",
        },
    ),
    *_names(
        _WRAPPER,
        CHECKOUTS,
        {
            "check_settings": "A part of connect() that is to be done at each checkout.",
            "init_connection_state": "A part of connect(): that nobody has replaced it is looked at.",
            "get_new_connection": "A part of connect(): the checkout itself.",
            "run_commit_hooks_on_set_autocommit_on": "connect() resets it.",
            "health_check_enabled": "connect() sets it.",
            "health_check_done": "connect() sets it.",
        },
    ),
    *_names(_DATABASES, WAITS, {"create_connection": "Extended: a stopwatch waits for the first connection."}),
    *_names(_WRAPPER, WAITS, {"get_new_connection": "Where it waits, on the instance: there is no lease yet."}),
    *_names(
        _POSTGRESQL,
        CHECKOUTS,
        {
            "pool": "A part of connect(): that nobody has replaced it is looked at.",
            "_connection_pools": "The native pools of the process, by alias: what it returns.",
        },
    ),
    *_names(
        _POSTGRESQL,
        CLEANING,
        {
            "_configure_connection": "What Django's pools do to a new session, known by this, is done again if reset.",
            "_configure_timezone": "A part of it: that no backend has replaced it is looked at.",
            "_configure_role": "As above.",
        },
    ),
    *_names(_ASYNCIO, CHECKOUTS, {"async_unsafe": "Refuses a checkout in a thread that runs an event loop."}),
    *_names(
        _POSTGRESQL,
        FORKED_POOLS,
        {"_connection_pools": "The native pools of the process, by alias: a forked child takes them away."},
    ),
    *_names(_POSTGRESQL, POOL_STATS, {"_connection_pools": "The native pools of the process, by alias, to be told."}),
    *_names(_POSTGRESQL, CLOSED_POOLS, {"close_pool": "Closes the pool of an alias where the above is missing."}),
    *_names(
        _DATABASES,
        CONNECT_OPTIONS,
        {
            "settings": "DATABASES with its defaults, as Django reads it when it connects; OPTIONS are added there.",
            "exception_class": "Refuses an alias that is none as Django does.",
        },
    ),
    *_names(_DATABASES, GREEN_THREADS, {"_connections": "Where each thread's wrappers are kept; see asgiref below."}),
    *_names(_DB_UTILS, CONNECT_OPTIONS, {"load_backend": "Tells the vendor of an alias without making a wrapper."}),
    *_names(
        _RESPONSE,
        STREAMING,
        {
            "_iterator": "The body itself; streaming_content wraps it, and does not close it.",
            "_resource_closers": "What is closed with a response is closed in the scopes around its body.",
        },
    ),
    *_names(_WRAPPER, RETRIES, {"atomic_blocks": "Tells a transaction around, and whose hooks run first."}),
    *_names(_ATOMIC, RETRIES, {"_from_testcase": "A TestCase's transaction is none to the code that it tests."}),
    *_names(_WRAPPER, TIMEOUTS, {"execute_wrappers": "What sets the session has to be the outermost of them."}),
    *_names(
        _HANDLER,
        BLAME,
        {"make_view_atomic": "Opens the transaction of ATOMIC_REQUESTS; known by its module."},
    ),
    *_names(
        _HANDLER,
        CALLERS,
        {"_get_response": "Calls the view, its local `callback`: for where no line of the project's is there yet."},
    ),
    *_names(
        _CURSOR_WRAPPER,
        CALLERS,
        {
            "_execute_with_wrappers": "Calls the execute wrappers; who has called it is the caller.",
            "_execute": "Called by the innermost of them.",
            "_executemany": "The same, of executemany().",
        },
    ),
    *_names(_FORBIDDEN, UNINSTALLING, {"wrapped": "What a test class has forbidden, and will put back."}),
    *_names(_WRAPPER, COMMAND, {"get_connection_params": "How Django would connect, for a connection of its own."}),
    *_names(_WRAPPER, PARAMETERS, {"get_connection_params": "Asked for each new connection of a pool, if overridden."}),
    *_names(_WRAPPER, COMMAND, {"get_new_connection": "Has the new connection wait for answers only so long."}),
    *_names(_DATABASES, COMMAND, {"create_connection": "A wrapper that is no thread's, for a session of its own."}),
    *_names(_STREAM, TABLES, {"_out": "The stream below, for rich: Django's own ends each write with a line break."}),
    # ##### psycopg #####
    *_names(_CONNECTION, LEASES, {"_pool": "The pool that it is checked out of; Django's _close() goes by it, too."}),
    *_names(
        _CURSOR,
        LEASES,
        {
            "_conn": "The connection of a cursor that was made on a handle, while its statement is announced.",
            "_close": "Closes a cursor whose connection is somebody else's by now, without a word to the server.",
        },
    ),
    *_names(
        _PGCONN,
        LEASES,
        {
            "transaction_status": "What libpq knows of the transaction, at no round trip.",
            "pipeline_status": "What is in a pipeline is not idle.",
            "parameter_status": "What the server has reported of its settings, to see what the owner has changed.",
            "backend_pid": "For reports.",
            "status": "Whether the connection is broken.",
            "consume_input": "Reads the server's goodbye, if it has said it.",
            "socket": "Shut, where IDLE_IN_TRANSACTION_ACTION is to end a session of another thread.",
            "finish": "Closes without the pool, or the connection's lock, having a say.",
        },
    ),
    *_names(_CONNECTION, CLEANING, {"_prepared": "psycopg's prepared statements, which a reset drops on the server."}),
    *_names(
        _PREPARED,
        CLEANING,
        {
            "clear": "Forgets them.",
            "_to_flush": "What clear() would have sent: the server has none any more.",
            "_names": "Those that there are, to be compared with what the server has.",
        },
    ),
    *_names(
        _PGCONN,
        AUDITS,
        {"exec_params": "Asks a session what it carries, past psycopg, which would begin a transaction."},
    ),
    *_names(
        _CONNECTION,
        CLIENT,
        {
            "_adapters": "Put back at each return. The public one makes a map where there is none.",
            "_notice_handlers": "As above. They can be added and removed, and not be told.",
            "_notify_handlers": "As above.",
            "_autocommit": "As above, where the public one takes a lock and refuses in a transaction.",
            "_isolation_level": "As above.",
            "_read_only": "As above.",
            "_deferrable": "As above.",
            "_begin_statement": "Made from the three above, and kept.",
            "_prepared": "Has prepare_threshold and prepared_max, read without a call.",
            "_tpc": "A two-phase transaction that was left behind: its connection is closed.",
            "_pipeline": "As above, of pipeline().",
            "_num_transactions": "As above, of transaction().",
        },
    ),
    *_names(_CONNECTION, NOTIFICATIONS, {"_notifies_backlog": "What has come for one request must not reach another."}),
    *_names(
        _ADAPTERS,
        CLIENT,
        {
            "_loaders": "Compared, to see what was registered since they were copied.",
            "_dumpers": "As above.",
            "_dumpers_by_oid": "As above.",
        },
    ),
    *_names(_TYPES, CLIENT, {"_registry": "As above."}),
    *_names(_CONNECTION, CLEANING, {"lock": "Tells whether the session can be asked anything, or waits for ever."}),
    *_names(_CONNECTION, FOLLOWING, {"lock": "As above."}),
    *_names(_CONNECTION, ROLLBACKS, {"lock": "A COPY or a pipeline that was left behind holds it for ever."}),
    *_names(_CONNECTION, AUDITS, {"lock": "An audit asks nothing while another thread uses the connection."}),
    *_names(
        _PQ, CONNECT_OPTIONS, {"Conninfo": "What libpq takes for options and application_name where nothing is said."}
    ),
    *_names(_CONNECTION, COMMAND, {"wait": "Called for each query; replaced, to wait only so long for the answer."}),
    *_names(_PGCONN, COMMAND, {"finish": "Ends a connection that has not answered in time."}),
    # ##### psycopg_pool #####
    *_names(
        _POOL,
        TURNS,
        {
            "_waiting": "Those who wait for a connection: an owner lets go at once if there are any.",
            "_pool": "The connections that nobody has: whoever comes when there are none ends what is due.",
        },
    ),
    *_names(_POOL, CLIENT, {"_configure": "Extended: what a new connection is like is known before anybody has it."}),
    *_names(
        _POOL,
        POOL_CHECKS,
        {
            "_check": "What asks the server at each checkout; taken over where it is psycopg_pool's own.",
            "_getconn_unchecked": "Extended: what it gives is looked at, and asked if it has not been used for long.",
            "_putconn": "What is dead is replaced without counting as returned.",
        },
    ),
    *_names(_POOL, RECONNECTS, {"schedule_task": "Extended: of what could not connect, one is tried soon."}),
    *_names(_POOL, OPENED, {"connection_class": "Stood for: its connect() is what opens a connection of the pool."}),
    *_names(_POOL, NULL_POOLS, {"_nconns": "How many it has open, of max_size."}),
    *_names(_ADD_CONNECTION, RECONNECTS, {"attempt": "Tells what has failed to connect from other tasks."}),
    *_names(_POOL, CLEANING, {"_configure": "What the pool does to a new session is due after a reset."}),
    *_names(_POOL, IDLE_IN_POOLS, {"_pool": "A forked process discards the connections in it."}),
    # ##### asgiref #####
    *_names(
        _SYNC_TO_ASYNC,
        ASYNC_TASKS,
        {
            "context_to_thread_executor": "Gives a job or socket a thread of its own, as Django has for a request.",
            "thread_sensitive_context": "As above.",
        },
    ),
    *_names(_ASGIREF, ASYNC_TASKS, {"ThreadSensitiveContext": "As above: what the executor is listed under."}),
    *_names(
        _ASYNC_TO_SYNC,
        ASYNC_TESTS,
        {
            "executors": "Where sync code waits for async code, that one's queries run in the thread that waits.",
            "loop_thread_executors": "The same, in tasks that it starts.",
        },
    ),
    *_names(
        _SYNC_TO_ASYNC,
        ASYNC_TESTS,
        {
            "thread_sensitive_context": "Else they run in the thread of this: of a request under ASGI, say.",
            "context_to_thread_executor": "Has that thread.",
            "single_thread_executor": "Else in this one.",
        },
    ),
    *_names(_CURRENT_THREAD, ASYNC_TESTS, {"_work_thread": "The thread that waits."}),
    *_names(_LOCAL, GREEN_THREADS, {"_storage": "Made before the patching, it is one for all greenlets."}),
    # ##### Python #####
    *_names(_THREAD_POOL, ASYNC_TESTS, {"_threads": "The thread that asgiref has for queries, in a pool of one."}),
    *_names(_RLOCK, TURNS, {"_is_owned": "Who is inside of a lease must not end another one."}),
    *_names(_MULTIPROCESSING, PROCESSES, {"Finalize": "Closes pools where worker processes end without atexit."}),
    *_names(_PICKLING, PROCESSES, {"ForkingPickler": "Pickles initializers as the executor does, with locks."}),
    # ##### Servers and libraries that may be met #####
    *_names(_DJ_DB_CONN_POOL, SQLALCHEMY_POOLS, {"pool_container": "The pools of the process, by alias."}),
    *_names(_CONTAINER, SQLALCHEMY_POOLS, {"lock": "May have been held at the fork, and is replaced."}),
    *_names(_QUEUE_POOL, SQLALCHEMY_POOLS, {"_pool": "The queue with the connections that nobody has."}),
    *_names(_RECORD, SQLALCHEMY_POOLS, {"dbapi_connection": "The driver's connection, which is discarded."}),
    *_names(_DJ_DB_CONN_POOL, SQLALCHEMY, {"pool_container": "The pools of the process, by alias."}),
    *_names(
        _PROXIED,
        SQLALCHEMY,
        {
            "_pool": "The pool that it is checked out of.",
            "dbapi_connection": "The psycopg connection in it, which the lease has.",
            "driver_connection": "The one of its place in the pool, which is another where that was given up.",
            "invalidate": "Gives back a broken connection without a rollback, which would be logged as an error.",
        },
    ),
    *_names(
        _QUEUE_POOL,
        SQLALCHEMY,
        {
            "dispatch": "Whether somebody sets up new sessions; those are closed where others are reset.",
            "_max_overflow": "How many more than its size it opens, for its numbers.",
        },
    ),
    *_names(_POSTGRESQL, SQLALCHEMY, {"_configure_timezone": "Done to a new session, before it is remembered as new."}),
    *_names(_CURSOR, SQLALCHEMY, {"_conn": "Django makes server-side cursors on the proxy; they get the connection."}),
    *_names(_QUEUE_POOL, SQLALCHEMY_TURNS, {"_pool": "The queue with the connections that nobody has."}),
    *_names(
        _QUEUE,
        SQLALCHEMY_TURNS,
        {"queue": "Those connections: whoever comes when there are none ends what is due.", "not_empty": "The next."},
    ),
    *_names(_CONDITION, SQLALCHEMY_TURNS, {"_waiters": "Those who wait for one: an owner lets go at once."}),
    *_names(_PYMYSQL, DESCRIPTORS, {"_sock": "It has no fileno(), and its socket does."}),
    *_names(
        _CELERY,
        CELERY,
        {
            "install": "Extended: processes that begin anew install it, too.",
            "worker_fixup": "Replaced by ours.",
        },
    ),
    *_names(
        _CELERY_WORKER,
        CELERY,
        {
            "install": "Extended: installs the toolkit.",
            "on_worker_process_init": "Extended: discards first.",
            "on_task_prerun": "Extended: begins a scope.",
            "on_task_postrun": "Extended: ends it.",
            "_close_database": "Replaced: Celery's closes the pools as well.",
        },
    ),
    *_names(_UWSGI, UWSGI, {"post_fork_hook": "Is called after a fork, of which Python is not told."}),
)

#: The names of each feature.
NAMES_OF = {feature: [name for name in NAMES if name.feature is feature] for feature in FEATURES}

_OF_CONNECTIONS = [name for names in NAMES_OF.values() for name in names if name.owner.only_when_connected]
_OF_POOLS = [name.name for name in NAMES_OF[TURNS] if name.owner is _POOL]

#: Underscored, and documented all the same: by Python, as specific to CPython or for use in special cases.
DOCUMENTED = frozenset({"collections.namedtuple._replace", "os._exit", "sys._current_frames", "sys._getframe"})


def look() -> None:
    """Look for every name that can be looked for here and now, and turn features off and on accordingly.

    Connects to nothing. Logs one warning for each feature that was on before.
    """
    global _looked  # noqa: PLW0603 - one process, one look
    _looked = True
    things = {name.owner: _find(name.owner) for name in NAMES if _can_be_found(name.owner)}
    for feature in FEATURES:
        seen = {str(name): _has(things[name.owner], name.name) for name in NAMES_OF[feature] if name.owner in things}
        feature.update(
            found=[name for name, is_there in seen.items() if is_there],
            missing=[name for name, is_there in seen.items() if not is_there],
        )


_looked = False


def look_once() -> None:
    """Call :func:`look` if nobody has yet: for what works without ``install()``."""
    if not _looked:
        look()


def look_at(connection: Any, *, pooled: bool) -> None:
    """Look for the names that only an open *connection* has; *pooled* tells that it is of a native pool.

    Called when a wrapper gets its lease, under no lock.
    """
    for name in _OF_CONNECTIONS:
        if hasattr(connection, name.name):
            name.feature.update(found=[str(name)])
        elif pooled or name.name != "_pool":
            name.feature.update(missing=[str(name)])
    pool = getattr(connection, "_pool", None)
    if pool is not None and TURNS.available:
        # It may be of somebody's own class, of which no more is known than that it takes connections back.
        cls = f"{type(pool).__module__}.{type(pool).__qualname__}"
        TURNS.update(missing=[f"{cls}.{name}" for name in _OF_POOLS if not hasattr(pool, name)])


#: Stands for what is not there because its whole distribution is not, so that nobody misses it.
_NOT_INSTALLED = object()


def _can_be_found(owner: Owner) -> bool:
    if owner.unseen or owner.only_when_connected:
        return False
    return not owner.only_if_loaded or owner.path in sys.modules or owner.path.rpartition(".")[0] in sys.modules


def _find(owner: Owner) -> Any:
    """Return what should have the names of *owner*; None if there is no such thing."""
    try:
        return pkgutil.resolve_name(owner.path) if owner.make is None else owner.make()
    except ModuleNotFoundError as error:
        return _NOT_INSTALLED if error.name == owner.path.partition(".")[0] else None
    except Exception:  # noqa: BLE001 - whatever has become of it, it is not what it was
        return None


def _has(thing: Any, name: str) -> bool:
    if thing is _NOT_INSTALLED:
        return True
    method, _, argument = name.removesuffix(")").partition("(")
    # In the class first, where a property is found without being asked.
    if not (hasattr(type(thing), method) or hasattr(thing, method)):
        # Of a method that is missing, its own entry tells.
        return bool(argument)
    return not argument or argument in inspect.signature(getattr(thing, method)).parameters


def imported(module: str, name: str, otherwise: Any = None) -> Any:
    """Return what a feature needs of *module* while it is being imported; *otherwise* if it is not there any more."""
    return getattr(importlib.import_module(module), name, otherwise)

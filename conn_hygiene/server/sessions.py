"""The sessions of an application as the server sees them: what they are in, and how to end them.

Everything is asked over a connection of its own, which is in no pool and under no lease: looking must not change what
is seen, and must go on when the application has no connection left. Nothing needs more rights than the application's
role has. What PostgreSQL does not show to such a role is counted and said (see :attr:`Activity.hidden`).
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from psycopg import pq
from psycopg.adapt import Loader
from psycopg.rows import class_row, dict_row

from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.masking import mask, printable
from conn_hygiene.pools import backends
from conn_hygiene.server import answers, pooler
from conn_hygiene.sessions import connect_options

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable

    from psycopg.abc import Buffer

#: Seconds to wait for the server to answer, where ``OPTIONS["connect_timeout"]`` says nothing.
CONNECT_TIMEOUT = 10

#: Seconds to wait for an answer over a connection that there is. Behind it may be a pooler that has no session to lend.
ANSWER_TIMEOUT = 10

#: Seconds to wait for a session to end that was told to.
TERMINATE_TIMEOUT = 5

ACTIVE = "active"
IDLE = "idle"
IDLE_IN_TRANSACTION = "idle in transaction"
ABORTED = "idle in transaction (aborted)"
IDLE_IN_TRANSACTION_STATES = (IDLE_IN_TRANSACTION, ABORTED)

#: The order in which states are shown: what holds locks and does nothing comes first.
STATES = (ABORTED, IDLE_IN_TRANSACTION, ACTIVE, "fastpath function call", IDLE, "disabled")


class Identity(NamedTuple):
    """A database on a server, and the role that looks at it. Equal for aliases that differ in name only."""

    database: str
    role: str
    #: To the microsecond, which tells two servers apart behind whatever addresses.
    server_started: datetime.datetime
    server_version: str


@dataclasses.dataclass(frozen=True)
class Session:
    """One session, as ``pg_stat_activity`` has it; times in seconds, ``None`` for what it has not or may not show."""

    pid: int
    database: str
    role: str
    application_name: str
    #: ``None`` for a client that came over a Unix-domain socket.
    client_address: str | None
    #: ``None`` if the role may not see it.
    state: str | None
    backend_start: datetime.datetime | None
    xact_start: datetime.datetime | None
    state_change: datetime.datetime | None
    age: float | None
    in_state: float | None
    in_transaction: float | None
    #: Such as ``"Lock: transactionid"``.
    wait_event: str | None
    #: The pids of those that it waits for, if it waits for a lock.
    blocked_by: list[int]
    #: The last statement, its values replaced by ``?``; see :func:`conn_hygiene.masking.mask`.
    statement: str | None
    #: It is of the command that asks.
    own: bool
    #: As *client_address*.
    client_port: int | None = None

    @property
    def is_idle_in_transaction(self) -> bool:
        """Whether it is in a transaction, failed or not, and runs no statement."""
        return self.state in IDLE_IN_TRANSACTION_STATES

    @property
    def tag(self) -> connect_options.Tag | None:
        """Whose it is, if ``TAG_SESSIONS`` has named it."""
        return connect_options.tag_in(self.application_name)


@dataclasses.dataclass(frozen=True)
class Scope:
    """Whose sessions are meant: by default those of the connected role in the connected database."""

    all_users: bool = False
    all_databases: bool = False


@dataclasses.dataclass(frozen=True)
class Activity:
    """The sessions of one database at one moment."""

    #: Those in scope, in the order of :data:`STATES`, the longest in its state first.
    sessions: list[Session]
    #: How many there are in scope of which the role may see no state, nor anything else that matters.
    hidden: int
    #: How many sessions of other roles are in the database and out of scope.
    others: int

    @property
    def counted(self) -> list[Session]:
        """The sessions without those of the command that asks."""
        return [session for session in self.sessions if not session.own]

    def by_state(self) -> dict[str, int]:
        """Return how many sessions are in each state, those of the asking command not counted."""
        states = [session.state or "hidden" for session in self.counted]
        return {state: states.count(state) for state in (*STATES, "hidden") if state in states}


def aliases() -> list[str]:
    """Return the aliases of the project that are PostgreSQL databases."""
    return [alias for alias in connections if _is_postgresql(alias)]


def _is_postgresql(alias: str) -> bool:
    try:
        return connections[alias].vendor == "postgresql"
    except ImproperlyConfigured:
        # No such backend can be loaded here, which "manage.py check" says best.
        return False


def connect(alias: str, *, answer_timeout: float | None = None, **others: Any) -> psycopg.Connection[Any]:
    """Open a connection to the database of *alias*, beside whatever pool it has, with autocommit on.

    If a pooler refuses libpq's ``options``, it is opened without: whoever looks into that needs an answer.

    :param answer_timeout: seconds to wait for each answer, after which :exc:`.answers.NoAnswer` is raised;
        :data:`ANSWER_TIMEOUT` by default.
    :param others: goes over what the settings say, such as ``dbname``.
    :raises psycopg.Error: as :meth:`psycopg.Connection.connect` does, and also if the settings are such that nobody
        could connect, whatever it is that finds that out.
    """
    try:
        connection = _connect(alias, others)
    except psycopg.Error:
        raise
    except Exception as error:
        if is_of_handler(error):
            raise
        # Django's ImproperlyConfigured, an unknown time zone, or what a backend raises that asks for a password.
        raise misconfigured(error) from error
    answers.limit(connection, ANSWER_TIMEOUT if answer_timeout is None else answer_timeout)
    return connection


class Misconfigured(psycopg.OperationalError):
    """The settings of an alias are such that nobody could connect."""


def misconfigured(error: Exception) -> Misconfigured:
    """Return *error*, which is neither the server's nor the driver's, as one of the driver's, with its own name."""
    return Misconfigured(f"{type(error).__name__}: {error}")


def _connect(alias: str, others: dict[str, Any]) -> psycopg.Connection[Any]:
    parameters = {"connect_timeout": CONNECT_TIMEOUT, **connections[alias].get_connection_params()}
    if backends.why_left_alone(alias) is not None:
        # A backend with a pool of its own takes that one's options out of them where it connects.
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        parameters = {name: value for name, value in parameters.items() if name in known}
    # Django's own types and cursors are of no use here.
    for name in ("context", "cursor_factory"):
        parameters.pop(name, None)
    parameters |= {"autocommit": True, "application_name": _application_name(), "prepare_threshold": None, **others}
    try:
        return psycopg.connect(**parameters)
    except psycopg.errors.ConnectionTimeout as error:
        # The driver says neither that nobody has answered nor for how long it has waited.
        waited = f"nobody answered within connect_timeout, which is {parameters['connect_timeout']} s"
        raise psycopg.errors.ConnectionTimeout(f"{waited}: {error}") from error
    except psycopg.OperationalError as error:
        if not pooler.refuses_options(error):
            raise
    # Empty and not left out: PGOPTIONS would be refused as well.
    return psycopg.connect(**parameters | {"options": ""})


def _application_name() -> str:
    """Return a name by which the command knows all of its sessions, whatever lies between it and the server."""
    return f"manage.py connections {socket.gethostname()[:30]}:{os.getpid()}"


def identity(connection: psycopg.Connection[Any]) -> Identity:
    """Return to what *connection* leads, and as whom."""
    # In binary, as a time looks the same whatever DateStyle the role has.
    row = connection.execute(
        "SELECT current_database(), session_user::text, pg_postmaster_start_time(), current_setting('server_version')",
        binary=True,
    ).fetchone()
    assert row is not None
    return Identity(*row)


# For other roles' sessions PostgreSQL nulls what it does not show, the type and the start included. Those who are not
# client sessions at all have no role, or no database: the launcher of logical replication, and who sends the WAL of all
# databases. Parallel workers of hidden sessions, and what replicates one database, cannot be told from these.
_SESSIONS = """
SELECT pid, datname AS database, usename AS role, coalesce(application_name, '') AS application_name,
       host(client_addr) AS client_address, nullif(client_port, -1) AS client_port, state,
       backend_start, xact_start, state_change,
       extract(epoch FROM clock_timestamp() - backend_start)::float8 AS age,
       extract(epoch FROM clock_timestamp() - state_change)::float8 AS in_state,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS in_transaction,
       wait_event_type || ': ' || wait_event AS wait_event,
       CASE wait_event_type WHEN 'Lock' THEN pg_blocking_pids(pid) ELSE '{}' END AS blocked_by,
       CASE WHEN backend_start IS NOT NULL THEN query END AS statement,
       pid = pg_backend_pid() OR application_name = current_setting('application_name') AS own,
       usename = session_user AS same_role
FROM pg_stat_activity
WHERE usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
  AND datname IS NOT NULL AND (%(all_databases)s OR datname = current_database())
"""


def activity(connection: psycopg.Connection[Any], scope: Scope = Scope()) -> Activity:
    """Return the sessions in *scope*, as the server has them at this moment."""
    try:
        rows = _rows(connection, scope)
    except (UnicodeDecodeError, *_NOT_CONVERTED):
        rows = _rows_as_they_are(connection, scope)
    own_role = [row.pop("same_role") for row in rows]
    sessions = [_session(row) for row, same_role in zip(rows, own_role, strict=True) if same_role or scope.all_users]
    return Activity(
        sessions=sorted(sessions, key=_rank),
        hidden=sum(session.state is None for session in sessions),
        others=len(rows) - len(sessions),
    )


# What the server says where it cannot convert, or where what it has is no text of the client's encoding.
_NOT_CONVERTED = (psycopg.errors.CharacterNotInRepertoire, psycopg.errors.UntranslatableCharacter)


def _rows(connection: psycopg.Connection[Any], scope: Scope, **loaders: type[Loader]) -> list[dict[str, Any]]:
    # In binary, as a time looks the same whatever DateStyle the role has.
    with connection.cursor(row_factory=dict_row, binary=True) as cursor:
        for name, loader in loaders.items():
            cursor.adapters.register_loader(name, loader)
        return cursor.execute(_SESSIONS, dataclasses.asdict(scope)).fetchall()


class _Lenient(Loader):
    """Reads text of an unknown encoding: what is no UTF-8 is replaced."""

    format = psycopg.pq.Format.BINARY

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(errors="replace")


def _rows_as_they_are(connection: psycopg.Connection[Any], scope: Scope) -> list[dict[str, Any]]:
    """Return what :func:`_rows` does without the server's converting any of it.

    Statements of a database are in its encoding, in whichever other they are shown, and in SQL_ASCII in any.
    """
    # For one transaction, which is what a pooler keeps together.
    with connection.transaction():
        connection.execute("SET LOCAL client_encoding TO SQL_ASCII")
        return _rows(connection, scope, text=_Lenient, name=_Lenient)


def _session(row: dict[str, Any]) -> Session:
    # The names and statements are other clients' choice.
    row["application_name"] = printable(row["application_name"])
    row["statement"] = mask(row["statement"]) if row["statement"] else None
    for name in ("age", "in_state", "in_transaction"):
        # The clock may have been set back.
        row[name] = None if row[name] is None else max(0.0, row[name])
    return Session(**row)


def _rank(session: Session) -> tuple[int, float]:
    place = STATES.index(session.state) if session.state in STATES else len(STATES)
    return place, -(session.in_state or 0.0)


class Outcome(enum.Enum):
    """What came of ending a session."""

    ENDED = "ended"
    #: It has ended by itself, or has gone on with its work, since it was looked at.
    GONE = "gone in between"
    NOT_PERMITTED = "not permitted"
    #: It was told to end, and has not within :data:`TERMINATE_TIMEOUT`.
    PENDING = "told to end, still there"


# The server looks again in the statement that ends the session: the pid may be another session's by now, or the
# session back at work.
_TERMINATE = """
SELECT pg_terminate_backend(pid, %(timeout)s)
FROM pg_stat_activity
WHERE pid = %(pid)s AND backend_start = %(backend_start)s AND pid <> pg_backend_pid()
  AND (%(whatever_state)s OR (state = %(state)s AND state_change = %(state_change)s))
"""


def terminate(connection: psycopg.Connection[Any], session: Session, *, whatever_state: bool = False) -> Outcome:
    """End *session* on the server, if it still is the session that it was.

    :param whatever_state: also if it has done something since it was looked at.
    """
    values = {
        "timeout": TERMINATE_TIMEOUT * 1000,
        "whatever_state": whatever_state,
        "pid": session.pid,
        "backend_start": session.backend_start,
        "state": session.state,
        "state_change": session.state_change,
    }
    if session.backend_start is None:
        # Who may not see a session could not tell it from the next one with its pid.
        return Outcome.NOT_PERMITTED
    # The server itself waits meanwhile.
    answers.limit(connection, TERMINATE_TIMEOUT + ANSWER_TIMEOUT)
    try:
        row = connection.execute(_TERMINATE, values).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return Outcome.NOT_PERMITTED
    except psycopg.errors.QueryCanceled:
        # The role's statement_timeout is shorter than the wait.
        return Outcome.PENDING
    if row is None:
        return Outcome.GONE
    return Outcome.ENDED if row[0] else Outcome.PENDING


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many sessions the server lets whom have; -1 is no limit."""

    version: int
    max_connections: int
    #: Kept for superusers and, from PostgreSQL 16 on, for roles with ``pg_use_reserved_connections``.
    reserved: int
    role_limit: int
    database_limit: int
    superuser: bool
    #: Sessions of everybody but this role in this database.
    foreign_sessions: int

    @property
    def available(self) -> int:
        """How many sessions a role without reserved ones can have, if nobody else has any."""
        return self.max_connections - self.reserved


_LIMITS = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int
         + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
       rolconnlimit AS role_limit, datconnlimit AS database_limit, rolsuper AS superuser,
       (SELECT count(*)::int FROM pg_stat_activity
        WHERE usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
          AND datname IS NOT NULL AND (datname <> current_database() OR usename <> session_user)) AS foreign_sessions
FROM pg_roles, pg_database
WHERE rolname = session_user AND datname = current_database()
"""


def limits(connection: psycopg.Connection[Any]) -> Limits:
    """Return how many sessions the server has room for."""
    with connection.cursor(row_factory=class_row(Limits)) as cursor:
        found = cursor.execute(_LIMITS).fetchone()
    assert found is not None
    return found


def timeouts(alias: str, names: Iterable[str], *, bare: bool = False) -> dict[str, int]:
    """Return the timeouts *names*, in milliseconds, as they are in a session that Django opens for *alias*.

    They may come from the server's configuration, the role, the database, ``OPTIONS``, or a receiver of
    ``connection_created``; so such a session is opened and asked, beside the pool.

    :param bare: without libpq's ``options``, if a pooler refuses those.
    :raises django.db.Error: Django could not connect, or there was no answer within :data:`ANSWER_TIMEOUT`.
    """
    wrapper: Any = connections.create_connection(alias)
    options = {name: value for name, value in wrapper.settings_dict["OPTIONS"].items() if name != "pool"}
    if bare:
        options["options"] = ""
    wrapper.settings_dict = {**wrapper.settings_dict, "OPTIONS": {"connect_timeout": CONNECT_TIMEOUT, **options}}
    wrapper.get_new_connection = functools.partial(_limited, wrapper.get_new_connection)
    try:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT name, setting::bigint FROM pg_settings WHERE name = ANY(%s)", [list(names)])
            return dict(cursor.fetchall())
    finally:
        wrapper.close()


def _limited(get: Callable[[dict[str, Any]], Any], parameters: dict[str, Any]) -> Any:
    connection = get(parameters)
    # A pool of the backend's own hands out something else, which others are to have after this.
    if isinstance(connection, psycopg.Connection):
        answers.limit(connection, ANSWER_TIMEOUT)
    return connection

"""What PgBouncer says of itself, in its console, to those whom it lets in.

The console is a database of the name ``pgbouncer`` that PgBouncer answers for itself. It is open to ``admin_users``,
and, with all that is asked here, to ``stats_users`` (PgBouncer documentation, "Admin console"). It speaks the simple
query protocol only, which psycopg does for statements without parameters.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.rows import dict_row

from conn_hygiene.server import sessions

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg

_CONSOLE = "pgbouncer"


@dataclasses.dataclass(frozen=True)
class PgBouncer:
    """A PgBouncer as clients of one of its databases and roles meet it. A limit of 0 is none; times are seconds."""

    #: Where it listens, which tells two of them apart.
    address: str
    #: As clients name it; and the role that its pool logs in as.
    database: str
    role: str
    #: As ``(1, 23)``.
    version: tuple[int, ...]
    #: ``"session"``, ``"transaction"`` or ``"statement"``.
    mode: str
    #: How many server sessions the pool may have, and how many more when a client has waited (``reserve_pool_size``).
    pool_size: int
    reserve: int
    max_db_connections: int
    max_user_connections: int
    max_client_conn: int
    max_prepared_statements: int
    #: Start-up parameters that it drops instead of refusing them.
    ignored: frozenset[str]
    #: What it runs when a client leaves a session, and whether in all modes; empty if nothing.
    reset_query: str
    resets_always: bool
    query_wait_timeout: float
    query_timeout: float
    idle_transaction_timeout: float
    #: How many clients wait for a server session, and the longest of them for how long.
    waiting: int
    longest_wait: float
    #: The names that its clients have given themselves; none before 1.18.
    clients: tuple[str, ...]

    @property
    def sessions(self) -> int:
        """How many server sessions its pool may have when clients wait; 0 if nothing limits them."""
        limits = (self.pool_size + self.reserve, self.max_db_connections, self.max_user_connections)
        return min((limit for limit in limits if limit), default=0)

    @property
    def prepares(self) -> bool:
        """Whether it keeps track of prepared statements, and of psycopg's closing them (from 1.22 on)."""
        return self.version >= (1, 22) and self.max_prepared_statements > 0


class Client(NamedTuple):
    """As what somebody has connected: to which address and database, and as whom."""

    address: str
    database: str
    user: str


def client_of(connection: psycopg.Connection[Any]) -> Client:
    """Return as what *connection* has connected, which it does not know any more when it is closed."""
    info = connection.info
    return Client(f"{info.host or info.hostaddr}:{info.port}", info.dbname, info.user)


def ask(alias: str, client: Client) -> PgBouncer:
    """Ask the console of the PgBouncer that *alias* leads through, and *client* with it.

    :raises psycopg.Error: it does not let the role in, or has no console, and so is something else than PgBouncer.
    """
    with sessions.connect(alias, dbname=_CONSOLE) as console:
        return _read(console, *client)


def _read(console: psycopg.Connection[Any], address: str, database: str, user: str) -> PgBouncer:
    config = {row["key"]: row["value"] or "" for row in _rows(console, "SHOW CONFIG")}
    entry = _row(_rows(console, "SHOW DATABASES"), name=database)
    role = entry.get("force_user") or user
    pool = _row(_rows(console, "SHOW POOLS"), database=database, user=role)
    own = _row(_rows(console, "SHOW USERS"), name=role)
    clients = [row for row in _rows(console, "SHOW CLIENTS") if row.get("database") == database]
    return PgBouncer(
        address=address,
        database=database,
        role=role,
        version=_version(_rows(console, "SHOW VERSION")),
        # A pool's own is what came of those of its role and of its database.
        mode=pool.get("pool_mode") or entry.get("pool_mode") or config.get("pool_mode", "session"),
        pool_size=_number(own.get("pool_size")) or _number(entry.get("pool_size", config.get("default_pool_size"))),
        # It was "reserve_pool" up to 1.23.
        reserve=_number(entry.get("reserve_pool_size", entry.get("reserve_pool", config.get("reserve_pool_size")))),
        max_db_connections=_number(entry.get("max_connections", config.get("max_db_connections"))),
        max_user_connections=_number(own.get("max_user_connections")) or _number(config.get("max_user_connections")),
        max_client_conn=_number(config.get("max_client_conn")),
        max_prepared_statements=_number(config.get("max_prepared_statements")),
        ignored=frozenset(name.strip() for name in config.get("ignore_startup_parameters", "").split(",") if name),
        reset_query=config.get("server_reset_query", "").strip(),
        resets_always=bool(_number(config.get("server_reset_query_always"))),
        query_wait_timeout=_seconds(config.get("query_wait_timeout")),
        query_timeout=_seconds(config.get("query_timeout")),
        idle_transaction_timeout=_seconds(config.get("idle_transaction_timeout")),
        waiting=_number(pool.get("cl_waiting")),
        longest_wait=_seconds(pool.get("maxwait")),
        clients=tuple(row.get("application_name") or "" for row in clients),
    )


def _rows(console: psycopg.Connection[Any], command: str) -> list[dict[str, Any]]:
    with console.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(command.encode()).fetchall()


def _row(rows: Iterable[dict[str, Any]], **values: str) -> dict[str, Any]:
    """Return the first of *rows* that has *values*; an empty one if none has: what is asked for differs by version."""
    return next((row for row in rows if row.items() >= values.items()), {})


def _version(rows: list[dict[str, Any]]) -> tuple[int, ...]:
    text = " ".join(str(value) for row in rows for value in row.values())
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _seconds(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _number(value: Any) -> int:
    return int(_seconds(value))

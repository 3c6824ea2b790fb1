"""What the doctor looks at, and what it finds: data, without any judgement."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import TYPE_CHECKING, Any, Literal

from conn_hygiene import pages
from conn_hygiene.conf import is_number
from conn_hygiene.pools import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conn_hygiene.pools.written import Refusal
    from conn_hygiene.server.pgbouncer import PgBouncer
    from conn_hygiene.server.pooler import Pooler
    from conn_hygiene.server.sessions import Activity, Identity, Limits
    from conn_hygiene.sessions.catalogue import Findings

# What psycopg_pool takes when OPTIONS["pool"] names no sizes (its ConnectionPool's min_size; max_size follows it).
POOL_SIZE = 4


class Level(enum.IntEnum):
    """How bad it is; ordered."""

    NOTE = 10
    WARNING = 20
    ERROR = 30

    def __str__(self) -> str:
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that hurts, or will."""

    level: Level
    #: A name that stays the same, such as ``"too-many-connections"``.
    id: str
    aliases: tuple[str, ...]
    what: str
    #: Why it will hurt, with the numbers.
    why: str
    #: What to do.
    remedy: str
    #: The page of the documentation that mends it, and the place on it behind a ``#``: a path of this machine, or a URL
    #: where ``DOCS_URL`` is set.
    docs: str


@dataclasses.dataclass(frozen=True)
class Project:
    """What the settings say, as far as it matters here."""

    #: ``settings.DATABASES`` of the PostgreSQL aliases, as Django completes it.
    databases: dict[str, dict[str, Any]]
    debug: bool
    #: It is, or may be, served under ASGI.
    asgi: bool
    #: One of the toolkit's middleware that release is in MIDDLEWARE.
    middleware: bool
    #: The values of ``CONN_HYGIENE`` that matter here.
    release: str
    unpooled_release_after: float | None
    reclaims_dead_threads: bool
    idle_in_transaction_after: float | None
    #: ``"auto"``, or the names in lower case.
    followed_settings: Literal["auto"] | frozenset[str]
    clean_sessions: str
    #: What Django supports, as ``(15,)``.
    minimum_version: tuple[int, ...]
    #: How many processes there are, on each host if *hosts* is given; None if nobody said.
    processes: int | None
    #: How many threads each of them has, or None if nobody said.
    threads: int | None
    #: On how many hosts, or None if nobody said.
    hosts: int | None = None
    #: By which ``TAG_SESSIONS`` names it.
    name: str = ""
    #: ``SESSION_TIMEOUTS`` of each alias, in seconds.
    session_timeouts: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    #: What is wrong with ``CONN_HYGIENE``, each with what to write.
    setting_problems: tuple[tuple[str, str], ...] = ()
    #: For each alias, where the settings say what a timeout is; see :func:`.connect_options.place_of`.
    timeouts_written: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was asked over one alias. Each that is None could not be asked, for the reason in ``failures``."""

    alias: str
    identity: Identity | None = None
    limits: Limits | None = None
    activity: Activity | None = None
    pooler: Pooler | None = None
    #: The PgBouncer that it leads through, if that has answered; else why it has not.
    pgbouncer: PgBouncer | None = None
    console_failure: str | None = None
    #: With which words a pooler has refused libpq's ``options``; the rest was asked without them.
    options_refused: str | None = None
    #: Milliseconds, by name; 0 is none.
    timeouts: dict[str, int] | None = None
    #: What its functions and policies do to sessions.
    catalogue: Findings | None = None
    #: Whether its connections come out of a pool, Django's or the backend's own.
    pooled: bool = True
    #: Why the toolkit leaves its backend alone; None also if it does not.
    left_alone: str | None = None
    #: Why Django cannot make its pool, as the rest of a sentence, and what to do.
    pool_refusals: tuple[Refusal, ...] = ()
    #: What failed, each with the error's text.
    failures: tuple[str, ...] = ()
    #: The last of them is of the alias's settings, whoever asks again.
    misconfigured: bool = False


def finding(level: Level, id: str, *aliases: str, what: str, why: str, remedy: str, page: str = "") -> Finding:
    """Return a finding whose page is the doctor's own, at the place of its id, unless *page* is another."""
    return Finding(level, id, aliases, what, why, remedy, pages.where(page or f"how-to/doctor.rst#{id}"))


def pool_sizes(pool: Any) -> tuple[int, int | None]:
    """Return how many connections ``OPTIONS["pool"]`` has at least and at most; the latter is None without a limit."""
    named = pool if isinstance(pool, dict) else {}
    smallest, largest = named.get("min_size"), named.get("max_size")
    # What is no number makes no pool.
    least = int(smallest) if is_number(smallest) and math.isfinite(smallest) else POOL_SIZE
    if not is_number(largest):
        return least, least
    # psycopg_pool takes an infinite one at its word, and opens one more while there are less.
    return least, math.ceil(largest) if math.isfinite(largest) else None


def has_sqlalchemy_pool(options: dict[str, Any]) -> bool:
    """Return whether an alias with these *options* has a pool of django-db-connection-pool's."""
    return str(options.get("ENGINE", "")).startswith(f"{sqlalchemy.PACKAGE}.")


def pool_option(options: dict[str, Any], name: str) -> Any:
    """Return what ``POOL_OPTIONS`` of an alias with these *options* says for *name*, or what holds if it does not."""
    return options.get("POOL_OPTIONS", {}).get(name, sqlalchemy.DEFAULTS[name])


def number(count: int, one: str, many: str) -> str:
    """Return *count* with the word for it."""
    return f"{count} {one if count == 1 else many}"

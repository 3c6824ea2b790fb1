"""What will hurt: findings from a project's settings and from what its servers say.

Pure logic: everything that is looked at comes in as a :class:`Project`, a list of :class:`Facts` and a date, and what
comes out is a list of :class:`Finding`. The command collects the one and prints the other.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

from conn_hygiene.pools.checking import ALIVE_FOR
from conn_hygiene.server.pooler import Pooler
from conn_hygiene.sessions.catalogue import shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from conn_hygiene.server.sessions import Activity, Identity, Limits
    from conn_hygiene.sessions.catalogue import Findings

#: What a finding's ``docs`` begin with: the documentation's sources, as the repository and the source distribution
#: have them.
DOCS = "docs/"

#: What is looked for in a session; see :func:`conn_hygiene.server.timeouts`.
TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout")

# The last day of each major version, from https://www.postgresql.org/support/versioning/ (2026-11). What is older than
# the first has ended long ago, and what is newer than the last has years to go.
END_OF_LIFE = {
    12: datetime.date(2024, 11, 21),
    13: datetime.date(2025, 11, 13),
    14: datetime.date(2026, 11, 12),
    15: datetime.date(2027, 11, 11),
    16: datetime.date(2028, 11, 9),
    17: datetime.date(2029, 11, 8),
    18: datetime.date(2030, 11, 14),
}

# How long before its end a version is worth a note: an upgrade wants planning.
_NEAR = datetime.timedelta(days=180)

# What psycopg_pool takes when OPTIONS["pool"] names no sizes (its ConnectionPool's min_size; max_size follows it).
_POOL_SIZE = 4


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
    #: The page of the documentation that mends it.
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
    #: How many processes there are, or None if nobody said.
    processes: int | None
    #: How many threads each of them has, or None if nobody said.
    threads: int | None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was asked over one alias. Each that is None could not be asked, for the reason in ``failures``."""

    alias: str
    identity: Identity | None = None
    limits: Limits | None = None
    activity: Activity | None = None
    pooler: Pooler | None = None
    #: Milliseconds, by name; 0 is none.
    timeouts: dict[str, int] | None = None
    #: What its functions and policies do to sessions.
    catalogue: Findings | None = None
    #: Whether its connections come out of a pool, Django's or the backend's own.
    pooled: bool = True
    #: Why the toolkit leaves its backend alone; None also if it does not.
    left_alone: str | None = None
    #: What failed, each with the error's text.
    failures: tuple[str, ...] = ()


def diagnose(project: Project, facts: list[Facts], today: datetime.date) -> list[Finding]:
    """Return what is wrong, or will be, worst first; findings that are alike for several aliases are one."""
    found: list[Finding] = [*_failures(facts), *_capacity(project, facts), *_toolkit(project)]
    for fact in facts:
        options = project.databases[fact.alias]
        for check in _CHECKS:
            found += check(project, options, fact)
        found += _version(project, fact, today)
    return sorted(_merged(found), key=lambda finding: -finding.level)


def _merged(found: Iterable[Finding]) -> list[Finding]:
    """Return *found*, those that differ in nothing but the alias put together."""
    aliases: dict[Finding, list[str]] = defaultdict(list)
    for finding in found:
        aliases[dataclasses.replace(finding, aliases=())].extend(finding.aliases)
    return [dataclasses.replace(finding, aliases=tuple(names)) for finding, names in aliases.items()]


def _finding(level: Level, id: str, *aliases: str, what: str, why: str, remedy: str, page: str = "") -> Finding:
    return Finding(level, id, aliases, what, why, remedy, f"{DOCS}{page or f'how-to/doctor.rst#{id}'}")


def _failures(facts: list[Facts]) -> Iterator[Finding]:
    for fact in facts:
        for failure in fact.failures:
            reached = fact.identity is not None
            yield _finding(
                Level.NOTE if reached else Level.ERROR,
                "not-asked",
                fact.alias,
                what="Not everything could be asked." if reached else "The server could not be asked anything.",
                why=failure,
                remedy="What depends on it was not looked at. Run the command again where it can be asked.",
            )
    if any(fact.activity is not None and fact.activity.hidden for fact in facts):
        yield _finding(
            Level.NOTE,
            "hidden-sessions",
            *(fact.alias for fact in facts if fact.activity is not None and fact.activity.hidden),
            what="Some sessions are hidden from this role.",
            why="Of other roles' sessions PostgreSQL shows the pid, the role and the database only.",
            remedy="GRANT pg_read_all_stats TO the role that runs this command.",
            page="reference/connections-command.rst#connections-rights",
        )


# ##### How many connections there can be #####


def _connections_per_process(options: dict[str, Any], threads: int | None) -> int:
    pool = options["OPTIONS"].get("pool")
    if pool:
        return _pool_sizes(pool)[1]
    return threads or 1


def _pool_sizes(pool: Any) -> tuple[int, int]:
    named = pool if isinstance(pool, dict) else {}
    smallest = named.get("min_size", _POOL_SIZE)
    largest = named.get("max_size")
    return smallest, smallest if largest is None else largest


def _capacity(project: Project, facts: list[Facts]) -> Iterator[Finding]:
    """Compare what all processes together may open with what the server, the role and the database allow."""
    processes = project.processes or 1
    direct = [fact for fact in facts if fact.pooler is Pooler.NONE and fact.limits and fact.identity]
    servers: dict[Any, list[Facts]] = defaultdict(list)
    roles: dict[Any, list[Facts]] = defaultdict(list)
    databases: dict[Any, list[Facts]] = defaultdict(list)
    for fact in direct:
        assert fact.identity is not None
        server = fact.identity.server_started
        servers[server].append(fact)
        roles[server, fact.identity.role].append(fact)
        databases[server, fact.identity.database].append(fact)
    for group in servers.values():
        yield from _server_capacity(project, group, processes)
    for limit, name, groups in (("role_limit", "role", roles), ("database_limit", "database", databases)):
        for group in groups.values():
            yield from _own_limit(project, group, processes, limit, name)
    if project.processes is None and direct:
        yield _finding(
            Level.NOTE,
            "processes-unknown",
            *(fact.alias for fact in direct),
            what="Connections were counted for a single process.",
            why="Each worker process has a pool of its own, so the number of processes multiplies everything.",
            remedy="Say how many there are, task queues and management commands included: --processes N.",
            page="how-to/doctor.rst#too-many-connections",
        )
    unpooled = [fact.alias for fact in direct if not project.databases[fact.alias]["OPTIONS"].get("pool")]
    if project.threads is None and unpooled:
        yield _finding(
            Level.NOTE,
            "threads-unknown",
            *unpooled,
            what="Connections were counted for a single thread.",
            why="Without a pool, each thread has a connection of its own.",
            remedy="Say how many threads a process has: --threads N.",
            page="how-to/doctor.rst#too-many-connections",
        )


def _demand(project: Project, group: list[Facts], processes: int) -> tuple[int, str]:
    """Return how many connections the aliases of *group* may have, and how that comes about."""
    each = {fact.alias: _connections_per_process(project.databases[fact.alias], project.threads) for fact in group}
    total = processes * sum(each.values())
    parts = " + ".join(f"{count} of {alias!r}" for alias, count in each.items())
    return total, f"{_number(processes, 'process', 'processes')} times {parts} make {total}"


def _server_capacity(project: Project, group: list[Facts], processes: int) -> Iterator[Finding]:
    limits = group[0].limits
    assert limits is not None
    demand, sum_ = _demand(project, group, processes)
    room = limits.available
    allowed = f"max_connections is {limits.max_connections}, of which {limits.reserved} are reserved"
    aliases = [fact.alias for fact in group]
    remedy = "Lower the pools' max_size, which giving back between queries allows, or the number of processes."
    if demand > room:
        yield _finding(
            Level.ERROR,
            "too-many-connections",
            *aliases,
            what=f"The project may open {demand} connections, and the server has room for {room}.",
            why=f'{sum_}; {allowed}. Under load the rest is refused: "sorry, too many clients already".',
            remedy=remedy,
        )
    elif demand + limits.foreign_sessions > room:
        yield _finding(
            Level.WARNING,
            "too-many-connections",
            *aliases,
            what=f"The project may open {demand} connections, and others leave room for "
            f"{max(0, room - limits.foreign_sessions)}.",
            why=f"{sum_}; {allowed}, and other roles and databases have {limits.foreign_sessions} open right now.",
            remedy=remedy,
        )


def _own_limit(project: Project, group: list[Facts], processes: int, limit: str, name: str) -> Iterator[Finding]:
    limits, identity = group[0].limits, group[0].identity
    assert limits is not None
    assert identity is not None
    allowed: int = getattr(limits, limit)
    demand, sum_ = _demand(project, group, processes)
    # Superusers are exempt from these limits.
    if 0 <= allowed < demand and not limits.superuser:
        who = f"{name} {getattr(identity, name)!r}"
        yield _finding(
            Level.ERROR,
            "connection-limit",
            *(fact.alias for fact in group),
            what=f"The project may open {demand} connections, and the {who} is limited to {allowed}.",
            why=f'{sum_}. Under load the rest is refused: "too many connections for {name}".',
            remedy=f"Lower the pools' max_size or the number of processes, or ALTER {name.upper()} ... CONNECTION "
            f"LIMIT {demand}.",
        )


# ##### One alias #####


def _timeouts(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    missing = {name for name, value in (fact.timeouts or {}).items() if value == 0}
    if "statement_timeout" in missing:
        yield _finding(
            Level.WARNING,
            "no-statement-timeout",
            fact.alias,
            what="No statement_timeout is in effect.",
            why="A statement that never ends keeps its connection, its locks and its worker until somebody notices.",
            remedy='Set it for all sessions: CONN_HYGIENE = {"SESSION_TIMEOUTS": {"statement_timeout": 30}}.',
            page="how-to/guard-rails.rst",
        )
    if "idle_in_transaction_session_timeout" in missing:
        yield _finding(
            Level.WARNING,
            "no-idle-in-transaction-timeout",
            fact.alias,
            what="No idle_in_transaction_session_timeout is in effect.",
            why="A process that hangs inside of a transaction holds its locks, and holds back vacuum, without limit.",
            remedy="Set it for all sessions: CONN_HYGIENE = "
            '{"SESSION_TIMEOUTS": {"idle_in_transaction_session_timeout": 60}}.',
            page="how-to/guard-rails.rst",
        )


def _persistent(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    age = options["CONN_MAX_AGE"]
    if age == 0:
        return
    if options["OPTIONS"].get("pool"):
        yield _finding(
            Level.ERROR,
            "pool-and-conn-max-age",
            fact.alias,
            what=f"There is a pool, and CONN_MAX_AGE is {age!r}.",
            why="Django refuses to connect that way: a pool keeps connections by its own rules.",
            remedy="Remove CONN_MAX_AGE. The pool's max_idle and max_lifetime say how long it keeps connections.",
        )
        return
    if project.asgi:
        yield _finding(
            Level.WARNING,
            "conn-max-age-under-asgi",
            fact.alias,
            what=f"CONN_MAX_AGE is {age!r}, and the project looks like one that is served under ASGI.",
            why="There Django serves each request in a thread of its own, which no other request shares: the next one "
            "connects anew, and what is kept is kept for nobody.",
            remedy='Set CONN_MAX_AGE to 0 and use a pool: OPTIONS = {"pool": {...}}.',
        )
    if project.debug and not project.reclaims_dead_threads:
        yield _finding(
            Level.WARNING,
            "runserver-threads",
            fact.alias,
            what=f"CONN_MAX_AGE is {age!r}, DEBUG is on, and RECLAIM_DEAD_THREADS is off.",
            why="runserver has a thread for each client connection, and nobody closes the session that such a thread "
            "leaves behind.",
            remedy="Turn RECLAIM_DEAD_THREADS on again, or use a pool, which belongs to the process.",
            page="explanation/runserver.rst",
        )


def _health_checks(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    pool = options["OPTIONS"].get("pool")
    checked = options["CONN_HEALTH_CHECKS"] or (isinstance(pool, dict) and pool.get("check"))
    if checked or not (pool or options["CONN_MAX_AGE"] != 0):
        return
    yield _finding(
        Level.NOTE,
        "no-health-checks",
        fact.alias,
        what="CONN_HEALTH_CHECKS is off, and connections outlive their request.",
        why="The toolkit replaces connections that the server has closed. One that a firewall or a failover dropped "
        "without a word still fails the request that gets it.",
        remedy="If there is such a thing in between, set CONN_HEALTH_CHECKS to True, and tcp_user_timeout in OPTIONS, "
        "without which a question that gets no answer waits for minutes. A pool then asks the server about "
        f"connections that nobody has used for {ALIVE_FOR:g} s; without a pool, each request asks once.",
    )


def _no_pool(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    releases = project.release == "always" or (project.release == "scoped" and project.middleware)
    if fact.pooled or fact.left_alone is not None or options["ATOMIC_REQUESTS"] or not releases:
        return
    after = project.unpooled_release_after
    yield _finding(
        Level.NOTE,
        "no-pool",
        fact.alias,
        what="There is no pool.",
        why="Giving a connection back is closing it then. "
        + (
            "UNPOOLED_RELEASE_AFTER is None, so that is not done between queries at all."
            if after is None
            else f"It is done when a request has not used it for {after:g} s (UNPOOLED_RELEASE_AFTER), and its next "
            "query has to connect."
        ),
        remedy='If requests wait between their queries, turn on the pool: OPTIONS = {"pool": {"min_size": 2, '
        '"max_size": 8}}. All else that the toolkit does, it does without one.',
    )


def _left_alone(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if fact.left_alone is not None:
        yield _finding(
            Level.WARNING,
            "left-alone",
            fact.alias,
            what=f"The backend {options['ENGINE']} is left alone.",
            why=f"Giving back is not known to be safe there: {fact.left_alone}. None of its connections is given back, "
            "cleaned, reported or reclaimed.",
            remedy='Use a backend that leaves closing to Django, with its pool: OPTIONS = {"pool": {...}}.',
        )


def _pool_size(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    pool = options["OPTIONS"].get("pool")
    if pool and not (isinstance(pool, dict) and {"min_size", "max_size"} & pool.keys()):
        yield _finding(
            Level.NOTE,
            "pool-without-sizes",
            fact.alias,
            what="The pool has neither min_size nor max_size.",
            why=f"Then psycopg_pool opens {_POOL_SIZE} connections in each process, and never more.",
            remedy='Choose: OPTIONS = {"pool": {"min_size": 2, "max_size": 8}}.',
        )


def _atomic_requests(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if not options["ATOMIC_REQUESTS"]:
        return
    pool = options["OPTIONS"].get("pool")
    size = _pool_sizes(pool)[1] if pool else None
    short = size is not None and project.threads is not None and size < project.threads
    yield _finding(
        Level.WARNING if short else Level.NOTE,
        "atomic-requests",
        fact.alias,
        what="ATOMIC_REQUESTS is on"
        + (f", and {project.threads} threads share a pool of {size} connections." if short else "."),
        why="Each view is one transaction and keeps its connection to the end, whatever it waits for in between. "
        + ("As soon as that many views are slow, the others wait for the pool." if short else "Slow views hurt most."),
        remedy="Put atomic() around what has to be one, or exempt slow views with @transaction.non_atomic_requests.",
        page="how-to/slow-views.rst#atomic-requests",
    )


def _pooler(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if fact.pooler in (None, Pooler.NONE):
        return
    if fact.pooler is Pooler.SESSION:
        yield _finding(
            Level.NOTE,
            "pooler",
            fact.alias,
            what="It looks like a pooler between Django and PostgreSQL, in session mode.",
            why="The server's limits were not compared with the project's pools: the pooler has limits of its own.",
            remedy="If it is in transaction mode after all, see the page on PgBouncer.",
            page="how-to/pgbouncer.rst",
        )
        return
    why = "Two connections were given one server session in turn, as PgBouncer in transaction mode does"
    if not options.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield _finding(
            Level.ERROR,
            "server-side-cursors-behind-pooler",
            fact.alias,
            what="It looks like a pooler in transaction mode, and server-side cursors are on.",
            why=f'{why}. A cursor that QuerySet.iterator() opens on one is looked for on another: "cursor does not '
            'exist".',
            remedy="Set DISABLE_SERVER_SIDE_CURSORS to True.",
        )
    threshold = options["OPTIONS"].get("prepare_threshold")
    if threshold is not None:
        yield _finding(
            Level.WARNING,
            "prepared-statements-behind-pooler",
            fact.alias,
            what=f"It looks like a pooler in transaction mode, and prepare_threshold is {threshold!r}.",
            why=f"{why}. A statement that was prepared on one is looked for on another, unless the pooler keeps track "
            "of it (PgBouncer from 1.21 on, with max_prepared_statements).",
            remedy="Remove prepare_threshold from OPTIONS, or have the pooler keep track.",
        )
    yield _finding(
        Level.NOTE,
        "pooler",
        fact.alias,
        what="It looks like a pooler in transaction mode between Django and PostgreSQL.",
        why=f"{why}. The server's limits were not compared with the project's pools, and session state (SET, temporary "
        "tables, advisory locks) does not stay with its client.",
        remedy="See what is left for this toolkit to do there.",
        page="how-to/pgbouncer.rst",
    )


def _idle_transactions(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    limit = project.idle_in_transaction_after
    if fact.activity is None or limit is None:
        return
    idle = {s.pid: s.in_state or 0.0 for s in fact.activity.counted if s.is_idle_in_transaction}
    late = {pid: seconds for pid, seconds in idle.items() if seconds >= limit}
    if late:
        names = ", ".join(f"{pid} ({seconds:.0f} s)" for pid, seconds in late.items())
        yield _finding(
            Level.WARNING,
            "idle-in-transaction-now",
            fact.alias,
            what=f"{_number(len(late), 'session is', 'sessions are')} idle in transaction right now.",
            why=f"They hold their locks and hold back vacuum: pid {names}. The limit is {limit:g} s, as "
            "IDLE_IN_TRANSACTION_AFTER has it.",
            remedy="Look with: manage.py connections status. End them with: manage.py connections terminate "
            f"--idle-in-transaction {limit:g}.",
            page="how-to/idle-in-transaction.rst",
        )


def _followed(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    """Compare the settings that functions and policies read and set with those that are declared to follow."""
    if fact.catalogue is None or not fact.catalogue.followed:
        return
    reasons = fact.catalogue.reasons
    if project.followed_settings == "auto":
        yield _finding(
            Level.NOTE,
            "settings-follow",
            fact.alias,
            what=f"Whatever has set them, {', '.join(reasons)} follow their request.",
            why=_because(reasons),
            remedy="Nothing. List them in FOLLOWED_SETTINGS if that should not depend on the catalogue.",
        )
        return
    missing = {name: reason for name, reason in reasons.items() if name not in project.followed_settings}
    if missing:
        yield _finding(
            Level.WARNING,
            "settings-not-followed",
            fact.alias,
            what=f"FOLLOWED_SETTINGS lacks {', '.join(missing)}.",
            why=f"{_because(missing)} What a function has set is lost when the connection goes back between queries.",
            remedy=f'Add {", ".join(map(_quoted, missing))} to FOLLOWED_SETTINGS, or make it "auto".',
            page="how-to/doctor.rst#settings-follow",
        )


def _because(reasons: Mapping[str, str]) -> str:
    return f"{'; '.join(f'{name}: {reason}' for name, reason in reasons.items())}."


def _quoted(name: str) -> str:
    return f'"{name}"'


def _cleaned(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    """Tell what ``CLEAN_SESSIONS`` comes to where the catalogue has something that leaves state behind."""
    if fact.catalogue is None or not fact.catalogue.leaves_state or project.clean_sessions == "always":
        return
    why = f"Sessions may carry what no statement shows, for {shortened(fact.catalogue.leaves_state)}."
    if project.clean_sessions == "auto":
        yield _finding(
            Level.NOTE,
            "sessions-cleaned",
            fact.alias,
            what='CLEAN_SESSIONS is "auto", which comes to "always" here.',
            why=f"{why} So each is reset when it goes back, which takes about a round trip.",
            remedy='Nothing. Set it to "seen" only if none of that matters to whoever gets the session next.',
        )
        return
    yield _finding(
        Level.WARNING,
        "sessions-not-cleaned",
        fact.alias,
        what='CLEAN_SESSIONS is "seen".',
        why=f"{why} Whoever gets the session next finds that.",
        remedy='Set CLEAN_SESSIONS to "auto" or "always".',
        page="how-to/doctor.rst#sessions-cleaned",
    )


_CHECKS: tuple[Callable[[Project, dict[str, Any], Facts], Iterator[Finding]], ...] = (
    _pooler,
    _persistent,
    _timeouts,
    _idle_transactions,
    _followed,
    _cleaned,
    _atomic_requests,
    _health_checks,
    _pool_size,
    _no_pool,
    _left_alone,
)


# ##### The server's version, and the toolkit's own use #####


def _version(project: Project, fact: Facts, today: datetime.date) -> Iterator[Finding]:
    if fact.limits is None:
        return
    major = fact.limits.version // 10000
    end = END_OF_LIFE.get(major)
    if (major,) < project.minimum_version:
        yield _finding(
            Level.ERROR,
            "server-too-old",
            fact.alias,
            what=f"The server is PostgreSQL {major}, and Django supports {project.minimum_version[0]} or later.",
            why="Django refuses to work with it.",
            remedy="Upgrade the server.",
            page="how-to/doctor.rst#old-server",
        )
    elif major < min(END_OF_LIFE) or (end is not None and end < today):
        since = "long ago" if end is None else f"on {end}"
        yield _finding(
            Level.WARNING,
            "old-server",
            fact.alias,
            what=f"The server is PostgreSQL {major}, whose support ended {since}.",
            why="It gets no fixes any more, neither for security nor for lost data.",
            remedy="Upgrade the server.",
        )
    elif end is not None and end - today < _NEAR:
        yield _finding(
            Level.NOTE,
            "old-server",
            fact.alias,
            what=f"The server is PostgreSQL {major}, whose support ends on {end}.",
            why="After that it gets no fixes any more, neither for security nor for lost data.",
            remedy="Plan the upgrade.",
        )


def _toolkit(project: Project) -> Iterator[Finding]:
    if project.databases and project.release == "scoped" and not project.middleware:
        yield _finding(
            Level.NOTE,
            "toolkit-not-in-use",
            *project.databases,
            what="conn_hygiene is installed, and its middleware is not.",
            why='RELEASE is "scoped", so connections are given back in decorated code only: everywhere else a request '
            "keeps its connection to the end.",
            remedy="Put conn_hygiene.middleware.ConnectionHygieneMiddleware first in MIDDLEWARE.",
            page="tutorial.rst",
        )


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"

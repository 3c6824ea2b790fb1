"""How many connections a whole fleet may open, compared with what servers, roles, databases and PgBouncer allow."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from conn_hygiene.server.findings import (
    POOL_SIZE,
    Facts,
    Finding,
    Level,
    Project,
    finding,
    has_sqlalchemy_pool,
    number,
    pool_option,
    pool_sizes,
)
from conn_hygiene.server.pooler import Pooler
from conn_hygiene.sessions.connect_options import tag_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conn_hygiene.server.pgbouncer import PgBouncer
    from conn_hygiene.server.sessions import Identity, Limits

#: Of the documentation.
PAGE = "how-to/doctor.rst#too-many-connections"


@dataclasses.dataclass(frozen=True)
class _Fleet:
    """How many processes there are on all hosts, how that comes about, and what each opens."""

    project: Project
    processes: int
    words: str
    #: Whether nobody has said so, and it is what sessions are named after.
    seen: bool

    def of_each(self, fact: Facts) -> int:
        """Return how many connections one process has to the alias of *fact* at most."""
        options, threads = self.project.databases[fact.alias], self.project.threads or 1
        pool = options["OPTIONS"].get("pool")
        if pool:
            limit = pool_sizes(pool)[1]
            return threads if limit is None else limit
        if has_sqlalchemy_pool(options):
            # Without a limit each thread may have one.
            return _pool_limit(options) or threads
        return threads

    def of_all(self, group: list[Facts]) -> tuple[int, str]:
        """Return how many all processes have to the aliases of *group*, and how that comes about."""
        each = {fact.alias: self.of_each(fact) for fact in group}
        total = self.processes * sum(each.values())
        parts = " + ".join(f"{count} of {alias!r}" for alias, count in each.items())
        return total, f"{self.words} times {parts} make {total}"

    def lowered(self, group: list[Facts], fit: int) -> str:
        """Return what is to be lowered in the settings of the aliases of *group*, to *fit*."""
        each = [self.project.databases[fact.alias] for fact in group]
        names = sorted({_limiting(options) or "max_size" for options in each})
        pools = [pool for options in each if (pool := options["OPTIONS"].get("pool"))]
        # psycopg_pool takes no max_size that is less than min_size, which it has also where nobody has written one.
        if any(pool_sizes(pool)[0] > fit for pool in pools):
            unset = any(not (isinstance(pool, dict) and "min_size" in pool) for pool in pools)
            names.append(f"min_size ({POOL_SIZE} if it is left out)" if unset else "min_size")
        return f"{' and '.join(names)} to {fit} at most"

    def fitting(self, room: int, aliases: int) -> int:
        """Return how many connections to each of *aliases* a process may have if *room* is for all."""
        return max(0, room) // (self.processes * aliases)


def check(project: Project, facts: list[Facts]) -> Iterator[Finding]:
    """Compare what all processes together may open with what the servers, and PgBouncer in between, allow.

    Aliases behind another pooler, or one that does not answer, are left out: their connections are not the server's.
    """
    known = [fact for fact in facts if fact.limits and fact.identity and (_is_direct(fact) or fact.pgbouncer)]
    fleet = _fleet(project, known)
    for group in _grouped(known, lambda fact: _identity(fact).server_started):
        yield from _server(fleet, group)
        for part in _grouped(group, lambda fact: _identity(fact).role):
            yield from _own_limit(fleet, part, "role_limit", "role")
        for part in _grouped(group, lambda fact: _identity(fact).database):
            yield from _own_limit(fleet, part, "database_limit", "database")
    through = [fact for fact in known if fact.pgbouncer]
    for group in _grouped(through, lambda fact: _pgbouncer(fact).address):
        yield from _clients(fleet, group)
    for group in _grouped(through, _pool):
        yield from _session_pool(fleet, group)
    yield from _unknown(fleet, known)


def opened(project: Project, group: list[Facts]) -> str:
    """Return how many connections the settings let all processes have to *group*, whose server says nothing of them."""
    words = _fleet(project, group).of_all(group)[1]
    return f"{words} by the settings" + ("" if project.processes else ", and --processes N says for how many processes")


def _is_direct(fact: Facts) -> bool:
    return fact.pooler is Pooler.NONE


def _limiting(options: dict[str, Any]) -> str | None:
    """Return what in *options* of an alias limits the connections of a process to it; None if nothing does."""
    if pool := options["OPTIONS"].get("pool"):
        return "max_size" if pool_sizes(pool)[1] is not None else None
    return "POOL_SIZE plus MAX_OVERFLOW" if has_sqlalchemy_pool(options) and _pool_limit(options) else None


def _pool_limit(options: dict[str, Any]) -> int:
    """Return how many connections a pool of django-db-connection-pool's has at most; 0 if it has no limit."""
    size, overflow = (pool_option(options, name) for name in ("POOL_SIZE", "MAX_OVERFLOW"))
    # SQLAlchemy takes 0 and -1 for no limit.
    return int(size + overflow) if size and overflow >= 0 else 0


def _grouped(facts: list[Facts], key: Callable[[Facts], Any]) -> list[list[Facts]]:
    groups: dict[Any, list[Facts]] = defaultdict(list)
    for fact in facts:
        groups[key(fact)].append(fact)
    return list(groups.values())


def _identity(fact: Facts) -> Identity:
    assert fact.identity is not None
    return fact.identity


def _limits(fact: Facts) -> Limits:
    assert fact.limits is not None
    return fact.limits


def _pgbouncer(fact: Facts) -> PgBouncer:
    assert fact.pgbouncer is not None
    return fact.pgbouncer


def _pool(fact: Facts) -> tuple[str, str, str]:
    """Return which of PgBouncer's pools the alias uses: it has one for each database and role."""
    bouncer = _pgbouncer(fact)
    return bouncer.address, bouncer.database, bouncer.role


# ##### The fleet #####


def _fleet(project: Project, facts: list[Facts]) -> _Fleet:
    seen = {process for fact in facts for process in _processes(project, fact)}
    if project.processes is not None:
        each = project.processes
    elif project.hosts is not None:
        each = max(Counter(host for host, _ in seen).values(), default=1)
    else:
        each = len(seen) or 1
    words = number(each, "process", "processes")
    if project.hosts is not None:
        words = f"{number(project.hosts, 'host', 'hosts')} times {words}"
    return _Fleet(project, each * (project.hosts or 1), words, seen=project.processes is None and bool(seen))


def _processes(project: Project, fact: Facts) -> set[tuple[str, int]]:
    """Return the processes that have sessions named after them, each as its host and pid."""
    if fact.pgbouncer is not None:
        # A server session has the name of the client that had it last.
        names = list(fact.pgbouncer.clients)
    else:
        names = [] if fact.activity is None else [session.application_name for session in fact.activity.counted]
    tags = [tag for name in names if (tag := tag_in(name)) is not None]
    return {(tag.host, tag.pid) for tag in tags if tag.project == project.name}


def _unknown(fleet: _Fleet, facts: list[Facts]) -> Iterator[Finding]:
    """Say of which numbers the sums were made that nobody has given."""
    project, aliases = fleet.project, [fact.alias for fact in facts]
    if project.processes is None and facts and fleet.seen:
        yield finding(
            Level.NOTE,
            "processes-seen",
            *aliases,
            what=f"Connections were counted for {fleet.words}, "
            + ("those with sessions right now." if project.hosts is None else "as many as one has right now."),
            why="TAG_SESSIONS names them. A process that has no session at this moment was not seen, nor is one that a "
            "deployment starts before the old ones end.",
            remedy="Say how many there can be: --processes N; or --hosts N, each with as many as were seen on one.",
            page=PAGE,
        )
    elif project.processes is None and facts:
        yield finding(
            Level.NOTE,
            "processes-unknown",
            *aliases,
            what=f"Connections were counted for {'a single process' if project.hosts is None else fleet.words}.",
            why="Each worker process has a pool of its own, so the number of processes multiplies everything.",
            remedy="Say how many there are, task queues and management commands included: --processes N, and --hosts N "
            "if that is on each host. Or set TAG_SESSIONS: then those are counted that have sessions at that moment.",
            page=PAGE,
        )
    unpooled = [alias for alias in aliases if not _limiting(project.databases[alias])]
    if project.threads is None and unpooled:
        yield finding(
            Level.NOTE,
            "threads-unknown",
            *unpooled,
            what="Connections were counted for a single thread.",
            why="Without a pool that has a limit, each thread has a connection of its own.",
            remedy="Say how many threads a process has: --threads N.",
            page=PAGE,
        )


# ##### The server #####


@dataclasses.dataclass(frozen=True)
class _Demand:
    """How many server sessions there may be for some aliases: of the processes themselves, and of PgBouncer's pools."""

    total: int
    words: str
    direct: list[Facts]
    pools: dict[tuple[str, str, str], int]


def _demand(fleet: _Fleet, group: list[Facts]) -> _Demand:
    direct = [fact for fact in group if fact.pgbouncer is None]
    pools: dict[tuple[str, str, str], int] = {}
    for part in _grouped([fact for fact in group if fact.pgbouncer], _pool):
        # Without any limit, there is a session for each client.
        pools[_pool(part[0])] = _pgbouncer(part[0]).sessions or fleet.of_all(part)[0]
    total, words = fleet.of_all(direct) if direct else (0, "")
    if pools:
        of_pools = " + ".join(f"{size} for {role!r} in {name!r}" for (_, name, role), size in pools.items())
        words = f"{words}{', and ' if words else ''}PgBouncer's pools have {of_pools}"
    return _Demand(total + _within_databases(group, pools), words, direct, pools)


def _within_databases(group: list[Facts], pools: dict[tuple[str, str, str], int]) -> int:
    """Return how many sessions *pools* may have together: max_db_connections is for all roles of a database."""
    limits = {_pool(fact)[:2]: _pgbouncer(fact).max_db_connections for fact in group if fact.pgbouncer}
    sums: Counter[tuple[str, str]] = Counter()
    for (address, database, _), size in pools.items():
        sums[address, database] += size
    return sum(min(size, limits[place]) if limits[place] else size for place, size in sums.items())


def _server(fleet: _Fleet, group: list[Facts]) -> Iterator[Finding]:
    limits = _limits(group[0])
    demand, foreign, room = _demand(fleet, group), _foreign_sessions(group), limits.available
    allowed = f"max_connections is {limits.max_connections}, of which {limits.reserved} are reserved"
    aliases = [fact.alias for fact in group]
    remedy = _remedy(fleet, demand, room - foreign, "max_connections", demand.total + foreign + limits.reserved)
    if demand.total > room:
        yield finding(
            Level.ERROR,
            "too-many-connections",
            *aliases,
            what=f"The project may open {demand.total} connections, and the server has room for {room}.",
            why=f'{demand.words}; {allowed}. Under load the rest is refused: "sorry, too many clients already".',
            remedy=remedy,
        )
    elif demand.total + foreign > room:
        yield finding(
            Level.WARNING,
            "too-many-connections",
            *aliases,
            what=f"The project may open {demand.total} connections, and others leave room for "
            f"{max(0, room - foreign)}.",
            why=f"{demand.words}; {allowed}, and other roles and databases have {foreign} open right now.",
            remedy=remedy,
        )


def _foreign_sessions(group: list[Facts]) -> int:
    """Return how many sessions are of none of the roles and databases that *group* has on its server."""
    own = {_identity(fact): len(fact.activity.sessions) for fact in group if fact.activity is not None}
    first = group[0]
    return max(0, _limits(first).foreign_sessions + own.get(_identity(first), 0) - sum(own.values()))


def _own_limit(fleet: _Fleet, group: list[Facts], limit: str, name: str) -> Iterator[Finding]:
    limits = _limits(group[0])
    allowed: int = getattr(limits, limit)
    demand = _demand(fleet, group)
    # Superusers are exempt from these limits.
    if 0 <= allowed < demand.total and not limits.superuser:
        who = f"{name} {getattr(_identity(group[0]), name)!r}"
        yield finding(
            Level.ERROR,
            "connection-limit",
            *(fact.alias for fact in group),
            what=f"The project may open {demand.total} connections, and the {who} is limited to {allowed}.",
            why=f'{demand.words}. Under load the rest is refused: "too many connections for {name}".',
            remedy=_remedy(fleet, demand, allowed, f"the {name}'s CONNECTION LIMIT", demand.total),
        )


def _remedy(fleet: _Fleet, demand: _Demand, room: int, limit: str, enough: int) -> str:
    """Return what to set, in numbers: what would fit into *room*, or *limit* to what is *enough*."""
    ways = []
    if demand.direct:
        left = room - sum(demand.pools.values())
        fit = fleet.fitting(left, len(demand.direct))
        pooled = all(_limiting(fleet.project.databases[fact.alias]) for fact in demand.direct)
        if fit and pooled:
            ways.append(f"Lower {fleet.lowered(demand.direct, fit)}, which giving back between queries allows")
        elif fit:
            ways.append(_pools_of(fit, len(demand.direct)))
        else:
            ways.append("Put PgBouncer in transaction mode in between, since that is not even one for each process")
        ways.append("or run fewer processes")
    if demand.pools:
        left = room - (demand.total - sum(demand.pools.values()))
        ways.append(
            f"{'or l' if ways else 'L'}ower PgBouncer's pool_size to {max(1, left // len(demand.pools))} at most"
        )
    return f"{', '.join(ways)}; or raise {limit} to {enough}."


def _pools_of(fit: int, aliases: int) -> str:
    """Return that each of *aliases* is to have a pool of *fit* connections at most, as one that can be made."""
    each = "" if aliases == 1 else " for each alias"
    least = f", with a min_size of {fit} at most" if fit < POOL_SIZE else ""
    return f"Have a pool of {fit} at most{each} in each process{least}"


# ##### PgBouncer's own limits #####


def _clients(fleet: _Fleet, group: list[Facts]) -> Iterator[Finding]:
    allowed = _pgbouncer(group[0]).max_client_conn
    clients, words = fleet.of_all(group)
    if 0 < allowed < clients:
        fit = fleet.fitting(allowed, len(group))
        yield finding(
            Level.ERROR,
            "too-many-clients",
            *(fact.alias for fact in group),
            what=f"The project may open {clients} connections to PgBouncer, whose max_client_conn is {allowed}.",
            why=f'{words}. Under load the rest is refused: "no more connections allowed (max_client_conn)".',
            remedy=f"Set max_client_conn to {clients} at least, with a limit of open files above it"
            + (f"; or lower {fleet.lowered(group, fit)}." if fit else "."),
        )


def _session_pool(fleet: _Fleet, group: list[Facts]) -> Iterator[Finding]:
    """In session mode a client has its server session to itself, whatever it does."""
    bouncer = _pgbouncer(group[0])
    clients, words = fleet.of_all(group)
    if bouncer.mode == "session" and 0 < bouncer.sessions < clients:
        fit = fleet.fitting(bouncer.sessions, len(group))
        seconds = bouncer.query_wait_timeout
        then = f'after {seconds:g} s it fails: "query_wait_timeout"' if seconds else "and that without limit"
        yield finding(
            Level.ERROR,
            "session-pool-too-small",
            *(fact.alias for fact in group),
            what=f"The project may open {clients} connections to PgBouncer, which has {bouncer.sessions} sessions for "
            "them.",
            why=f"{words}. In session mode each keeps one for as long as it is open. The rest waits, {then}.",
            remedy=(f"Lower {fleet.lowered(group, fit)}, " if fit else "Run fewer processes, ")
            + f"or set pool_size to {clients}, or use transaction mode.",
        )

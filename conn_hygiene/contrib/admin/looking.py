"""What the page shows, asked for over connections of its own, and made ready for its templates.

Those connections are in no pool (see :func:`conn_hygiene.server.sessions.connect`), live for one look, and are given up
after :data:`TIMEOUT`: the page has to answer when a pool is used up and when a server is down.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from datetime import timezone
from typing import TYPE_CHECKING, Any

from django.db import connections

from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.management import asking, rendering
from conn_hygiene.masking import printable
from conn_hygiene.reports import live
from conn_hygiene.reports import snapshot as own
from conn_hygiene.reports.live import Process
from conn_hygiene.server import doctor
from conn_hygiene.server import sessions as server
from conn_hygiene.server.findings import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg

    from conn_hygiene.management.rendering import View
    from conn_hygiene.reports.snapshot import LeaseInfo, PoolInfo
    from conn_hygiene.server.doctor import Finding

#: Seconds to wait for a server, and for each of its answers. For the former, libpq knows no less.
TIMEOUT = 2

#: How many sessions of a database, and how many leases, are listed. What matters most comes first.
LIMIT = 200

# What stands for times in a URL and in a form, where a datetime would have to be parsed.
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = datetime.timedelta(microseconds=1)


def micros(time: datetime.datetime | None) -> int | None:
    """Return *time* in microseconds since 1970, exactly."""
    return None if time is None else (time - _EPOCH) // _MICROSECOND


def from_micros(number: int) -> datetime.datetime:
    """Return the time that :func:`micros` has made *number* of.

    :raises OverflowError: There is no such time.
    """
    return _EPOCH + number * _MICROSECOND


@dataclasses.dataclass
class Row:
    """One session."""

    session: server.Session
    #: Alias, pid and start, of which the page makes names and addresses.
    alias: str
    started: int | None
    state: str
    #: For how long, in words: in its state, in its transaction, since it began.
    in_state: str
    in_transaction: str
    age: str
    waits_for: str
    #: Sessions that it waits for, and whether they are in the same table.
    blockers: list[tuple[int, bool]]
    #: How many wait for it, or for somebody who does.
    blocks: int
    #: What only the process that holds it knows, if it has said so.
    request: str
    where_began: str
    where_now: str
    #: Whose it is, and where it comes from.
    client: str
    statement: str
    #: It is what this very request queries over.
    own: bool
    mood: str
    #: Where it can be ended, for those who may.
    address: str = ""

    @property
    def key(self) -> str:
        """A name for it in the page, the same at each look."""
        return f"session-{self.alias}-{self.session.pid}-{self.started}"


@dataclasses.dataclass(frozen=True)
class Database:
    """One database with its sessions; ``error`` if it could not be asked."""

    aliases: Sequence[str]
    title: str
    error: str | None = None
    counts: str = ""
    rows: Sequence[Row] = ()
    left_off: int = 0
    remarks: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Held:
    """One lease, of whichever process."""

    process: int
    command: str
    lease: LeaseInfo
    held: str
    idle: str
    in_transaction: str
    statement: str
    pins: str
    kept: str | None
    mood: str


@dataclasses.dataclass(frozen=True)
class Pool:
    """One pool, of whichever process."""

    process: int
    command: str
    pool: PoolInfo
    in_use: int
    #: What the gauge goes up to.
    most: int
    mood: str

    @property
    def high(self) -> float:
        """Above what the gauge shows that it is full."""
        return self.most - 0.5


@dataclasses.dataclass(frozen=True)
class Look:
    """All that the page shows of one moment."""

    when: datetime.datetime
    databases: Sequence[Database]
    leases: Sequence[Held]
    leases_left_off: int
    pools: Sequence[Pool]
    #: Processes that are there and have not answered in time.
    silent: Sequence[str]
    #: Why places are not looked at in which there may be more of them.
    refused: Sequence[str]

    @property
    def summary(self) -> str:
        """The look in one sentence, which is read out when it changes."""
        rows = [row for database in self.databases for row in database.rows]
        idle = sum(row.session.is_idle_in_transaction for row in rows)
        blocked = sum(bool(row.blockers) for row in rows)
        waiting = sum(pool.pool.waiting for pool in self.pools)
        failed = [database.title for database in self.databases if database.error]
        parts = [
            number(len(rows) + sum(database.left_off for database in self.databases), "session", "sessions"),
            f"{idle} idle in transaction" if idle else "",
            f"{blocked} waiting for a lock" if blocked else "",
            f"{number(len(self.leases) + self.leases_left_off, 'connection', 'connections')} checked out",
            f"{number(waiting, 'thread', 'threads')} waiting for a pool" if waiting else "",
            f"no connection to be had to {', '.join(failed)}" if failed else "",
        ]
        return f"{', '.join(part for part in parts if part)}."


def look() -> Look:
    """Return what the servers, and the processes of this host, say now."""
    with ExitStack() as stack:
        groups = asking.alike(server.aliases())
        status = asking.collect(asking.Source(stack, groups, server.Scope(), **connection_parameters()), 0)
    found = _of_this_project(status.processes)
    held = [_held(process, lease) for process in found for lease in process.leases]
    held.sort(key=lambda each: -each.lease.held_for)
    return Look(
        when=datetime.datetime.now().astimezone(),
        databases=[_database(view) for view in status.views],
        leases=held[:LIMIT],
        leases_left_off=max(0, len(held) - LIMIT) + sum(process.leases_left_off for process in found),
        pools=[_pool(process, pool) for process in found for pool in process.pools],
        silent=[f"process {process.pid} {process.command}".strip() for process in found if not process.answered],
        refused=status.refused,
    )


def _of_this_project(processes: Sequence[Process]) -> list[Process]:
    """Return those of *processes* that have a database of this project, and this one, also if it answers to nobody."""
    found = []
    for process in processes:
        is_ours = any(asking.leads_to(connections.settings, process, alias) for alias in process.databases)
        # One that has not answered may be of another project; nobody can tell.
        if process.pid != os.getpid() and (is_ours or not process.answered):
            found.append(process)
    # Of its own this one knows more, and better.
    here = Process(os.getpid(), "this one", 0, None, {}, own.snapshot(), own.pool_stats(), None, answered=True)
    return [*found, here]


def connection_parameters() -> dict[str, Any]:
    """Return what a connection of the page's own is opened with; by its name the page knows its sessions again."""
    return {
        "connect_timeout": TIMEOUT,
        "answer_timeout": TIMEOUT,
        "application_name": f"conn_hygiene admin {socket.gethostname()[:30]}:{os.getpid()}",
    }


def own_pids() -> set[int]:
    """Return the sessions that the running thread has checked out: the ones that this very request queries over."""
    running = threading.get_ident()
    pids = {lease.server_pid for lease in own.snapshot() if lease.thread_id == running}
    for wrapper in connections.all(initialized_only=True):
        # With a lease, to read it would check one out.
        if lease_of(wrapper) is None and wrapper.vendor == "postgresql" and wrapper.connection is not None:
            pids.add(wrapper.connection.info.backend_pid)
    return pids


def find(connection: psycopg.Connection[Any], pid: int, started: int) -> server.Session | None:
    """Return the session that has *pid* and began at *started*, as :func:`micros` has it; None if it is not there.

    Nor is it if it is of another role or database than *connection*, or one of the page's own.
    """
    if pid in own_pids():
        return None
    found = [each for each in server.activity(connection).counted if each.pid == pid]
    return next((each for each in found if micros(each.backend_start) == started), None)


def known(connection: psycopg.Connection[Any], session: server.Session) -> dict[str, Any]:
    """Return what the process that holds *session* knows of it, if one of this host does, and has answered."""
    holders = live.holders(live.processes(), connection)
    return next((vars(holder.lease) for holder in holders if holder.has(session)), {})


def findings() -> list[Finding]:
    """Return what the doctor says."""
    aliases = server.aliases()
    if not aliases:
        return []
    return doctor.diagnose(asking.project(aliases), asking.facts(aliases), datetime.date.today())  # noqa: DTZ011


# ##### Rows #####


def _database(view: View) -> Database:
    names = ", ".join(view.aliases)
    if view.activity is None or view.identity is None:
        return Database(view.aliases, names, error=view.error)
    identity, sessions = view.identity, view.activity.counted
    held = own_pids()
    rows = [row(session, view.aliases[0], view.known.get(session.pid, {}), held) for session in sessions[:LIMIT]]
    return Database(
        view.aliases,
        f"{names}: {identity.database} as {identity.role}, PostgreSQL {identity.server_version}",
        counts=", ".join(f"{count} {state}" for state, count in view.activity.by_state().items()),
        rows=_with_blockers(rows, sessions),
        left_off=max(0, len(sessions) - LIMIT),
        remarks=list(_remarks(view)),
    )


def row(session: server.Session, alias: str, known: dict[str, Any], held: Iterable[int] = ()) -> Row:
    """Return *session* for a template, with what is *known* of it; those in *held* are the page's own."""
    tag = session.tag
    address = session.client_address or ("" if session.state is None else "local")
    client = [f"{tag.host}:{tag.pid}" if tag else session.application_name, address]
    # That a session waits for its client is what its state says already.
    waits = session.wait_event if session.wait_event != "Client: ClientRead" else None
    return Row(
        session,
        alias,
        started=micros(session.backend_start),
        state=session.state or "hidden",
        in_state=rendering.duration(session.in_state),
        in_transaction=rendering.duration(session.in_transaction),
        age=rendering.duration(session.age),
        waits_for=waits or "",
        blockers=[],
        blocks=0,
        request=printable(known.get("request") or ""),
        where_began=printable(known.get("where_began") or ""),
        where_now=printable(known.get("where_now") or ""),
        client=" ".join(part for part in client if part),
        statement=rendering.shortened(session.statement or ""),
        own=session.pid in held,
        mood=_mood(session),
    )


def _mood(session: server.Session) -> str:
    if session.state == server.ABORTED:
        return "bad"
    return "warn" if session.is_idle_in_transaction or session.blocked_by else "plain"


def _with_blockers(rows: list[Row], sessions: Sequence[server.Session]) -> list[Row]:
    blocks = _waiting_for({session.pid: session.blocked_by for session in sessions})
    listed = {each.session.pid for each in rows}
    # One that holds several of the locks that are waited for is named once for each.
    return [
        dataclasses.replace(
            each,
            blockers=[(pid, pid in listed) for pid in dict.fromkeys(each.session.blocked_by)],
            blocks=blocks[each.session.pid],
        )
        for each in rows
    ]


def _waiting_for(waits: Mapping[int, Sequence[int]]) -> Counter[int]:
    """Return how many cannot go on before each pid does; *waits* says for whom each of them waits.

    Of many that want one row, the first waits for who has it, and the others for the first.
    """
    before: dict[int, set[int]] = {}
    # Who is later in a queue waits for all that are earlier, and is known by the last of these.
    for pid in sorted(waits, key=lambda each: len(waits[each])):
        found: set[int] = set()
        ahead = [*waits[pid]]
        while ahead:
            blocker = ahead.pop()
            if blocker not in found:
                found |= {blocker, *before.get(blocker, ())}
                ahead += () if blocker in before else waits.get(blocker, ())
        before[pid] = found
    return Counter(blocker for pid, found in before.items() for blocker in found if blocker != pid)


def _remarks(view: View) -> Iterable[str]:
    assert view.activity is not None
    if view.of_pooler is not None:
        yield view.of_pooler
    if view.activity.hidden:
        yield f"{view.activity.hidden} of them are hidden from this role, state and statement included."
    if view.activity.others:
        yield f"{number(view.activity.others, 'session', 'sessions')} of other roles not listed."


def _held(process: Process, lease: LeaseInfo) -> Held:
    pins = [f"{reason}: {where}" if where else reason for reason, where in lease.pinned_by.items()]
    # Whoever names a thread, a path or a file may put into it what no page can have.
    texts: dict[str, Any] = {name: printable(getattr(lease, name) or "") or None for name in _OF_OTHERS}
    lease = dataclasses.replace(lease, **texts)
    return Held(
        process.pid,
        process.command,
        lease,
        held=rendering.duration(lease.held_for),
        idle=rendering.duration(lease.idle_for),
        in_transaction=rendering.duration(lease.transaction_for) if lease.in_transaction else "",
        statement=rendering.shortened(printable(lease.statement or "")),
        pins=printable("; ".join(pins)),
        kept=lease.kept_because if lease.idle_for else None,
        mood="warn" if lease.in_transaction and lease.idle_for >= 1 else "plain",
    )


_OF_OTHERS = ("request", "thread_name", "where_checked_out", "where_began", "where_now")


def _pool(process: Process, pool: PoolInfo) -> Pool:
    return Pool(
        process.pid,
        process.command,
        pool,
        rendering.in_use(pool),
        most=max(pool.max_size, pool.size, 1),
        mood="bad" if pool.waiting else "warn" if rendering.is_full(pool) else "plain",
    )

"""What ``manage.py connections`` shows, as blocks of lines and tables, and those as plain text or JSON.

A block says what is to be seen; how, is up to :func:`plain` here, or to :mod:`conn_hygiene.contrib.rich`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Any

from conn_hygiene import pages
from conn_hygiene.management import fitting
from conn_hygiene.masking import harmless, mask, printable
from conn_hygiene.reports import answering
from conn_hygiene.server import fleet
from conn_hygiene.server import sessions as server
from conn_hygiene.server.findings import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conn_hygiene.events import UnseenState
    from conn_hygiene.reports.live import Process
    from conn_hygiene.reports.snapshot import LeaseInfo, PoolInfo
    from conn_hygiene.server.doctor import Finding

#: The version of the JSON formats. Keys may be added within a version; it changes when one goes or changes its meaning.
JSON_VERSION = 1

#: Moods of a line or row, for whoever has colours.
BAD, WARN, GOOD, QUIET, PLAIN = "bad", "warn", "good", "quiet", "plain"

_MOODS = {server.ABORTED: BAD, server.IDLE_IN_TRANSACTION: WARN, server.ACTIVE: GOOD, None: QUIET}

# A statement is a hint at what a session does; whoever wants all of it asks for JSON.
_STATEMENT = 120

# How wide the table of processes may be: an old terminal's width, less what rich adds.
_WIDTH = 80 - 3
# What is left of a text at least, however narrow a terminal is.
_LEAST = 8


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of text; on a terminal it is wrapped, or *cut* behind the first so many characters that are *kept*."""

    text: str
    mood: str = PLAIN
    cut: fitting.Cut | None = None
    kept: int = 0

    def __post_init__(self) -> None:
        # In one place for all that is shown: much of it is the choice of whoever has named a role or a function.
        object.__setattr__(self, "text", harmless(self.text))

    def fitted(self, width: int | None) -> str:
        """Return the text, no wider than *width* if it may be cut."""
        if self.cut is None or width is None:
            return self.text
        return self.text[: self.kept] + self.cut(self.text[self.kept :], max(_LEAST, width - self.kept))


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of the same columns. Those that share a first cell belong together."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    moods: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", [tuple(map(printable, row)) for row in self.rows])


Block = Line | Table


@dataclasses.dataclass(frozen=True)
class View:
    """One database with its sessions, under all aliases that lead to it; ``error`` if it could not be asked."""

    aliases: list[str]
    identity: server.Identity | None = None
    activity: server.Activity | None = None
    error: str | None = None
    #: What this host's processes know of the sessions, by pid: the attributes of a :class:`LeaseInfo`, with the process
    #: as ``holder`` where it is not this one; of a notice ``request``, ``where_began`` and ``where_now`` only.
    known: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    #: Those of the aliases that lead there through a pooler, which has their sessions.
    pooled_aliases: Sequence[str] = ()
    #: What this host's other processes hold there, the one held for longest first, if the server could not be asked.
    held: Sequence[tuple[Process, LeaseInfo]] = ()

    @property
    def pooled(self) -> bool:
        """Whether all lead through a pooler, so that what was asked is not the server itself."""
        return bool(self.pooled_aliases) and set(self.aliases) <= set(self.pooled_aliases)

    @property
    def of_pooler(self) -> str | None:
        """What is to be said of the names of a pooler's sessions, in a sentence; None without one."""
        if not self.pooled_aliases:
            return None
        which = "They" if self.pooled else f"Those of {', '.join(self.pooled_aliases)}"
        return f"{which} are a pooler's: each has the name of the client that had it last."


@dataclasses.dataclass(frozen=True)
class Status:
    """All that ``status`` and ``watch`` show."""

    views: list[View]
    leases: list[LeaseInfo]
    #: How many rows a table of sessions or processes has at most; 0 is no limit.
    limit: int = 0
    #: The processes of this host, those that did not answer included.
    processes: Sequence[Process] = ()
    #: Why places are not looked at in which there may be more of them.
    refused: Sequence[str] = ()
    #: The pools of this host's processes that have nothing left to give, or are waited for.
    full: Sequence[tuple[Process, PoolInfo]] = ()


def status_blocks(status: Status) -> list[Block]:
    """Return the sessions of each database, and what this process holds itself, if anything."""
    blocks: list[Block] = []
    for view in status.views:
        blocks += _view_blocks(view, status.limit)
    blocks += [Line(_fullness(process, pool), WARN) for process, pool in status.full]
    blocks += [
        Line(f"{printable(whose(process))} does not answer.", WARN)
        for process in status.processes
        if not process.answered
    ]
    blocks += [Line(f"Nobody is asked there, STATUS_DIRECTORY being unsafe: {text}", WARN) for text in status.refused]
    if status.leases:
        blocks += [Line(""), Line("Leases of this process", GOOD), leases_table(status.leases)]
    return blocks


def _view_blocks(view: View, limit: int) -> list[Block]:
    names = ", ".join(view.aliases)
    if view.activity is None or view.identity is None:
        return [Line(f"{names}: {view.error}", BAD), *_held_blocks(view.held, limit)]
    title = f'{names}: database "{view.identity.database}" as "{view.identity.role}", PostgreSQL '
    counts = [f"{count} {state}" for state, count in view.activity.by_state().items()]
    total = len(view.activity.counted)
    sessions = view.activity.sessions
    # The one that asks is of interest to nobody who has many.
    shown = sessions if not limit or len(sessions) <= limit else view.activity.counted[:limit]
    blocks: list[Block] = [
        Line(title + view.identity.server_version, GOOD),
        Line(
            f"{number(total, 'session', 'sessions')}{': ' if counts else ''}{', '.join(counts)}{_fleet(view.activity)}"
        ),
        *_fleet_blocks(view.activity.counted, limit),
        sessions_table(shown),
    ]
    if len(shown) < total:
        blocks.append(Line(f"and {total - len(shown)} more; --limit 0 lists all.", QUIET))
    for session in shown:
        blocks += _explanation(session, view.known)
    if view.of_pooler is not None:
        blocks.append(Line(view.of_pooler, QUIET))
    blocks += [Line(text, QUIET) for text in _unseen(view.activity)]
    return blocks


def _held_blocks(held: Sequence[tuple[Process, LeaseInfo]], limit: int) -> Iterable[Block]:
    """Yield what processes say of their connections where there is no server to name the sessions."""
    if not held:
        return
    yield Line(f"Processes of this host hold {number(len(held), 'connection', 'connections')} there, by server pid:")
    for process, lease in held[:limit] if limit else held:
        yield from _told(lease.server_pid, vars(lease) | {"holder": process})
    if limit and len(held) > limit:
        yield Line(f"and {len(held) - limit} more; --limit 0 lists all.", QUIET)


def _fullness(process: Process, pool: PoolInfo) -> str:
    waiting = f", and {number(pool.waiting, 'thread waits', 'threads wait')}" if pool.waiting else ""
    return (
        f"The pool of {printable(pool.alias)} in {printable(whose(process))} has nothing left: {in_use(pool)} of "
        f"{pool.max_size or pool.size} connections are checked out or being opened{waiting}."
    )


def in_use(pool: PoolInfo) -> int:
    """Return how many connections of *pool* are not to be had: they are checked out, or being opened."""
    return max(0, pool.size - pool.available)


def is_full(pool: PoolInfo) -> bool:
    """Return whether *pool* has no connection ready, and may open no more."""
    return 0 < pool.max_size <= in_use(pool)


def _fleet(activity: server.Activity) -> str:
    processes = fleet.processes(activity.counted)
    hosts = {host for host, _ in processes}
    of = f"; of {number(len(processes), 'process', 'processes')} on {number(len(hosts), 'host', 'hosts')}"
    return of if processes else ""


def _fleet_blocks(sessions: Sequence[server.Session], limit: int) -> list[Block]:
    """Return whose *sessions* are, if they are named: by process, or by host where the processes are too many."""
    if not fleet.processes(sessions):
        return []
    groups = fleet.by_process(sessions)
    if limit and len(groups) > limit:
        groups = fleet.by_host(sessions)
    blocks: list[Block] = [processes_table(groups[:limit] if limit else groups)]
    if limit and len(groups) > limit:
        blocks.append(Line(f"and {len(groups) - limit} more; --limit 0 lists all.", QUIET))
    return [*blocks, Line("")]


def processes_table(groups: Sequence[fleet.Group]) -> Table:
    """Return *groups* as a table, one row each, in their order; as wide as an old terminal at most."""
    several = len({group.alias for group in groups}) > 1
    by_host = all(group.process is None for group in groups)
    columns = (
        "Host",
        "Processes" if by_host else "Process",
        "Alias",
        "Sessions",
        "Active",
        "Idle",
        "In trans.",
        "Oldest",
    )
    rows = [
        (
            printable(group.host),
            str(group.processes) if by_host else str(group.process or ""),
            printable(group.alias or "") if several else "",
            str(group.sessions),
            str(group.active or ""),
            str(group.idle or ""),
            str(group.idle_in_transaction or ""),
            duration(group.oldest),
        )
        for group in groups
    ]
    moods = [WARN if group.idle_in_transaction else PLAIN for group in groups]
    # Wherever it is read: names that are made by machines are long, and the numbers count.
    return fitting.fitted(Table(columns, rows, moods), _WIDTH, len(_GAP))


def _explanation(session: server.Session, known: dict[int, dict[str, Any]]) -> Iterable[Line]:
    """Yield what only the process that owns *session* can know, and who keeps it waiting."""
    yield from _told(session.pid, known.get(session.pid, {}), session)
    if session.blocked_by:
        yield Line(f"{session.pid} waits for {', '.join(map(str, session.blocked_by))}")


def _told(pid: int, facts: dict[str, Any], session: server.Session | None = None) -> Iterable[Line]:
    """Yield what the process that owns the session *pid* says of it, below each other."""
    before = f"{pid}: "
    for text, cut, kept in _details(session, facts):
        if text:
            yield Line(before + printable(text), cut=cut, kept=len(before) + kept)
            # As what belongs to one session.
            before = " " * len(before)


def _details(session: server.Session | None, facts: dict[str, Any]) -> Iterable[tuple[str | None, fitting.Cut, int]]:
    """Yield what is known of who holds a session: a text, how it is cut, and how much of it is not."""
    holder: Process | None = facts.get("holder")
    what = facts.get("request")
    if holder is not None:
        pins = f" by {', '.join(facts['pinned_by'])}" if facts["state"] == "pinned" else ""
        held, idle = duration(facts["held_for"]), duration(_idle_for(session, facts))
        kept = facts["kept_because"] if facts["idle_for"] else None
        doing = f"{facts['state']}{pins}, held {held}, idle {idle}"
        what = "; ".join(filter(None, (what, doing, kept and f"kept because {kept}")))
    yield what, fitting.middle_cut, 0
    if holder is not None:
        yield f"in thread {facts['thread_name'] or facts['thread_id']} of {whose(holder)}", fitting.end_cut, 0
    # A notice tells where it was when the report was made, and the process that answers where it is.
    at = "its thread was at" if "reported_at" in facts else "its thread is at"
    where = [("where_began", "its transaction began at"), ("where_now", at)]
    if not facts.get("where_began"):
        where.insert(0, ("where_checked_out", "checked out at"))
    for key, words in where:
        yield f"{words} {facts[key]}" if facts.get(key) else None, fitting.head_cut, len(words) + 1


def _idle_for(session: server.Session | None, facts: dict[str, Any]) -> float:
    """Return for how long *session* is idle: as the server knows it, if its process says that it is idle at all."""
    idle: float = facts["idle_for"]
    held: float = facts["held_for"]
    if not idle or session is None or session.in_state is None:
        return idle
    if session.state not in (server.IDLE, *server.IDLE_IN_TRANSACTION_STATES):
        return idle
    # With a cursor open, the process knows it only since its reaper has looked; the server has been idle before.
    return min(max(idle, session.in_state), held)


def whose(process: Process) -> str:
    """Return which process it is, and of which project, if that is not the one that asks."""
    about = [process.command]
    if process.settings_module not in (None, answering.settings_module()):
        about.append(f"settings {process.settings_module}")
    return f"process {process.pid} ({', '.join(about)})"


def _unseen(activity: server.Activity) -> Iterable[str]:
    if activity.hidden:
        yield (
            f"{activity.hidden} of them hidden from this role, state and statement included; it would see them as a "
            "member of pg_read_all_stats."
        )
    if activity.others:
        yield f"{activity.others} more of other roles; --all-users lists them."


_COLUMNS = (
    "State",
    "Pid",
    "Session",
    "In state",
    "Transaction",
    "Waits for",
    "Application",
    "Client",
    "Database",
    "Role",
    "Statement",
)


def sessions_table(sessions: Sequence[server.Session]) -> Table:
    """Return *sessions* as a table, one row each, in their order."""
    several = {name for name in ("database", "role") if len({getattr(session, name) for session in sessions}) > 1}
    return Table(
        _COLUMNS,
        [_row(session, several) for session in sessions],
        [QUIET if session.own else _MOODS.get(session.state, PLAIN) for session in sessions],
    )


def _row(session: server.Session, several: set[str]) -> tuple[str, ...]:
    # That a session waits for its client is what its state says already.
    waits = session.wait_event if session.wait_event != "Client: ClientRead" else None
    return (
        session.state or "hidden",
        str(session.pid),
        duration(session.age),
        duration(session.in_state),
        duration(session.in_transaction),
        waits or "",
        session.application_name,
        session.client_address or ("" if session.state is None else "local"),
        session.database if "database" in several else "",
        session.role if "role" in several else "",
        "(this command)" if session.own else shortened(session.statement or ""),
    )


def leases_table(leases: Sequence[LeaseInfo]) -> Table:
    """Return what a process holds as a table."""
    rows = [
        (
            lease.state,
            lease.alias,
            str(lease.server_pid),
            lease.thread_name or str(lease.thread_id),
            lease.request or "",
            duration(lease.held_for),
            duration(lease.idle_for),
            ", ".join(lease.pinned_by),
            lease.where_now or "",
        )
        for lease in leases
    ]
    columns = ("State", "Alias", "Pid", "Thread", "Request", "Held", "Idle", "Pinned by", "Thread is at")
    return Table(columns, rows, [PLAIN] * len(rows))


def finding_blocks(findings: Sequence[Finding]) -> list[Block]:
    """Return *findings* in their order, each with why, what to do, and where to read on."""
    blocks: list[Block] = []
    moods = {"error": BAD, "warning": WARN}
    for finding in findings:
        level = str(finding.level)
        blocks += [
            Line(f"{level.upper()} {', '.join(finding.aliases)}: {finding.what}", moods.get(level, GOOD)),
            Line(f"  Why:  {finding.why}"),
            Line(f"  Do:   {finding.remedy}"),
            Line(f"  Read: {pages.told(finding.docs)}", QUIET),
            Line(""),
        ]
    return blocks


def unseen_blocks(found: Sequence[UnseenState]) -> list[Block]:
    """Return what an audit has found, each place in the code and each kind of state once, and what to do."""
    # Of the same in many requests the first says it all.
    once = {(event.where, event.reason, event.names, event.alias): event for event in reversed(found)}
    kept = [*reversed(once.values())]
    rows = [(event.alias, event.left, shortened(_masked(event.statement) or ""), event.where) for event in kept]
    blocks: list[Block] = [Table(("Database", "Left", "Statement", "Place"), rows, [BAD] * len(rows))] if rows else []
    return [*blocks, *map(Line, dict.fromkeys(event.advice for event in kept))]


def unseen_json(found: Sequence[UnseenState]) -> dict[str, Any]:
    """Return what an audit has found for JSON."""
    facts = [event.facts() | {"statement": _masked(event.statement)} for event in found]
    return {"version": JSON_VERSION, "found": facts}


def _masked(statement: str | None) -> str | None:
    """Return what a process says of its *statement* as the command shows all, whatever LOG_STATEMENTS is there."""
    return mask(statement) if statement else None


def duration(seconds: float | None) -> str:
    """Return *seconds* in at most two units, short enough for a column."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((place for place, (amount, _) in enumerate(units) if amount), 3)
    return " ".join(f"{amount} {unit}" for amount, unit in units[first : first + 2])


def shortened(statement: str) -> str:
    """Return *statement* short enough for a column."""
    return fitting.statement_cut(statement, _STATEMENT)


def plain(blocks: Iterable[Block], width: int | None = None) -> str:
    """Return *blocks* as text with aligned columns. Tables fit into *width* where that can be: see :mod:`.fitting`."""
    lines: list[str] = []
    for block in blocks:
        lines += _aligned(block, width) if isinstance(block, Table) else [block.fitted(width)]
    return "\n".join(lines)


_GAP = "  "


def _aligned(table: Table, width: int | None) -> list[str]:
    if not table.rows:
        return []
    table = fitting.fitted(table, width, len(_GAP))
    widths = fitting.widths(table)
    return [
        _GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (table.columns, *table.rows)
    ]


def status_json(status: Status) -> dict[str, Any]:
    """Return *status* for JSON; docs/reference/connections-command.rst says what the keys mean."""
    return {
        "version": JSON_VERSION,
        "databases": [_view_json(view) for view in status.views],
        "processes": [_process_json(process) for process in status.processes],
        "leases": [_lease_json(lease) for lease in status.leases],
    }


def _lease_json(lease: LeaseInfo) -> dict[str, Any]:
    return dataclasses.asdict(lease) | {"statement": _masked(lease.statement)}


def _view_json(view: View) -> dict[str, Any]:
    identity, activity = view.identity, view.activity
    return {
        "aliases": view.aliases,
        "error": view.error,
        "pooled": view.pooled,
        "pooled_aliases": list(view.pooled_aliases),
        "database": identity and identity.database,
        "role": identity and identity.role,
        "server_version": identity and identity.server_version,
        "states": {} if activity is None else activity.by_state(),
        "hidden": 0 if activity is None else activity.hidden,
        "sessions_of_other_roles": 0 if activity is None else activity.others,
        "processes": [dataclasses.asdict(group) for group in fleet.by_process(activity.counted)] if activity else [],
        "sessions": [session_json(session, view.known) for session in activity.sessions] if activity else [],
    }


def _process_json(process: Process) -> dict[str, Any]:
    names = ("pid", "command", "started", "settings_module", "answered", "leases_left_off")
    return {name: getattr(process, name) for name in names} | {
        "databases": {alias: dataclasses.asdict(database) for alias, database in process.databases.items()},
        "leases": len(process.leases),
        "held": [_lease_json(lease) for lease in process.leases],
        # JSON has no number that is infinite.
        "pools": [
            dataclasses.asdict(pool) | {"timeout": pool.timeout if math.isfinite(pool.timeout) else None}
            for pool in process.pools
        ],
        "stats": process.stats and dataclasses.asdict(process.stats),
    }


def session_json(session: server.Session, known: dict[int, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return *session* for JSON, with what is *known* of it."""
    facts = (known or {}).get(session.pid, {})
    names = ("request", "where_began", "where_now")
    tag = session.tag
    of_tag = {"host": tag and tag.host, "process": tag and tag.pid, "alias": tag and tag.alias}
    told = {name: facts.get(name) for name in names}
    return dataclasses.asdict(session) | of_tag | told | {"holder": _holder_json(facts)}


def _holder_json(facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return who holds a session, if its process has answered; None of a notice's."""
    if "held_for" not in facts:
        return None
    holder: Process | None = facts.get("holder")
    return {"process": os.getpid() if holder is None else holder.pid} | {name: facts[name] for name in _OF_HOLDER}


# What JSON has of the lease that a session is held by. Its process is listed once for all.
_OF_HOLDER = (
    "alias",
    "state",
    "thread_id",
    "thread_name",
    "held_for",
    "in_use_for",
    "idle_for",
    "open_cursors",
    "pinned_by",
    "kept_because",
    "where_checked_out",
)


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return *findings* for JSON."""
    return {
        "version": JSON_VERSION,
        "findings": [dataclasses.asdict(finding) | {"level": str(finding.level)} for finding in findings],
    }


def dumped(value: dict[str, Any], *, indent: int | None = 2) -> str:
    """Return *value* as JSON; times are in ISO 8601."""
    return json.dumps(value, indent=indent, default=lambda found: found.isoformat())

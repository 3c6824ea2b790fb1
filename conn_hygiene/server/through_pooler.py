"""What hurts, and what cannot be had, where a pooler stands between Django and PostgreSQL.

Nothing is recommended here that a pooler refuses, drops, or gives to somebody else. What that is for which, with the
sources: docs/how-to/pgbouncer.rst.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from psycopg import capabilities

from conn_hygiene.server.findings import Facts, Finding, Level, Project, finding, number
from conn_hygiene.server.pooler import Pooler
from conn_hygiene.sessions import connect_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PAGE = "how-to/pgbouncer.rst"
_LENT = "Two connections were given one server session in turn, as PgBouncer in transaction mode does"

# It ends sessions while they wait in the pool, which PostgreSQL's documentation warns of.
_NOT_FOR_POOLERS = "idle_session_timeout"


def mode(fact: Facts) -> str | None:
    """Return how a pooler lends server sessions: for a ``"session"``, ``"transaction"`` or ``"statement"``.

    None is no pooler, or nobody knows. What PgBouncer itself says goes over what was found out by trying.
    """
    if fact.pgbouncer is not None:
        return fact.pgbouncer.mode
    return None if fact.pooler in (None, Pooler.NONE) else fact.pooler.value


def lends(fact: Facts) -> bool:
    """Return whether the next statement may run in another session than the last."""
    return mode(fact) in ("transaction", "statement")


def alter_role(fact: Facts, timeouts: Mapping[str, float]) -> str:
    """Return the statements that set *timeouts*, in seconds, for all sessions of the role, whoever opens them."""
    role = fact.identity.role if fact.identity is not None else "mysite"
    quoted = role if re.fullmatch("[a-z_][a-z0-9_]*", role) else '"{}"'.format(role.replace('"', '""'))
    return " ".join(f"ALTER ROLE {quoted} SET {name} = '{_value(each)}';" for name, each in timeouts.items())


def _value(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{round(seconds * 1000)}ms"


# ##### libpq's options #####


def _options(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    """Find what travels in libpq's ``options``, and does not arrive."""
    wanted = dict(project.session_timeouts.get(fact.alias, {}))
    if fact.options_refused is not None:
        yield finding(
            Level.ERROR,
            "options-refused",
            fact.alias,
            what="A pooler refuses the connections of this alias"
            + (", since SESSION_TIMEOUTS is set." if wanted else ", since OPTIONS or PGOPTIONS has libpq's options."),
            why=f"{fact.options_refused}. A pooler lends its sessions to one client after another, and cannot start "
            "them anew for what each wants to start with.",
            remedy=_instead(fact, wanted),
            page=f"{_PAGE}#options-refused",
        )
        return
    if mode(fact) is None or fact.timeouts is None:
        return
    written = project.timeouts_written.get(fact.alias, {})
    dropped = {
        name: seconds
        for name, seconds in wanted.items()
        if written.get(name) not in _NOT_SENT
        and name in fact.timeouts
        and fact.timeouts[name] != connect_options.milliseconds(seconds)
    }
    if dropped:
        yield finding(
            Level.WARNING,
            "options-dropped",
            fact.alias,
            what=f"SESSION_TIMEOUTS has no effect on {', '.join(dropped)}.",
            why="They travel in libpq's options, and the pooler drops these"
            + (" (ignore_startup_parameters)." if fact.pgbouncer is not None else "."),
            remedy=_instead(fact, dropped),
            page=f"{_PAGE}#options-refused",
        )


# Where a timeout stands that is not the one of SESSION_TIMEOUTS: the settings have that never be sent, or overruled.
_NOT_SENT = (connect_options.OF_OPTIONS, connect_options.OF_ENVIRONMENT, connect_options.OF_SERVICE)


def _instead(fact: Facts, timeouts: Mapping[str, float]) -> str:
    useful = {name: seconds for name, seconds in timeouts.items() if name != _NOT_FOR_POOLERS}
    if not timeouts:
        return (
            'Remove OPTIONS["options"], or PGOPTIONS, and have the server set the same for the role: ALTER ROLE ... '
            "SET, or ALTER DATABASE ... SET."
        )
    none = ", ".join(f'"{name}": None' for name in timeouts)
    off = f'Take them out for this alias: add {none} to CONN_HYGIENE["SESSION_TIMEOUTS"]["{fact.alias}"], a dict'
    return f"{off}, and have the server set them for the role: {alter_role(fact, useful)}" if useful else f"{off}."


def _idle_sessions(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if mode(fact) is not None and (fact.timeouts or {}).get(_NOT_FOR_POOLERS):
        yield finding(
            Level.WARNING,
            "idle-session-timeout-behind-pooler",
            fact.alias,
            what=f"{_NOT_FOR_POOLERS} is in effect, and a pooler has the sessions.",
            why="It ends those that the pooler keeps for the next client, whose query may be what finds out.",
            remedy=f"ALTER ROLE ... RESET {_NOT_FOR_POOLERS}; PgBouncer's server_idle_timeout closes what nobody uses.",
            page=f"{_PAGE}#options-refused",
        )


# ##### What does not stay with its client #####


def _statement_mode(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if mode(fact) == "statement":
        yield finding(
            Level.ERROR,
            "statement-mode",
            fact.alias,
            what="PgBouncer is in statement mode.",
            why="It ends each connection that begins a transaction, as Django's atomic() does, and its save() and "
            'delete() with it: "transaction blocks not allowed in statement pooling mode".',
            remedy="Set pool_mode to transaction, for this database or for the role.",
            page=f"{_PAGE}#pooler-limits",
        )


def _cursors(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if lends(fact) and not options.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield finding(
            Level.ERROR,
            "server-side-cursors-behind-pooler",
            fact.alias,
            what=f"{_seen(fact)}, and server-side cursors are on.",
            why=f'{_reason(fact)}. A cursor that QuerySet.iterator() opens on one is looked for on another: "cursor '
            'does not exist".',
            remedy="Set DISABLE_SERVER_SIDE_CURSORS to True.",
        )


def _prepared(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    threshold = options["OPTIONS"].get("prepare_threshold")
    if not lends(fact) or threshold is None:
        return
    if fact.pgbouncer is not None and fact.pgbouncer.prepares and capabilities.has_send_close_prepared():
        return
    yield finding(
        Level.WARNING,
        "prepared-statements-behind-pooler",
        fact.alias,
        what=f"{_seen(fact)}, and prepare_threshold is {threshold!r}.",
        why=f"{_reason(fact)}. A statement that was prepared on one is looked for on another, unless the pooler keeps "
        "track of it: PgBouncer from 1.22 on, with max_prepared_statements above 0, and a libpq of 17 or later here.",
        remedy="Remove prepare_threshold from OPTIONS, or have the pooler keep track.",
    )


def _health_checks(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    lasting = options["OPTIONS"].get("pool") or options["CONN_MAX_AGE"] != 0
    if lends(fact) and options["CONN_HEALTH_CHECKS"] and lasting:
        yield finding(
            Level.NOTE,
            "health-checks-behind-pooler",
            fact.alias,
            what="CONN_HEALTH_CHECKS is on, and a pooler lends a session for each transaction.",
            why="The check asks a session that the next query need not get. It tells whether the pooler answers, and "
            "takes a server session for that each time. PgBouncer checks its sessions itself (server_check_delay).",
            remedy="Turn it off, unless something between Django and the pooler drops connections without a word.",
            page=f"{_PAGE}#pooler-limits",
        )


def _reset_query(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if fact.pgbouncer is not None and mode(fact) == "session" and not fact.pgbouncer.reset_query:
        yield finding(
            Level.WARNING,
            "no-reset-query",
            fact.alias,
            what="PgBouncer is in session mode, and its server_reset_query is empty.",
            why="What one client leaves in a session (settings, locks, temporary tables) is there for the next.",
            remedy="Set server_reset_query to DISCARD ALL, its default.",
            page=f"{_PAGE}#pooler-limits",
        )


def follows(fact: Facts) -> Iterator[Finding]:
    """Yield what to say of settings that functions and policies know, where none can follow."""
    if fact.catalogue is not None and fact.catalogue.followed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in fact.catalogue.reasons.items())
        yield finding(
            Level.WARNING,
            "settings-behind-pooler",
            fact.alias,
            what=f"{', '.join(fact.catalogue.reasons)} cannot follow a request through the pooler.",
            why=f"{reasons}. {_reason(fact)}: what is set for a session is set for whoever gets it next.",
            remedy="Set them inside of the transaction that reads them: session_settings() within atomic(), SET LOCAL, "
            "or set_config(.., true). Or have the pooler in session mode.",
            page=f"{_PAGE}#settings-behind-pooler",
        )


def cleaned(project: Project, fact: Facts, what: str) -> Iterator[Finding]:
    """Yield what to say where *what* leaves something in sessions, and nobody can clean those that have it."""
    if fact.pgbouncer is not None and fact.pgbouncer.resets_always and fact.pgbouncer.reset_query:
        return
    yield finding(
        Level.WARNING,
        "state-behind-pooler",
        fact.alias,
        what="Sessions keep what functions leave in them, and no CLEAN_SESSIONS cleans those of a pooler.",
        why=f"Something may stay in a session that its statements do not show: {what}. {_reason(fact)}, and a cleaning "
        "reaches another.",
        remedy="Have functions set things for the transaction (SET LOCAL, set_config(.., true), "
        "pg_advisory_xact_lock); or set PgBouncer's server_reset_query_always to 1; or use session mode.",
        page=f"{_PAGE}#settings-behind-pooler",
    )


# ##### The pooler itself #####


def _waiting_clients(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    bouncer = fact.pgbouncer
    if bouncer is None:
        return
    if bouncer.waiting:
        yield finding(
            Level.WARNING,
            "clients-wait",
            fact.alias,
            what=f"{number(bouncer.waiting, 'client waits', 'clients wait')} for a session of PgBouncer's right now.",
            why=f"Its pool for {bouncer.role!r} in {bouncer.database!r} has {bouncer.sessions} at most, and all are in "
            f"use; the longest wait is {bouncer.longest_wait:g} s."
            # PgBouncer does not see that a client has gone that waits.
            + ("" if fact.pooler else " The doctor may be among them: it was not answered either."),
            remedy="See what they do: manage.py connections status. If that is work, raise pool_size; if they are idle "
            "in transaction, end that first.",
            page=f"{_PAGE}#pooler-limits",
        )
    if not bouncer.query_wait_timeout:
        yield finding(
            Level.WARNING,
            "no-query-wait-timeout",
            fact.alias,
            what="PgBouncer's query_wait_timeout is 0.",
            why="A query for which no session is free waits without limit, and its worker with it, instead of failing.",
            remedy="Set it to what a request may take, such as 30; its default is 120.",
            page=f"{_PAGE}#pooler-limits",
        )


def _pooler(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if mode(fact) is None:
        return
    if fact.pgbouncer is None:
        yield finding(
            Level.NOTE,
            "pooler",
            fact.alias,
            what=f"{_seen(fact)} between Django and PostgreSQL.",
            why=_unasked(fact),
            remedy="If it is PgBouncer, add the role to stats_users in its configuration, which lets it read and "
            "change nothing, and RELOAD. See what is left for this toolkit to do there.",
            page=_PAGE,
        )
        return
    version = ".".join(map(str, fact.pgbouncer.version))
    yield finding(
        Level.NOTE,
        "pooler",
        fact.alias,
        what=f"PgBouncer {version} in {mode(fact)} mode is between Django and PostgreSQL.",
        why=f"It has {fact.pgbouncer.sessions or 'any number of'} sessions for {fact.pgbouncer.role!r} in "
        f"{fact.pgbouncer.database!r}, which were compared with the server's limits, and its own limits with the "
        "project's." + (f" {_NOT_KEPT}" if lends(fact) else ""),
        remedy="See what is left for this toolkit to do there.",
        page=_PAGE,
    )


_NOT_KEPT = "Session state (SET, temporary tables, advisory locks) does not stay with its client."


def _unasked(fact: Facts) -> str:
    why = "Its limits, and the server's, were not compared with the project's pools, since its console did not answer"
    why = f"{why}: {fact.console_failure or 'it was not asked'}."
    return (
        f"{_LENT}. {why} {_NOT_KEPT}" if lends(fact) else f"{why} If it is in transaction mode after all, see the page."
    )


def _seen(fact: Facts) -> str:
    if fact.pgbouncer is not None:
        return f"PgBouncer is in {mode(fact)} mode"
    return f"It looks like a pooler in {mode(fact)} mode"


def _reason(fact: Facts) -> str:
    return "It lends a session for each transaction" if fact.pgbouncer is not None else _LENT


CHECKS: tuple[Callable[[Project, dict[str, Any], Facts], Iterator[Finding]], ...] = (
    _options,
    _idle_sessions,
    _statement_mode,
    _cursors,
    _prepared,
    _health_checks,
    _reset_query,
    _waiting_clients,
    _pooler,
)

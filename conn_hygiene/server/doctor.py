"""What will hurt: findings from a project's settings and from what its servers say.

Pure logic: everything that is looked at comes in as a :class:`Project`, a list of :class:`Facts` and a date, and what
comes out is a list of :class:`Finding`. The command collects the one and prints the other.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS

from conn_hygiene.pools.checking import ALIVE_FOR
from conn_hygiene.server import capacity, not_asked, through_pooler
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
from conn_hygiene.server.sessions import ABORTED
from conn_hygiene.server.through_pooler import alter_role, lends, mode
from conn_hygiene.sessions import connect_options
from conn_hygiene.sessions.catalogue import shortened
from conn_hygiene.using import exempting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from conn_hygiene.server.sessions import Identity, Session

__all__ = ["Facts", "Finding", "Level", "Project", "diagnose"]

#: What is looked for in a session; see :func:`conn_hygiene.server.timeouts`.
TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")

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


def diagnose(project: Project, facts: list[Facts], today: datetime.date) -> list[Finding]:
    """Return what is wrong, or will be, worst first; findings that are alike for several aliases are one."""
    found: list[Finding] = [
        *not_asked.check(project, facts),
        *_hidden(facts),
        *capacity.check(project, facts),
        *_toolkit(project),
    ]
    found += _idle_transactions(project, facts)
    for fact in facts:
        options = project.databases[fact.alias]
        for check in _CHECKS:
            found += check(project, options, fact)
        found += _version(project, fact, today)
    return sorted(_merged(found), key=lambda one: -one.level)


def _merged(found: Iterable[Finding]) -> list[Finding]:
    """Return *found*, those that differ in nothing but the alias put together."""
    aliases: dict[Finding, list[str]] = defaultdict(list)
    for one in found:
        aliases[dataclasses.replace(one, aliases=())].extend(one.aliases)
    return [dataclasses.replace(one, aliases=tuple(names)) for one, names in aliases.items()]


def _hidden(facts: list[Facts]) -> Iterator[Finding]:
    if any(fact.activity is not None and fact.activity.hidden for fact in facts):
        yield finding(
            Level.NOTE,
            "hidden-sessions",
            *(fact.alias for fact in facts if fact.activity is not None and fact.activity.hidden),
            what="Some sessions are hidden from this role.",
            why="Of other roles' sessions PostgreSQL shows the pid, the role and the database only.",
            remedy="GRANT pg_read_all_stats TO the role that runs this command.",
            page="reference/connections-command.rst#connections-rights",
        )


# ##### One alias #####


# What is missing is recommended with these values, in seconds.
_RECOMMENDED = {"statement_timeout": 30.0, "idle_in_transaction_session_timeout": 60.0}


def _timeouts(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    missing = {name for name, value in (fact.timeouts or {}).items() if value == 0}
    if mode(fact) is not None or fact.options_refused is not None:
        # Of those that are set and have no effect behind a pooler, another finding tells.
        missing -= {name for name, seconds in project.session_timeouts.get(fact.alias, {}).items() if seconds}
    if fact.pgbouncer is not None:
        of_pooler = {
            "statement_timeout": fact.pgbouncer.query_timeout,
            "idle_in_transaction_session_timeout": fact.pgbouncer.idle_transaction_timeout,
        }
        missing -= {name for name, seconds in of_pooler.items() if seconds}
    if "statement_timeout" in missing:
        yield finding(
            _level(project, fact, "statement_timeout"),
            "no-statement-timeout",
            fact.alias,
            what="No statement_timeout is in effect.",
            why="A statement that never ends keeps its connection, its locks and its worker until somebody notices.",
            remedy=_setting(project, fact, "statement_timeout"),
            page="how-to/guard-rails.rst",
        )
    if "idle_in_transaction_session_timeout" in missing:
        yield finding(
            _level(project, fact, "idle_in_transaction_session_timeout"),
            "no-idle-in-transaction-timeout",
            fact.alias,
            what="No idle_in_transaction_session_timeout is in effect.",
            why="A process that hangs inside of a transaction holds its locks, and holds back vacuum, without limit.",
            remedy=_setting(project, fact, "idle_in_transaction_session_timeout"),
            page="how-to/guard-rails.rst",
        )


def _level(project: Project, fact: Facts, name: str) -> Level:
    """Return how bad it is that the timeout *name* is off: nothing but a note if somebody has written that."""
    if mode(fact) is not None or fact.options_refused is not None:
        # What is written may be another value, which the pooler keeps from the server.
        return Level.WARNING
    where, is_off = _written(project, fact, name), not project.session_timeouts.get(fact.alias, {}).get(name)
    said = where == connect_options.OF_OPTIONS or (where is not None and where not in _OUTSIDE and is_off)
    return Level.NOTE if said else Level.WARNING


# Where nobody has written anything for the alias itself.
_OUTSIDE = (connect_options.OF_SERVICE, connect_options.OF_ENVIRONMENT)


def _written(project: Project, fact: Facts, name: str) -> str | None:
    return project.timeouts_written.get(fact.alias, {}).get(name)


def _setting(project: Project, fact: Facts, name: str) -> str:
    seconds, where = _RECOMMENDED[name], _written(project, fact, name)
    if mode(fact) is not None or fact.options_refused is not None:
        # A pooler refuses SESSION_TIMEOUTS, or drops them.
        return f"Have the server set it for the role: {alter_role(fact, {name: seconds})}"
    if where in (connect_options.OF_OPTIONS, connect_options.OF_ENVIRONMENT):
        return f'Write "-c {name}={seconds:g}s" into {where} for what is there, which wins over SESSION_TIMEOUTS.'
    if where is not None and where != connect_options.OF_SERVICE:
        return _setting_again(project, fact, name, where)
    first = "Set it for all sessions: "
    if where is not None:
        # libpq has one place for options, and would lose the service's.
        first = 'Write the options of the alias\'s service into OPTIONS["options"], or "" if it has none; then '
    # No assignment, which would replace what the project has there, and what another finding has had put there.
    return f'{first}add "{name}": {seconds:g} to CONN_HYGIENE["SESSION_TIMEOUTS"], a dict.'


def _setting_again(project: Project, fact: Facts, name: str, where: str) -> str:
    """Return what to do about the timeout *name*, which is in ``SESSION_TIMEOUTS`` and not in effect."""
    if project.session_timeouts.get(fact.alias, {}).get(name):
        return (
            f"It is in {where}: leave it alone where something sets it to 0 later, as a receiver of connection_created."
        )
    return f'If that is not on purpose, have "{name}" be {_RECOMMENDED[name]:g} in {where}, where it is switched off.'


def _persistent(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    age = options["CONN_MAX_AGE"]
    if age == 0:
        return
    if options["OPTIONS"].get("pool"):
        yield finding(
            Level.ERROR,
            "pool-and-conn-max-age",
            fact.alias,
            what=f"There is a pool, and CONN_MAX_AGE is {age!r}.",
            why="Django refuses to connect that way: a pool keeps connections by its own rules.",
            remedy="Remove CONN_MAX_AGE. The pool's max_idle and max_lifetime say how long it keeps connections.",
        )
        return
    if project.asgi:
        yield finding(
            Level.WARNING,
            "conn-max-age-under-asgi",
            fact.alias,
            what=f"CONN_MAX_AGE is {age!r}, and the project looks like one that is served under ASGI.",
            why="There Django serves each request in a thread of its own, which no other request shares: the next one "
            "connects anew, and what is kept is kept for nobody.",
            remedy='Set CONN_MAX_AGE to 0 and use a pool: add "pool": True, or a dict of its sizes, to OPTIONS.',
        )
    if project.debug and not project.reclaims_dead_threads:
        yield finding(
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
    # Where a session is lent for each transaction, the next query need not get the one that was checked.
    if checked or has_sqlalchemy_pool(options) or not (pool or options["CONN_MAX_AGE"] != 0) or lends(fact):
        return
    yield finding(
        Level.NOTE,
        "no-health-checks",
        fact.alias,
        what="CONN_HEALTH_CHECKS is off, and connections outlive their request.",
        why="The toolkit replaces connections that the server has closed. One that a firewall or a failover dropped "
        "without a word still fails the request that gets it.",
        remedy="If there is such a thing in between, set CONN_HEALTH_CHECKS to True, and add "
        '"tcp_user_timeout": 3000 to OPTIONS, in milliseconds, '
        "without which a question that gets no answer waits for minutes. A pool then asks the server about "
        f"connections that nobody has used for {ALIVE_FOR:g} s; without a pool, each request asks once.",
    )


def _no_pool(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    releases = project.release == "always" or (project.release == "scoped" and project.middleware)
    if fact.pooled or fact.left_alone is not None or options.get("ATOMIC_REQUESTS") or not releases:
        return
    if lends(fact):
        # The pooler is one, and costs the server nothing for a client that idles.
        return
    after = project.unpooled_release_after
    yield finding(
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
        remedy='If requests wait between their queries, turn on the pool: add "pool": {"min_size": 2, "max_size": 8} '
        "to OPTIONS. All else that the toolkit does, it does without one.",
    )


def _left_alone(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if fact.left_alone is not None:
        yield finding(
            Level.WARNING,
            "left-alone",
            fact.alias,
            what=f"The backend {options['ENGINE']} is left alone.",
            why=f"Giving back is not known to be safe there: {fact.left_alone}. None of its connections is given back, "
            "cleaned, reported or reclaimed.",
            remedy='Use a backend that leaves closing to Django, with Django\'s pool, which is "pool" in OPTIONS.',
        )


def _pool_refused(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    for refusal in fact.pool_refusals:
        yield finding(
            Level.ERROR,
            "pool-refused",
            fact.alias,
            what=f"There is a pool {refusal.what}.",
            why="Django makes it when somebody first connects, and then cannot. This command connects without it.",
            remedy=refusal.hint,
            page="reference/checks.rst",
        )


def _pool_size(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    pool = options["OPTIONS"].get("pool")
    if pool and not fact.pool_refusals and not (isinstance(pool, dict) and {"min_size", "max_size"} & pool.keys()):
        yield finding(
            Level.NOTE,
            "pool-without-sizes",
            fact.alias,
            what="The pool has neither min_size nor max_size.",
            why=f"Then psycopg_pool opens {POOL_SIZE} connections in each process, and never more.",
            remedy='Choose: add "min_size": 2 and "max_size": 8, for example, to OPTIONS["pool"], a dict.',
        )


def _sqlalchemy_pool(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if has_sqlalchemy_pool(options) and fact.left_alone is None and pool_option(options, "PRE_PING"):
        yield finding(
            Level.NOTE,
            "pre-ping",
            fact.alias,
            what="The pool is django-db-connection-pool's, which asks the server at each checkout whether it is there.",
            why="That is a round trip more for each time that a request comes back to the database. The toolkit finds "
            "a connection that the server has closed without asking, and replaces it.",
            remedy='Set PRE_PING to False in POOL_OPTIONS; or change to Django\'s own pool, "pool" in OPTIONS.',
            page="how-to/django-db-connection-pool.rst#pre-ping",
        )


def _atomic_requests(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    if not options.get("ATOMIC_REQUESTS"):
        return
    pool = options["OPTIONS"].get("pool")
    size = pool_sizes(pool)[1] if pool else None
    short = size is not None and project.threads is not None and size < project.threads
    yield finding(
        Level.WARNING if short else Level.NOTE,
        "atomic-requests",
        fact.alias,
        what="ATOMIC_REQUESTS is on"
        + (f", and {project.threads} threads share a pool of {size} connections." if short else "."),
        why="Django begins a transaction there around every view, so each view of the site keeps a connection to its "
        "end, whatever it waits for in between, and also if it never queries there. "
        + ("As soon as that many views are slow, the others wait for the pool." if short else "Slow views hurt most."),
        remedy="Put atomic() around what has to be one, or exempt views that are slow, or do without this alias, with "
        f"{exempting(fact.alias)}.",
        page="how-to/slow-views.rst#atomic-requests",
    )


def _followed(project: Project, options: dict[str, Any], fact: Facts) -> Iterator[Finding]:
    """Compare the settings that functions and policies read and set with those that are declared to follow."""
    if fact.catalogue is None or not fact.catalogue.followed:
        return
    if lends(fact):
        yield from through_pooler.follows(fact)
        return
    reasons = fact.catalogue.reasons
    if project.followed_settings == "auto":
        yield finding(
            Level.NOTE,
            "settings-follow",
            fact.alias,
            what="Settings that policies or functions use go with a request to its next session: "
            f"{', '.join(reasons)}.",
            why=_because(reasons),
            remedy="Nothing. List them in FOLLOWED_SETTINGS if that should not depend on the catalogue.",
        )
        return
    missing = {name: reason for name, reason in reasons.items() if name not in project.followed_settings}
    if missing:
        yield finding(
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
    if fact.catalogue is None or not fact.catalogue.leaves_state:
        return
    if lends(fact):
        yield from through_pooler.cleaned(project, fact, shortened(fact.catalogue.leaves_state))
        return
    if project.clean_sessions == "always":
        return
    why = f"Something may stay in a session that its statements do not show: {shortened(fact.catalogue.leaves_state)}."
    if project.clean_sessions == "auto":
        yield finding(
            Level.NOTE,
            "sessions-cleaned",
            fact.alias,
            what='CLEAN_SESSIONS is "auto", which comes to "always" here.',
            why=f"{why} So each is reset when it goes back, which takes about a round trip.",
            remedy='Nothing. Set it to "seen" only if none of that matters to whoever gets the session next.',
        )
        return
    yield finding(
        Level.WARNING,
        "sessions-not-cleaned",
        fact.alias,
        what='CLEAN_SESSIONS is "seen".',
        why=f"{why} Whoever gets the session next finds it there.",
        remedy='Set CLEAN_SESSIONS to "auto" or "always".',
        page="how-to/doctor.rst#sessions-cleaned",
    )


_CHECKS: tuple[Callable[[Project, dict[str, Any], Facts], Iterator[Finding]], ...] = (
    *through_pooler.CHECKS,
    _persistent,
    _pool_refused,
    _timeouts,
    _followed,
    _cleaned,
    _atomic_requests,
    _health_checks,
    _pool_size,
    _sqlalchemy_pool,
    _no_pool,
    _left_alone,
)


# ##### One database #####


def _idle_transactions(project: Project, facts: list[Facts]) -> Iterator[Finding]:
    """Name the sessions that are idle in transaction, those of a database that several aliases lead to once."""
    groups: dict[Identity, list[Facts]] = defaultdict(list)
    for fact in facts:
        if fact.identity is not None and fact.activity is not None:
            groups[fact.identity].append(fact)
    limit = project.idle_in_transaction_after
    if limit is not None:
        for group in groups.values():
            yield from _idle_in(group, limit)


def _idle_in(group: list[Facts], limit: float) -> Iterator[Finding]:
    [activity, *_] = [fact.activity for fact in group if fact.activity is not None]
    idle = [session for session in activity.counted if session.is_idle_in_transaction]
    late = [session for session in idle if (session.in_state or 0.0) >= limit]
    if late:
        aliases = [fact.alias for fact in group]
        # Terminating needs one, and takes this one by itself.
        where = "" if DEFAULT_DB_ALIAS in aliases else f" --database {shlex.quote(aliases[0])}"
        yield finding(
            Level.WARNING,
            "idle-in-transaction-now",
            *aliases,
            what=f"{number(len(late), 'session is', 'sessions are')} idle in transaction right now.",
            why=f"{' '.join(_of_idle(late))} The limit is {limit:g} s, as IDLE_IN_TRANSACTION_AFTER has it.",
            remedy=f"Look with: manage.py connections status{where}. End them with: manage.py connections terminate"
            f"{where} --idle-in-transaction {limit:g}.",
            page="how-to/idle-in-transaction.rst",
        )


def _of_idle(late: list[Session]) -> Iterator[str]:
    """Yield what sessions that are idle in transaction come to: one whose transaction has failed was rolled back."""
    words = "They hold their locks and hold back vacuum", "Failed, they hold what is from before a savepoint, if any"
    for failed, said in enumerate(words):
        found = [session for session in late if (session.state == ABORTED) is bool(failed)]
        if found:
            yield f"{said}: pid {', '.join(f'{each.pid} ({each.in_state or 0.0:.0f} s)' for each in found)}."


# ##### The server's version, and the toolkit's own use #####


def _version(project: Project, fact: Facts, today: datetime.date) -> Iterator[Finding]:
    if fact.limits is None:
        return
    major = fact.limits.version // 10000
    end = END_OF_LIFE.get(major)
    if (major,) < project.minimum_version:
        yield finding(
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
        yield finding(
            Level.WARNING,
            "old-server",
            fact.alias,
            what=f"The server is PostgreSQL {major}, whose support ended {since}.",
            why="It gets no fixes any more, neither for security nor for lost data.",
            remedy="Upgrade the server.",
        )
    elif end is not None and end - today < _NEAR:
        yield finding(
            Level.NOTE,
            "old-server",
            fact.alias,
            what=f"The server is PostgreSQL {major}, whose support ends on {end}.",
            why="After that it gets no fixes any more, neither for security nor for lost data.",
            remedy="Plan the upgrade.",
        )


def _toolkit(project: Project) -> Iterator[Finding]:
    for message, hint in project.setting_problems:
        yield finding(
            Level.ERROR,
            "setting-ignored",
            *project.databases,
            what=message,
            why="It is ignored, and the default is in force: what you have written there does nothing.",
            remedy=hint,
            page="reference/checks.rst",
        )
    if project.databases and project.release == "scoped" and not project.middleware:
        yield finding(
            Level.NOTE,
            "toolkit-not-in-use",
            *project.databases,
            what="conn_hygiene is installed, and its middleware is not.",
            why='RELEASE is "scoped", so connections are given back in decorated code only: everywhere else a request '
            "keeps its connection to the end.",
            remedy="Put conn_hygiene.middleware.ConnectionHygieneMiddleware first in MIDDLEWARE.",
            page="tutorial.rst",
        )

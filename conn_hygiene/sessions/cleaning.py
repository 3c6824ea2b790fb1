"""What is done to a session before somebody else gets it: read what follows its owner, and take back what was set.

Both in one round trip. PostgreSQL's ``DISCARD ALL`` would need one of its own, so what it consists of is sent in its
place (PostgreSQL documentation, "DISCARD"), but for the cached plans, which are no state.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from conn_hygiene.sessions import client, effects, following, login, sql, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from conn_hygiene.sessions.login import Login
    from conn_hygiene.sessions.plan import Plan


logger = logging.getLogger("conn_hygiene.pools")

# As DISCARD ALL does, but for prepared statements, of which some may stay.
_EVERYTHING = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ROLE",
    "RESET ALL",
    "UNLISTEN *",
    "SELECT pg_catalog.pg_advisory_unlock_all()",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
    "SELECT count(*) FILTER (WHERE from_sql), count(*) FILTER (WHERE NOT from_sql)"
    " FROM pg_catalog.pg_prepared_statements",
)
_TIMEZONE = "timezone"


def clean(
    connection: psycopg.Connection[Any],
    plan: Plan,
    fresh: tuple[bytes | None, ...],
    configure: Callable[[psycopg.Connection[Any]], object] | None,
    *,
    configures_more: bool,
    of_login: Login | None = login.NOTHING,
) -> dict[str, str | None]:
    """Make the session of *connection* what it was when it was new, and return what is to be set again elsewhere.

    *fresh* are the session's reported parameters when it was new. *configure* is what its pool calls with a new
    connection; *configures_more* tells that this may set more than the time zone and the role. What triggers on
    ``login`` have set, *of_login*, is set again; a session of which that cannot be had is closed, and so is one that
    has had such triggers, if it is not known what they do, None.

    :raises psycopg.Error: it could not be done. The session is fit for nobody then.
    """
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        connection.rollback()
    # First: what the pool configures is sent by a cursor, and read by adapters, that its user has chosen.
    if not client.restore(connection):
        raise psycopg.OperationalError("what was set on the psycopg connection cannot be undone")
    begin(connection)
    if configure is not None and configures_more:
        plan = plan._replace(at_default=plan.at_default | (plan.follow - plan.unseen))
    asked = sorted(plan.follow)
    plan, rows = _asked_and_reset(connection, plan, asked, fresh, of_login)
    _note_heard(connection, plan, asked, rows)
    if not _outlives(connection, plan, of_login, rows[: -len(asked[:1]) or None]):
        # The pool opens another session, in which the triggers run.
        connection.pgconn.finish()
        may_begin_otherwise = plan.follow if of_login is None else of_login.may_set(plan.follow)
        plan = plan._replace(at_default=plan.at_default | may_begin_otherwise)
        return _to_carry(plan, asked, rows[0], rows[-1]) if asked else {}
    if configure is not None and (plan.left or configures_more or plan.resets & {_TIMEZONE, *following.IDENTITIES}):
        configure(connection)
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        raise psycopg.OperationalError("the session is left in a transaction")
    reported = state.reported_parameters(connection)
    is_reset = bool(plan.left) or state.READ_ONLY in plan.resets
    if is_reset and state.changed_parameters(fresh, reported) == [state.READ_ONLY]:
        # The server was made read-only, or is no longer. Another session need not be had: target_session_attrs may
        # refuse it, and this one still reads.
        state.set_fresh_parameters(connection, reported)
    elif reported != fresh:
        # The server's own defaults are others by now, as after a reload of its configuration. That is nobody's setting.
        names = ", ".join(state.changed_parameters(fresh, reported))
        logger.info(
            "A session was closed and not reused: after its reset, %s still differed from when the session was new. "
            "That is so after a change of the server's configuration, for one.",
            names,
        )
        connection.pgconn.finish()
    if not asked:
        return {}
    return _to_carry(plan, asked, rows[0], rows[-1], {_TIMEZONE, *_again(connection, plan, of_login)})


def _asked_and_reset(
    connection: psycopg.Connection[Any],
    plan: Plan,
    asked: list[str],
    fresh: tuple[bytes | None, ...],
    of_login: Login | None,
) -> tuple[Plan, list[list[str | None]]]:
    """Return the plan of what was done, and rows: the first and the last are *asked* before and after the reset."""
    try:
        rows = following.run(connection, "; ".join(_statements(connection, plan, asked, fresh, of_login)))
    except psycopg.Error:
        # A name that somebody has tried to set need not exist, nor be one that may be set. RESET ALL knows.
        if plan.left or connection.closed:
            raise
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            # The transaction of its own has failed with it.
            connection.rollback()
        plan = plan._replace(left=frozenset({effects.SETTING}))
        rows = following.run(connection, "; ".join(_statements(connection, plan, asked, fresh, of_login)))
    if plan.left:
        # The row of the locks comes before it.
        _deallocate(connection, *rows[len(asked[:1]) + 1])
    return plan, rows


def _note_heard(
    connection: psycopg.Connection[Any], plan: Plan, asked: list[str], rows: list[list[str | None]]
) -> None:
    """Take note of what the session knows by now, for whoever has its connection next."""
    # A reset makes a name known, be it to that session only. One of everything does not.
    following.note_heard(connection, frozenset() if plan.left else plan.resets)
    after = zip(asked, rows[-1] if asked else (), strict=True)
    following.note_heard(connection, (name for name, value in after if value is not None))


def _deallocate(connection: psycopg.Connection[Any], by_sql: str | None, by_protocol: str | None) -> None:
    """Drop what was prepared by SQL. What psycopg has prepared is as good for the next: it stays, if both sides agree.

    The two are how many statements the server has of each kind.
    """
    if by_sql != "0" or by_protocol != str(client.prepared(connection)):
        following.run(connection, "DEALLOCATE ALL")
        client.forget_prepared(connection)


def begin(connection: psycopg.Connection[Any]) -> None:
    """Make *connection* fit for a statement: end a transaction, and what psycopg would begin one with.

    :raises psycopg.Error: the server does not answer.
    """
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        connection.rollback()
    connection.autocommit = True
    connection.isolation_level = connection.read_only = connection.deferrable = None


def read(connection: psycopg.Connection[Any], plan: Plan, fresh: tuple[bytes | None, ...]) -> dict[str, str | None]:
    """Return what is to be set again elsewhere, of a session that ends. It is reset, since only that tells defaults.

    :raises psycopg.Error: it could not be read.
    """
    begin(connection)
    asked = sorted(plan.follow)
    plan = plan._replace(left=frozenset(), resets=plan.follow)
    _, rows = _asked_and_reset(connection, plan, asked, fresh, login.NOTHING)
    return _to_carry(plan, asked, rows[0], rows[-1])


# What an undoing statement undoes only if its transaction is committed.
_TRANSACTIONAL = {
    effects.LISTEN: "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
    effects.TEMPORARY: "EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema())",
}


def left_of(connection: psycopg.Connection[Any], reasons: Iterable[str]) -> frozenset[str]:
    """Return which of *reasons* the session of *connection* still has, asking the server where that is known."""
    asked = [reason for reason in reasons if reason in _TRANSACTIONAL]
    [row] = following.run(connection, "SELECT " + ", ".join(_TRANSACTIONAL[reason] for reason in asked))
    there = {reason for reason, exists in zip(asked, row, strict=True) if exists != "f"}
    return frozenset(there.union(reasons) - (set(asked) - there))


def _statements(
    connection: psycopg.Connection[Any],
    plan: Plan,
    asked: list[str],
    fresh: tuple[bytes | None, ...],
    of_login: Login | None,
) -> list[str]:
    statements = [following.asking(connection, asked)] if asked else []
    if plan.left:
        statements += _EVERYTHING
    else:
        statements += [_resetting(connection, name) for name in following.in_order_of_reset(plan.resets)]
        if "search_path" in plan.resets:
            # Tables may have been temporary by it, as no statement says. Where there are none, this costs nothing.
            statements.append("DISCARD TEMP")
    if plan.left or _TIMEZONE in plan.resets:
        # Every pool sets it, to the same, which is found to be so.
        statements.append(f"SET TimeZone = {following.literal(connection, state.timezone_of(fresh))}")
    if of_login is None and _looks_for_triggers(connection):
        statements.append(login.EXISTS)
    elif again := _again(connection, plan, of_login):
        statements.append(following.setting(connection, following.in_order_of_setting(again.keys()), again))
    # Asked again: what a new session has by itself need not be carried.
    return _at_once([*statements, following.asking(connection, asked)], asked) if asked else statements


def _again(connection: psycopg.Connection[Any], plan: Plan, of_login: Login | None) -> dict[str, str]:
    """Return what triggers on ``login`` had set in the session, and *plan* resets."""
    return {} if of_login is None else of_login.to_set_again(plan, connection)


def _outlives(
    connection: psycopg.Connection[Any], plan: Plan, of_login: Login | None, rows: list[list[str | None]]
) -> bool:
    """Return whether what triggers on ``login`` leave is in the session still, or again; *rows* are of its reset."""
    if of_login is not None:
        return of_login.outlives(plan, connection)
    return not _looks_for_triggers(connection) or rows[-1] == ["f"]


def _looks_for_triggers(connection: psycopg.Connection[Any]) -> bool:
    return connection.info.server_version >= login.SINCE


def _at_once(statements: list[str], asked: list[str]) -> list[str]:
    """Return *statements* in a transaction that waits for no snapshot, where those of the owner may."""
    if "default_transaction_deferrable" not in asked:
        return statements
    return ["BEGIN ISOLATION LEVEL READ COMMITTED", *statements, "COMMIT"]


def _resetting(connection: psycopg.Connection[Any], name: str) -> str:
    parts = name.split(".")
    if any(len(part.encode("utf-8", "replace")) > sql.LONGEST_NAME for part in parts):
        # Cut off by the server, it would be the name of another setting. In a string it is not; see `_asked_and_reset`
        # for what comes of the row.
        return f"SELECT pg_catalog.set_config({following.literal(connection, name)}, NULL, false)"
    return "RESET " + ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def _to_carry(
    plan: Plan,
    names: list[str],
    before: list[str | None],
    after: list[str | None],
    by_value: AbstractSet[str] = frozenset({_TIMEZONE}),
) -> dict[str, str | None]:
    """Return what is to be set again of *names*; those *by_value* were reset to something else than the server's."""
    carried: dict[str, str | None] = {}
    for name, value, reset in zip(names, before, after, strict=True):
        own = plan.instead.get(name, value)
        is_default = own == reset or (own == "" and reset is None)
        if own is not None and not is_default:
            carried[name] = own
        elif own is not None and (name in plan.at_default or _tells_from_none(name, plan)):
            # Not as empty: where the library that the name belongs to is loaded, that need not be among its values. The
            # time zone is reset to what Django sets, which need not be the server's.
            carried[name] = own if name in by_value else None
        elif own == "" and "." in name:
            # Anybody may have left it so. Nearly all sessions of a pool soon know the name.
            carried[name] = following.KNOWN
    return carried


def _tells_from_none(name: str, plan: Plan) -> bool:
    # What a name of one's own is reset to is empty. A session in which it was never set has none, which is another.
    return "." in name and name not in plan.unseen

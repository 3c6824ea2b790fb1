"""What a session really carries, asked of the server, and what of that no statement has said.

For development: each look is a round trip. What is asked for is described in the PostgreSQL documentation under "System
Views" and "System Administration Functions". Nothing of psycopg's is in between but the handle of libpq, so that a look
begins no transaction, prepares nothing, and meets no factory or adapter of the application's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.pq import ExecStatus, TransactionStatus

from conn_hygiene.sessions import effects
from conn_hygiene.sessions.lexer import folded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import psycopg

# Whatever these leave, they are known to leave.
_ANYTHING = frozenset({effects.CODE, effects.UNREADABLE, effects.DISCARDED})

# Each is a reason, and what there is of it. pg_settings has neither the names that an application has made up nor the
# two that say who is somebody.
_LOOK = """
SELECT 'SET', lower(name), setting FROM pg_catalog.pg_settings
WHERE source = 'session' AND name NOT LIKE 'transaction\\_%'
UNION ALL
SELECT 'SET', name, pg_catalog.current_setting(name, true)
FROM pg_catalog.unnest($1::pg_catalog.text[] || '{role,session_authorization}') name
UNION ALL
SELECT 'temporary table', relname::pg_catalog.text, '' FROM pg_catalog.pg_class
WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind NOT IN ('i', 'I', 't')
UNION ALL
SELECT 'temporary table', proname::pg_catalog.text, '' FROM pg_catalog.pg_proc
WHERE pronamespace = pg_catalog.pg_my_temp_schema()
UNION ALL
SELECT 'advisory lock',
       CASE objsubid WHEN 1 THEN ((classid::pg_catalog.int8 << 32) | objid::pg_catalog.int8)::pg_catalog.text
                     ELSE pg_catalog.concat(classid, ', ', objid) END
       || CASE mode WHEN 'ShareLock' THEN ' (shared)' ELSE '' END, ''
FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
UNION ALL
SELECT 'LISTEN', channel, '' FROM pg_catalog.pg_listening_channels() channel
UNION ALL
SELECT 'PREPARE', name, '' FROM pg_catalog.pg_prepared_statements WHERE from_sql
UNION ALL
SELECT 'cursor WITH HOLD', name, '' FROM pg_catalog.pg_cursors WHERE is_holdable
"""

_MAY_ASK_FOR_ORIGIN = """
SELECT pg_catalog.has_function_privilege('pg_catalog.pg_replication_origin_session_is_setup()', 'EXECUTE')
"""
_ORIGIN = """
UNION ALL
SELECT 'replication origin', 'an origin', '' WHERE pg_catalog.pg_replication_origin_session_is_setup()
"""

# Names that functions and policies have in them, of settings that are the application's own.
_NAMES = r"""
SELECT DISTINCT pg_catalog.lower(name[1]) FROM (
    SELECT {body} FROM pg_catalog.pg_proc p
    WHERE pronamespace NOT IN (SELECT oid FROM pg_catalog.pg_namespace
                               WHERE nspname IN ('pg_catalog', 'information_schema'))
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', qual, with_check) FROM pg_catalog.pg_policies
) bodies (body), pg_catalog.regexp_matches(
    body, '(?:\mset\s+(?:session\s+)?|'')"?([a-z_]\w*"?\."?[a-z_][\w.]*)(?:"?\s*(?:=|\mto\M)|'')', 'gi'
) name
"""

_NAME = re.compile(r"""['$]([a-z_]\w*\.[a-z_][\w.]*)(?=['$])|\bset\s+(?:session\s+)?([a-z_]\w*\.[a-z_][\w.]*)""", re.I)
_WHOLE_NAME = re.compile(r"[a-z_]\w*\.[a-z_][\w.]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Observed:
    """What a session carries at one moment."""

    #: By name in lower case: what has been set in the session, and what was asked for. None for what is not set.
    settings: Mapping[str, str | None]
    #: The names of everything else, by reason, as in :mod:`conn_hygiene.sessions.effects`.
    others: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Finding:
    """What is in a session that nothing has said."""

    #: As in :mod:`conn_hygiene.sessions.effects`, such as ``"SET"``.
    reason: str
    #: Names, sorted: of settings, relations, locks, channels, statements or cursors.
    names: tuple[str, ...]


def is_idle(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the session of *connection* can be asked, and is in no transaction."""
    pgconn = connection.pgconn
    return pgconn.transaction_status == TransactionStatus.IDLE and not pgconn.pipeline_status


def real_state(connection: psycopg.Connection[Any], names: Collection[str], *, with_origin: bool) -> Observed | None:
    """Return what the session of *connection*, which is idle, carries; None if the server does not say.

    :param names: of settings that are not the server's own, in lower case.
    :param with_origin: whether the role may ask for a replication origin, see :func:`may_ask_for_origin`.
    """
    array = "{" + ",".join(f'"{name}"' for name in sorted(names)) + "}"
    rows = _ask(connection, _LOOK + _ORIGIN, array) if with_origin else None
    # It may be another role by now.
    rows = _ask(connection, _LOOK, array) if rows is None else rows
    if rows is None:
        return None
    settings: dict[str, str | None] = {}
    others: dict[str, set[str]] = {}
    for reason, name, value in rows:
        if reason == effects.SETTING:
            settings[str(name)] = value
        else:
            others.setdefault(str(reason), set()).add(str(name))
    return Observed(settings, {reason: frozenset(found) for reason, found in others.items()})


def may_ask_for_origin(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the role may ask whether its session replays what comes from elsewhere; most may not."""
    return _ask(connection, _MAY_ASK_FOR_ORIGIN) == [["t"]]


def own_names(connection: psycopg.Connection[Any]) -> frozenset[str]:
    """Return the names, in lower case, of an application's own settings that functions and policies have in them."""
    # The body of an SQL function that the server has parsed already is elsewhere, from PostgreSQL 14 on.
    parsed = connection.pgconn.server_version >= 140000
    body = "coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), prosrc)" if parsed else "prosrc"
    rows = _ask(connection, _NAMES.format(body=body))
    found = (str(name).replace('"', "") for [name] in rows or ())
    return frozenset(name for name in found if _WHOLE_NAME.fullmatch(name))


def names_in(text: str, *parameters: Any) -> frozenset[str]:
    """Return what may be names of an application's own settings, in lower case, in a statement and its *parameters*."""
    found = {quoted or bare for quoted, bare in _NAME.findall(text)}
    for each in parameters:
        values = each.values() if isinstance(each, dict) else each if isinstance(each, (list, tuple)) else ()
        found.update(value for value in values if isinstance(value, str))
    return frozenset(folded(name) for name in found if _WHOLE_NAME.fullmatch(name))


def _ask(connection: psycopg.Connection[Any], query: str, *parameters: str) -> list[list[str | None]] | None:
    encoding = connection.info.encoding
    result = connection.pgconn.exec_params(query.encode(), [parameter.encode() for parameter in parameters])
    if result.status != ExecStatus.TUPLES_OK:
        return None
    return [
        [
            None if (value := result.get_value(row, column)) is None else bytes(value).decode(encoding, "replace")
            for column in range(result.nfields)
        ]
        for row in range(result.ntuples)
    ]


class Seen:
    """What the statements of one checkout have said that they leave, as far as a look has not dealt with it."""

    __slots__ = ("_names", "_reasons")

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        # For the whole checkout: what is known to be set is known to be set again.
        self._names: set[str] = set()

    def add(self, effect: effects.Effect) -> None:
        """Take note of what a statement says that it does."""
        self._reasons |= effect.adds | effect.removes
        self._names.update(str(setting.name) for setting in effect.settings)

    def add_names(self, names: Iterable[str]) -> None:
        """Take note that settings of these *names* have changed, whatever has changed them."""
        self._names.update(map(folded, names))

    def forget_reasons(self) -> None:
        """Begin anew with what statements leave, since there was a look; names of settings stay."""
        self._reasons.clear()

    def covers(self, reason: str) -> bool:
        """Return whether all that there is of *reason* may come from statements that have said so."""
        return reason in self._reasons or bool(self._reasons & _ANYTHING)

    def has_name(self, name: str) -> bool:
        """Return whether a setting is known to have been set. Who somebody is brings a role along."""
        return name in self._names or (name == "role" and "session_authorization" in self._names)


def unseen(
    first: Observed, last: Observed, now: Observed, seen: Seen, *, declared: Collection[str] = ()
) -> list[Finding]:
    """Return what is in a session *now* that was not there at the *last* look, nor at the *first*, and was not seen.

    :param seen: takes note of the settings that a statement has changed which has not said which.
    :param declared: settings, in lower case, that follow whatever has set them.
    """
    findings = []
    # A name that is no longer set in the session is back at its default.
    changed = [name for name in now.settings if not _same(now.settings[name], last.settings.get(name))]
    if seen.covers(effects.SETTING):
        seen.add_names(changed)
    left = [name for name in changed if not _same(now.settings[name], first.settings.get(name))]
    undeclared = {name for name in left if not seen.has_name(name)} - set(declared)
    if undeclared:
        findings.append(Finding(effects.SETTING, tuple(sorted(undeclared))))
    for reason, names in sorted(now.others.items()):
        new = names - last.others.get(reason, frozenset())
        if new and not seen.covers(reason):
            findings.append(Finding(reason, tuple(sorted(new))))
    return findings


def _same(value: str | None, before: str | None) -> bool:
    # Nothing sets a name that an application has made up back to where it was not set.
    return (value or None) == (before or None)


# ##### Which statement #####

_HARMLESS_CALLS = re.compile(
    r"(?:all|and|any|array|as|avg|by|case|cast|coalesce|concat|count|current_setting|distinct|exists|extract|filter|from|"
    r"greatest|having|in|join|jsonb?_agg|least|length|limit|lower|max|min|not|now|nullif|on|or|order|over|partition|"
    r"pg_backend_pid|round|row|select|string_agg|substring|sum|trim|upper|using|values|when|where)"
)
_CALL = re.compile(r'([\w$]+)"?\s*\(')
_LITERAL = re.compile(r"'[^']*'|--[^\n]*")


def suspicion(text: str) -> int:
    """Return how likely a statement is to have left something that it does not say; more for more likely."""
    plain = _LITERAL.sub(" ", text).lower()
    verb = re.match(r"[\s(]*(\w*)", plain)
    if verb and verb[1] in ("insert", "update", "delete", "merge", "truncate", "copy"):
        # By a trigger.
        return 2
    if verb and verb[1] == "call":
        return 3
    return 3 if any(not _HARMLESS_CALLS.fullmatch(name) for name in _CALL.findall(plain)) else 1

"""What a database's own functions, policies, views and the like do to sessions, as its catalogue has it.

No statement shows what a function does in its body, and that is where many sites set their tenant. Nor does one show
what a view, a rule, a default or a check calls. The catalogue has these bodies and expressions: ``pg_proc``,
``pg_policy``, ``pg_depend`` and those of :mod:`conn_hygiene.sessions.expressions` (PostgreSQL documentation, "System
Catalogs") may be read by every role. They are not run but read, so what they say is taken for what they do: whatever
may leave something behind counts as if it did.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import sql as literal
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.sessions import effects, expressions, login, sql
from conn_hygiene.sessions.bodies import bodies
from conn_hygiene.sessions.lexer import Text
from conn_hygiene.sessions.login import Login

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

#: Milliseconds that the server has for each of the questions.
TIME_LIMIT = 2000

#: Milliseconds that it waits for a table whose policy it has to read, and which a migration has locked.
LOCK_LIMIT = 500

#: How many bodies are read. Those of a project with more of them that look as if they left something are not.
MOST = 5000

#: Bytes of stored expressions, as they are compressed, that the server searches. Of a database with more of them, which
#: would keep it busy for a large part of the limit, none is read.
MOST_STORED = 8 * 1024 * 1024

# How often more functions are asked for, which those that are known call.
_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the catalogue says of a database's sessions."""

    #: In lower case, the settings that are to follow their owner: row-level security depends on them, or a function
    #: sets them for the session. All of them can be set by the role of the session that was asked.
    followed: frozenset[str] = frozenset()
    #: Why, for each of them.
    reasons: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    #: Why sessions have to be cleaned before somebody else gets them, whatever was seen. Empty: they need not.
    leaves_state: tuple[str, ...] = ()
    #: What of that no cleaning undoes, as the reasons of :mod:`.effects`: such sessions are closed.
    indelible: frozenset[str] = frozenset()
    #: What triggers on ``login`` leave in each session that begins: it is nobody's, and everybody is to find it there.
    login: Login = login.NOTHING
    #: What the catalogue was like; whatever changes in it that matters here changes this.
    fingerprint: str = dataclasses.field(default="", compare=False)


class _Function(NamedTuple):
    #: Qualified and quoted, as a statement would have it.
    name: str
    kind: str
    language: str
    body: str
    #: Whether what it creates is temporary unless it says otherwise, as PostgreSQL writes a boolean.
    creates_temporary: str

    def __str__(self) -> str:
        return f"{'procedure' if self.kind == 'p' else 'function'} {self.name}"


class _Policy(NamedTuple):
    name: str
    table: str
    expressions: str

    def __str__(self) -> str:
        return f"policy {self.name} of table {self.table}"


class _Expression(NamedTuple):
    """What is evaluated where a statement names only its owner, such as a view."""

    owner: str
    text: str

    def __str__(self) -> str:
        return self.owner


class _Settable(NamedTuple):
    """The parameters that the server knows, by whether the session's role, or its present one, may set them."""

    by_role: frozenset[str]
    by_others: frozenset[str]

    def may_follow(self, name: str) -> bool:
        """Return whether *name* can be set again, which nothing but a transaction's own parameters forbids then."""
        if name in ("role", "session_authorization"):
            # They are in no view.
            return True
        if "." in name:
            # Nobody has to make one of these known before it is set.
            return name not in self.by_others
        return name in self.by_role and not name.startswith("transaction_")


# ##### Asking #####

# Of whatever temporary table or own function the session may have under the catalogue's names, none is asked. The
# planner takes these questions for long ones: parallel workers and JIT would cost more than they save.
_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; "
    "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off; "
)

_SETTABLE = """
SELECT coalesce(string_agg(lower(name), ' ') FILTER (WHERE settable), ''),
       coalesce(string_agg(lower(name), ' ') FILTER (WHERE NOT settable), '')
FROM (SELECT name, context = 'user' OR (context = 'superuser' AND ({may_set})) AS settable FROM pg_settings) s
"""

# An extension's own tables are its business.
_POLICIES = """
SELECT quote_ident(polname), c.oid::regclass::text,
       concat_ws(', ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
FROM pg_policy JOIN pg_class c ON c.oid = polrelid
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')
ORDER BY 1, 2
"""

# Where the bodies of SQL functions are in prosqlbody (BEGIN ATOMIC), prosrc has nothing of them.
_FUNCTIONS = f"""
SELECT format('%I.%I', n.nspname, p.proname), p.prokind, l.lanname, {{body}}, {{creates_temporary}}
FROM {{source}} p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE {expressions.IS_OWN.format(object="p")} AND {expressions.IS_LASTING.format(schema="n")}
AND p.prokind <> 'a' AND {{which}}
"""

# In lower case once for each, and as if another statement were in front.
_LOWERED = f"""(SELECT *, lower(';' || prosrc COLLATE "C") AS s FROM pg_proc
               WHERE {expressions.IS_OWN.format(object="pg_proc")} OFFSET 0)"""

# Parts of the names of all functions that leave something behind: few, since each is a search.
_STEMS = (
    "set_",
    "setseed",
    "advisory",
    "dblink_connect",
    "pgv_",
    "replication_",
    "backup",
    "query_to_xml",
    "ts_stat",
    "rewrite",
    "crosstab",
)
_NAMES = (*sql.LEAVING, *sql.BEGINNINGS)
# Words without which no body leaves anything behind that does not begin a statement. Each is a fast search, which a
# regular expression for all of them is not.
_WORDS = (
    *("execute", "temp", "hold", "pg_settings", "u&"),
    *_STEMS,
    # One that is listed there, and has none of these parts, is searched for itself.
    *(name for name in _NAMES if not any(stem in name for stem in _STEMS)),
)

# Words that are everywhere, and matter as a statement's first. What may stand in front of a statement, in SQL and in
# PL/pgSQL, is another statement, a block's keyword, a label or a comment.
_FIRST = "(set|reset|do|load|listen|prepare|discard)"
_PERHAPS_STATEMENT = rf"[;>/nepc]\s*{_FIRST}\M"
_STATEMENT = rf"(;|>>|/|begin|then|else|loop|atomic)\s*{_FIRST}\M"
_STATEMENT_AFTER_COMMENT = rf"--[^\n\r]*[\n\r]\s*{_FIRST}\M"

_OWN = """NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')"""

# What runs as a session begins, going by the defaults that this one has begun with.
_AT_LOGIN = f"""p.oid IN (
    SELECT evtfoid FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled::text IN ('A',
        (SELECT CASE reset_val WHEN 'replica' THEN 'R' ELSE 'O' END FROM pg_settings
         WHERE name = 'session_replication_role'))
    AND NOT EXISTS (SELECT FROM pg_settings WHERE name = 'event_triggers' AND reset_val = 'off')) AND {_OWN}"""

# What runs then and at nothing else: nobody can call what an event trigger does.
_ONLY_AT_LOGIN = """(p.oid IN (SELECT evtfoid FROM pg_event_trigger WHERE evtevent = 'login')
     AND p.oid NOT IN (SELECT evtfoid FROM pg_event_trigger WHERE evtevent <> 'login'))"""

# Whether the path of a function's own SET clause has pg_temp as the first that exists. At its end it is harmless.
_CREATES_TEMPORARY = r"""coalesce(array_to_string(p.proconfig, e'\n') ~*
    $re$(^|\n)search_path=("\$user", *)*"?pg_temp(_[0-9]+)?"?(,|\n|$)$re$, false)"""

# What a reading depends on, and how many bytes of expressions there are: whatever changes a row gives it another xmin.
_FINGERPRINT = f"""
SELECT session_user || ' ' || current_user || ' ' || concat_ws(' ', e.changed,
    (SELECT sum(hashtext(oid || ' ' || xmin)) FROM pg_proc WHERE {expressions.IS_OWN.format(object="pg_proc")}),
    (SELECT sum(hashtext(oid || ' ' || xmin)) FROM pg_policy),
    (SELECT sum(hashtext(concat_ws(' ', oid, xmin, (SELECT string_agg(reset_val, ' ' ORDER BY name) FROM pg_settings
                                                    WHERE name IN ('session_replication_role', 'event_triggers')))))
     FROM pg_event_trigger),
    (SELECT sum(hashtext(objid || ' ' || refobjid)) FROM pg_depend
     WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND classid = 'pg_proc'::regclass)), e.stored
FROM ({expressions.AMOUNT}) e
"""


def read(connection: psycopg.Connection[Any], before: Findings | None = None) -> Findings | None:
    """Ask the server of *connection*, which is idle, what its functions and the like do; None if it does not tell.

    Takes one round trip if nothing has changed since *before*, which is returned then, and three otherwise, with a few
    more where there are policies. The session is left as it was. Raises only what a signal handler does; a connection
    that breaks meanwhile is broken afterwards.
    """
    try:
        return _read(connection, before)
    except Exception as error:
        # Whatever it is that cannot be read, the answer is that it is not known.
        if is_of_handler(error):
            raise
        return None


def _read(connection: psycopg.Connection[Any], before: Findings | None) -> Findings:
    ((fingerprint, stored),) = _answers(connection, _FINGERPRINT)[0]
    if before is not None and before.fingerprint == fingerprint:
        return before
    version = connection.info.server_version
    queries = [
        _settable_query(version),
        _POLICIES,
        _functions_query(version, _candidates(version), _LOWERED),
        _functions_query(version, _AT_LOGIN),
    ]
    settable, policies, functions, at_login = _answers(connection, *queries)
    reading = _Reading(_Settable(*(frozenset(names.split()) for names in settable[0])))
    reading.policies([_Policy(*row) for row in policies], lambda names: _named(connection, names))
    reading.functions(sorted((_Function(*row) for row in functions), key=attrgetter("name")))
    reading.at_login([_Function(*row) for row in at_login], lambda names: _named(connection, names, _OWN))
    is_little = int(stored) <= MOST_STORED
    found = _expressions(connection) if is_little else None
    reading.expressions(found)
    # What failed is asked again, though nothing changes.
    return dataclasses.replace(reading.findings(), fingerprint="" if is_little and found is None else fingerprint)


def _expressions(connection: psycopg.Connection[Any]) -> list[_Expression] | None:
    """Return the expressions that may leave something; None if the server does not tell in time.

    Writing a view out as SQL takes locks of its tables, which a migration may have. Then sessions are cleaned at each
    return; the rest that was read holds.
    """
    try:
        [rows] = _answers(connection, expressions.question(MOST + 1))
    except psycopg.Error as error:
        if connection.closed or is_of_handler(error):
            raise
        return None
    return [_Expression(*row) for row in sorted(rows)]


def _answers(connection: psycopg.Connection[Any], *queries: str) -> list[list[tuple[str, ...]]]:
    """Return the rows of each of *queries*, all of them text; in one round trip, and in a transaction of their own."""
    statements = [_BEGIN.format(TIME_LIMIT, LOCK_LIMIT).removesuffix("; "), *queries, "ROLLBACK"]
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    try:
        cursor.execute(";".join(statements).encode(), prepare=False)
        return list(_rows(cursor))
    finally:
        cursor.close()
        # After an error it is open, and has failed.
        if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            connection.rollback()


def _rows(cursor: psycopg.Cursor[Any]) -> Iterator[list[tuple[str, ...]]]:
    while True:
        result = cursor.pgresult
        if result is not None and result.nfields:
            # As they came: whatever types the project has loaded into other ones, and whatever the encoding.
            columns = range(result.nfields)
            yield [
                tuple((result.get_value(row, column) or b"").decode("utf-8", "replace") for column in columns)
                for row in range(result.ntuples)
            ]
        if not cursor.nextset():
            return


def _settable_query(version: int) -> str:
    # The session's own role sets it again, and else the one that whoever was here last has taken.
    may_set = "has_parameter_privilege(session_user, name, 'SET') OR has_parameter_privilege(name, 'SET')"
    if version < 150000:
        may_set = "(SELECT bool_or(rolsuper) FROM pg_roles WHERE rolname IN (session_user, current_user))"
    return _SETTABLE.format(may_set=may_set)


def _functions_query(version: int, which: str, source: str = "pg_proc") -> str:
    body = "p.prosrc"
    if version >= 140000:
        body = "CASE WHEN p.prosqlbody IS NULL THEN p.prosrc ELSE pg_get_function_sqlbody(p.oid) END"
    return _FUNCTIONS.format(body=body, creates_temporary=_CREATES_TEMPORARY, source=source, which=which)


def _candidates(version: int) -> str:
    """Return the condition that no function misses which leaves something in its session."""
    telling = [f"strpos(p.s, '{word}') > 0" for word in _WORDS]
    # The first of the two has fewer states, which makes it the faster one where neither matches.
    telling.append(f"(p.s ~ $re${_PERHAPS_STATEMENT}$re$ AND p.s ~ $re${_STATEMENT}$re$)")
    telling.append(f"(strpos(p.s, '--') > 0 AND p.s ~ $re${_STATEMENT_AFTER_COMMENT}$re$)")
    # Of other languages nothing can be read. The internal ones have the name of a function for a body.
    telling.append("l.lanname NOT IN ('sql', 'plpgsql', 'internal')")
    telling.append(_CREATES_TEMPORARY)
    if version >= 140000:
        telling.append(
            "p.prosqlbody::text ~ (SELECT ':(funcid|relid) (' || string_agg(oid::text, '|') || ') ' FROM "
            f"({expressions.LEAVING} UNION ALL SELECT 'pg_settings'::regclass) o)"
        )
    return f"({' OR '.join(telling)}) AND {_OWN} AND NOT {_ONLY_AT_LOGIN} LIMIT {MOST + 1}"


def _named(connection: psycopg.Connection[Any], names: Collection[str], which: str = "true") -> list[_Function]:
    """Return the functions with one of *names*, those of extensions as well if *which* does not leave them out."""
    wanted = f"p.proname = ANY({literal.Literal(sorted(names)).as_string(None)}::name[]) AND {which} LIMIT {MOST}"
    (rows,) = _answers(connection, _functions_query(connection.info.server_version, wanted))
    return [_Function(*row) for row in rows]


# ##### Reading what was answered #####


class _Reading:
    """Collects what policies, functions and expressions say, for the :class:`Findings`."""

    def __init__(self, settable: _Settable) -> None:
        self._settable = settable
        self._reasons: dict[str, list[str]] = defaultdict(list)
        self._leaves_state: list[str] = []
        self._indelible: set[str] = set()
        self._login = login.NOTHING

    def findings(self) -> Findings:
        """Return what has come of it."""
        reasons = {name: shortened(self._reasons[name]) for name in sorted(self._reasons)}
        return Findings(
            followed=frozenset(reasons),
            reasons=MappingProxyType(reasons),
            leaves_state=tuple(self._leaves_state),
            indelible=frozenset(self._indelible),
            login=self._login,
        )

    def policies(self, policies: list[_Policy], named: Callable[[Collection[str]], list[_Function]]) -> None:
        """Take note of *policies*, and of the functions that they call; *named* returns those that have some names."""
        for policy in policies:
            self._left(policy, *_left_in_expression(f"SELECT {policy.expressions}"))
            self._read_by(policy.expressions, f"{policy} reads it")
        for function in _called_by([policy.expressions for policy in policies], named):
            self._read_by(function.body, f"{function}, which a policy calls, reads it")

    def _read_by(self, text: str, reason: str) -> None:
        for name in {name for body in bodies(text) for name in body.settings_read()}:
            self._follow(name, reason)

    def functions(self, functions: list[_Function]) -> None:
        """Take note of what the project's own *functions* leave in a session."""
        for function in functions[:MOST]:
            self._left(function, *_left_by(function))
        if len(functions) > MOST:
            self._leaves_state.append(f"functions beyond the first {MOST}, which were not read")

    def at_login(self, functions: list[_Function], named: Callable[[Collection[str]], list[_Function]]) -> None:
        """Take note of what the *functions* leave that run as a session begins, and those that they call."""
        for function in [*functions, *_called_by([function.body for function in functions], named)]:
            names, others = _left_by(function)
            self._login = Login(self._login.settings | names, self._login.others | others)

    def expressions(self, stored: list[_Expression] | None) -> None:
        """Take note of what the project's own expressions leave in a session; None: they cannot be read."""
        for expression in (stored or [])[:MOST]:
            self._left(expression, *_left_in_expression(expression.text))
        if stored is None:
            self._leaves_state.append("views, defaults and the like, which could not be read")
        elif len(stored) > MOST:
            self._leaves_state.append(f"views, defaults and the like beyond the first {MOST}, which were not read")

    def _left(self, by: _Function | _Policy | _Expression, names: set[str], others: set[str]) -> None:
        for name in names:
            self._follow(name, f"{by} sets it")
        self._indelible |= others & _CLOSED_FOR
        left = [*(f"SET {name}" for name in sorted(names)), *sorted(others)]
        if left:
            self._leaves_state.append(f"{by} ({', '.join(left)})")
        elif isinstance(by, _Policy):
            # Whose rows somebody sees may depend on what was left before, seen or not.
            self._leaves_state.append(f"{by}")

    def _follow(self, name: str, reason: str) -> None:
        if self._settable.may_follow(name) and reason not in self._reasons[name]:
            self._reasons[name].append(reason)


def _called_by(texts: list[str], named: Callable[[Collection[str]], list[_Function]]) -> Iterator[_Function]:
    """Yield the functions that *texts* call, and those that these call; *named* returns those that have some names."""
    asked: set[str] = set()
    for _ in range(_ROUNDS):
        names = {name for text in texts for body in bodies(text) for name in body.called()} - asked
        if not names:
            return
        asked |= names
        called = named(names)
        yield from called
        texts = [function.body for function in called]


# What the server calls the rows of a function, by its own name if they have no other, with the names of their columns.
_ALIAS = re.compile(r"(?<=\)) (?:AS )?[a-z_]\w*\(")

# Of what cannot be read it is not said that a session would have to be closed for it.
_CLOSED_FOR = effects.INDELIBLE - {effects.CODE, effects.UNREADABLE}

# As many of each are named where a line is to be read.
_FEW = 3


def shortened(reasons: Sequence[str]) -> str:
    """Return the first of *reasons* on one line, and how many more there are."""
    more = len(reasons) - _FEW
    return ", ".join(reasons[:_FEW]) + (f" and {more} more" if more > 0 else "")


# How the built-in functions begin that leave something, by the names that they have within the server, for one that is
# another name of theirs.
_INTERNAL = re.compile("|".join([*sql.LEAVING, "tsquery_rewrite"]))


def _left_by(function: _Function) -> tuple[set[str], set[str]]:
    """Return the names of the settings that *function* leaves in its session, and what else it does."""
    names: set[str] = set()
    others: set[str] = {effects.TEMPORARY} if function.creates_temporary == "t" else set()
    if function.language == "internal":
        return names, others | ({f"{function.body}()"} if _INTERNAL.match(function.body) else set())
    if function.language not in ("sql", "plpgsql"):
        return names, others | {f"in language {function.language}, which is not read"}
    for body in bodies(function.body):
        if body.executes():
            others.add("EXECUTE")
            names |= body.settings_in_strings()
            others |= body.adds_in_strings() & _CLOSED_FOR
    more_names, more = _left_in(function.body, is_sql=function.language == "sql")
    return names | more_names, others | more


def _left_in_expression(text: str) -> tuple[set[str], set[str]]:
    """Return the same of an expression, in a statement that the server has written out."""
    return _left_in(_ALIAS.sub("(", text), is_sql=True)


def _left_in(text: str, *, is_sql: bool) -> tuple[set[str], set[str]]:
    """Return the names of the settings that *text* leaves in a session, and what else it does, as it is written."""
    names: set[str] = set()
    others: set[str] = set()
    for body in bodies(text):
        set_by_calls = body.settings_set()
        names |= {name for name in set_by_calls if name is not None}
        others |= {effects.SETTING for name in set_by_calls if name is None}
        for statement in body.statements(is_sql=is_sql):
            _add(sql.effect_of(statement), statement, names, others)
        others |= {effects.TEMPORARY} if body.creates_temporary() else set()
    return names, others


def _add(effect: effects.Effect | None, statement: str, names: set[str], others: set[str]) -> None:
    if effect is None:
        return
    for setting in effect.settings:
        if isinstance(setting.name, str):
            names.add(setting.name)
        else:
            others.add(effects.SETTING)
    adds = set(effect.adds)
    # In a string, it would only be said.
    if effects.TEMPORARY in adds and _GONE_AT_COMMIT.search(Text(statement).plain):
        adds.discard(effects.TEMPORARY)
    others |= adds


_GONE_AT_COMMIT = re.compile(r"\bon\s+commit\s+drop\b", re.IGNORECASE)

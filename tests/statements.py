"""SQL in all its spellings, as strategies for Hypothesis.

A statement is written as tokens with single spaces between them: keywords in capitals, names in small letters, `'...'`
for a string of that content. What is drawn has comments and white space wherever they may be, keywords and names in any
case, names with and without quotes, and strings in every form that PostgreSQL knows.
"""

from __future__ import annotations

import functools
import itertools
import re
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from conn_hygiene.sessions import effects as session

if TYPE_CHECKING:
    from collections.abc import Callable


def _doubled(text: str) -> str:
    return text.replace("'", "''")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


# How a string can be written whatever a backslash means in a plain one, and how where it means nothing, or escapes.
_STRINGS: dict[str, Callable[[str], str]] = {
    "escaped": lambda text: f"E'{_escaped(text)}'",
    "escaped and doubled": lambda text: "e'" + _doubled(text.replace("\\", "\\\\")) + "'",
    "escaped in two lines": lambda text: f"e''\n -- it's\n '{_escaped(text)}'",
    "dollar quotes": lambda text: "$$" + text.replace("$", "") + "$$",
    "dollar quotes with a tag": lambda text: f"$été_1${text}$été_1$",
    "a tag like another": lambda text: f"$q${text}$q$",
    "a tag without letters": lambda text: f"$€${text}$€$",
}
STRINGS: dict[str, Callable[[str], str]] = _STRINGS | {
    "plain": lambda text: f"'{_doubled(text)}'",
    "in two lines": lambda text: f"''\n -- it's\r '{_doubled(text)}'",
    "Unicode": lambda text: "U&'" + _doubled(text.replace("\\", "\\\\")) + "'",
}
STRINGS_IF_BACKSLASHES_ESCAPE: dict[str, Callable[[str], str]] = _STRINGS | {
    "plain": lambda text: f"'{_escaped(text)}'",
    "in two lines": lambda text: f"''\n -- it's\r '{_escaped(text)}'",
}
# Strings too, but not where a statement wants one as such.
OTHER_STRINGS: dict[str, Callable[[str], str]] = {
    "national": lambda text: f"N'{_doubled(text)}'",
    "bits": lambda text: f"b'{_doubled(text)}'",
    "hexadecimal": lambda text: f"X'{_doubled(text)}'",
}

# What might end a string too early, or begin another token inside.
_TEMPTING = ["'", '"', "''", "$", "$$", "$Q$", "--", "/*", "*/", "; SET a.b = 1; ", "LISTEN a", "e", " ", "\n", "\r"]
_BACKSLASHES = ["\\", "\\\\", "\\'"]

#: Contents of strings, without backslashes and with them.
simple_contents = st.lists(st.sampled_from(_TEMPTING), max_size=4).map("".join)
contents = st.lists(st.sampled_from(_TEMPTING + _BACKSLASHES), max_size=4).map("".join)

#: Names that have to be quoted, and look like something else in their quotes.
strange_names = st.sampled_from(
    ['"it\'s"', '"; SET a.b = 1; "', '"/*"', '"--"', '"$$"', '"a""; LISTEN b; """', '"set"']
)

_SPACES = [" ", "\n", "\t", "\r\n", "\f"]
_COMMENTS = [
    "/**/",
    "/* it's */",
    '/* " $$ */',
    "/* /* ; SET */ a */",
    "/*/**/*/",
    "--\n",
    "-- it's\r",
    '-- /* $$ "\r\n',
]
_GAPS = [*_SPACES, *_COMMENTS, *map("".join, itertools.product(_SPACES + _COMMENTS, repeat=2))]
gaps = st.sampled_from(_GAPS)
_gaps_or_none = st.sampled_from(["", *_GAPS])

_TOKEN = re.compile(r"'[^']*'|\S+")
_WORDS = re.compile(r"[\w$€]")


def _in_any_case(word: str) -> st.SearchStrategy[str]:
    return st.sampled_from([word, word.lower(), word.upper(), word.capitalize(), word.swapcase()])


@functools.cache
def _spelled(token: str, backslashes_escape: bool) -> st.SearchStrategy[str]:
    strings = st.sampled_from(list((STRINGS_IF_BACKSLASHES_ESCAPE if backslashes_escape else STRINGS).values()))
    if token.startswith("'"):
        return strings.map(lambda write: write(token[1:-1]))
    if token == "{strange}":
        return strange_names
    if token.startswith("{"):
        return st.builds(
            lambda write, text: write(text), strings, {"{text}": contents, "{simple}": simple_contents}[token]
        )
    if token.isidentifier():
        return _in_any_case(token) if token.isupper() else st.one_of(_in_any_case(token), st.just(f'"{token}"'))
    return st.just(token)


@st.composite
def spelled(draw: Any, template: str, *, backslashes_escape: bool = False) -> str:
    """Return *template* in one of its spellings."""
    parts = [draw(_gaps_or_none)]
    for token in _TOKEN.findall(template):
        text = draw(_spelled(token, backslashes_escape))
        before = parts[-1][-1:]
        together = (_WORDS.match(before) and _WORDS.match(text)) or before == text[0] == '"'
        parts += [draw(gaps if together else _gaps_or_none), text]
    return "".join([*parts, draw(_gaps_or_none)])


#: Statements that change their session, by what they leave there.
STATEFUL = {
    session.SETTING: [
        "SET app . tenant TO {text}",
        "SET app . tenant = acme",
        "SET SESSION app . tenant = 1",
        "SET local . tenant = 'acme'",
        "SET transaction . tenant TO acme",
        "SET search_path TO pg_catalog",
        "SET TIME ZONE 'Asia/Tokyo'",
        "SET ROLE pg_monitor",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SELECT set_config ( 'app.tenant' , 'acme' , FALSE )",
        "SELECT pg_catalog . set_config ( 'app.tenant' , 'acme' , 1 = 2 )",
        "SELECT set_config ( 'app.tenant' , 'acme' , \"true\" ) FROM ( SELECT FALSE AS \"true\" ) x",
    ],
    session.TEMPORARY: [
        "CREATE TEMP TABLE t ( n int4 )",
        "CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS t AS SELECT {text} AS a",
        "CREATE OR REPLACE TEMP VIEW t AS SELECT 1 AS a",
        "CREATE TEMPORARY SEQUENCE t",
        "CREATE TABLE pg_temp . t ( n int4 )",
        "CREATE TYPE pg_temp . t AS ENUM ( )",
        "CREATE FUNCTION pg_temp . t ( ) RETURNS int4 LANGUAGE sql AS 'SELECT 1'",
        "SELECT 1 AS a INTO TEMP t",
        "SELECT 1 AS date_insert INTO TEMP t",
        "SELECT ( 1 ) insert INTO TEMP t",
        "WITH w AS ( SELECT 1 AS a ) SELECT a AS merge INTO TEMP t FROM w",
        "SELECT {text} AS a INTO TABLE pg_temp . t",
        "SELECT 1 AS {strange} INTO LOCAL TEMP t",
        "WITH w AS ( SELECT 1 AS a ) SELECT a INTO TEMPORARY t FROM w",
    ],
    session.ADVISORY_LOCK: [
        "SELECT pg_advisory_lock ( 1 )",
        "SELECT 1 WHERE pg_catalog . pg_try_advisory_lock_shared ( 2 )",
        "WITH w AS ( SELECT pg_try_advisory_lock ( 1 ) AS a ) SELECT a FROM w",
        "VALUES ( {text} , pg_advisory_lock_shared ( 1 , 2 ) )",
        "SELECT pg_advisory_unlock_all ( ) , pg_advisory_lock ( 1 )",
    ],
    session.LISTEN: ["LISTEN c"],
    session.PREPARED: [
        "PREPARE p AS SELECT {text}",
        "PREPARE transaction AS SELECT 1",
        "PREPARE p ( int4 ) AS SELECT $1",
    ],
    session.HELD_CURSOR: [
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT {text} AS {strange}",
    ],
    session.CODE: ["DO 'BEGIN END'", "DO LANGUAGE plpgsql 'BEGIN END'"],
}

#: Statements that change nothing, or nothing that outlives their transaction.
STATELESS = [
    "SELECT 1",
    "SELECT {simple} AS a",
    "SELECT {simple} AS {strange} , 2 AS {strange}",
    "SET LOCAL app . tenant TO {simple}",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET TRANSACTION READ ONLY",
    "SELECT set_config ( 'app.tenant' , {simple} , TRUE )",
    "SELECT pg_advisory_xact_lock ( 1 )",
    "SHOW search_path",
    "EXPLAIN SELECT {simple}",
    "EXPLAIN ( ANALYZE ) ( SELECT {simple} )",
    "NOTIFY c , 'SET'",
]

#: Statements that undo something, and such as only look like it.
UNDOING = [
    "UNLISTEN *",
    "DEALLOCATE ALL",
    "DEALLOCATE PREPARE ALL",
    "CLOSE ALL",
    "DISCARD TEMP",
    "DISCARD ALL",
    "SELECT pg_advisory_unlock_all ( )",
    "SELECT * FROM pg_advisory_unlock_all ( )",
    'DEALLOCATE "all"',
    'CLOSE "all"',
    "UNLISTEN a",
    "EXPLAIN SELECT pg_advisory_unlock_all ( )",
    "SELECT pg_advisory_unlock_all ( ) WHERE 1 = 2",
]

_QUERY_AROUND = [
    "{}",
    "( {} )",
    "EXPLAIN ANALYZE {}",
    "EXPLAIN ANALYZE VERBOSE ( {} )",
    "EXPLAIN ( ANALYZE , COSTS off ) ( {} )",
]


@st.composite
def stateful(draw: Any, /, **how: Any) -> tuple[str, str]:
    """Return what a statement leaves in its session, and the statement."""
    reason = draw(st.sampled_from(list(STATEFUL)))
    template = draw(st.sampled_from(STATEFUL[reason]))
    if template.startswith(("SELECT", "WITH", "VALUES")):
        template = draw(st.sampled_from(_QUERY_AROUND)).replace("{}", template)
    return reason, draw(spelled(template, **how))


def any_of(templates: list[str], **how: Any) -> st.SearchStrategy[str]:
    """Return a strategy for spellings of *templates*."""
    return st.sampled_from(templates).flatmap(lambda template: spelled(template, **how))

"""A grammar of SQL's lexical odds and ends, fast enough for many thousands of statements.

A template is written as in :mod:`tests.statements`: keywords in capitals, names in small letters, ``'...'`` for a
string of that content, single spaces between the tokens. ``{trap}`` is a string of what looks like something else,
``{name}`` such a name, ``{query}`` another query.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from random import Random

#: Settings that nobody has declared, and that statements set.
CUSTOM_NAMES = ["app.t", "app.tenant", "local.a", "session.a", "transaction.a", "role.a", "names.a", "app.x$y", "a_.é"]
#: Settings of PostgreSQL that they set, apart from the role.
SETTINGS = [
    *("statement_timeout", "search_path", "TimeZone", "client_encoding", "xmloption", "default_transaction_isolation"),
    *("default_transaction_read_only", "default_transaction_deferrable", "standard_conforming_strings"),
    *("application_name",),
]


class Statement(NamedTuple):
    text: str
    parameters: Any
    template: str


# ##### Queries, which may stand in others #####

_QUERIES = [
    "SELECT 1 AS a",
    "SELECT {trap} AS a",
    "SELECT {trap} AS {name}",
    "SELECT 1 AS a , {trap} AS {name} , {trap} AS {name}",
    "SELECT x$$ FROM ( SELECT 1 AS x$$ ) s",
    "SELECT e$a$ FROM ( SELECT 1 AS e$a$ ) s",
    "SELECT text {trap} AS a",
    "SELECT 1 + + - 2 * 3 / 4 AS a",
    "VALUES ( {trap} )",
    "SELECT pg_advisory_xact_lock ( 1 )",
    "SELECT CASE WHEN FALSE THEN {trap} END AS temp",
    "SELECT set_config ( {custom} , {trap} , TRUE )",
    "SELECT set_config ( {custom} , {value} , FALSE )",
    "SELECT pg_catalog . set_config ( {custom} , {value} , 1 = 2 )",
    "SELECT set_config ( {custom} , {value} , {false} )",
    "SELECT set_config ( {custom} , {value} , {true} )",
    "SELECT set_config ( 'statement_timeout' , '70s' , FALSE )",
    "SELECT set_config ( 'app.' || 't' , {value} , FALSE )",
    "SELECT set_config ( name , {value} , FALSE ) FROM ( SELECT 'app.t' AS name ) s",
    "SELECT set_config ( CASE WHEN TRUE THEN 'app.t' END , {value} , FALSE )",
    "SELECT set_config ( {custom} , ( SELECT {value} ) , FALSE ) , set_config ( {custom} , {value} , FALSE )",
    "SELECT set_config ( {custom} , set_config ( {custom} , {value} , FALSE ) , TRUE )",
    "SELECT 1 WHERE set_config ( {custom} , {value} , FALSE ) = {value}",
    "SELECT CASE WHEN set_config ( {custom} , {value} , FALSE ) = {value} THEN 1 END AS a",
    "SELECT * FROM set_config ( {custom} , {value} , FALSE ) AS {name}",
    "SELECT pg_advisory_lock ( 1 )",
    "SELECT pg_try_advisory_lock_shared ( 1 , 2 )",
    "SELECT 1 FROM pg_try_advisory_lock ( 3 )",
    "SELECT pg_advisory_unlock_all ( ) , pg_advisory_lock ( 1 )",
    "SELECT pg_advisory_unlock_all ( )",
    "SELECT * FROM pg_catalog . pg_advisory_unlock_all ( )",
    "SELECT CASE WHEN FALSE THEN pg_advisory_unlock_all ( ) END",
    "SELECT pg_advisory_unlock_all ( ) WHERE FALSE",
    "SELECT * FROM ts_stat ( 'SELECT to_tsvector(set_config(''app.t'', ''a'', false))' )",
    "SELECT ts_rewrite ( 'a' :: tsquery , 'SELECT ''a''::tsquery, set_config(''app.t'', ''b'', false)::tsquery' )",
    "SELECT word FROM ts_stat ( 'SELECT to_tsvector(''set'')' )",
]
_AROUND = [
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    "( {} )",
    "( ( {} ) )",
    "EXPLAIN {}",
    "EXPLAIN ( {} )",
    "EXPLAIN ANALYZE {}",
    "EXPLAIN ANALYZE VERBOSE ( {} )",
    "EXPLAIN ( ANALYZE , COSTS OFF ) ( {} )",
    "EXPLAIN ( ANALYZE FALSE ) {}",
    "WITH w AS ( {} ) SELECT * FROM w",
    "WITH w AS MATERIALIZED ( {} ) SELECT 1 AS a , {trap} AS b FROM w",
    "COPY ( {} ) TO STDOUT",
    "INSERT INTO fuzz_sink SELECT a :: text FROM ( {} ) AS a",
    "WITH w AS ( INSERT INTO fuzz_sink SELECT w :: text FROM ( {} ) AS w RETURNING a ) SELECT * FROM w",
    "COPY ( WITH w AS ( {} ) INSERT INTO fuzz_sink SELECT w :: text FROM w RETURNING a ) TO STDOUT",
    "SELECT EXISTS ( {} ) AS a",
    "SELECT ( SELECT a :: text FROM ( {} ) AS a LIMIT 1 ) AS b",
    "PREPARE p AS {}",
    "PREPARE p AS {} ; EXECUTE p",
    "BEGIN ; DECLARE c CURSOR FOR {} ; FETCH ALL FROM c ; COMMIT",
    "BEGIN ; DECLARE c CURSOR WITH HOLD FOR {} ; COMMIT",
    "DECLARE c INSENSITIVE NO SCROLL CURSOR WITH HOLD FOR {}",
    "CREATE TEMP TABLE t AS SELECT 1 AS b FROM ( {} ) a",
    "CREATE TABLE pg_temp . t AS SELECT 1 AS b FROM ( {} ) a",
    "SELECT 1 AS b INTO TEMP t FROM ( {} ) a",
    "SELECT 1 AS b INTO TABLE pg_temp . t FROM ( {} ) a",
    "EXPLAIN ANALYZE CREATE TEMPORARY TABLE t AS SELECT 1 AS b FROM ( {} ) a",
    "BEGIN ; {} ; COMMIT",
    "BEGIN ; {} ; ROLLBACK",
    "START TRANSACTION ; SAVEPOINT s ; {} ; ROLLBACK TO SAVEPOINT s ; END",
    "{} ; SELECT 1 / 0",
    "{} UNION ALL SELECT NULL",
]

# ##### Other statements #####

_OTHERS = [
    "SET app . t = {value}",
    "SET app . tenant TO acme",
    "SET SESSION app . tenant = 1",
    "SET app . tenant TO DEFAULT",
    "SET app . t FROM CURRENT",
    "RESET app . t",
    "RESET ALL",
    'SET "App" . "T" = {value}',
    'SET "app.t" TO {value}',
    "SET app . x$y = {value}",
    "SET a_ . é TO {value}",
    "SET local . a = 1",
    "SET session . a = 1",
    "SET transaction . a = 1",
    "SET SESSION transaction . a = 1",
    "SET SESSION local . a = 1",
    "SET role . a = 1",
    "SET names . a TO 1",
    "SET LOCAL app . t = {value}",
    "BEGIN ; SET LOCAL app . t = {value} ; COMMIT",
    "BEGIN ; SET app . t = {value} ; SET LOCAL app . t = b ; COMMIT",
    "BEGIN ; SET LOCAL session . a = {value} ; COMMIT",
    "BEGIN ; SET LOCAL local . a = {value} ; COMMIT",
    "SET statement_timeout = 50000",
    "SET statement_timeout TO '50s'",
    "SET search_path TO pg_catalog , public",
    "SET search_path = public , {value}",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET TIME ZONE - 7",
    "SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE",
    "SET SESSION TIME ZONE LOCAL",
    "SET LOCAL TIME ZONE 'Asia/Tokyo'",
    "RESET TIME ZONE",
    "SET ROLE pg_monitor",
    "SET SESSION ROLE pg_monitor",
    "SET role = pg_monitor",
    "SET LOCAL ROLE pg_monitor",
    "BEGIN ; SET LOCAL ROLE pg_monitor ; COMMIT",
    "SET ROLE NONE",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET SESSION SESSION AUTHORIZATION pg_monitor",
    "SET LOCAL SESSION AUTHORIZATION pg_monitor",
    "SET session_authorization = pg_monitor",
    "RESET SESSION AUTHORIZATION",
    "SET NAMES 'utf8'",
    "SET NAMES",
    "SET NAMES DEFAULT",
    "SET SCHEMA 'public'",
    "SET XML OPTION DOCUMENT",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE , DEFERRABLE",
    "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET TRANSACTION READ ONLY",
    "SET SESSION TRANSACTION READ ONLY",
    "SET transaction_read_only = on",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET standard_conforming_strings = on",
    "SET standard_conforming_strings TO off",
    "BEGIN ; SET LOCAL search_path = pg_temp ; CREATE TABLE t ( a text ) ; COMMIT",
    "BEGIN ; SET LOCAL search_path TO 'pg_temp' ; SELECT 1 AS a INTO t ; COMMIT",
    "BEGIN ; SELECT set_config ( 'search_path' , 'pg_temp' , TRUE ) ; CREATE TABLE t ( ) ; COMMIT",
    "UPDATE pg_settings SET setting = '50000' WHERE name = 'statement_timeout'",
    "UPDATE ONLY pg_catalog . pg_settings AS p SET setting = {value} WHERE name = 'application_name'",
    "EXPLAIN ANALYZE UPDATE pg_settings SET setting = '50000' WHERE name = 'statement_timeout'",
    "UPDATE fuzz_sink SET a = {trap} WHERE FALSE",
    "INSERT INTO fuzz_sink VALUES ( {trap} ) , ( {trap} )",
    "DELETE FROM fuzz_sink WHERE a = {trap}",
    "LISTEN c",
    "LISTEN {name}",
    "UNLISTEN *",
    "UNLISTEN c",
    "NOTIFY c , {trap}",
    "LISTEN c ; UNLISTEN *",
    "UNLISTEN * ; LISTEN c",
    "BEGIN ; UNLISTEN * ; ROLLBACK",
    "CREATE TEMP TABLE t ( a text )",
    "CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS t ( a text DEFAULT {trap} )",
    "CREATE GLOBAL TEMP TABLE t ( a text ) ON COMMIT DELETE ROWS",
    "CREATE TEMP TABLE t ( a text ) ON COMMIT DROP",
    "CREATE OR REPLACE TEMP VIEW t AS SELECT {trap} AS a",
    "CREATE OR REPLACE TEMPORARY RECURSIVE VIEW t ( a ) AS SELECT 1",
    "CREATE VIEW pg_temp . t AS SELECT {trap} AS {name}",
    "CREATE TEMPORARY SEQUENCE t",
    "CREATE TABLE pg_temp . t ( a text )",
    "CREATE TABLE IF NOT EXISTS pg_temp . {name} ( a text )",
    "CREATE TYPE pg_temp . t AS ENUM ( )",
    "CREATE DOMAIN pg_temp . t AS text",
    "CREATE FUNCTION pg_temp . t ( ) RETURNS int4 LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION pg_temp . t ( ) RETURNS int4 LANGUAGE sql BEGIN ATOMIC SELECT 1 ; SELECT 2 ; END",
    "SELECT 1 AS a INTO TEMP t",
    "SELECT 1 AS date_insert INTO TEMP t",
    "SELECT ( 1 ) insert INTO TEMP t",
    "WITH w AS ( SELECT 1 AS a ) SELECT a AS merge INTO TEMP t FROM w",
    "INSERT INTO fuzz_sink VALUES ( {trap} ) ; SELECT {trap} AS insert INTO TEMP t",
    "SELECT {trap} AS a INTO LOCAL TEMPORARY TABLE t",
    "SELECT 1 AS {name} INTO pg_temp . t",
    "WITH w AS ( SELECT 1 AS a ) SELECT a INTO TEMPORARY t FROM w",
    "( SELECT {trap} AS a INTO TEMP t )",
    "SELECT 1 AS a INTO TEMP t UNION SELECT 2",
    "BEGIN ; CREATE TEMP TABLE t ( ) ; ROLLBACK",
    "DISCARD TEMP",
    "DISCARD TEMPORARY",
    "DISCARD PLANS",
    "DISCARD SEQUENCES",
    "DISCARD ALL",
    "; DISCARD ALL ;",
    "PREPARE p ( text ) AS SELECT $1 ; EXECUTE p ( {trap} )",
    "PREPARE transaction AS SELECT 1",
    "PREPARE p ( text ) AS SELECT set_config ( $1 , {value} , FALSE ) ; EXECUTE p ( {custom} )",
    "DEALLOCATE ALL",
    "DEALLOCATE PREPARE ALL",
    'DEALLOCATE "all"',
    "CLOSE ALL",
    "BEGIN ; CLOSE ALL ; COMMIT",
    "DO 'BEGIN SET app.t = 1; END'",
    "DO LANGUAGE plpgsql 'BEGIN PERFORM 1; END'",
    "SELECT pg_create_physical_replication_slot ( {slot} , TRUE , TRUE )",
    "SELECT pg_create_physical_replication_slot ( {slot} , TRUE , temporary => TRUE )",
    "SELECT pg_create_physical_replication_slot ( {slot} , temporary := 1 = 1 )",
    "SHOW search_path",
    "CREATE RULE r AS ON DELETE TO fuzz_sink DO ALSO ( SELECT 1 ; NOTIFY c ) ; DROP RULE r ON fuzz_sink",
]

# With parameters, which psycopg puts into the text.
_PARAMETRIZED: list[tuple[str, Any]] = [
    ("SELECT set_config ( %s , %s , %s )", ["app.t", "a", False]),
    ("SELECT set_config ( %s , %s , %s )", ["App.T", "a", True]),
    ("SELECT set_config ( %s , %s , %s )", ["app.t", "a'; -- \\", "no"]),
    ("SELECT set_config ( %s , %s , %s )", ["statement_timeout", "50s", False]),
    ("SELECT 5 %% 3 , {comment} %s , set_config ( %s , %s , FALSE )", ["'", "app.tenant", "$$"]),
    ("SELECT set_config ( %(n)s , %(v)s , %(l)s )", {"n": "app.t", "v": "a", "l": False}),
    ("SELECT set_config ( %(N)s :: text , %(v)s , %(l)s :: bool )", {"N": "app.t", "v": "a", "l": False}),
    ("SET app . t = %s", ["a"]),
    ("SET search_path = %s", ["pg_catalog"]),
    ("BEGIN ; SELECT set_config ( 'search_path' , %s , TRUE ) ; CREATE TABLE t ( ) ; COMMIT", ["pg_temp"]),
    ("BEGIN ; SET LOCAL search_path = %s ; CREATE TABLE t ( ) ; COMMIT", ["pg_temp"]),
    ("SELECT %s AS a , %t AS b", ["'; SET app.t = 1; --", "\\"]),
]

_TRAPS = [
    *("", "a", "'", '"', "''", '""', "$", "$$", "$a$", "--", "/*", "*/", "\\", "\\\\", "\\'", ";", "(", ")", "%", "\n"),
    *("; SET app.t = 1; ", "'; SET app.t = 1; --", "*/ SET app.t = 1 /*", "$$; LISTEN c; SELECT $$", "e'", "U&'", "é"),
    *("\r", "\t", "set_config('app.t', 'a', false)", "\\005f", "E'\\''", "x$$", "pg_temp.", "INTO TEMP t"),
]
_NAMES = [
    *('"it\'s"', '"; SET app.t = 1; "', '"/*"', '"--"', '"$$"', '"a""b"', '"set"', '"temp"', '"all"', "x$$", "a$b$c"),
    *("é", "temp", "hold", '"\\"', "_", "e", "u", "n1", 'U&"\\0061"', 'U&"d!0061t" UESCAPE {escape}', '" "', "€"),
]
_VALUES = ["'a'", "'a b'", "'it''s'", "'x;y'", "'/*'", "'7'"]
_SPACES = [" ", " ", " ", "\n", "\t", "\r", "\r\n", "\f", "\v", "  "]
_COMMENTS = [
    *("/**/", "/* it's */", '/* " $$ */', "/* /* ; SET */ a */", "/*/**/*/", "/***/", "/* /* /* /* /* deep */*/*/*/*/"),
    *("/*//**/*/", "/*--*/", "/*'*/", "--\n", "-- it's\r", '-- /* $$ "\r\n', "--;\n", "--\\\n", "/* %% */"),
]
_BREAKS = ["\n", "\r", " \n ", "\n\n", " -- it's\n", "\t--'\r ", "\n-- a\n", "\v\r\f"]
_TAGS = ["", "a", "A", "q1", "été", "€", "_", "E"]
# What may be anywhere where a hand has slipped.
_SLIPS = [
    "'",
    '"',
    "$",
    "$$",
    ";",
    "-",
    "--",
    "/",
    "*",
    "/*",
    "*/",
    "\\",
    " ",
    "\r",
    "\n",
    "(",
    ")",
    "e",
    "U&",
    "1",
    ",",
]

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\{\w*\}|%\(\w+\)s|%%|%[sbt]|\S+")
_NAME_END = re.compile(r"[\w$€]\Z")
_NAME_START = re.compile(r"[\w$€]")


class _Writer:
    def __init__(self, random: Random, backslashes_escape: bool) -> None:
        self.random = random
        self.backslashes_escape = backslashes_escape

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def gap(self) -> str:
        if self.chance(0.75):
            return self.random.choice(_SPACES)
        return "".join(self.random.choice(_SPACES + _COMMENTS) for _ in range(self.random.randint(1, 3)))

    def word(self, word: str) -> str:
        return self.random.choice([word, word.lower(), word.lower(), word.upper(), word.swapcase(), word.capitalize()])

    def name(self, name: str) -> str:
        if name.startswith(("$", "%")):
            return name
        choice = self.random.random()
        if choice < 0.6:
            return name if not name.isascii() else self.word(name)
        if choice < 0.8:
            return f'"{name}"'
        escape = self.random.choice(["\\", "\\", "!"])
        written = "".join(self._unicode(char, escape) if self.chance(0.4) else char for char in name)
        uescape = f"{self.gap()}{self.word('uescape')}{self.gap()}'{escape}'" if escape != "\\" else ""
        return f'{self.random.choice("uU")}&"{written}"{uescape}'

    def _unicode(self, char: str, escape: str) -> str:
        return f"{escape}{ord(char):04x}" if self.chance(0.7) else f"{escape}+{ord(char):06X}"

    def string(self, content: str) -> str:
        forms = ["plain", "plain", "plain", "escaped", "dollar", "lines", "national"]
        if not self.backslashes_escape:
            forms += ["unicode"]
        form = self.random.choice(forms)
        if form == "escaped":
            return self.random.choice("eE") + self._lines("'" + "".join(map(self._escaped, content)) + "'")
        if form == "dollar":
            for tag in self.random.sample(_TAGS, 3):
                if f"${tag}$" not in content + "$" and not (content + "$").endswith(f"${tag}$"):
                    return f"${tag}${content}${tag}$"
        if form == "unicode":
            written = "".join(
                "\\\\" if char == "\\" else self._unicode(char, "\\") if self.chance(0.3) else char for char in content
            )
            return self.random.choice("uU") + "&'" + written.replace("'", "''") + "'"
        written = self._plain(content)
        if form == "lines":
            return f"{self._plain(content[:1])}{self.random.choice(_BREAKS)}{self._plain(content[1:])}"
        return self.random.choice("nN") + written if form == "national" else written

    def _plain(self, content: str) -> str:
        if self.backslashes_escape:
            content = content.replace("\\", "\\\\")
            if self.chance(0.5):
                return "'" + content.replace("'", "\\'") + "'"
        return "'" + content.replace("'", "''") + "'"

    def _escaped(self, char: str) -> str:
        if char in "'\\":
            return self.random.choice(["\\", char]) + char if char == "'" else "\\\\"
        if char.isascii() and char.isprintable() and self.chance(0.2):
            return self.random.choice([f"\\x{ord(char):02x}", f"\\{ord(char):03o}", f"\\u{ord(char):04x}"])
        return char

    def _lines(self, written: str) -> str:
        if self.chance(0.3):
            return f"''{self.random.choice(_BREAKS)}{written}"
        return written

    def token(self, token: str) -> str:
        pick = self.random.choice
        if token == "{trap}":
            return self.string("".join(pick(_TRAPS) for _ in range(self.random.randint(0, 3))))
        if token == "{name}":
            return pick(_NAMES).replace("{escape}", "'!'")
        if token == "{value}":
            return self.string(pick(_VALUES)[1:-1].replace("''", "'"))
        if token == "{custom}":
            return self.string(pick(["app.t", "App.Tenant", "app.t", "local.a"]))
        if token == "{slot}":
            return self.string(f"slot_{self.random.randint(0, 10**9)}")
        if token in ("{true}", "{false}"):
            return self.string(pick({"{true}": ["t", "true", "on", "1"], "{false}": ["f", "False", "off", "0"]}[token]))
        if token == "{comment}":
            return pick(_COMMENTS)
        if token[0] == "'":
            return self.string(token[1:-1].replace("''", "'"))
        if token[0] in '"%':
            return token
        if token.isupper() and token.isalpha():
            return self.word(token)
        return self.name(token) if token.replace("$", "").isidentifier() and not token[0].isupper() else token

    def write(self, template: str) -> str:
        parts = [self.gap() if self.chance(0.2) else ""]
        before = ""
        for token in _TOKEN.findall(template):
            text = self.token(token)
            glue = self.chance(0.4) and _can_touch(before, text)
            parts += [self.gap() if before and not glue else "", text]
            before = text
        if self.chance(0.2):
            parts.append(self.gap())
        return "".join(parts)


def _can_touch(before: str, text: str) -> bool:
    """Return whether the two need nothing between them."""
    if before[-1:] + text[:1] in ("''", '""', "--", "/*", "$$"):
        return False
    if not _NAME_END.search(before):
        return True
    if text[0] in "'\"":
        return before.lower() not in ("e", "n", "b", "x", "u")
    return not _NAME_START.match(text)


def statement(random: Random, *, backslashes_escape: bool) -> Statement:
    """Return a statement, or several."""
    writer = _Writer(random, backslashes_escape)
    if random.random() < 0.05:
        template, parameters = random.choice(_PARAMETRIZED)
        return Statement(writer.write(template), parameters, template)
    template = _template(random)
    while random.random() < 0.2:
        template += " ; " + _template(random)
    text = writer.write(template)
    if random.random() < 0.12:
        place = random.randint(0, len(text))
        text = text[:place] + random.choice(_SLIPS) + text[place + random.choice([0, 0, 1]) :]
    return Statement(text, None, template)


def _template(random: Random) -> str:
    if random.random() < 0.4:
        return random.choice(_OTHERS)
    return random.choice(_AROUND).replace("{}", random.choice(_QUERIES))

"""What is made of text, for any text: nothing raises, nothing takes forever, and nothing is missed or shown."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg
import pytest
from django.db import connections
from django.test import override_settings
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from conn_hygiene import masking
from conn_hygiene.leases import usage
from conn_hygiene.management import rendering
from conn_hygiene.masking import MASK, mask, printable
from conn_hygiene.reports import notices, snapshot
from conn_hygiene.server import sessions as server
from conn_hygiene.sessions import connect_options
from conn_hygiene.sessions import effects as session
from conn_hygiene.sessions.sql import effect_of, remembered_effect_of
from conn_hygiene.sessions.state import changed_parameters
from conn_hygiene.sessions.texts import text_of
from tests import statements
from tests.statements import OTHER_STRINGS, STATELESS, STRINGS, UNDOING, any_of, contents, gaps, spelled, stateful

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# HYPOTHESIS_PROFILE=thorough looks for what the same few examples of every run do not show.
_COMMON: dict[str, Any] = {"deadline": None, "database": None, "print_blob": True}
settings.register_profile("brief", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=10_000, suppress_health_check=[HealthCheck.too_slow], **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "brief"))

FUNCTIONS = (effect_of, mask, printable)

# Pieces of statements. A number that is another each time stands in the place of "#".
FRAGMENTS = [
    *("'", '"', "''", '""', "e'", "E'\\'", "\\", "\\'", "U&'", 'u&"', "$", "$$", "$t#", "$a$", "a$", "--", "/*", "*/"),
    *("*", "/", "(", ")", ";", ",", ".", "=", " ", "  ", "\n", "\r", "\xa0", "\0", "\ud800", "1", "1e", ".5", "e#"),
    *("ä", "€", "SET ", "SET LOCAL ", "TO ", "explain", "analyze ", "select ", "into ", "temp", "pg_temp", "create "),
    *("with ", "hold ", "declare ", "prepare ", "listen ", "do ", "discard all", "set_config(", ", true"),
]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
texts = st.one_of(fragments, st.text(st.characters()), st.tuples(fragments, st.text(), fragments).map("".join))


def repeated(before: str, unit: str, after: str, length: int) -> str:
    """Return about *length* characters: *unit* again and again, between two others."""
    return before + "".join(unit.replace("#", str(number)) for number in range(length // len(unit))) + after


def cpu_time(function: Any, text: str) -> float:
    began = time.thread_time()
    function(text)
    return time.thread_time() - began


@pytest.mark.slow
class TestAnyText:
    @given(texts)
    def test_it_can_be_read_and_shown(self, text: str) -> None:
        effect = effect_of(text)
        assert remembered_effect_of(text) == effect
        assert effect is None or any(effect)
        for shown in (mask(text), printable(text)):
            assert shown.isprintable()
            assert shown == shown.strip()

    # Long texts take a time that grows as they do: eight times the length may take 24 times as long, and no 64 times.
    @given(*[st.lists(st.sampled_from(FRAGMENTS), min_size=least, max_size=4).map("".join) for least in (0, 1, 0)])
    @example("set ", "$t#", "")
    @example("set ", "explain(", "")
    @example("set /*", "/**/", "")
    @example("set /*/*/*", "/**/", "")
    @example("set ", "/*", "")
    @example("set /*", "*", "")
    @example("set E'", "\\'", "")
    @example("set E'", "''", "")
    @example("set E'' ", "-- ", "")
    @example("set E'' ", "--\n", "")
    @example("select set_config(", ", true", "")
    @example("select ", "into ", "temp")
    @example("select into", " ", "")
    @example("create ", "pg_temp ", "")
    @example("", "SET ", "TO a")
    @example("", 'SET "', "TO a")
    @settings(max_examples=settings.default.max_examples // 4)
    def test_it_takes_no_time_that_explodes(self, before: str, unit: str, after: str) -> None:
        short, long = (repeated(before, unit, after, length) for length in (3_000, 24_000))
        for function in FUNCTIONS:
            # One of several, since the machine may be busy with something else.
            assert any(cpu_time(function, long) < 24 * cpu_time(function, short) + 0.01 for _ in range(3))

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_a_long_string_takes_no_more_memory_than_its_length(self, function: Any) -> None:
        import tracemalloc

        text = f"SELECT 'set {'x' * 1_000_000}' /* {'x' * 1_000_000} */"
        tracemalloc.start()
        try:
            function(text)
            assert tracemalloc.get_traced_memory()[1] < 20 * len(text)
        finally:
            tracemalloc.stop()

    @given(st.one_of(texts, st.binary(), st.integers(), st.none(), st.lists(texts), st.lists(st.integers())))
    def test_a_query_of_any_kind_has_a_text_or_none(self, query: Any) -> None:
        text = text_of(query, None)
        assert text is None or isinstance(text, str)
        assert text == query or not isinstance(query, str)


SECRET = "hunter"
NUMBER = "8675309"
_NUMBERS = [NUMBER, f".{NUMBER}", f"1.{NUMBER}", f"{NUMBER}.5e-3", f"1e-{NUMBER}", f"0x{NUMBER}", "8_675_309"]
_PARAMETERS = [
    "a",
    "a.b",
    "a . b",
    "LOCAL a.b",
    "SESSION a/* */.b",
    '"a"."b"',
    '"a;b".c',
    '"a = b".c',
    "a.to",
    "a\n.\nb",
]
_UNQUOTED = [SECRET, f'"{SECRET}"', f'"a;{SECRET}"', f"b, {SECRET}", f"b, 'c', {SECRET}", f'"b""; "{SECRET}']


@st.composite
def secret_strings(draw: Any) -> str:
    write = draw(st.sampled_from([*STRINGS.values(), *OTHER_STRINGS.values()]))
    text: str = write(draw(contents) + SECRET + draw(contents))
    return text


@st.composite
def secret_settings(draw: Any) -> str:
    """Return a SET of a value without quotes, with what has to stand before it."""
    value = draw(st.sampled_from(_UNQUOTED))
    to = draw(st.sampled_from(["=", " = ", " TO ", "/**/to\n", "\rTo "]))
    start = draw(st.sampled_from(["set", "ALTER ROLE a SET", 'alter database "b;" SET', "Alter\nSystem SET"]))
    return f"; {start}{draw(gaps)}{draw(st.sampled_from(_PARAMETERS))}{to}{value}"


secrets = st.one_of(
    secret_strings(),
    st.sampled_from(_NUMBERS),
    st.sampled_from([f"/* {SECRET} */", f"/* /* */ {SECRET} */", f"-- {SECRET}\n", f"--' {SECRET}\r", f"/*{SECRET}"]),
    secret_settings(),
)
_HARMLESS = ["SELECT", "a", "é", "a$b$", "e", "U", "$1", ",", "(", "=", "'a'", "E'\\''", "$$ ' $$", "1", "\xa0", "\v"]
harmless = st.lists(st.one_of(st.sampled_from(_HARMLESS), statements.strange_names), max_size=4)


def without_names(shown: str) -> str:
    return re.sub(r'"[^"]*"?', "", shown)


class TestMasking:
    @given(texts)
    @example("a\xa0$b$ c")
    @example("\xa05")
    @example('"a; SET b = " ; DROP c "; d 5"')
    def test_what_is_masked_stays_as_it_is(self, text: str) -> None:
        assert mask(mask(text)) == mask(text)

    @given(texts)
    def test_no_value_is_left(self, text: str) -> None:
        shown = without_names(mask(text))
        assert "'" not in shown
        assert not re.search(r"(?<![\w$\x80-\U0010ffff])\d", shown)

    @given(harmless, gaps, secrets, gaps, texts)
    @example(["SELECT"], " ", f"-- ' \r 'a\n {SECRET}'", " ", "")
    @example(["SELECT"], " ", f"$a$ $A$ {SECRET} $a$", " ", "")
    @example([], "", f'SET a = "b;{SECRET}"', "", "")
    @example([], "", f"SET a . b TO {SECRET}", "", "")
    @example([], "", f'SET"a"."b"TO {SECRET}', "", "")
    def test_no_secret_is_shown_whatever_is_around_it_and_wherever_it_is_cut_off(
        self, before: list[str], gap: str, secret: str, another: str, after: str
    ) -> None:
        assume(SECRET not in after)
        statement = " ".join(before) + gap + secret
        for end in range(len(statement) + 1):
            shown = mask(statement[:end])
            assert SECRET not in shown
            assert "867" not in shown
        shown = mask(statement + another + after)
        # What only begins with it would be a name or a placeholder.
        assert SECRET not in shown
        assert NUMBER not in shown

    @given(st.sampled_from(STATELESS).flatmap(spelled))
    def test_keywords_and_names_stay(self, statement: str) -> None:
        shown = mask(statement).upper()
        word, *_ = (each for each in shown.split() if each != MASK)
        assert word.strip('"(').startswith(("SELECT", "SET", "SHOW", "EXPLAIN", "NOTIFY"))


def pins_of(statement: str, before: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return what a session is pinned by after *statement*."""
    effect = effect_of(statement)
    if effect is None:
        return before
    return (before - effect.removes) | effect.adds | ({session.SETTING} if effect.settings else set())


def is_pinned_by(reason: str, pins: frozenset[str]) -> bool:
    # The reasons for which a session is closed go for all others.
    return reason in pins or bool(pins & session.INDELIBLE)


class TestSessionState:
    @given(stateful(), st.lists(any_of(STATELESS), max_size=2), st.lists(any_of(STATELESS), max_size=2))
    def test_a_statement_that_leaves_something_is_seen_in_every_spelling_and_between_all_others(
        self, found: tuple[str, str], before: list[str], after: list[str]
    ) -> None:
        reason, statement = found
        assert is_pinned_by(reason, pins_of(";".join([*before, statement, *after])))

    @pytest.mark.parametrize(
        "statement",
        [
            "-- a comment ends here \r SET a.b = 1",
            "SELECT $a$ 1 $A$ 2 $a$; SET a.b = 1; SELECT $a$ 3 $a$",
            "SELECT $€$ ' $€$; SET a.b = 1; SELECT ''",
            "SELECT a$b$; SET a.b = 1; SELECT c$b$",
            "SELECT €e'\\'; SET a.b = 1; SELECT ''",
            "SELECT E'a'\n'\\''; SET a.b = 1; SELECT ''",
            "SELECT '\\''; SET a.b = 1; --'",
            'SET"a"."b"TO 1',
            "SET local.a = 1",
            "SET transaction.a = 1",
            "SET constraints . a = 1",
            "SELECT set_config('a.b', '1', \"true\") FROM (SELECT false AS \"true\") c",
            "EXPLAIN ANALYZE (SELECT set_config('a.b', '1', false))",
            "EXPLAIN (ANALYZE) (SELECT set_config('a.b', '1', false))",
            "SELECT explain(set_config('a.b', '1', false))",
            "SELECT U&\"s\\0065t_config\"('a.b', '1', false)",
        ],
    )
    def test_settings_that_are_hard_to_see(self, statement: str) -> None:
        assert is_pinned_by(session.SETTING, pins_of(statement))

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            ('LISTEN"a"', session.LISTEN),
            ('PREPARE"a"AS SELECT 1', session.PREPARED),
            ('PREPARE "transaction" AS SELECT 1', session.PREPARED),
            ("PREPARE transaction AS SELECT 1", session.PREPARED),
            ('DECLARE"a"CURSOR WITH HOLD FOR SELECT 1', session.HELD_CURSOR),
            ('SELECT 1 AS a INTO TEMP"b"', session.TEMPORARY),
            ('SELECT 1 AS"a"INTO"pg_temp"."b"', session.TEMPORARY),
            ("SELECT 1 AS a INTO TABLE pg_temp.b", session.TEMPORARY),
            ("SELECT 1INTO TEMP b", session.TEMPORARY),
            ("CREATE TABLE pg_temp_3.a (n int)", session.TEMPORARY),
            ("SELECT pg_advisory_unlock_all(), pg_advisory_lock(1)", session.ADVISORY_LOCK),
        ],
    )
    def test_other_state_that_is_hard_to_see(self, statement: str, reason: str) -> None:
        assert reason in pins_of(statement)

    @pytest.mark.parametrize(
        ("statement", "reason"),
        [
            ('DEALLOCATE "all"', session.PREPARED),
            ('CLOSE "all"', session.HELD_CURSOR),
            ("EXPLAIN SELECT pg_advisory_unlock_all()", session.ADVISORY_LOCK),
            ("SELECT pg_advisory_unlock_all() WHERE false", session.ADVISORY_LOCK),
            ("SELECT 1; DISCARD ALL", session.PREPARED),
            ("PREPARE a AS SELECT 1; DISCARD ALL", session.PREPARED),
            ("SELECT 'a\\'; UNLISTEN *; --'", session.LISTEN),
            ("BEGIN; UNLISTEN *; ROLLBACK", session.LISTEN),
            (
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC ; SELECT pg_advisory_unlock_all(); END",
                session.ADVISORY_LOCK,
            ),
            ("SELECT CASE WHEN false THEN pg_advisory_unlock_all() END", session.ADVISORY_LOCK),
            ("SELECT 1\0; UNLISTEN *", session.LISTEN),
        ],
    )
    def test_what_only_looks_as_if_it_undid_something(self, statement: str, reason: str) -> None:
        assert reason in pins_of(statement, frozenset({reason}))

    @given(any_of(STATELESS))
    @example("SET  LOCAL a.b = 1")
    @example("SET /**/ TRANSACTION READ ONLY")
    @example("PREPARE  TRANSACTION 'a'")
    def test_in_strings_names_and_comments_nothing_is_seen(self, statement: str) -> None:
        assert effect_of(statement) is None

    @given(stateful())
    def test_a_query_of_any_kind_has_the_same_effect(self, found: tuple[str, str]) -> None:
        _, statement = found
        effect = effect_of(statement)
        for query in (statement.encode(), sql.SQL(statement), sql.Composed([sql.SQL(statement)])):
            text = text_of(query, None)
            assert text is not None
            assert effect_of(text) == effect

    @given(st.lists(st.tuples(*[st.one_of(st.none(), st.binary(max_size=2))] * 2), max_size=10))
    def test_the_parameters_that_differ_are_named(self, values: list[tuple[bytes | None, bytes | None]]) -> None:
        before, after = ([pair[place] for pair in values] for place in (0, 1))
        changed = changed_parameters(tuple(before), tuple(after))
        assert len(changed) == sum(old != new for old, new in values)
        assert changed_parameters(tuple(after), tuple(before)) == changed


# What the server has of each kind of state, in the order of the columns.
_LOOK = {
    session.SETTING: """
        EXISTS (SELECT FROM pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction%')
        OR coalesce(current_setting('app.tenant', true), '') <> ''
        OR coalesce(current_setting('local.tenant', true), '') <> ''
        OR coalesce(current_setting('transaction.tenant', true), '') <> ''
        OR current_user <> session_user
    """,
    session.TEMPORARY: """
        EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema())
        OR EXISTS (SELECT FROM pg_proc WHERE pronamespace = pg_my_temp_schema())
        OR EXISTS (SELECT FROM pg_type WHERE typnamespace = pg_my_temp_schema())
    """,
    session.ADVISORY_LOCK: "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
    session.LISTEN: "EXISTS (SELECT FROM pg_listening_channels())",
    session.PREPARED: "EXISTS (SELECT FROM pg_prepared_statements)",
    session.HELD_CURSOR: "EXISTS (SELECT FROM pg_cursors WHERE is_holdable)",
}


def state_of(connection: psycopg.Connection) -> set[str]:
    """Return which kinds of state the session has, as the server sees it."""
    row = connection.execute(f"SELECT {', '.join(f'({look})' for look in _LOOK.values())}").fetchone()
    assert row is not None
    return {reason for reason, has in zip(_LOOK, row, strict=True) if has}


@pytest.fixture
def a_session(transactional_db: None, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """Return a session of the test's own, with the given value of standard_conforming_strings from the start."""
    parameters = connections["default"].get_connection_params()
    parameters |= {"autocommit": True, "prepare_threshold": None}
    options = f"-c standard_conforming_strings={request.param} -c client_min_messages=error"
    with psycopg.connect(**parameters, options=options) as connection:
        yield connection


on_a_session = settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
class TestAgainstTheServer:
    @pytest.mark.parametrize("a_session", ["on"], indirect=True)
    @on_a_session
    @given(st.sampled_from(list(STRINGS)), contents)
    def test_a_string_is_what_the_server_takes_it_for(
        self, a_session: psycopg.Connection, form: str, content: str
    ) -> None:
        content = content.replace("$", "") if form == "dollar quotes" else content
        row = a_session.execute(f"SELECT {STRINGS[form](content)}").fetchone()
        assert row is not None
        assert row[0] == content

    @pytest.mark.parametrize("a_session", ["on", "off"], indirect=True)
    @on_a_session
    @given(data=st.data())
    def test_whatever_the_session_has_pins_it(self, a_session: psycopg.Connection, data: st.DataObject) -> None:
        how = {"backslashes_escape": a_session.info.parameter_status("standard_conforming_strings") == "off"}
        statement = st.one_of(
            stateful(**how).map(lambda found: found[1]), any_of(STATELESS, **how), any_of(UNDOING, **how)
        )
        pins: frozenset[str] = frozenset()
        a_session.execute("DISCARD ALL")
        for text in data.draw(st.lists(st.lists(statement, min_size=1, max_size=2).map(";".join), max_size=4)):
            try:
                a_session.execute(text)
                pins = pins_of(text, pins)
            except psycopg.errors.SyntaxError:
                raise
            except psycopg.Error as error:
                event(type(error).__name__)
                pins |= pins_of(text)
            state = state_of(a_session)
            event(f"{len(state)} kinds of state")
            assert {reason for reason in state if not is_pinned_by(reason, pins)} == set()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.just(10**400)),
    lambda values: st.one_of(st.lists(values, max_size=2), st.dictionaries(st.text(), values, max_size=2)),
    max_leaves=4,
)
some_text = st.one_of(st.none(), st.text(st.characters()))


def a_session_as_seen(**facts: Any) -> server.Session:
    values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(server.Session))
    texts = {"database": "", "role": "", "application_name": ""}
    return server.Session(**(values | texts | {"pid": 7, "blocked_by": [], "own": False} | facts))


in_a_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
class TestNotices:
    @in_a_directory
    @given(alias=st.text(st.characters()), request=some_text, began=some_text)
    def test_what_is_left_is_read(self, tmp_path: Path, alias: str, request: str | None, began: str | None) -> None:
        facts = {"alias": alias, "server_pid": 7, "request": request, "where_began": began, "where_now": None}
        notices.post(tmp_path, facts)
        [notice] = notices.read(tmp_path)
        assert facts.items() <= notice.items()

    @in_a_directory
    @given(
        st.one_of(
            json_values,
            st.fixed_dictionaries(
                dict.fromkeys((*notices.KEPT, "in_transaction", "reported_at"), json_values)
                | {
                    "alias": st.one_of(st.just("default"), json_values),
                    "server_pid": st.one_of(st.just(7), json_values),
                }
            ),
        )
    )
    def test_what_somebody_else_left_stops_nothing(self, tmp_path: Path, found: Any) -> None:
        notices.post(tmp_path, {"alias": "default", "server_pid": 7})
        [path] = tmp_path.glob("*.json")
        marks = {key: value for key, value in json.loads(path.read_text()).items() if key in ("format", "machine")}
        path.write_text(json.dumps(found | marks if isinstance(found, dict) else found))
        import datetime

        now = datetime.datetime.now(datetime.timezone.utc)
        for state in (server.IDLE, server.IDLE_IN_TRANSACTION):
            seen = a_session_as_seen(state=state, xact_start=now, state_change=now)
            known = notices.known(tmp_path, {"default"}, [seen])
            view = rendering.View(["default"], server.Identity("", "", now, "18"), None, None, known)
            activity_ = server.Activity([seen], 0, 0)
            blocks = rendering.status_blocks(rendering.Status([dataclasses.replace(view, activity=activity_)], []))
            assert rendering.plain(blocks).replace("\n", "").isprintable()


class TestWhatIsShown:
    @given(st.text(st.characters()), st.text(st.characters()))
    def test_nothing_steers_a_terminal(self, text: str, other: str) -> None:
        blocks: list[rendering.Block] = [
            rendering.Line(text),
            rendering.Table((" ", "a"), [(text, other)], [rendering.PLAIN]),
        ]
        assert rendering.plain(blocks).replace("\n", "").isprintable()
        assert rendering.plain(blocks).count("\n") == 2
        kept = masking.harmless(text, lines=True)
        assert kept.replace("\n", "").replace("\t", "").isprintable()
        assert len(kept) == len(masking.harmless(text)) == len(text)
        assert kept.count("\n") == text.count("\n")

    @given(st.lists(st.tuples(*[st.text(st.characters())] * 3), min_size=1, max_size=3))
    def test_a_session_takes_one_line_whatever_its_names(self, names: list[tuple[str, str, str]]) -> None:
        sessions = [
            a_session_as_seen(database=database, role=role, application_name=printable(name))
            for database, role, name in names
        ]
        table = rendering.sessions_table(sessions)
        assert all(cell.isprintable() for row in table.rows for cell in row)
        assert len(rendering.plain([table]).splitlines()) == len(sessions) + 1

    @given(some_text, some_text, some_text)
    def test_a_lease_takes_one_line_whatever_its_names(
        self, thread: str | None, request: str | None, where: str | None
    ) -> None:
        values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(snapshot.LeaseInfo))
        values |= {"alias": "default", "state": "idle", "pinned_by": {}, "thread_name": thread}
        table = rendering.leases_table([snapshot.LeaseInfo(**(values | {"request": request, "where_now": where}))])
        assert all(cell.isprintable() for row in table.rows for cell in row)
        assert len(rendering.plain([table]).splitlines()) == 2

    @given(st.dictionaries(st.text(st.characters()), st.one_of(some_text, st.datetimes()), max_size=3))
    def test_json_is_json(self, value: dict[str, Any]) -> None:
        again = json.loads(rendering.dumped(value))
        assert again.keys() == value.keys()
        assert rendering.dumped(value).isascii()

    @given(st.floats(min_value=0, max_value=1e12))
    def test_a_duration_is_short(self, seconds: float) -> None:
        assert re.fullmatch(r"\d\.\d s|10\.0 s|\d+ (s|min|h|d)( \d+ (s|min|h))?", rendering.duration(seconds))

    @given(st.one_of(st.none(), st.text()), st.floats(min_value=0, max_value=1e9))
    def test_a_header_is_kept_in_front(self, before: str | None, seconds: float) -> None:
        measured = usage.Timing()
        measured._held = seconds
        header = usage.server_timing(measured, before)
        assert header.startswith(before or "db-wait")
        assert re.search(r'(db-(wait|held|used);dur=\d+\.\d;desc="[\w ]+"(, |$)){3}', header)


def arguments(options: str) -> list[str]:
    """Return what the server makes of libpq's options: words, in which a backslash keeps the next character."""
    words = re.findall(r"(?:\\.|[^\s\\]|\\\Z)+", options, re.DOTALL)
    return [re.sub(r"\\(.|\Z)", r"\1", word, flags=re.DOTALL) for word in words]


class TestConnectOptions:
    @given(st.text(st.sampled_from("-c a=\\\n")))
    @example("-c a.b=c\\ ")
    def test_options_of_the_project_come_last_and_as_they_are(self, own: str) -> None:
        options = connect_options._timeouts({"options": own}, {"lock_timeout": 2})["options"]
        assert arguments(options) == ["-c", "lock_timeout=2000", *arguments(own)]

    @given(
        st.one_of(st.none(), st.text(st.characters())),
        st.text(st.characters(exclude_characters=" .@:"), min_size=1),
        st.text(st.characters(exclude_characters=" .@:")),
        st.integers(1, 2**22),
        st.sampled_from(["default", "unpooled", "a" * 30]),
    )
    @example("x" * 80, "p" * 63, "h" * 63, 2**22, "a" * 30)
    def test_a_name_is_one_that_the_server_keeps_and_has_a_tag(
        self, own: str | None, project: str, host: str, pid: int, alias: str
    ) -> None:
        with (
            patch.object(socket, "gethostname", lambda: host),
            patch.object(os, "getpid", lambda: pid),
            patch.dict(connections.settings, {alias: connections.settings["default"]}),
            override_settings(ROOT_URLCONF=project),
        ):
            tag, named = connect_options.tag_of_process(alias), connect_options.project_name()
        name = connect_options._joined(own, tag)
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= connect_options.NAME_LENGTH
        assert name.endswith(f":{pid}" if alias == "default" else f":{pid}/{alias[:20]}")
        kept = (own or "")[: max(0, 62 - len(tag))]
        assert name.startswith(re.sub("[^ -~]", "?", kept))
        found = connect_options.tag_in(name)
        assert found is not None
        assert found.project == re.sub("[^ -~]", "?", named)

"""`manage.py connections`, asked about real sessions in real states."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from psycopg import sql

import conn_hygiene
from conn_hygiene.management import rendering
from conn_hygiene.management.commands import connections as command
from conn_hygiene.masking import mask, without_passwords
from conn_hygiene.server import sessions as server
from tests.processes import ROOT, run, unmeasured
from tests.test_restart import RestartableServer
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent", "small"])

# Of the role that the tests make, and of nobody else's sessions.
APP = "conn_hygiene_app"
STRANGER = "conn_hygiene_stranger"


def connections_command(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("connections", *arguments, stdout=out, **options)
    return out.getvalue()


def status(*arguments: str) -> dict[str, Any]:
    """Return what is said of the one database that all aliases lead to."""
    [database] = json.loads(connections_command("status", "--format", "json", *arguments))["databases"]
    return database


def seen(*arguments: str) -> dict[int, dict[str, Any]]:
    """Return the sessions by pid, without the command's own."""
    return {session["pid"]: session for session in status(*arguments)["sessions"] if not session["own"]}


@pytest.fixture
def roles(admin: psycopg.Connection) -> Iterator[None]:
    """Two roles that may log in and nothing else; they and their sessions end with the test."""
    names = (APP, STRANGER)
    for name in names:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'conn_hygiene'").format(sql.Identifier(name)))
    yield
    admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = ANY(%s)", [list(names)]
    )
    for name in names:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@contextmanager
def session_of(role: str | None = None, application_name: str = "shop") -> Iterator[psycopg.Connection]:
    parameters = connections["default"].get_connection_params() | {"application_name": application_name}
    if role is not None:
        parameters |= {"user": role, "password": "conn_hygiene"}
    connection = psycopg.connect(**parameters, autocommit=True)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def as_app(roles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command ask as the role that may do nothing."""
    connect = server.connect

    def connect_as_app(alias: str) -> psycopg.Connection[Any]:
        with monkeypatch.context() as patch:
            patch.setitem(connections[alias].settings_dict, "USER", APP)
            patch.setitem(connections[alias].settings_dict, "PASSWORD", "conn_hygiene")
            return connect(alias)

    monkeypatch.setattr(server, "connect", connect_as_app)


def pid_of(connection: psycopg.Connection) -> int:
    return connection.info.backend_pid


def state_of(admin: psycopg.Connection, pid: int) -> tuple[str, str] | None:
    return admin.execute("SELECT state, wait_event_type FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that gives the alias "unpooled" other settings."""

    def forget() -> None:
        # It remembers of its settings what they came to.
        with suppress(AttributeError):
            connections._connections.unpooled.close()
            del connections["unpooled"]

    def configure(**values: Any) -> None:
        values["OPTIONS"] = {**connections.settings["unpooled"]["OPTIONS"], **values.get("OPTIONS", {})}
        monkeypatch.setitem(connections.settings, "unpooled", {**connections.settings["unpooled"], **values})
        forget()

    yield configure
    forget()


# What nobody can connect with, and what is said of it.
MISCONFIGURED: list[tuple[dict[str, Any], str]] = [
    ({"NAME": ""}, "supply the NAME"),
    ({"NAME": "x" * 64}, "longer than"),
    ({"TIME_ZONE": "Nope/X"}, "Nope/X"),
    ({"OPTIONS": {"sslmod": "require"}}, "sslmod"),
    ({"OPTIONS": {"connect_timeout": "abc"}}, "connect_timeout"),
    ({"PORT": "abc"}, "abc"),
]


@pytest.fixture(params=MISCONFIGURED, ids=[said for _, said in MISCONFIGURED])
def misconfigured(request: pytest.FixtureRequest, configured: Callable[..., None]) -> str:
    """Have nobody be able to connect to the alias "unpooled"; return what is to be said of it."""
    values, said = request.param
    configured(**values)
    return str(said)


@contextmanager
def running(connection: psycopg.Connection, statement: str) -> Iterator[None]:
    """Run *statement* in a thread, and cancel it at the end of the block, if it still runs."""

    def work() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            connection.execute(statement)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        connection.cancel_safe()
        thread.join()


@pytest.fixture
def every_state(as_app: None, admin: psycopg.Connection) -> Iterator[dict[str, int]]:
    """The pids of one session of the application's role in each state."""
    with ExitStack() as stack:
        names = ("idle", "active", "idle in transaction", "idle in transaction (aborted)", "waiting")
        made = {name: stack.enter_context(session_of(APP, name)) for name in names}
        made["idle"].execute("SELECT 1")
        holder = made["idle in transaction"]
        holder.execute("BEGIN")
        holder.execute("SELECT pg_advisory_xact_lock(20001)")
        made["idle in transaction (aborted)"].execute("BEGIN")
        with pytest.raises(psycopg.errors.DivisionByZero):
            made["idle in transaction (aborted)"].execute("SELECT 1 / 0")
        stack.enter_context(running(made["active"], "SELECT pg_sleep(600)"))
        stack.enter_context(running(made["waiting"], "SELECT pg_advisory_lock(20001)"))
        pids = {name: pid_of(connection) for name, connection in made.items()}
        wait_until(lambda: state_of(admin, pids["active"]) == ("active", "Timeout"), "one sleeps")
        wait_until(lambda: state_of(admin, pids["waiting"]) == ("active", "Lock"), "one waits for a lock")
        yield pids


class TestStatus:
    def test_it_shows_the_roles_sessions_in_each_state(self, every_state: dict[str, int]) -> None:
        sessions = seen()
        assert set(sessions) == set(every_state.values())
        for name, pid in every_state.items():
            assert sessions[pid]["application_name"] == name
            assert sessions[pid]["state"] == ("active" if name == "waiting" else name)
            assert sessions[pid]["role"] == APP
            assert sessions[pid]["in_state"] >= 0
        waiting = sessions[every_state["waiting"]]
        assert waiting["blocked_by"] == [every_state["idle in transaction"]]
        assert waiting["wait_event"] == "Lock: advisory"
        assert sessions[every_state["idle"]]["in_transaction"] is None
        assert sessions[every_state["idle in transaction"]]["in_transaction"] >= 0
        assert sessions[every_state["idle in transaction"]]["statement"] == "SELECT pg_advisory_xact_lock(?)"

    def test_what_stands_in_the_way_of_others_comes_first(self, every_state: dict[str, int]) -> None:
        answer = status()
        assert answer["states"] == {
            "idle in transaction (aborted)": 1,
            "idle in transaction": 1,
            "active": 2,
            "idle": 1,
        }
        states = [session["state"] for session in answer["sessions"] if not session["own"]]
        assert states == ["idle in transaction (aborted)", "idle in transaction", "active", "active", "idle"]

    def test_the_text_says_the_same(self, every_state: dict[str, int]) -> None:
        text = connections_command("status")
        assert "5 sessions: 1 idle in transaction (aborted), 1 idle in transaction, 2 active, 1 idle\n" in text
        for name, pid in every_state.items():
            [line] = [line for line in text.splitlines() if line.split("  ")[0] and f" {pid} " in line and name in line]
            assert name in line
        assert f"{every_state['waiting']} waits for {every_state['idle in transaction']}" in text

    def test_aliases_of_one_database_are_one(self, as_app: None) -> None:
        assert status()["aliases"] == ["default", "small", "unpooled", "persistent"]
        assert status("--database", "unpooled")["aliases"] == ["unpooled"]

    def test_other_roles_are_counted_and_what_they_do_is_not_seen(self, as_app: None) -> None:
        with session_of(STRANGER) as stranger, session_of(APP) as own:
            stranger.execute("SELECT 'secret'")
            assert set(seen()) == {pid_of(own)}
            assert status()["sessions_of_other_roles"] >= 1
            assert "more of other roles; --all-users lists them." in connections_command("status")
            session = seen("--all-users")[pid_of(stranger)]
            answer, text = status("--all-users"), connections_command("status", "--all-users")
        assert session["role"] == STRANGER
        assert session["state"] is session["statement"] is session["age"] is None
        assert answer["hidden"] >= 1
        assert answer["sessions_of_other_roles"] == 0
        assert "pg_read_all_stats" in text
        assert "insufficient privilege" not in text

    def test_all_is_seen_with_the_right_to(self, as_app: None, admin: psycopg.Connection) -> None:
        admin.execute(f"GRANT pg_read_all_stats TO {APP}")
        with session_of(STRANGER) as stranger:
            stranger.execute("SELECT 'secret', now()")
            session = seen("--all-users")[pid_of(stranger)]
            assert status("--all-users")["hidden"] == 0
        assert (session["state"], session["statement"]) == ("idle", "SELECT ?, now()")

    def test_its_own_session_is_shown_and_never_counts(self, as_app: None) -> None:
        answer = status()
        assert [session["own"] for session in answer["sessions"]].count(False) == 0
        assert answer["states"] == {}
        assert "(this command)" in connections_command("status")
        # With a limit of 0 s it would be found, too, if it counted.
        connections_command("status", "--fail-if-idle-in-transaction", "0")

    def test_the_leases_of_the_process_that_answers_are_shown(self) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 'secret'")
            text = connections_command("status")
            answer = json.loads(connections_command("status", "--format", "json"))
            [info] = conn_hygiene.snapshot()
        [lease] = answer["leases"]
        assert lease["server_pid"] == info.server_pid
        assert lease["statement"] == "SELECT ?"
        sessions = {session["pid"]: session for session in answer["databases"][0]["sessions"]}
        assert sessions[info.server_pid]["where_now"].startswith(str(Path(command.__file__).parents[3]))
        assert "Leases of this process" in text
        assert "secret" not in text

    def test_it_fails_when_one_has_been_idle_in_transaction_for_too_long(self, every_state: dict[str, int]) -> None:
        out = io.StringIO()
        with pytest.raises(CommandError) as caught:
            call_command("connections", "status", "--fail-if-idle-in-transaction", "0", stdout=out)
        assert caught.value.returncode == 1
        found = str(caught.value)
        assert {name for name, pid in every_state.items() if str(pid) in found} == {
            "idle in transaction",
            "idle in transaction (aborted)",
        }
        # What was found is shown all the same.
        assert str(every_state["idle"]) in out.getvalue()
        connections_command("status", "--fail-if-idle-in-transaction", "600")

    def test_names_that_would_steer_the_terminal_do_not(self, as_app: None) -> None:
        with session_of(APP) as connection:
            connection.execute('SELECT 1 AS "\x1b[2J\u202e"')
            text = connections_command("status")
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert 'AS " [2J "' in text

    @pytest.mark.parametrize("columns", ["80", "250"])
    def test_rich_draws_the_same_on_a_terminal_however_narrow(
        self, columns: str, every_state: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        text = connections_command("status", force_color=True)
        assert "\x1b[1m" in text
        for pid in every_state.values():
            assert str(pid) in text
        assert "\x1b[" not in connections_command("status", no_color=True)

    def test_rich_is_mentioned_where_it_is_missing(self, as_app: None, monkeypatch: pytest.MonkeyPatch) -> None:
        # Which is how Python is told that there is no such module.
        monkeypatch.delitem(sys.modules, "conn_hygiene.contrib.rich", raising=False)
        monkeypatch.setitem(sys.modules, "rich.console", None)
        monkeypatch.setattr(sys.modules["conn_hygiene.contrib"], "rich", None, raising=False)
        monkeypatch.delattr(sys.modules["conn_hygiene.contrib"], "rich")
        errors = io.StringIO()
        text = connections_command("status", "-v", "2", force_color=True, stderr=errors)
        assert "State" in text
        assert errors.getvalue().count("django-conn-hygiene[rich]") == 1
        silent = io.StringIO()
        connections_command("status", force_color=True, stderr=silent)
        assert silent.getvalue() == ""

    def test_a_server_that_does_not_answer_is_another_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections["unpooled"].settings_dict, "NAME", "conn_hygiene_no_such_database")
        out = io.StringIO()
        with pytest.raises(CommandError, match="conn_hygiene_no_such_database") as caught:
            call_command("connections", "status", "--format", "json", stdout=out)
        assert caught.value.returncode == 3
        # The others are shown all the same.
        broken, *others = sorted(json.loads(out.getvalue())["databases"], key=lambda found: found["error"] is None)
        assert broken["aliases"] == ["unpooled"]
        assert others[0]["error"] is None

    def test_an_alias_that_nobody_can_connect_to_is_another_failure(self, misconfigured: str) -> None:
        out = io.StringIO()
        with pytest.raises(CommandError, match=f"unpooled: .*{misconfigured}") as caught:
            call_command("connections", "status", "--format", "json", stdout=out)
        assert caught.value.returncode == 3
        found = {view["aliases"][0]: view for view in json.loads(out.getvalue())["databases"]}
        assert misconfigured in found["unpooled"]["error"]
        assert found["default"]["sessions"]
        with pytest.raises(CommandError, match="unpooled: "):
            assert "default" in connections_command("status")
        with pytest.raises(CommandError, match=f"unpooled: .*{misconfigured}") as caught:
            connections_command("terminate", "--database", "unpooled", "--idle", "0", "--dry-run")
        assert caught.value.returncode == 3

    def test_no_password_is_said_of_one(self, configured: Callable[..., None]) -> None:
        """Neither Django nor libpq knows that it is one."""
        for name in (f"postgresql://shop:hunter2@db/{'x' * 60}", f"password=hunter2 dbname={'x' * 60}"):
            configured(NAME=name)
            out = io.StringIO()
            with pytest.raises(CommandError, match="unpooled: ") as caught:
                call_command("connections", "status", "--format", "json", stdout=out)
            assert "hunter2" not in str(caught.value)
            assert "hunter2" not in out.getvalue()

    @pytest.mark.parametrize(("encoding", "shown"), [("ascii", "caf\\xe9 \\u4f60"), ("latin-1", "café \\u4f60")])
    def test_what_the_output_cannot_take_is_escaped(self, encoding: str, shown: str, as_app: None) -> None:
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with session_of(APP) as other:
            other.execute('SELECT 1 AS "café 你"')
            call_command("connections", "status", stdout=out)
        out.flush()
        assert f'SELECT ? AS "{shown}"' in out.buffer.getvalue().decode(encoding)

    @pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY"])
    def test_times_are_read_in_any_style(self, style: str, as_app: None, admin: psycopg.Connection) -> None:
        admin.execute(sql.SQL("ALTER ROLE {} SET datestyle = {}").format(sql.Identifier(APP), style))
        with session_of(APP) as other:
            other.execute("BEGIN")
            assert datetime.datetime.fromisoformat(seen()[pid_of(other)]["xact_start"]).tzinfo is not None
            terminated = ("terminate", "--pid", str(pid_of(other)), "--yes")
            assert f"{pid_of(other)}: ended" in connections_command(*terminated)

    @pytest.mark.parametrize(("encoding", "shown"), [("LATIN1", "café"), ("SQL_ASCII", "caf�")])
    def test_statements_are_read_in_any_encoding(
        self, encoding: str, shown: str, admin: psycopg.Connection, configured: Callable[..., None]
    ) -> None:
        name = f"conn_hygiene_{encoding.lower()}"
        provider = "LOCALE_PROVIDER libc" if admin.info.server_version >= 150000 else ""
        admin.execute(
            f"CREATE DATABASE {name} ENCODING {encoding} {provider} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        try:
            parameters = connections["default"].get_connection_params() | {"client_encoding": encoding, "dbname": name}
            with psycopg.connect(**parameters, autocommit=True) as other:
                other.execute(b'SELECT 1 AS "caf\xe9"')
                # From elsewhere, where nobody knows its encoding.
                arguments = ("terminate", "--all-databases", "--pid", str(pid_of(other)))
                assert 'SELECT ? AS "caf�"' in connections_command(*arguments, "--dry-run")
                configured(NAME=name)
                assert seen("--database", "unpooled")[pid_of(other)]["statement"] == f'SELECT ? AS "{shown}"'
                with server.connect("unpooled") as connection:
                    server.activity(connection)
                    assert connection.execute("SHOW client_encoding").fetchone() == ("UTF8",)
                assert f"{pid_of(other)}: ended" in connections_command(
                    "terminate", "--database", "unpooled", "--pid", str(pid_of(other)), "--yes"
                )
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @pytest.mark.parametrize("alias", ["sqlite", "unknown"])
    def test_what_is_no_postgresql_database_is_refused(self, alias: str) -> None:
        with pytest.raises(CommandError, match="no PostgreSQL database") as caught:
            connections_command("status", "--database", alias)
        assert caught.value.returncode == 2

    @pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon", "4e10"])
    @pytest.mark.parametrize("option", ["status --fail-if-idle-in-transaction", "watch --interval", "terminate --idle"])
    def test_what_are_no_seconds_is_refused(self, option: str, seconds: str) -> None:
        with pytest.raises(CommandError, match="not a number from"):
            connections_command(*f"{option}={seconds}".split())

    @pytest.mark.parametrize("count", ["0", "1.5", "9" * 400])
    def test_what_is_no_count_is_refused(self, count: str) -> None:
        with pytest.raises(CommandError, match="not a number from"):
            connections_command("watch", f"--count={count}")

    def test_sessions_of_two_databases_are_not_ended_at_once(self) -> None:
        with pytest.raises(CommandError, match="One --database at a time"):
            connections_command("terminate", "--database", "default", "--database", "unpooled", "--idle=60")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3601, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert rendering.duration(seconds) == shown


@pytest.mark.parametrize(
    ("state", "in_state", "idle_for", "shown"),
    [
        # With a cursor open, its process has seen that late.
        ("idle in transaction", 8.0, 6.0, "held 9.0 s, idle 8.0 s"),
        ("idle", 8.0, 6.0, "held 9.0 s, idle 8.0 s"),
        # The session was idle before it was checked out.
        ("idle", 20.0, 6.0, "held 9.0 s, idle 9.0 s"),
        # It has been used since, or is used at this moment, without the server's knowing.
        ("idle in transaction", 5.0, 6.0, "held 9.0 s, idle 6.0 s"),
        ("idle in transaction", 8.0, 0.0, "held 9.0 s, idle 0.0 s"),
        ("active", 8.0, 6.0, "held 9.0 s, idle 6.0 s"),
        (None, None, 6.0, "held 9.0 s, idle 6.0 s"),
    ],
)
def test_the_idle_time_is_the_servers_where_it_knows_more(
    state: str | None, in_state: float | None, idle_for: float, shown: str
) -> None:
    session: Any = SimpleNamespace(pid=7, state=state, in_state=in_state, blocked_by=[])
    holder = SimpleNamespace(pid=1, command="x", settings_module=None)
    facts = {"state": "idle", "pinned_by": {}, "held_for": 9.0, "idle_for": idle_for, "kept_because": None}
    facts |= {"holder": holder, "thread_name": "t"}
    [first, *_] = rendering._explanation(session, {7: facts})
    assert shown in first.text


def test_a_server_that_hangs_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in (("HOST", "127.0.0.1"), ("PORT", silent.getsockname()[1])):
            monkeypatch.setitem(connections["unpooled"].settings_dict, name, value)
        options = connections["unpooled"].settings_dict["OPTIONS"]
        monkeypatch.setitem(connections["unpooled"].settings_dict, "OPTIONS", {**options, "connect_timeout": 2})
        with pytest.raises(CommandError, match=r"^unpooled: nobody answered within connect_timeout, which is 2 s"):
            connections_command("status", "--database", "unpooled")


class TestCommandLine:
    """As its users start it."""

    @pytest.mark.slow
    def test_the_exit_code_and_the_streams(self) -> None:
        process = run("-m", "django", "connections", "status", "--database", "sqlite", "--no-color")
        assert (process.returncode, process.stdout) == (2, "")
        assert process.stderr.startswith("CommandError: 'sqlite' is no PostgreSQL database")
        process = run("-m", "django", "connections", "status", "--format", "json", "--settings", "tests.settings")
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)["version"] == 1
        assert run("-m", "django", "connections").returncode == 2


class TestWatch:
    def test_it_shows_the_same_again_over_one_connection(
        self, as_app: None, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def pids() -> list[tuple[int]]:
            return admin.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", [APP]).fetchall()

        # Those to the other aliases of the same database have been closed, which the server may take a moment for.
        wait = lambda seconds: wait_until(lambda: len(pids()) == 1, "one connection is left")  # noqa: E731
        monkeypatch.setattr(command, "sleep", wait)
        out = connections_command("watch", "--count", "3", "--format", "json")
        answers = [json.loads(line)["databases"][0] for line in out.splitlines()]
        [first, second, third] = [{session["pid"] for session in answer["sessions"]} for answer in answers]
        assert second == third
        assert len(third) == 1
        assert first >= second
        assert [answer["aliases"] for answer in answers] == [["default", "small", "unpooled", "persistent"]] * 3

    def test_as_text_one_stands_below_the_other(self, as_app: None) -> None:
        text = connections_command("watch", "--count", "2", "--interval", "0.1")
        assert text.count(f'as "{APP}", PostgreSQL') == 2

    def test_rich_draws_over_what_it_drew(self, as_app: None) -> None:
        text = connections_command("watch", "--count", "2", "--interval", "0.1", force_color=True)
        assert "\x1b[1A" in text
        assert text.endswith("\x1b[?25h")

    def test_it_goes_on_after_the_server_has_ended_its_session(
        self, as_app: None, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a restart of the server, which other tests could not go on after."""
        looks: list[str] = []

        def end_the_session(seconds: float) -> None:
            looks.append("")
            if len(looks) == 1:
                admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", [APP])

        monkeypatch.setattr(command, "sleep", end_the_session)
        out = connections_command("watch", "--count", "3", "--database", "unpooled", "--format", "json")
        before, broken, after = [json.loads(line)["databases"][0] for line in out.splitlines()]
        assert before["error"] is after["error"] is None
        assert broken["error"]
        assert broken["aliases"] == after["aliases"] == ["unpooled"]

    def test_it_goes_on_after_a_restart_of_the_server(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as directory:
            restartable = RestartableServer(Path(directory))
            restartable.start()
            try:
                for name, value in {**restartable.address, "PASSWORD": ""}.items():
                    monkeypatch.setitem(connections["unpooled"].settings_dict, name, value)
                restarts = iter([restartable.restart, lambda: None])
                monkeypatch.setattr(command, "sleep", lambda seconds: next(restarts)())
                out = connections_command("watch", "--count", "3", "--database", "unpooled")
            finally:
                restartable.stop()
        assert re.findall("^unpooled: (database|.)", out, re.MULTILINE)[::2] == ["database", "database"]
        assert out.count("PostgreSQL") == 2

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("watch", "--format", "json", "--interval", "0.1"), (0, "")),
            (("watch", "--interval", "0.1"), (0, "")),
            (("docs", "settings"), (3, "CommandError: Nobody reads the output any more.\n")),
            (("status", "--format", "json"), (3, "CommandError: Nobody reads the output any more.\n")),
        ],
        ids=["watch-json", "watch-text", "docs", "status-json"],
    )
    @pytest.mark.parametrize("errors", [subprocess.PIPE, subprocess.STDOUT], ids=["", "2>&1"])
    def test_who_reads_no_more_ends_it_well(
        self, arguments: tuple[str, ...], expected: tuple[int, str], errors: int
    ) -> None:
        script = "from django.core.management import execute_from_command_line as run, sys; run(sys.argv)"
        reading, writing = os.pipe()
        os.close(reading)
        try:
            ended = subprocess.run(
                [sys.executable, "-c", script, "connections", *arguments],
                check=False,
                # Python's own buffer, as most have it.
                env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONUNBUFFERED": ""},
                cwd=ROOT,
                stdout=writing,
                stderr=errors,
                text=True,
                timeout=60,
            )
        finally:
            os.close(writing)
        code, said = expected
        assert (ended.returncode, ended.stderr) == (code, said if errors == subprocess.PIPE else None)

    def test_ctrl_c_ends_it_well(self) -> None:
        environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"}
        # A shell that runs the tests in the background has them ignore SIGINT, and their children too.
        script = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "connections", "watch", "--interval", "0.2"])
"""
        arguments = [sys.executable, "-c", script]
        with subprocess.Popen(
            arguments, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                while "PostgreSQL" not in process.stdout.readline():
                    assert process.poll() is None
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=30)
            finally:
                process.kill()
        assert (process.returncode, errors) == (0, "")


class TestTerminate:
    def test_the_only_database_is_meant_whatever_its_alias(
        self, every_state: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "aliases", lambda: ["unpooled"])
        pid = str(every_state["idle"])
        assert pid in connections_command("terminate", "--pid", pid, "--dry-run")

    def test_it_wants_to_know_in_which_of_several_databases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where none of them is the default one."""
        monkeypatch.setattr(server, "aliases", lambda: ["unpooled", "small"])
        with pytest.raises(CommandError, match=r"^Say which: --database unpooled or --database small\.$") as caught:
            connections_command("terminate", "--idle", "60")
        assert caught.value.returncode == 2

    def test_it_wants_to_know_which(self) -> None:
        with pytest.raises(CommandError, match="--idle-in-transaction SECONDS") as caught:
            connections_command("terminate", "--yes")
        assert caught.value.returncode == 2

    def test_those_idle_in_transaction_end_and_the_others_live(
        self, every_state: dict[str, int], admin: psycopg.Connection
    ) -> None:
        text = connections_command("terminate", "--idle-in-transaction", "0", "--yes")
        ended = {"idle in transaction", "idle in transaction (aborted)"}
        for name, pid in every_state.items():
            assert (state_of(admin, pid) is None) == (name in ended)
            assert (f"{pid}: ended" in text) == (name in ended)

    def test_those_that_have_not_been_so_for_long_are_left_alone(self, every_state: dict[str, int]) -> None:
        out = connections_command("terminate", "--idle-in-transaction", "600", "--idle", "600", "--yes")
        assert out == "No session of default matches.\n"

    def test_idle_ones_and_one_by_its_pid(self, every_state: dict[str, int], admin: psycopg.Connection) -> None:
        connections_command("terminate", "--idle", "0", "--pid", str(every_state["idle in transaction"]), "--yes")
        left = {name for name, pid in every_state.items() if state_of(admin, pid) is not None}
        assert left == {"active", "waiting", "idle in transaction (aborted)"}

    def test_a_dry_run_shows_and_ends_nothing(self, every_state: dict[str, int], admin: psycopg.Connection) -> None:
        text = connections_command("terminate", "--idle", "0", "--dry-run")
        assert str(every_state["idle"]) in text
        assert state_of(admin, every_state["idle"]) is not None

    @pytest.mark.parametrize(("answer", "ends"), [("y", True), ("YES", True), ("", False), ("n", False)])
    def test_it_asks(
        self,
        answer: str,
        ends: bool,
        every_state: dict[str, int],
        admin: psycopg.Connection,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda: answer)
        pid = every_state["idle"]
        if ends:
            errors = io.StringIO()
            out = connections_command("terminate", "--pid", str(pid), stderr=errors)
            # The output may go into a file, which nobody sees.
            assert "End 1 session? " in errors.getvalue()
            assert "End 1 session? " not in out
        else:
            with pytest.raises(CommandError, match="Nothing was ended"):
                connections_command("terminate", "--pid", str(pid))
        assert (state_of(admin, pid) is None) == ends

    def test_nobody_to_ask(self, every_state: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        with pytest.raises(CommandError, match="--yes"):
            connections_command("terminate", "--pid", str(every_state["idle"]))

    def test_other_roles_and_databases_are_out_of_reach_unless_asked_for(
        self, as_app: None, admin: psycopg.Connection
    ) -> None:
        parameters = connections["default"].get_connection_params()
        elsewhere = parameters | {"user": APP, "password": "conn_hygiene", "dbname": "postgres"}
        with session_of(STRANGER) as stranger, psycopg.connect(**elsewhere) as distant:
            pids = ["--pid", str(pid_of(stranger)), "--pid", str(pid_of(distant))]
            with pytest.raises(CommandError, match="Not ended") as caught:
                connections_command("terminate", *pids, "--yes")
            assert caught.value.returncode == 1
            assert state_of(admin, pid_of(stranger)) is not None
            assert state_of(admin, pid_of(distant)) is not None
            connections_command("terminate", *pids[2:], "--all-databases", "--yes")
            assert state_of(admin, pid_of(distant)) is None

    def test_where_it_has_not_looked_is_said(self, configured: Callable[..., None]) -> None:
        """There status shows sessions, too."""
        configured(NAME="postgres")
        elsewhere = "Not looked at: --database unpooled.\n"
        idle = ("--idle-in-transaction", "600", "--yes")
        assert connections_command("terminate", *idle) == f"No session of default matches.\n{elsewhere}"
        out = io.StringIO()
        with session_of() as there:
            pid = str(pid_of(there))
            with pytest.raises(CommandError, match=f"Not ended: {pid}"):
                call_command("connections", "terminate", "--database", "unpooled", "--pid", pid, "--yes", stdout=out)
        which = "no such session of the role and database of unpooled, or not one that may be ended."
        assert out.getvalue() == f"{pid}: {which}\nNot looked at: --database default.\n"
        assert connections_command("terminate", *idle, "--all-databases") == "No session of default matches.\n"

    def test_what_it_may_not_end_is_said(self, as_app: None, admin: psycopg.Connection) -> None:
        admin.execute(f"GRANT pg_read_all_stats TO {APP}")
        with session_of(STRANGER) as stranger:
            pid = pid_of(stranger)
            out = io.StringIO()
            with pytest.raises(CommandError, match=f"Not ended: {pid}") as caught:
                call_command("connections", "terminate", "--pid", str(pid), "--all-users", "--yes", stdout=out)
            assert state_of(admin, pid) is not None
        assert caught.value.returncode == 1
        assert f"{pid}: not permitted" in out.getvalue()

    def test_what_may_not_be_seen_is_not_ended(self, as_app: None, admin: psycopg.Connection) -> None:
        """Its pid could be another session's by now, and nobody could tell."""
        admin.execute(f"GRANT pg_signal_backend TO {APP}")
        with session_of(STRANGER) as stranger:
            with pytest.raises(CommandError, match="Not ended"):
                connections_command("terminate", "--pid", str(pid_of(stranger)), "--all-users", "--yes")
            assert state_of(admin, pid_of(stranger)) is not None

    def test_what_is_no_clients_is_no_session_even_where_nobody_may_see_that(
        self, as_app: None, admin: psycopg.Connection
    ) -> None:
        [(launcher, role, database)] = admin.execute(
            "SELECT pid, usename, datname FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'"
        ).fetchall()
        assert (role is not None, database) == (True, None)
        with server.connect("unpooled") as connection:
            found = server.activity(connection, server.Scope(all_users=True, all_databases=True)).sessions
        assert launcher not in {session.pid for session in found}
        with pytest.raises(CommandError, match=f"Not ended: {launcher}"):
            connections_command("terminate", "--pid", str(launcher), "--all-users", "--all-databases", "--yes")

    def test_it_never_ends_its_own_session(self, as_app: None) -> None:
        assert connections_command("terminate", "--idle", "0", "--yes") == "No session of default matches.\n"
        with server.connect("unpooled") as connection:
            sessions = {session.pid: session for session in server.activity(connection).sessions}
            session = sessions[pid_of(connection)]
            assert server.terminate(connection, session, whatever_state=True) is server.Outcome.GONE

    def test_one_that_went_on_with_its_work_in_between_is_left_alone(self, as_app: None) -> None:
        with session_of(APP) as idle, server.connect("unpooled") as connection:
            [session] = server.activity(connection).counted
            idle.execute("SELECT 1")
            assert server.terminate(connection, session) is server.Outcome.GONE
            assert idle.execute("SELECT 1").fetchone() == (1,)
            # Asked for by its pid, it is the session that counts and not what it does.
            assert server.terminate(connection, session, whatever_state=True) is server.Outcome.ENDED

    def test_another_session_with_the_same_pid_is_left_alone(self, as_app: None) -> None:
        with session_of(APP) as reused, server.connect("unpooled") as connection:
            [session] = server.activity(connection).counted
            assert session.backend_start is not None
            earlier = session.backend_start - datetime.timedelta(seconds=1)
            outcome = server.terminate(
                connection, dataclasses.replace(session, backend_start=earlier), whatever_state=True
            )
            assert outcome is server.Outcome.GONE
            assert reused.execute("SELECT 1").fetchone() == (1,)

    def test_one_that_takes_long_to_end_is_waited_for_longer_than_for_an_answer(
        self, as_app: None, monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection
    ) -> None:
        monkeypatch.setattr(server, "ANSWER_TIMEOUT", 0.2)
        monkeypatch.setattr(server, "TERMINATE_TIMEOUT", 1)
        with session_of(APP) as slow, server.connect("unpooled") as connection:
            slow.execute("CREATE TEMPORARY TABLE last_of_all ()")
            [(table,)] = slow.execute("SELECT pg_my_temp_schema()::regnamespace || '.last_of_all'").fetchall()
            [session] = server.activity(connection).counted
            with admin.transaction():
                # As it ends, a session drops its temporary tables.
                admin.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
                assert server.terminate(connection, session) is server.Outcome.PENDING


# Each with a secret in it that must not be seen.
LITERALS = [
    "'secret'",
    "'it''s secret'",
    "'two'\n'secret'",
    r"E'\'secret'",
    r"E'secret\\'",
    r"e'a''secret'",
    r"U&'\0041secret'",
    "N'secret'",
    "$$secret$$",
    "$$ ' secret' $$",
    "$x$secret $$ ' $x$",
    "$été_1$secret$été_1$",
    "'secret'::text",
    "/* secret */ 1",
    "/* a /* b */ secret */ 1",
    "-- 'secret\n 1",
    "/* ' */ 'secret' /* ' */",
    "'\"' || 'secret' || '\"'",
    "ARRAY['a', 'secret']",
    r"'\secret'",
    "8675309",
    "8675309.5e-3",
    "-.8675309",
]


class TestMasking:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            (
                "The database name 'postgresql://shop:hunter2@db/x' (70 characters)",
                "postgresql://?@db/x' (70 characters)",
            ),
            ('unexpected "postgres://shop:hunter2/@2@db/x"', '"postgres://?@db/x"'),
            ("The database name 'dbname=x password=hunter2 host=db' is", "dbname=x password=?"),
            ("The database name 'dbname=x password=hunter2 hunter2'", "dbname=x password=?"),
            ("The database name 'postgresql://shop:hunter2 hunter2@db/x' is", "postgresql://?@db/x' is"),
            ("ValueError: {'password': 'hunter2'}", "{'password': ?}"),
            ('unexpected spaces found in "hunter2 x", use percent-encoded spaces', 'in "?, use percent-encoded spaces'),
            ('forbidden value %00 in percent-encoded value: "hunter2%00"', 'value: "?'),
            ("password = 'hunter2 \\' hunter2' host=db", "password = ? host=db"),
            ('invalid percent-encoded token: "hunter2"hunter2%zz"', 'token: "?'),
            ('invalid integer value "hunter2@db" for connection option "port"', 'invalid integer value "?'),
            ('invalid integer value "abc" for connection option "port"', '"abc" for connection option "port"'),
            ('password authentication failed for user "a@b"', 'password authentication failed for user "a@b"'),
        ],
    )
    def test_no_password_is_shown_of_what_is_said_of_a_connection(self, text: str, shown: str) -> None:
        told = without_passwords(text)
        assert "hunter2" not in told
        assert told.endswith(shown)

    @pytest.mark.parametrize("literal", LITERALS)
    def test_no_value_is_shown_however_it_is_written_and_wherever_it_is_cut_off(
        self, literal: str, admin: psycopg.Connection
    ) -> None:
        statement = f'SELECT "a "" b" FROM (SELECT {literal} AS "a "" b") AS visible'
        # The server takes it for what it is.
        admin.execute(statement)
        shown = mask(statement)
        assert shown.startswith('SELECT "a "" b" FROM (SELECT ')
        assert shown.endswith('AS "a "" b") AS visible')
        for end in range(len(statement) + 1):
            shown = mask(statement[:end])
            assert "secret" not in shown
            assert "8675" not in shown

    @pytest.mark.parametrize(
        ("statement", "shown"),
        [
            ("SELECT $1, t1.c2 FROM t1", "SELECT $1, t1.c2 FROM t1"),
            ("SELECT a$1, é$b$ FROM c", "SELECT a$1, é$b$ FROM c"),
            ("SELECT nameE'x\\', 'y'", "SELECT nameE?"),
            ("SELECT  1,\n\t2", "SELECT ?, ?"),
            ("SET a.b = secret", "SET a.b = ?"),
            ("BEGIN; SET LOCAL a.b TO secret, more; SELECT c", "BEGIN; SET LOCAL a.b TO ?; SELECT c"),
            ("UPDATE a SET b = c WHERE d IS NULL", "UPDATE a SET b = c WHERE d IS NULL"),
            ("ALTER ROLE a PASSWORD 'secret'", "ALTER ROLE a PASSWORD ?"),
            ("SELECT 0x1F, 1_000, 5e10", "SELECT ?, ?, ?"),
            ("SELECT $été$secret$été$", "SELECT ?"),
            ("SELECT b'1', X'ff'", "SELECT ?, ?"),
            ("", ""),
        ],
    )
    def test_what_is_shown(self, statement: str, shown: str) -> None:
        assert mask(statement) == shown

    def test_a_backslash_that_may_escape_the_quote_ends_what_is_shown(self, admin: psycopg.Connection) -> None:
        for setting, statement in (
            ("on", r"SELECT 'C:\' AS a, 'secret' AS b"),
            ("off", r"SELECT 'it\'s secret' AS a, 'b' AS c"),
        ):
            admin.execute(f"SET standard_conforming_strings = {setting}; SET escape_string_warning = off")
            admin.execute(statement)
            assert mask(statement) == "SELECT ?"

    def test_a_statement_that_the_server_cut_off_in_the_middle_of_a_value(self, as_app: None) -> None:
        with session_of(APP) as connection:
            connection.execute(sql.SQL("SELECT {}").format("secret" * 10_000))
            [session] = seen().values()
        assert session["statement"] == "SELECT ?"

    def test_parameters_that_djangos_cursor_puts_into_the_statement(self, admin: psycopg.Connection) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT %s, %s, %s::bytea", ["secret", 8675309, b"\\secret'"])
            pid = cursor.connection.info.backend_pid
            row = admin.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
            assert row is not None
            assert "'secret', 8675309" in row[0]
            assert seen()[pid]["statement"].startswith("SELECT ?, ?, ?")
            text = connections_command("status")
        assert "secret" not in text
        assert "8675309" not in text


# ##### A fleet #####

FLEET = {
    # Six processes on three hosts, as TAG_SESSIONS names their sessions, and one of somebody else.
    "shop@web-1:11": 2,
    "shop@web-1:11/reports": 1,
    "shop@web-1:12": 2,
    "shop@web-2:11": 2,
    "shop@web-2:12": 2,
    "shop@celery-1:7": 1,
    "shop@celery-1:8": 1,
    "psql": 1,
}


# Of a client that says nothing: where it comes from.
LOCAL = "127.0.0.1" if connections["default"].settings_dict["HOST"].count(".") == 3 else "local"


@pytest.fixture
def fleet(as_app: None) -> Iterator[dict[str, list[psycopg.Connection]]]:
    """The sessions of a fleet, one of which is idle in transaction; by their names."""
    with ExitStack() as stack:
        made = {
            name: [stack.enter_context(session_of(APP, name)) for _ in range(count)] for name, count in FLEET.items()
        }
        for connection in (each for group in made.values() for each in group):
            connection.execute("SELECT 1")
        made["shop@web-2:12"][0].execute("BEGIN")
        yield made


class TestFleet:
    def test_sessions_are_counted_by_host_process_and_alias(self, fleet: dict[str, Any]) -> None:
        found = [
            (*(group[name] for name in ("host", "process", "alias")), group["sessions"], group["idle_in_transaction"])
            for group in status()["processes"]
        ]
        assert found == [
            ("web-2", 12, "default", 2, 1),
            ("web-2", 11, "default", 2, 0),
            ("web-1", 11, "default", 2, 0),
            ("web-1", 11, "reports", 1, 0),
            ("web-1", 12, "default", 2, 0),
            ("celery-1", 7, "default", 1, 0),
            ("celery-1", 8, "default", 1, 0),
            (LOCAL, None, None, 1, 0),
        ]
        [one] = [group for group in status()["processes"] if (group["host"], group["process"]) == ("web-2", 12)]
        assert (one["idle"], one["active"], one["processes"]) == (1, 0, 1)
        assert (
            one["oldest"]
            >= max(each["age"] for each in status()["sessions"] if each["application_name"] == "shop@web-2:12") - 10
        )

    def test_each_session_says_whose_it_is(self, fleet: dict[str, Any]) -> None:
        session = seen()[pid_of(fleet["shop@web-1:11/reports"][0])]
        assert (session["host"], session["process"], session["alias"]) == ("web-1", 11, "reports")
        session = seen()[pid_of(fleet["psql"][0])]
        assert (session["host"], session["process"], session["alias"]) == (None, None, None)

    def test_the_text_has_a_summary_ahead_of_the_list(self, fleet: dict[str, Any]) -> None:
        lines = connections_command("status").splitlines()
        assert lines[1] == "12 sessions: 1 idle in transaction, 11 idle; of 6 processes on 3 hosts"
        assert lines[2].split() == ["Host", "Process", "Alias", "Sessions", "Idle", "In", "trans.", "Oldest"]
        assert lines[3].split()[:6] == ["web-2", "12", "default", "2", "1", "1"]
        assert lines[10].split()[:2] == [LOCAL, "1"]
        assert lines[12].split()[:2] == ["State", "Pid"]
        # 12 sessions, and the command's own.
        assert [line.split()[0] for line in lines[13:26]] == ["idle"] + ["active"] + ["idle"] * 11

    def test_too_many_for_a_screen_are_counted_by_host(self, fleet: dict[str, Any]) -> None:
        lines = connections_command("status", "--limit", "5").splitlines()
        assert lines[2].split()[:2] == ["Host", "Processes"]
        hosts = [line.split()[:4] for line in lines[3:8]]
        assert hosts == [
            ["web-2", "2", "default", "4"],
            ["web-1", "2", "default", "4"],
            ["celery-1", "2", "default", "2"],
            [LOCAL, "0", "1", "1"],
            ["web-1", "1", "reports", "1"],
        ]
        # What is in the way of others is among those that are shown.
        assert lines[10].startswith("idle in transaction")
        assert lines[15] == "and 7 more; --limit 0 lists all."

    def test_too_many_hosts_for_a_screen_are_cut_as_well(self, fleet: dict[str, Any]) -> None:
        lines = connections_command("status", "--limit", "2").splitlines()
        assert [line.split()[0] for line in lines[3:5]] == ["web-2", "web-1"]
        assert lines[5] == "and 3 more; --limit 0 lists all."

    def test_all_are_listed_if_asked_for(self, fleet: dict[str, Any]) -> None:
        text = connections_command("watch", "--count", "1", "--limit", "0")
        assert all(str(pid_of(each)) in text for group in fleet.values() for each in group)
        assert "more; --limit" not in text

    def test_without_names_nothing_is_summed_up(self, every_state: dict[str, int]) -> None:
        assert "Host" not in connections_command("status")

    def test_the_summary_fits_into_80_columns_whatever_hosts_are_called(
        self, as_app: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pods = [f"shop@shop-production-web-7d9f8b6c5d-{name}:4194304" for name in ("x2k4q", "p9w7z")]
        with session_of(APP, f"{pods[0]}/reporting"), session_of(APP, pods[1]) as busy:
            busy.execute("BEGIN")
            plain = connections_command("status").splitlines()[2:5]
            monkeypatch.setenv("COLUMNS", "80")
            drawn = connections_command("status", force_color=True)
        assert max(map(len, plain)) <= 80
        # Names that are made by machines differ at the end.
        assert [any(end in line for line in plain) for end in ("x2k4q", "p9w7z")] == [True, True]
        assert all("4194304" in line for line in plain[1:])
        assert all(end in drawn for end in ("x2k4q", "p9w7z"))


# A process of a site: it connects as Django does, on whichever host it says it is, and waits until its input ends.
_MEMBER = """
import os, socket, sys
host, name = sys.argv[1:]
socket.gethostname = lambda: host
import django
from django.conf import settings
settings.CONN_HYGIENE = {"TAG_SESSIONS": True}
for entry in settings.DATABASES.values():
    entry["NAME"] = name
django.setup()
from django.db import connections
for alias in ("unpooled", "persistent"):
    connections[alias].ensure_connection()
print(os.getpid(), flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def site() -> Iterator[dict[str, list[int]]]:
    """Six processes under three host names; their pids, by these."""
    hosts = ["web-1", "web-1", "web-1", "web-2", "web-2", "celery-1"]
    name = connections["default"].settings_dict["NAME"]
    environment = unmeasured() | {"DJANGO_SETTINGS_MODULE": "tests.settings"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _MEMBER, host, name],
                    env=environment,
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for host in hosts
        ]
        found: dict[str, list[int]] = {}
        for host, process in zip(hosts, processes, strict=True):
            assert process.stdout is not None
            found.setdefault(host, []).append(int(process.stdout.readline()))
        yield found


@pytest.mark.slow
class TestSite:
    def test_its_processes_are_counted(self, site: dict[str, list[int]]) -> None:
        expected = {
            (host, pid, alias) for host, pids in site.items() for pid in pids for alias in ("unpooled", "persistent")
        }
        groups = [group for group in status()["processes"] if group["process"] is not None]
        assert {(group["host"], group["process"], group["alias"]) for group in groups} == expected
        assert {group["sessions"] for group in groups} == {1}
        assert "; of 6 processes on 3 hosts\n" in connections_command("status")
        for options, counted in (
            ((), "6 processes, those with sessions right now."),
            (("--hosts", "5"), "5 hosts times 3 processes, as many as one has right now."),
        ):
            text = connections_command("doctor", "--database", "unpooled", "--threads", "1", *options)
            assert f"NOTE unpooled: Connections were counted for {counted}\n" in text


@pytest.mark.parametrize(("width", "expected"), [(None, 40), (30, 30), (5, 5)])
def test_the_last_column_is_cut_to_the_width_of_the_terminal(width: int | None, expected: int) -> None:
    table = rendering.Table(("State", "Statement"), [("idle", "S" * 33)], [rendering.PLAIN])
    lines = rendering.plain([table], width).splitlines()
    assert max(map(len, lines)) == expected

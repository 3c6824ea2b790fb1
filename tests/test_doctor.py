"""`manage.py connections doctor`: what it finds, by its logic alone, on a real server, and behind a real PgBouncer."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from conn_hygiene.server import doctor, pooler
from conn_hygiene.server import sessions as server
from conn_hygiene.server.doctor import Facts, Level, Project
from conn_hygiene.server.pooler import Pooler
from conn_hygiene.sessions.catalogue import Findings
from example_project.processes import free_port
from tests.processes import ROOT
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent", "small"])

TODAY = datetime.date(2026, 11, 21)
STARTED = datetime.datetime(2026, 11, 1, tzinfo=datetime.timezone.utc)
IDENTITY = server.Identity("shop", "app", STARTED, "18.1")
LIMITS = server.Limits(180001, 100, 3, -1, -1, superuser=False, foreign_sessions=0)
ALIAS = {
    "OPTIONS": {"pool": {"min_size": 2, "max_size": 8}},
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": True,
    "ATOMIC_REQUESTS": False,
}
# Nothing is wrong with it.
PROJECT = Project(
    databases={"default": ALIAS},
    debug=False,
    asgi=False,
    middleware=True,
    release="scoped",
    unpooled_release_after=1.0,
    reclaims_dead_threads=True,
    idle_in_transaction_after=5.0,
    followed_settings="auto",
    clean_sessions="auto",
    minimum_version=(15,),
    processes=4,
    threads=8,
)
FACTS = Facts(
    "default",
    identity=IDENTITY,
    limits=LIMITS,
    activity=server.Activity([], hidden=0, others=0),
    pooler=Pooler.NONE,
    timeouts={"statement_timeout": 30_000, "idle_in_transaction_session_timeout": 60_000},
)


def project(pool: Any = ALIAS["OPTIONS"], **changes: Any) -> Project:
    """Return the project with other values; those in capitals are of its database."""
    database = {**ALIAS, **{name: changes.pop(name) for name in list(changes) if name.isupper()}}
    return dataclasses.replace(PROJECT, databases={"default": database}, **changes)


def facts(**changes: Any) -> Facts:
    limits = {name: changes.pop(name) for name in list(changes) if name in LIMITS.__dataclass_fields__}
    return dataclasses.replace(FACTS, **{"limits": dataclasses.replace(LIMITS, **limits), **changes})


def diagnosed(project: Project = PROJECT, *found: Facts) -> dict[str, Level]:
    findings = doctor.diagnose(project, list(found) or [FACTS], TODAY)
    assert [finding.docs for finding in findings if not is_there(finding.docs)] == []
    return {finding.id: finding.level for finding in findings}


def is_there(page: str) -> bool:
    """Return whether the documentation has the page, and the place on it."""
    path, _, label = page.partition("#")
    return f".. _{label}:" in (ROOT / path).read_text() if label else (ROOT / path).exists()


TENANT = Findings(
    frozenset({"app.tenant", "app.user"}),
    {"app.tenant": "policy p of table t reads it", "app.user": "function f sets it"},
    ("policy p of table t", "function f (SET app.user)"),
)
NO_POOL: dict[str, Any] = {}
IDLE = server.Session(
    pid=7,
    database="shop",
    role="app",
    application_name="",
    client_address=None,
    state="idle in transaction",
    backend_start=STARTED,
    xact_start=STARTED,
    state_change=STARTED,
    age=90,
    in_state=60,
    in_transaction=61,
    wait_event=None,
    blocked_by=[],
    statement="SELECT ?",
    own=False,
)


class TestLogic:
    def test_nothing_is_wrong(self) -> None:
        assert diagnosed() == {}

    @pytest.mark.parametrize(
        ("of_project", "of_facts", "expected"),
        [
            # 4 times 8, of 100 - 3.
            ({"processes": 12}, {}, {}),
            ({"processes": 13}, {}, {"too-many-connections": Level.ERROR}),
            ({"processes": 12}, {"foreign_sessions": 2}, {"too-many-connections": Level.WARNING}),
            ({"processes": 12, "threads": 9, "OPTIONS": NO_POOL}, {}, {"too-many-connections": Level.ERROR}),
            ({"processes": None}, {}, {"processes-unknown": Level.NOTE}),
            ({"threads": None}, {}, {}),
            ({"threads": None, "OPTIONS": NO_POOL}, {}, {"threads-unknown": Level.NOTE}),
            ({"processes": 13}, {"pooler": Pooler.SESSION}, {"pooler": Level.NOTE}),
            ({}, {"role_limit": 31}, {"connection-limit": Level.ERROR}),
            ({}, {"role_limit": 32}, {}),
            ({}, {"database_limit": 31}, {"connection-limit": Level.ERROR}),
            ({}, {"role_limit": 0, "superuser": True}, {}),
            # No pool.
            ({}, {"pooled": False}, {"no-pool": Level.NOTE}),
            ({"unpooled_release_after": None}, {"pooled": False}, {"no-pool": Level.NOTE}),
            ({"middleware": False, "release": "never"}, {"pooled": False}, {}),
            ({"ATOMIC_REQUESTS": True}, {"pooled": False}, {"atomic-requests": Level.NOTE}),
            ({"ENGINE": "shop.pool"}, {"pooled": False, "left_alone": "why"}, {"left-alone": Level.WARNING}),
            # Timeouts.
            ({}, {"timeouts": {"statement_timeout": 0}}, {"no-statement-timeout": Level.WARNING}),
            (
                {},
                {"timeouts": {"idle_in_transaction_session_timeout": 0}},
                {"no-idle-in-transaction-timeout": Level.WARNING},
            ),
            # Persistent connections.
            ({"CONN_MAX_AGE": 60}, {}, {"pool-and-conn-max-age": Level.ERROR}),
            ({"CONN_MAX_AGE": None, "OPTIONS": NO_POOL}, {}, {}),
            (
                {"CONN_MAX_AGE": None, "OPTIONS": NO_POOL, "asgi": True},
                {},
                {"conn-max-age-under-asgi": Level.WARNING},
            ),
            ({"asgi": True}, {}, {}),
            ({"CONN_MAX_AGE": 60, "OPTIONS": NO_POOL, "debug": True}, {}, {}),
            (
                {"CONN_MAX_AGE": 60, "OPTIONS": NO_POOL, "debug": True, "reclaims_dead_threads": False},
                {},
                {"runserver-threads": Level.WARNING},
            ),
            ({"CONN_HEALTH_CHECKS": False}, {}, {"no-health-checks": Level.NOTE}),
            ({"CONN_HEALTH_CHECKS": False, "OPTIONS": {"pool": {"max_size": 4, "check": print}}}, {}, {}),
            ({"CONN_HEALTH_CHECKS": False, "OPTIONS": NO_POOL}, {}, {}),
            ({"OPTIONS": {"pool": True}}, {}, {"pool-without-sizes": Level.NOTE}),
            ({"OPTIONS": {"pool": {"timeout": 5}}}, {}, {"pool-without-sizes": Level.NOTE}),
            # Transactions.
            ({"ATOMIC_REQUESTS": True}, {}, {"atomic-requests": Level.NOTE}),
            ({"ATOMIC_REQUESTS": True, "threads": 9}, {}, {"atomic-requests": Level.WARNING}),
            (
                {},
                {"activity": server.Activity([IDLE], hidden=0, others=0)},
                {"idle-in-transaction-now": Level.WARNING},
            ),
            (
                {"idle_in_transaction_after": 61.0},
                {"activity": server.Activity([IDLE], hidden=0, others=0)},
                {},
            ),
            ({}, {"activity": server.Activity([], hidden=1, others=0)}, {"hidden-sessions": Level.NOTE}),
            # Poolers.
            (
                {},
                {"pooler": Pooler.TRANSACTION},
                {"pooler": Level.NOTE, "server-side-cursors-behind-pooler": Level.ERROR},
            ),
            (
                {"DISABLE_SERVER_SIDE_CURSORS": True, "OPTIONS": {"prepare_threshold": 5}},
                {"pooler": Pooler.TRANSACTION},
                {"pooler": Level.NOTE, "prepared-statements-behind-pooler": Level.WARNING},
            ),
            # Versions, on the 21st of November 2026.
            ({}, {"version": 90624}, {"server-too-old": Level.ERROR}),
            ({"minimum_version": ()}, {"version": 90624}, {"old-server": Level.WARNING}),
            ({}, {"version": 140020}, {"server-too-old": Level.ERROR}),
            ({"minimum_version": (14,)}, {"version": 140020}, {"old-server": Level.WARNING}),
            ({}, {"version": 150010}, {}),
            ({}, {"version": 190001}, {}),
            # What functions and policies do.
            ({}, {"catalogue": Findings()}, {}),
            ({}, {"catalogue": TENANT}, {"settings-follow": Level.NOTE, "sessions-cleaned": Level.NOTE}),
            (
                {"followed_settings": frozenset({"app.tenant"}), "clean_sessions": "always"},
                {"catalogue": TENANT},
                {"settings-not-followed": Level.WARNING},
            ),
            (
                {"followed_settings": TENANT.followed | {"search_path"}, "clean_sessions": "seen"},
                {"catalogue": TENANT},
                {"sessions-not-cleaned": Level.WARNING},
            ),
            # The toolkit itself.
            ({"middleware": False}, {}, {"toolkit-not-in-use": Level.NOTE}),
            ({"middleware": False, "release": "always"}, {}, {}),
        ],
    )
    def test_each_finding(
        self, of_project: dict[str, Any], of_facts: dict[str, Any], expected: dict[str, Level]
    ) -> None:
        assert diagnosed(project(**of_project), facts(**of_facts)) == expected

    def test_an_end_that_is_near_is_worth_a_note(self) -> None:
        end = doctor.END_OF_LIFE[15]
        for days, expected in ((181, {}), (179, {"old-server": Level.NOTE}), (-1, {"old-server": Level.WARNING})):
            today = end - datetime.timedelta(days)
            found = doctor.diagnose(PROJECT, [facts(version=150010)], today)
            assert {finding.id: finding.level for finding in found} == expected

    def test_the_aliases_of_a_server_are_added_up_and_those_of_two_servers_are_not(self) -> None:
        two = dataclasses.replace(PROJECT, databases={"default": ALIAS, "other": ALIAS}, processes=7)
        same = dataclasses.replace(FACTS, alias="other")
        elsewhere = dataclasses.replace(
            same, identity=IDENTITY._replace(server_started=STARTED + datetime.timedelta(1))
        )
        assert diagnosed(two, FACTS, same) == {"too-many-connections": Level.ERROR}
        assert diagnosed(two, FACTS, elsewhere) == {}
        [finding] = doctor.diagnose(two, [FACTS, same], TODAY)
        assert finding.aliases == ("default", "other")
        assert "7 processes times 8 of 'default' + 8 of 'other' make 112" in finding.why

    def test_the_worst_comes_first_and_what_is_alike_is_one(self) -> None:
        database = {**ALIAS, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": False}
        two = dataclasses.replace(PROJECT, databases={"default": database, "other": database})
        bare = {"statement_timeout": 0}
        found = doctor.diagnose(
            two, [facts(timeouts=bare), dataclasses.replace(facts(timeouts=bare), alias="other")], TODAY
        )
        assert [finding.id for finding in found] == [
            "pool-and-conn-max-age",
            "no-statement-timeout",
            "no-health-checks",
        ]
        assert {finding.aliases for finding in found} == {("default", "other")}

    def test_what_could_not_be_asked_is_said(self) -> None:
        assert diagnosed(PROJECT, Facts("default", failures=("no route",))) == {"not-asked": Level.ERROR}
        assert diagnosed(PROJECT, facts(timeouts=None, failures=("no",))) == {"not-asked": Level.NOTE}


# ##### On a server #####

APP = "conn_hygiene_patient"


def run_doctor(*arguments: str) -> dict[str, dict[str, Any]]:
    """Return the findings of the alias "unpooled", by id."""
    out = io.StringIO()
    arguments = ("--database", "unpooled", "--fail-level", "error", "--format", "json", *arguments)
    with suppress(CommandError):
        call_command("connections", "doctor", *arguments, stdout=out)
    return {finding["id"]: finding for finding in json.loads(out.getvalue())["findings"]}


@pytest.fixture
def role(admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have the alias "unpooled" connect as a role that may do nothing."""
    admin.execute(f"CREATE ROLE {APP} LOGIN PASSWORD 'conn_hygiene' CONNECTION LIMIT 20")
    for name, value in (("USER", APP), ("PASSWORD", "conn_hygiene")):
        monkeypatch.setitem(connections["unpooled"].settings_dict, name, value)
    yield APP
    admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", [APP])
    admin.execute(f"DROP ROLE {APP}")


class TestOnAServer:
    def test_its_limits_are_compared(self, role: str) -> None:
        assert "connection-limit" not in run_doctor("--processes", "5", "--threads", "4")
        found = run_doctor("--processes", "7", "--threads", "3")["connection-limit"]
        assert found["level"] == "error"
        assert found["what"] == f"The project may open 21 connections, and the role '{role}' is limited to 20."
        assert run_doctor("--processes", "10000")["too-many-connections"]["level"] == "error"

    def test_timeouts_are_those_of_the_roles_own_sessions(self, role: str, admin: psycopg.Connection) -> None:
        before = run_doctor().keys()
        admin.execute(f"ALTER ROLE {role} SET statement_timeout = '30s'")
        assert before - run_doctor().keys() == {"no-statement-timeout"}

    def test_timeouts_of_the_settings_count(self, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
        options = connections["unpooled"].settings_dict["OPTIONS"]
        monkeypatch.setitem(
            connections["unpooled"].settings_dict,
            "OPTIONS",
            {**options, "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=60s"},
        )
        assert not {"no-statement-timeout", "no-idle-in-transaction-timeout"} & run_doctor().keys()

    def test_a_session_that_is_idle_in_transaction_is_named(self, role: str) -> None:
        with (
            override_settings(CONN_HYGIENE={"IDLE_IN_TRANSACTION_AFTER": 0.001}),
            server.connect("unpooled") as connection,
        ):
            connection.execute("SET application_name = 'shop'; BEGIN")
            found = run_doctor()["idle-in-transaction-now"]
            assert str(connection.info.backend_pid) in found["why"]

    def test_functions_are_read(self, role: str, admin: psycopg.Connection) -> None:
        admin.execute(
            "CREATE FUNCTION become(t text) RETURNS text LANGUAGE sql AS $$SELECT set_config('app.t', t, false)$$"
        )
        try:
            found = run_doctor()
            assert found["settings-follow"]["why"] == "app.t: function public.become sets it."
            assert "for function public.become (SET app.t)." in found["sessions-cleaned"]["why"]
            with override_settings(CONN_HYGIENE={"FOLLOWED_SETTINGS": ["App.T"], "CLEAN_SESSIONS": "always"}):
                assert not {"settings-not-followed", "settings-follow", "sessions-cleaned"} & run_doctor().keys()
            with override_settings(CONN_HYGIENE={"FOLLOWED_SETTINGS": [], "CLEAN_SESSIONS": "seen"}):
                found = run_doctor()
            assert found["settings-not-followed"]["what"] == "FOLLOWED_SETTINGS lacks app.t."
            assert found["sessions-not-cleaned"]["level"] == "warning"
        finally:
            admin.execute("DROP FUNCTION become")

    def test_a_catalogue_that_cannot_be_read_is_said(self, role: str, admin: psycopg.Connection) -> None:
        admin.execute("REVOKE SELECT ON pg_catalog.pg_policy FROM public")
        try:
            assert "functions and policies" in run_doctor()["not-asked"]["why"]
        finally:
            admin.execute("GRANT SELECT ON pg_catalog.pg_policy TO public")

    def test_a_server_that_cannot_be_asked_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections["unpooled"].settings_dict, "NAME", "conn_hygiene_no_such_database")
        found = run_doctor()
        assert found["not-asked"]["level"] == "error"
        assert "conn_hygiene_no_such_database" in found["not-asked"]["why"]

    def test_asgi_is_seen_in_the_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections["unpooled"].settings_dict, "CONN_MAX_AGE", 60)
        assert "conn-max-age-under-asgi" not in run_doctor()
        with override_settings(ASGI_APPLICATION="site.asgi.application"):
            assert "conn-max-age-under-asgi" in run_doctor()

    def test_the_exit_code_follows_the_level(self) -> None:
        out = io.StringIO()
        arguments = ["connections", "doctor", "--processes", "1", "--threads", "1"]
        call_command(*arguments, stdout=out)
        assert "WARNING default, small, unpooled, persistent: No statement_timeout is in effect." in out.getvalue()
        assert "Read: docs/how-to/guard-rails.rst" in out.getvalue()
        with pytest.raises(CommandError, match="of level warning or above") as caught:
            call_command(*arguments, "--fail-level", "warning", stdout=out)
        assert caught.value.returncode == 1

    def test_it_opens_no_pool(self) -> None:
        connections["default"].close_pool()
        call_command("connections", "doctor", stdout=io.StringIO())
        assert "default" not in connections["default"]._connection_pools


# ##### Behind PgBouncer #####

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@contextmanager
def pgbouncer(directory: Path, mode: str, pool_size: int = 5) -> Iterator[int]:
    """Run PgBouncer in front of the tests' server; yield its port."""
    assert PGBOUNCER is not None
    target = {**connections["default"].get_connection_params()}
    names = {"host": "host", "port": "port", "user": "user", "password": "password"}
    where = " ".join(f"{name}={target[key]}" for name, key in names.items() if target.get(key))
    port = free_port()
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = {where}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = {pool_size}\n"
    )
    # It refuses to run as root, and pytest's directories are closed to others.
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with configuration.open() as readable, (directory / "log").open("w") as log:
        command = [PGBOUNCER, f"/dev/fd/{readable.fileno()}"]
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, pass_fds=[readable.fileno()], cwd="/", **account
        )
    try:
        wait_until(lambda: _answers(port, process), "PgBouncer answers")
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        with psycopg.connect(host="127.0.0.1", port=port, dbname="pgbouncer", user="pgbouncer"):
            return True
    except psycopg.OperationalError as error:
        return "refused" not in str(error)


@pytest.fixture
def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context manager that leads the alias "unpooled" through PgBouncer in the given mode."""

    @contextmanager
    def lead(mode: str, **options: Any) -> Iterator[None]:
        with pgbouncer(tmp_path, mode, **options) as port, monkeypatch.context() as patch:
            for name, value in (("HOST", "127.0.0.1"), ("PORT", str(port))):
                patch.setitem(connections["unpooled"].settings_dict, name, value)
            yield

    return lead


def between() -> Pooler:
    with server.connect("unpooled") as connection:
        return pooler.between(connection, lambda: server.connect("unpooled"))


def test_nothing_is_between() -> None:
    assert between() is Pooler.NONE


@needs_pgbouncer
class TestBehindPgBouncer:
    def test_transaction_mode(self, through: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with through("transaction"):
            found = run_doctor("--processes", "10000")
            assert found["server-side-cursors-behind-pooler"]["level"] == "error"
            assert "too-many-connections" not in found
            database = connections["unpooled"].settings_dict
            monkeypatch.setitem(database, "DISABLE_SERVER_SIDE_CURSORS", True)
            monkeypatch.setitem(database, "OPTIONS", {**database["OPTIONS"], "prepare_threshold": 5})
            found = run_doctor()
            assert "server-side-cursors-behind-pooler" not in found
            assert found["prepared-statements-behind-pooler"]["level"] == "warning"

    def test_statement_mode_is_as_bad(self, through: Any) -> None:
        with through("statement"):
            assert between() is Pooler.TRANSACTION

    def test_session_mode(self, through: Any) -> None:
        with through("session"):
            assert between() is Pooler.SESSION

    def test_a_pool_that_is_exhausted_is_not_waited_for(self, through: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pooler, "PATIENCE", 0.1)
        with through("session", pool_size=1):
            assert between() is Pooler.SESSION

    def test_the_sessions_are_seen_through_it(self, through: Any) -> None:
        out = io.StringIO()
        with through("transaction"):
            call_command("connections", "status", "--database", "unpooled", "--format", "json", stdout=out)
        [database] = json.loads(out.getvalue())["databases"]
        assert any(session["own"] for session in database["sessions"])

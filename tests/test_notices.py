"""What a process reports of a session, shown from another terminal for as long as it is true."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test import override_settings
from psycopg.conninfo import make_conninfo

from conn_hygiene import hold_connection
from conn_hygiene.reports import notices
from conn_hygiene.server import sessions as server
from tests.processes import ROOT, run
from tests.waiting import let_the_reaper_look, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.django_db(transaction=True)

_STATUS = """
import json, sys
from django.conf import settings
settings.CONN_HYGIENE = {"NOTICE_DIRECTORY": sys.argv[1]}
import django
django.setup()
from django.core.management import call_command
call_command("connections", "status", "--database", "default", *sys.argv[2:])
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that is not there yet."""
    return tmp_path / "run" / "notices"


def reporting(directory: Path, **settings: Any) -> Any:
    return override_settings(CONN_HYGIENE={"NOTICE_DIRECTORY": directory} | settings)


def status_elsewhere(directory: Path, *arguments: str) -> str:
    """Return what the command says in another process."""
    url = make_conninfo(os.environ["DATABASE_URL"], dbname=connection.settings_dict["NAME"])
    process = run("-c", _STATUS, str(directory), *arguments, DATABASE_URL=url)
    assert process.returncode == 0, process.stderr
    return process.stdout


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def known(directory: Path) -> dict[str, Any] | None:
    """Return what the notices tell of this thread's session, if the server agrees."""
    with server.connect("default") as looking:
        sessions = server.activity(looking).sessions
    return notices.known(directory, ["default"], sessions).get(connection.connection.info.backend_pid)


def wait_for_notice(directory: Path) -> Path:
    wait_until(lambda: list(directory.glob("*.json")), "a notice is left")
    [path] = directory.glob("*.json")
    return path


@pytest.mark.slow
def test_another_terminal_sees_where_the_transaction_began_and_where_its_thread_is(directory: Path) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), transaction.atomic():
        execute("SELECT 'secret'")
        path = wait_for_notice(directory)
        pid = connection.connection.info.backend_pid
        text = status_elsewhere(directory)
        [view] = json.loads(status_elsewhere(directory, "--format", "json"))["databases"]
    [session] = [session for session in view["sessions"] if session["pid"] == pid]
    assert session["state"] == "idle in transaction"
    assert "test_notices.py:" in session["where_began"]
    assert "in test_another_terminal" in session["where_began"]
    # Somewhere in what this test does meanwhile.
    assert f"{ROOT}/tests/" in session["where_now"]
    assert f"{pid}: its transaction began at {session['where_began']}; its thread is at" in text
    assert "secret" not in path.name + text


def test_a_notice_has_no_statement_and_is_its_owners_alone(directory: Path) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), transaction.atomic():
        execute("SELECT 'secret'")
        path = wait_for_notice(directory)
        assert "SELECT" not in path.read_text()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_counts_for_as_long_as_it_is_true(directory: Path) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), hold_connection():
        with transaction.atomic():
            execute("SELECT 1")
            wait_for_notice(directory)
            assert known(directory) is not None
        # The same session, idle, and then in another transaction.
        with reporting(directory, IDLE_IN_TRANSACTION_AFTER=None):
            let_the_reaper_look()
            assert known(directory) is None
            with transaction.atomic():
                execute("SELECT 1")
                assert known(directory) is None


def test_where_the_thread_was_is_not_told_after_it_went_on(directory: Path) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), transaction.atomic():
        execute("SELECT 1")
        wait_for_notice(directory)
        with reporting(directory, IDLE_IN_TRANSACTION_AFTER=None):
            let_the_reaper_look()
            execute("SELECT pg_sleep(0.1)")
            found = known(directory)
    assert found is not None
    assert found["where_began"]
    assert found["where_now"] is None


def test_what_is_held_too_long_and_kept_is_told_too(directory: Path) -> None:
    with reporting(directory, HELD_TOO_LONG_AFTER=0.1), hold_connection():
        execute("SELECT 1")
        wait_for_notice(directory)
        found = known(directory)
    assert found is not None
    assert found["where_now"]


def test_the_process_that_answers_knows_its_own_sessions_better(directory: Path, capsys: Any) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), transaction.atomic():
        execute("SELECT 1")
        path = wait_for_notice(directory)
        path.write_text(path.read_text().replace("test_notices.py", "elsewhere.py"))
        call_command("connections", "status", "--database", "default")
    out = capsys.readouterr().out
    assert "test_notices.py" in out
    assert "elsewhere.py" not in out


def test_the_same_pid_on_another_server_is_another_session(directory: Path) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), transaction.atomic():
        execute("SELECT 1")
        wait_for_notice(directory)
        with server.connect("default") as looking:
            assert notices.known(directory, ["other"], server.activity(looking).sessions) == {}


def test_the_notices_of_a_process_that_is_gone_are_taken_away(directory: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""], cwd=ROOT)
    gone.wait()
    notices.post(directory, {"alias": "default", "server_pid": 1})
    [alive] = directory.iterdir()
    dead = directory / f"{gone.pid}-1.json"
    dead.write_text(alive.read_text())
    assert [notice["server_pid"] for notice in notices.read(directory)] == [1]
    assert list(directory.iterdir()) == [alive]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"\\ud800"', "\x00"])
def test_what_is_no_notice_is_left_alone(directory: Path, text: str) -> None:
    directory.mkdir(parents=True)
    for name in (f"{os.getpid()}-7.json", "not-mine.json"):
        (directory / name).write_text(text)
    assert notices.read(directory) == []
    assert len(list(directory.iterdir())) == 2


def test_no_directory_is_no_notice(directory: Path) -> None:
    assert notices.read(directory) == []


def test_a_notice_that_cannot_be_left_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level("INFO", logger="conn_hygiene.notices"):
        notices.post(blocked, {"alias": "default", "server_pid": 1})
    [record] = caplog.records
    assert str(blocked) in record.getMessage()


def test_no_directory_is_set_and_nothing_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with override_settings(CONN_HYGIENE={"IDLE_IN_TRANSACTION_AFTER": 0.1}), transaction.atomic():
        execute("SELECT 1")
        wait_until(lambda: "has been idle for" in caplog.text, "the transaction is reported")
    assert list(tmp_path.iterdir()) == []

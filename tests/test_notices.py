"""What a process reports of a session, shown from another terminal for as long as it is true."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import connection, connections, transaction
from django.test import override_settings
from psycopg.conninfo import make_conninfo

from conn_hygiene import events, hold_connection
from conn_hygiene.reports import host, notice_files, notices
from conn_hygiene.server import sessions as server
from conn_hygiene.transactions import left_open
from tests.processes import ROOT, run
from tests.test_forks import in_child
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_told

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "persistent"])

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
    # What the process answers itself would go over its notices.
    return override_settings(CONN_HYGIENE={"NOTICE_DIRECTORY": directory, "STATUS_DIRECTORY": None} | settings)


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
    assert f"{pid}: its transaction began at {session['where_began']}\n" in text
    assert " its thread was at " in text
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


FACTS = {"alias": "default", "server_pid": 1, "request": "GET /", "open_for": 6.2}


def left_by(directory: Path, pid: int, started: int | None = None) -> Path:
    """Leave a notice as another process would, and return it."""
    notices.post(directory, FACTS)
    [path] = directory.glob(f"conn-hygiene-notice.{os.getpid()}.*")
    if started is None:
        started = host.ticks_at_start(os.getpid()) or 0
    return path.rename(directory / f"conn-hygiene-notice.{pid}.{started}.1.json")


@pytest.fixture
def gone() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""], cwd=ROOT)
    process.wait()
    return process.pid


def test_the_notices_of_a_process_that_is_gone_are_taken_away(directory: Path, gone: int) -> None:
    dead = left_by(directory, gone)
    notices.post(directory, FACTS)
    [alive] = set(directory.iterdir()) - {dead}
    assert [notice["server_pid"] for notice in notices.read(directory)] == [1]
    assert list(directory.iterdir()) == [alive]
    notices.take_away()
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell when a process started")
def test_a_process_is_gone_whose_pid_another_one_has(directory: Path) -> None:
    started = host.ticks_at_start(os.getpid())
    assert started is not None
    left_by(directory, os.getpid(), started + 1)
    assert notices.read(directory) == []
    assert list(directory.iterdir()) == []
    left_by(directory, os.getpid(), started)
    assert len(notices.read(directory)) == 1
    notices.take_away()


def test_a_program_may_be_named_like_its_own_fields(tmp_path: Path) -> None:
    # In the file, its name stands ahead of what is looked for.
    odd = tmp_path / "a) R 1 1 (x"
    odd.symlink_to(sys.executable)
    with subprocess.Popen([odd, "-c", "input()"], stdin=subprocess.PIPE, cwd=ROOT) as process:
        assert host.ticks_at_start(process.pid) == host.ticks_at_start(process.pid)
        own = host.ticks_at_start(os.getpid())
        if own is not None:
            assert own <= (host.ticks_at_start(process.pid) or 0) < own + 10_000_000
        process.communicate(b"\n")


def test_what_others_have_left_there_stays(directory: Path, gone: int, tmp_path: Path) -> None:
    notice = left_by(directory, gone)
    text = notice.read_text()
    notice.rename(tmp_path / "notice")
    names = [
        "20251125-sales-report.json",
        f"{gone}-1.json",
        "31337-notes.json",
        "99999999999999999999-x.json",
        "conn-hygiene-notice.json",
        f"conn-hygiene-notice.{gone}.1.json",
        f"conn-hygiene-notice.0{gone}.1.1.json",
        f"conn-hygiene-notice.-{gone}.1.1.json",
        f"conn-hygiene-notice.{gone}.1.1.json.orig",
        f"conn-hygiene-notice.{'9' * 20}.1.1.json",
        f"conn-hygiene-notice.{gone}.{'9' * 99}.1.json",
        f"conn-hygiene-notice.{gone}.1.\u0661.json",
    ]
    for name in names:
        (directory / name).write_text(text)
    # By the right name, but no notice; one of another session than its name says; and one of another machine.
    for number, wrong in enumerate(
        [
            "",
            "{",
            "[]",
            "{}",
            "null",
            '"\\ud800"',
            "\x00",
            "[" * 100_000,
            text.replace("notice 1", "notice 2"),
            text.replace('"server_pid": 1', '"server_pid": 2'),
            text.replace('"machine": "', '"machine": "not '),
            text + " " * notice_files.LARGEST,
        ]
    ):
        (directory / f"conn-hygiene-notice.{gone}.{number}.1.json").write_text(wrong)
    (directory / f"conn-hygiene-notice.{gone}.100.1.json").mkdir()
    (directory / f"conn-hygiene-notice.{gone}.101.1.json").symlink_to(tmp_path / "notice")
    before = sorted(directory.iterdir())
    assert len(before) == len(names) + 14
    assert notices.read(directory) == []
    assert sorted(directory.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_not_waited_for(directory: Path) -> None:
    directory.mkdir(parents=True)
    os.mkfifo(directory / f"conn-hygiene-notice.{os.getpid()}.1.1.json")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(notices.read(directory)), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [[]]


def test_files_of_other_users_are_passed_over(directory: Path, gone: int) -> None:
    path = left_by(directory, gone)
    user = path.stat().st_uid
    assert notice_files._facts(path, {user + 1}) is None
    assert notice_files._facts(path, {user, user + 1}) is not None


def test_only_its_owner_takes_a_file_away(directory: Path, gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_by(directory, gone)
    with monkeypatch.context() as patch:
        # As for root, who looks at a directory of another user's.
        patch.setattr(notice_files, "_user", lambda: path.stat().st_uid + 1)
        assert notices.read(directory) == []
        assert path.exists()
    assert notices.read(directory) == []
    assert not path.exists()


# ##### When it is over #####


def request_that_is_held(directory: Path, alias: str) -> Path:
    """Be in a request whose connection was reported, and return the notice of that."""
    request_started.send(sender=None, environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/slow/"})
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    return wait_for_notice(directory)


@pytest.mark.parametrize("alias", ["default", "persistent"])
def test_it_goes_with_its_request(directory: Path, alias: str) -> None:
    with reporting(directory, HELD_TOO_LONG_AFTER=0.1):
        path = request_that_is_held(directory, alias)
        assert json.loads(path.read_text())["request"] == "GET /slow/"
        try:
            if alias == "default":
                with hold_connection():
                    request_finished.send(sender=None)
            else:
                request_finished.send(sender=None)
            wait_until_told()
            # The connection may live on, as CONN_MAX_AGE says.
            assert holds(alias) is (alias == "persistent")
            assert list(directory.iterdir()) == []
        finally:
            connections[alias].close()


def test_a_request_that_is_over_in_a_transaction_of_others_is_over(directory: Path) -> None:
    with reporting(directory, IDLE_IN_TRANSACTION_AFTER=0.1), transaction.atomic():
        # As the test client has it, which lets Django close nothing.
        left_open.request_started(environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/slow/"})
        execute("SELECT 1")
        wait_for_notice(directory)
        left_open.request_finished()
        # Who leaves it may not have taken note of that yet, and takes it away then.
        wait_until(lambda: not list(directory.iterdir()), "the notice is gone")


def test_it_goes_with_the_checkout(directory: Path) -> None:
    with reporting(directory, HELD_TOO_LONG_AFTER=0.1), hold_connection():
        execute("SELECT 1")
        wait_for_notice(directory)
        connection.close()
        wait_until_told()
        assert list(directory.iterdir()) == []


def test_what_is_reported_late_is_not_left(directory: Path) -> None:
    """The log takes long, and meanwhile the connection is back."""
    reported, go_on = threading.Event(), threading.Event()

    def listener(event: events.HeldTooLong) -> None:
        reported.set()
        go_on.wait(10)

    # Ahead of those that leave notices.
    first = mock.patch.object(events.HeldTooLong, "listeners", (listener, *events.HeldTooLong.listeners))
    with first, reporting(directory, HELD_TOO_LONG_AFTER=0.1), hold_connection():
        execute("SELECT 1")
        assert reported.wait(10)
        connection.close()
        go_on.set()
        wait_until_told()
        assert list(directory.iterdir()) == []


def test_a_process_takes_its_own_away_when_it_ends(directory: Path) -> None:
    left = """
import os, sys, django
django.setup()
from conn_hygiene.reports import notices
notices.post(sys.argv[1], {"alias": "default", "server_pid": 1})
print(len(os.listdir(sys.argv[1])))
"""
    process = run("-c", left, str(directory))
    assert (process.returncode, process.stdout.strip()) == (0, "1"), process.stderr
    assert list(directory.iterdir()) == []


def test_a_forked_child_leaves_those_of_its_parent_alone(directory: Path) -> None:
    notices.post(directory, FACTS)

    def take_away() -> int:
        notices.take_away()
        return len(list(directory.iterdir()))

    assert in_child(take_away) == 1
    notices.take_away()
    assert list(directory.iterdir()) == []


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

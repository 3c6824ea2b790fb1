"""What holds the tests to their manners: nothing is left behind, and a test that hangs is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from example_project import embedded
from tests import leftovers
from tests.leftovers import Leftovers
from tests.processes import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Leftovers:
    """Return what knows of all that was there before the test."""
    monkeypatch.setattr(leftovers, "PATIENCE", 0)
    return Leftovers()


def test_a_thread_is_named_and_where_it_is(before: Leftovers) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="left behind")
    thread.start()
    (found,) = before.found()
    assert "thread 'left behind'" in found
    assert "in wait" in found
    assert before.found() == []  # it is known by now
    over.set()
    thread.join()


def test_a_descriptor_is_told_with_what_it_leads_to(before: Leftovers) -> None:
    reading, writing = os.pipe()
    target = os.readlink(f"/proc/self/fd/{reading}")
    (found,) = before.found()
    assert target in found
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(not embedded.is_own_server(), reason="Sessions in other databases are those of others there.")
def test_a_session_is_told_with_who_holds_it(before: Leftovers) -> None:
    with psycopg.connect(embedded.database_url(), application_name="forgotten") as connection:
        session, descriptor = sorted(before.found(), key=lambda line: not line.startswith("session"))
        assert f"session {connection.info.backend_pid} in postgres" in session
        assert "by forgotten" in session
        assert repr(connection) in session
        assert repr(connection) in descriptor
        assert before.found() == []  # it is told once, and not of each module that follows
    assert before.found() == []


def test_a_process_is_told(before: Leftovers) -> None:
    process = multiprocessing.get_context("spawn").Process(target=signal.pause)
    process.start()
    try:
        assert f"process {process.pid}, {process.name}" in before.found()
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_test_that_hangs_is_named_with_all_stacks(tmp_path: Path) -> None:
    hanging = tmp_path / "test_hanging.py"
    hanging.write_text("import threading\n\ndef test_that_hangs():\n    threading.Event().wait()\n")
    process = run(
        *("-m", "pytest", f"--config-file={ROOT / 'pyproject.toml'}", "--confcutdir=/", "-p", "no:cacheprovider"),
        *("--numprocesses=1", "-o", "faulthandler_timeout=1", str(hanging)),
    )
    assert process.returncode == 1, process.stdout + process.stderr
    assert "crashed while running '::test_that_hangs'" in process.stdout
    assert "Timeout (0:00:01)!" in process.stderr
    assert "in test_that_hangs" in process.stderr


@pytest.mark.slow
def test_a_teardown_that_fails_does_not_fail_the_tests_after_it(tmp_path: Path) -> None:
    """Django's own teardown of a test may fail where a machine stands still; the next test is another one's."""
    tests = tmp_path / "test_two.py"
    tests.write_text(
        "import pytest\n"
        "from django.db import connections\n"
        "from django.test import TransactionTestCase\n"
        "\n"
        "def no_flush(self):\n"
        "    raise LookupError('no flush')\n"
        "\n"
        "@pytest.mark.django_db(transaction=True, databases=['default'])\n"
        "def test_one(monkeypatch):\n"
        "    TransactionTestCase._fixture_teardown, before = no_flush, TransactionTestCase._fixture_teardown\n"
        "    TransactionTestCase._before = before\n"
        "\n"
        "@pytest.mark.django_db(transaction=True, databases=['default', 'sqlite'])\n"
        "def test_two():\n"
        "    TransactionTestCase._fixture_teardown = TransactionTestCase._before\n"
        "    connections['sqlite'].ensure_connection()\n"
        "    connections['sqlite'].cursor().execute('SELECT 1')\n"
    )
    process = run(
        *("-m", "pytest", f"--config-file={ROOT / 'pyproject.toml'}", "-p", "tests.conftest", "-p", "no:cacheprovider"),
        *("-p", "no:randomly", "--numprocesses=0", str(tests)),
    )
    assert "2 passed, 1 error" in process.stdout, process.stdout + process.stderr
    assert "LookupError: no flush" in process.stdout

"""Each process answers for itself what it holds, and the command joins that to the server's sessions."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import re
import selectors
import signal
import socket
import stat
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.test import override_settings

import conn_hygiene
from conn_hygiene import events, hold_connection
from conn_hygiene.leases.description import End
from conn_hygiene.management import asking, rendering
from conn_hygiene.reports import answering, host, live, status_directory
from conn_hygiene.server import checks
from conn_hygiene.server import sessions as server
from conn_hygiene.work import serving
from tests.processes import run
from tests.test_doctor import needs_pgbouncer, through
from tests.test_forks import in_child
from tests.waiting import let_the_reaper_look, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

__all__ = ["through"]  # a fixture

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "persistent"]),
    # The pool has threads, and forking beside them is what is tested.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.skipif(not status_directory.IS_POSSIBLE, reason="there are no Unix domain sockets"),
]

# The processes that may be tested are slow where all processors are busy.
PATIENCE = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where this process and its children answer, for the length of a test; not there yet."""
    path = tmp_path / "status"
    with override_settings(CONN_HYGIENE={"STATUS_DIRECTORY": str(path)}):
        yield path


def query(statement: str = "SELECT 1", alias: str = "default") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)


def answers(directory: Path, pid: int | None = None) -> Path:
    """Check out a connection, and return the socket on which this process answers then."""
    if not connection.in_atomic_block:
        connection.close()
    query()
    path = directory / status_directory.name_of(pid or os.getpid())
    wait_until(lambda: answering._answering is not None and answering._answering._bound, "it answers", PATIENCE)
    return path


def asked(**arguments: Any) -> list[live.Process]:
    return conn_hygiene.processes(timeout=PATIENCE, **arguments)


@contextmanager
def child(work: Callable[[], Any]) -> Iterator[int]:
    """Fork a child that does *work* and waits for its end; it has done so when the block begins."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writing, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read(1) == b"x"
        yield pid
    finally:
        end(pid)


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def hold(directory: Path) -> None:
    """Open a transaction for a request that is not over, and answer for it."""
    serving.label = "GET /orders/7/"
    transaction.atomic().__enter__()
    answers(directory)


def status(*arguments: str) -> str:
    output = StringIO()
    call_command("connections", "status", "--database", "default", *arguments, stdout=output)
    return output.getvalue()


# ##### One process #####


def test_a_process_says_what_it_holds(directory: Path) -> None:
    with transaction.atomic():
        answers(directory)
        query("SELECT 'secret'")
        [process] = asked()
        [lease] = conn_hygiene.snapshot()
    assert (process.pid, process.answered, process.settings_module) == (os.getpid(), True, "tests.settings")
    assert process.started == pytest.approx(host.started(os.getpid()) or answering._began_at, abs=1)
    [told] = process.leases
    moving = {name: getattr(lease, name) for name in ("held_for", "in_use_for", "idle_for", "transaction_for")}
    assert dataclasses.replace(told, **moving, where_now=None) == dataclasses.replace(lease, where_now=None)
    assert told.statement == "SELECT ?"
    assert process.pools == conn_hygiene.pool_stats()
    assert process.stats is not None
    assert process.stats.checkouts == conn_hygiene.stats().checkouts
    database = connections["default"].settings_dict
    assert process.databases["default"] == live.Database(
        str(database["HOST"]), str(database["PORT"]), database["NAME"], database["USER"]
    )
    assert process.databases.keys() == connections.settings.keys()


def test_it_answers_while_its_threads_wait_for_the_server(directory: Path, admin: psycopg.Connection[Any]) -> None:
    answers(directory)
    connection.close()
    admin.execute("SELECT pg_advisory_lock(1)")

    def wait() -> None:
        with conn_hygiene.closing_connections():
            query("SELECT pg_advisory_lock(1)")

    threads = [threading.Thread(target=wait, name=f"waits {number}") for number in range(2)]
    for thread in threads:
        thread.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
    try:
        wait_until(lambda: admin.execute(waiting).fetchone() == (2,), "both wait", PATIENCE)
        [process] = asked()
        assert sorted(lease.thread_name or "" for lease in process.leases) == ["waits 0", "waits 1"]
        assert [(lease.state, lease.idle_for) for lease in process.leases] == [("in use", 0.0)] * 2
    finally:
        admin.execute("SELECT pg_advisory_unlock(1)")
        for thread in threads:
            thread.join()


def test_nothing_is_there_before_the_first_query_and_nothing_listens_after_it(directory: Path) -> None:
    assert asked() == []
    assert not directory.exists()
    assert answering._checked_out in events.CheckedOut.listeners
    path = answers(directory)
    assert events.CheckedOut.listeners == ()
    assert (stat.S_IMODE(directory.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)


def test_a_request_that_has_ended_is_not_named(directory: Path) -> None:
    """A connection that is kept, as CONN_MAX_AGE says, is idle then, and nobody's."""
    answers(directory)
    with conn_hygiene.closing_connections():
        from django.core.signals import request_finished, request_started

        request_started.send(None, environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/kept/"})
        query(alias="persistent")
        assert [lease.request for process in asked() for lease in process.leases] == ["GET /kept/"]
        request_finished.send(None)
        assert [(lease.alias, lease.request, lease.state) for process in asked() for lease in process.leases] == [
            ("persistent", None, "idle")
        ]


def test_off_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with override_settings(CONN_HYGIENE={"STATUS_DIRECTORY": None}):
        query()
        assert answering._answering is None
        assert events.CheckedOut.listeners == ()
        assert asked() == []
    assert list(tmp_path.iterdir()) == []


def test_another_setting_is_another_place(directory: Path, tmp_path: Path) -> None:
    first = answers(directory)
    with override_settings(CONN_HYGIENE={"STATUS_DIRECTORY": str(tmp_path / "other")}):
        assert not first.exists()
        assert answers(tmp_path / "other").exists()
        assert len(asked()) == 1
    assert list((tmp_path / "other").iterdir()) == []
    assert answers(directory) == first


def test_a_thread_that_cannot_be_started_fails_no_query(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "conn-hygiene-status":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        query()
    assert answering._answering is None
    assert asked() == []


def test_what_ends_leaves_nothing(tmp_path: Path) -> None:
    process = run(
        "-c",
        "import sys, django; from django.conf import settings;"
        "settings.CONN_HYGIENE = {'STATUS_DIRECTORY': sys.argv[1]}; django.setup();"
        "import os, time, threading; from django.db import connection;"
        "print([t.name for t in threading.enumerate() if 'status' in t.name], os.path.exists(sys.argv[1]));"
        "connection.ensure_connection();\n"
        "while not (os.path.exists(sys.argv[1]) and os.listdir(sys.argv[1])): time.sleep(0.001)\n"
        "print(len(os.listdir(sys.argv[1])))",
        str(tmp_path / "status"),
    )
    assert (process.stdout, process.stderr, process.returncode) == ("[] False\n1\n", "", 0)
    assert list((tmp_path / "status").iterdir()) == []


def test_what_is_swept_out_is_put_back(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_LOOK_AFTER", 0.02)
    path = answers(directory)
    os.unlink(path)
    wait_until(asked, "it is back", PATIENCE)
    assert path.exists()


def test_it_rests_over_a_fork_that_is_prepared(directory: Path) -> None:
    path = answers(directory)
    conn_hygiene.close_all_before_fork()
    assert not path.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "conn-hygiene-status"]
    assert answers(directory) == path
    assert len(asked()) == 1


# ##### Children #####


def test_a_child_answers_for_itself(directory: Path) -> None:
    with transaction.atomic():
        answers(directory)
        with child(lambda: hold(directory)) as pid:
            found = {process.pid: process for process in asked()}
            assert found.keys() == {os.getpid(), pid}
            assert [lease.request for lease in found[pid].leases] == ["GET /orders/7/"]
            assert [lease.request for lease in found[os.getpid()].leases] == [None]
            assert found[pid].leases[0].server_pid != found[os.getpid()].leases[0].server_pid


def test_a_child_that_has_not_queried_keeps_nothing_of_its_parents_socket(directory: Path) -> None:
    path = answers(directory)
    number = answering._answering._socket.fileno()
    target = os.readlink(f"/proc/self/fd/{number}") if sys.platform == "linux" else ""

    def look() -> tuple[Any, bool]:
        try:
            return answering._answering, os.readlink(f"/proc/self/fd/{number}") == target
        except OSError:
            return answering._answering, False

    assert in_child(look) == (None, False)
    with child(lambda: None):
        assert [process.pid for process in asked()] == [os.getpid()]
        answering.stop()
        assert not path.exists()


def test_who_was_killed_is_not_shown(directory: Path) -> None:
    answers(directory)
    with child(lambda: hold(directory)) as pid:
        assert len(list(directory.iterdir())) == 2
        end(pid)
        assert [process.pid for process in asked()] == [os.getpid()]
        assert len(list(directory.iterdir())) == 1


def test_what_the_killed_have_left_is_swept_out_by_the_next_that_begins(directory: Path) -> None:
    with child(lambda: hold(directory)) as pid:
        end(pid)
        [left] = directory.iterdir()
        mine = answers(directory)
        assert list(directory.iterdir()) == [mine]
        assert left != mine


def test_one_that_hangs_keeps_nobody_waiting(directory: Path) -> None:
    answers(directory)
    with child(lambda: hold(directory)) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        found = {process.pid: process for process in conn_hygiene.processes(timeout=2)}
        assert found.keys() == {os.getpid(), pid}
        assert found[os.getpid()].answered
        assert not found[pid].answered
        assert (found[pid].leases, found[pid].stats) == ([], None)
        assert f"process {pid} (" in (said := status())
        assert "does not answer." in said


# ##### The command #####


def test_one_descriptor_too_few_keeps_nobody_from_the_list(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = socket.socket
    left = [1]

    def scarce(*arguments: Any, **options: Any) -> socket.socket:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return make(*arguments, **options)

    with child(lambda: answers(directory)) as first, child(lambda: answers(directory)) as second:
        monkeypatch.setattr(socket, "socket", scarce)
        found = asked()
        monkeypatch.setattr(selectors, "DefaultSelector", lambda: os.open(directory / "missing", os.O_RDONLY))
        unasked = asked()
    assert {process.pid for process in found} == {process.pid for process in unasked} == {first, second}
    assert sorted(process.answered for process in found) == [False, True]
    assert [process.answered for process in unasked] == [False, False]


def hold_idle(directory: Path) -> None:
    """Query in a ``hold_connection`` for a request that is not over, and answer for it."""
    serving.label = "GET /report/"
    hold_connection().__enter__()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    answers(directory)


def test_status_says_what_keeps_who_is_idle(directory: Path) -> None:
    with child(lambda: hold_idle(directory)) as pid:
        text = " ".join(status().split())
        told = json.loads(status("--format", "json"))
    assert re.search(r"GET /report/; idle, held [^;]+; kept because hold_connection is around in thread", text)
    [holder] = [session["holder"] for session in told["databases"][0]["sessions"] if session["holder"]]
    assert (holder["process"], holder["state"], holder["kept_because"]) == (pid, "idle", "hold_connection is around")


def test_status_names_who_holds_a_session_at_once(directory: Path) -> None:
    with child(lambda: hold(directory)) as pid:
        lines = status().splitlines()
        first = next(number for number, line in enumerate(lines) if "GET /orders/7/" in line)
        session, about = lines[first].split(": ", 1)
        assert about.startswith("GET /orders/7/; in use, held ")
        assert [line.lstrip().split(":")[0].split(" (")[0] for line in lines[first + 1 : first + 4]] == [
            f"in thread MainThread of process {pid}",
            f"its transaction began at {__file__}",
            f"its thread is at {__file__}",
        ]

        answer = json.loads(status("--format", "json"))
        sessions = {each["pid"]: each for each in answer["databases"][0]["sessions"]}
        held = sessions.pop(int(session))
        assert (held["request"], held["holder"]["process"], held["holder"]["state"]) == (
            "GET /orders/7/",
            pid,
            "in use",
        )
        assert {each["holder"] for each in sessions.values()} == {None}
        assert [(each["pid"], each["answered"], each["leases"]) for each in answer["processes"]] == [(pid, True, 1)]
        assert "PASSWORD" not in json.dumps(answer)
    assert "GET /orders/7/" not in status()


@contextmanager
def refused() -> Iterator[None]:
    """The server lets nobody into the database of the tests any more; whoever is in stays."""
    name = connection.settings_dict["NAME"]
    # Nobody can say so of the database that he is in.
    with server.connect("default", dbname="postgres") as outside:
        outside.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            yield
        finally:
            outside.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def unasked(*arguments: str) -> str:
    """Return what the command says of a server that it cannot ask."""
    output = StringIO()
    with pytest.raises(CommandError, match="not currently accepting connections") as failure:
        call_command("connections", "status", "--database", "default", *arguments, stdout=output)
    assert failure.value.returncode == 3
    return output.getvalue()


def test_processes_tell_where_the_server_does_not(directory: Path, admin: psycopg.Connection[Any]) -> None:
    with child(lambda: hold(directory)) as pid, child(lambda: hold_idle(directory)), refused():
        text, few = unasked(), unasked("--limit", "1")
        answer = json.loads(unasked("--format", "json"))
        with ExitStack() as stack:
            [elsewhere] = asking.collect(asking.Source(stack, ["persistent"], server.Scope()), 0).views
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if "GET /orders/7/" in line)
    assert lines[first - 1] == "Processes of this host hold 2 connections there, by server pid:"
    assert re.match(r"\d+: GET /orders/7/; in use, held ", lines[first])
    assert [line.lstrip().split(":")[0].split(" (")[0] for line in lines[first + 1 : first + 4]] == [
        f"in thread MainThread of process {pid}",
        f"its transaction began at {__file__}",
        f"its thread is at {__file__}",
    ]
    assert "GET /report/" in text
    assert "GET /report/" not in few
    assert "and 1 more; --limit 0 lists all." in few
    [held] = [held for process in answer["processes"] if process["pid"] == pid for held in process["held"]]
    assert (held["alias"], held["request"], held["in_transaction"]) == ("default", "GET /orders/7/", True)
    assert (elsewhere.aliases, bool(elsewhere.error), len(elsewhere.held)) == (["persistent"], True, 2)


def test_what_others_call_by_the_same_name_is_not_told_of(directory: Path) -> None:
    def hold_elsewhere() -> None:
        hold(directory)
        connections.settings["default"]["HOST"] = "elsewhere"

    with child(hold_elsewhere), refused():
        text = unasked()
    assert "GET /orders/7/" not in text


def exhaust(directory: Path) -> None:
    """Take all connections of a pool, have one thread more wait for it, and answer for that."""
    kept = [connections.create_connection("small") for _ in range(4)]
    for each in kept[1:]:
        each.connect()
    threading.Thread(target=kept[0].connect, daemon=True).start()
    wait_until(lambda: conn_hygiene.pool_stats("small")[0].waiting == 1, "it waits", PATIENCE)
    _kept.append(kept)
    answers(directory)


# What lives for as long as its process.
_kept: list[Any] = []


def test_status_says_which_pools_have_nothing_left(directory: Path) -> None:
    with child(lambda: exhaust(directory)) as pid:
        said = [line for line in status().splitlines() if "has nothing left" in line]
        with refused():
            assert said[0] in unasked()
    [line] = said
    assert line.startswith(f"The pool of small in process {pid} (")
    assert line.endswith(" has nothing left: 3 of 3 connections are checked out or being opened, and 1 thread waits.")
    assert "has nothing left" not in status()


@needs_pgbouncer
@pytest.mark.parametrize("aliases", [["unpooled", "persistent", "default"], ["default", "unpooled", "persistent"]])
def test_what_is_reached_past_a_pooler_as_well_is_asked_there(
    aliases: list[str], directory: Path, through: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["persistent"].settings_dict, "NAME", "postgres")
    with child(lambda: hold(directory)) as pid, through("transaction"), ExitStack() as stack:
        source = asking.Source(stack, aliases, server.Scope())
        for _ in range(2):
            looked = asking.collect(source, 0)
            told = rendering.status_json(looked)["databases"]
            assert [(each["aliases"], each["pooled"], each["pooled_aliases"]) for each in told] == [
                (["default", "unpooled"], False, ["unpooled"]),
                (["persistent"], False, []),
            ]
            assert [held["holder"]["process"] for held in told[0]["sessions"] if held["holder"]] == [pid]
            said = "Those of unpooled are a pooler's: each has the name of the client that had it last."
            assert rendering.plain(rendering.status_blocks(looked)).count(said) == 1


def test_who_answers_goes_over_what_was_reported(directory: Path, tmp_path: Path) -> None:
    """A notice that its process has not taken away is not believed while the process itself says otherwise."""
    from conn_hygiene.reports import notices

    both = {"STATUS_DIRECTORY": str(directory), "NOTICE_DIRECTORY": str(tmp_path / "notices")}
    with override_settings(CONN_HYGIENE=both), hold_connection():
        answers(directory)
        pid = connection.connection.info.backend_pid
        notices.post(tmp_path / "notices", {"alias": "default", "server_pid": pid, "request": "GET /over/"})
        with server.connect("default") as looking:
            session = [each for each in server.activity(looking).sessions if each.pid == pid]
            known = notices.known(tmp_path / "notices", ["default"], session)
            assert known[pid]["request"] == "GET /over/"
            assert notices.known(tmp_path / "notices", ["default"], session, but={os.getpid()}) == {}
        assert "GET /over/" not in status()
        notices.take_away()


HERE = End("db", "10.0.0.5", 5432, "shop", "app", "10.0.0.9", 40001)
SESSION = server.Session(
    pid=7,
    database="shop",
    role="app",
    application_name="",
    client_address="10.0.0.9",
    state="idle",
    backend_start=None,
    xact_start=None,
    state_change=None,
    age=100.0,
    in_state=None,
    in_transaction=None,
    wait_event=None,
    blocked_by=[],
    statement=None,
    own=False,
    client_port=40001,
)


def holder(end: End, **of_lease: Any) -> live.Holder:
    values: dict[str, Any] = {name: live._nothing(hint) for name, hint in live._hints[live.LeaseInfo]}
    lease = live.LeaseInfo(**values | {"server_pid": 7, "held_for": 50.0} | of_lease)
    process = live.Process(1, "", 0.0, None, {}, [lease], [], None, True, [end])
    return live.Holder(process, lease, end, is_there=live._are_of_one_server(end, HERE))


@pytest.mark.parametrize(
    ("end", "of_lease", "of_session", "expected"),
    [
        ({}, {}, {}, True),
        ({}, {"server_pid": 8}, {}, False),
        ({"database": "other"}, {}, {}, False),
        ({"user": "other"}, {}, {}, False),
        # The server's other one of that pid, before it or after it.
        ({}, {"held_for": 500.0}, {}, False),
        ({"client_port": 40002}, {}, {}, False),
        # Two names for one server, and one connection.
        ({"host": "elsewhere", "address": "10.1.1.1"}, {}, {}, True),
        # Translated on the way.
        ({"client_address": "172.17.0.2", "client_port": 50000}, {}, {}, True),
        ({"client_address": "172.17.0.2", "host": "other", "address": "10.0.0.6"}, {}, {}, False),
        ({"client_address": "172.17.0.2", "port": 5433}, {}, {}, False),
        ({}, {}, {"age": None}, True),
    ],
)
def test_a_pid_alone_makes_no_holder(
    end: dict[str, Any], of_lease: dict[str, Any], of_session: dict[str, Any], expected: bool
) -> None:
    session = dataclasses.replace(SESSION, **of_session)
    assert holder(dataclasses.replace(HERE, **end), **of_lease).has(session) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("/run/a", None), ("/run/a", None), True),
        (("/run/a", None), ("/run/./a", None), True),
        (("/run/a", None), ("/run/b", None), False),
        (("/run/a", None), ("localhost", "127.0.0.1"), True),
        (("localhost", "::1"), ("localhost", "127.0.0.1"), True),
        (("/run/a", None), ("db", "10.0.0.5"), False),
        (("db", "10.0.0.5"), ("primary", "10.0.0.5"), True),
        (("db", "10.0.0.5"), ("db", "10.0.0.6"), False),
        (("db", "10.0.0.5"), ("db", "fd00::5"), True),
        (("db", "10.0.0.5"), ("other", "fd00::5"), False),
        ((None, None), (None, None), False),
    ],
)
def test_two_ends_are_of_one_server(one: tuple[Any, Any], other: tuple[Any, Any], expected: bool) -> None:
    ends = [End(host, address, 5432, "shop", "app", None, None) for host, address in (one, other)]
    assert live._are_of_one_server(*ends) is expected
    assert live._are_of_one_server(*reversed(ends)) is expected
    assert not live._are_of_one_server(ends[0], dataclasses.replace(ends[1], port=5433))


# ##### What is not to be trusted #####


def as_a_link(path: Path) -> str:
    path.with_name("real").mkdir(mode=0o700)
    path.symlink_to(path.with_name("real"))
    return "is a symbolic link."


def open_to_others(path: Path) -> str:
    path.mkdir(mode=0o700)
    path.chmod(0o750)
    return "has mode 0750, which lets others in; it must have 0700."


def of_another(path: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    path.mkdir(mode=0o700)
    os.chown(path, 12345, -1)
    return "belongs to user 12345, and this process runs as 0."


@pytest.mark.parametrize("make", [as_a_link, open_to_others, of_another])
def test_a_directory_that_is_not_its_users_alone_is_refused(
    make: Callable[[Path], str], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    why = make(directory)
    query()
    wait_until(lambda: caplog.records, "it is said", PATIENCE)
    query()
    let_the_reaper_look()
    [record] = caplog.records
    assert (record.name, record.levelno) == ("conn_hygiene.status", logging.WARNING)
    assert record.getMessage() == f"This process does not answer `connections status`: {directory} {why}"
    assert list(directory.iterdir()) == []
    assert asked() == []
    assert f"{directory} {why}" in status()
    if make is of_another:
        # Those who run as its owner may put something there, and it is they who have named it.
        assert checks.check_status_directory() == []
        directory.chmod(0o750)
    [message] = checks.check_status_directory()
    # Nobody is told to remove what the settings name, which may be /tmp.
    assert (message.id, message.msg, message.hint) == (
        "conn_hygiene.W013",
        f"No process answers `connections status`: {directory} {why}",
        "Have CONN_HYGIENE['STATUS_DIRECTORY'] be a directory of the user's own with mode 0700, or one that is not "
        "there yet, which is made; None turns the answers off.",
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a directory away")
def test_what_nobody_has_named_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with override_settings(CONN_HYGIENE={}):
        directory = status_directory.mine()
        assert directory is not None
        of_another(directory)
        [message] = checks.check_status_directory()
    assert (message.id, str(message.hint).partition(",")[0]) == ("conn_hygiene.W013", "Remove it")


def test_a_directory_of_ones_own_is_fine(directory: Path) -> None:
    assert checks.check_status_directory() == []
    answers(directory)
    assert checks.check_status_directory() == []
    with override_settings(CONN_HYGIENE={"STATUS_DIRECTORY": None}):
        assert checks.check_status_directory() == []


def test_a_file_is_no_directory(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conn_hygiene.status")
    directory.write_text("")
    query()
    wait_until(lambda: caplog.records, "it is said", PATIENCE)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert f"{directory} is no directory." in status()


_NOTHING = {"format": answering.FORMAT, "pid": 1, "command": "", "settings_module": None, "leases": []}

GARBAGE = {
    "nothing": b"",
    "half": b'{"format": ',
    "no JSON": b"}{\n",
    "no object": b"[]\n",
    "another format": b'{"format": "conn_hygiene status 2", "pid": 1}\n',
    "too little": json.dumps({"format": answering.FORMAT, "pid": 1}).encode() + b"\n",
    "of another kind": json.dumps({"format": answering.FORMAT, "pid": True}).encode() + b"\n",
    "too deep": b"[" * 100_000 + b"\n",
    "too large a number": json.dumps({**_NOTHING, "started": 10**400}).encode() + b"\n",
    "without end": b"x" * (answering.LARGEST + 100_000),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_answer(garbage: bytes, directory: Path) -> None:
    status_directory.make(directory)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / f"{os.getpid()}.0.sock"))
        listening.listen()

        def serve() -> None:
            asker, _ = listening.accept()
            with asker:
                try:
                    asker.sendall(garbage)
                    asker.shutdown(socket.SHUT_WR)
                    asker.recv(1)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        [process] = asked()
        thread.join()
    assert (process.pid, process.answered, process.leases) == (os.getpid(), False, [])


def test_an_answer_of_another_version_is_read_as_far_as_it_goes(directory: Path) -> None:
    with hold_connection():
        query()
        facts = answering.about_process()
    told = json.loads(answering.encoded(facts))
    del told["leases"][0]["where_now"], told["stats"]["checkouts"]
    told["leases"][0]["new"] = told["new"] = 1
    process = live._process(told)
    assert (process.leases[0].alias, process.leases[0].where_now, process.stats.checkouts) == ("default", None, 0)


@pytest.mark.parametrize("question", [b"", b"x" * 5000, b'{"format": "conn_hygiene status 2"}\n'])
def test_who_asks_something_else_keeps_nobody_waiting(
    question: bytes, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "_TIMEOUT", 0.5)
    path = answers(directory)
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(path))
        asker.sendall(question)
        assert [process.answered for process in asked()] == [True]
        if question.endswith(b"\n"):
            assert asker.recv(1000) == b'{"format": "conn_hygiene status 1"}\n'


def test_whoever_is_not_this_user_is_not_answered(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(directory)
    monkeypatch.setattr(status_directory, "peer", lambda connected: (1, os.geteuid() + 1))
    assert asked() == []
    with socket.socket(socket.AF_UNIX) as asker:
        asker.connect(str(answering._answering.path))
        # It may be closed before the question comes, or with that unread.
        with suppress(BrokenPipeError, ConnectionResetError):
            asker.sendall(answering.QUESTION)
            assert asker.recv(1) == b""


def test_root_is_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_directory, "peer", lambda connected: (1, 0))
    with socket.socket(socket.AF_UNIX) as connected:
        for user, is_trusted in {1000: False, 0: True}.items():
            monkeypatch.setattr(os, "geteuid", lambda user=user: user)
            assert status_directory.is_trusted(connected) is is_trusted


def test_too_many_leases_are_left_off() -> None:
    facts = {"leases": [{"statement": "x" * 1000, "number": number} for number in range(10_000)], "leases_left_off": 0}
    text = answering.encoded(facts)
    assert len(text) <= answering.LARGEST
    told = json.loads(text)
    assert [each["number"] for each in told["leases"]] == list(range(2500))
    assert told["leases_left_off"] == 7500


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "python"),
        (["-c"], "-c"),
        (["/srv/shop/manage.py", "runserver", "8000"], "manage.py runserver 8000"),
        (["/venv/lib/gunicorn/__main__.py", "shop.wsgi"], "gunicorn shop.wsgi"),
        (["manage.py", "--password=x", "postgres://u:p@h/d", "--token", "--dsn=y"], "manage.py … … … …"),
        (["celery", "flower", "--basic_auth=u:hunter2", "--basic-auth", "u:hunter2", "y"], "celery flower … … … y"),
        (["manage.py", "migrate", "auth"], "manage.py migrate auth"),
        (["manage.py", "-p", "hunter2", "-phunter2", "y"], "manage.py -p … … y"),
        (["manage.py", "-p", "8000", "-p8000", "y"], "manage.py -p 8000 -p8000 y"),
        (["manage.py", "\x1b[31m"], "manage.py [31m"),
        (["manage.py", "x" * 200], f"manage.py {'x' * 49}…"),
    ],
)
def test_a_command_is_short_and_tells_no_secret(arguments: list[str], expected: str) -> None:
    assert answering.command_of(arguments) == expected


def test_a_value_that_follows_the_name_of_a_secret_is_one() -> None:
    assert answering.command_of(["manage.py", "--password", "x", "y"]) == "manage.py … … y"


# ##### Where #####


def test_auto_is_where_the_system_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"conn_hygiene-{os.geteuid()}"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with override_settings(CONN_HYGIENE={}):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
        assert status_directory.mine() == tmp_path / name
        monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
        assert status_directory.mine() == tmp_path / name
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert status_directory.mine() == tmp_path / name
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert status_directory.mine() == tmp_path / "conn_hygiene"
        # Who asks may have the variable, and who answers not.
        assert status_directory.all_of_user()[:2] == [tmp_path / "conn_hygiene", tmp_path / name]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a directory away")
def test_nothing_is_put_where_another_user_has_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with override_settings(CONN_HYGIENE={}):
        assert status_directory.mine() == runtime / "conn_hygiene"
        os.chown(runtime, 12345, -1)
        assert status_directory.mine() == tmp_path / f"conn_hygiene-{os.geteuid()}"
        assert runtime / "conn_hygiene" not in status_directory.all_of_user()


def test_a_path_that_is_too_long_for_a_socket_has_a_shorter_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "conn_hygiene.status")
    path = tmp_path / ("x" * 100) / "status"
    with override_settings(CONN_HYGIENE={"STATUS_DIRECTORY": str(path)}):
        if sys.platform == "linux":
            answers(path)
            assert [process.pid for process in asked()] == [os.getpid()]
    monkeypatch.setattr(status_directory, "_DESCRIPTORS", "/nowhere")
    connection.close()
    with override_settings(CONN_HYGIENE={"STATUS_DIRECTORY": str(path)}):
        query()
        wait_until(lambda: caplog.records, "it is said", PATIENCE)
    [record] = caplog.records
    assert "bytes that the path of a socket may have" in record.getMessage()


@pytest.mark.parametrize("timeout", ["1", None, True])
def test_a_timeout_that_is_no_number_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError) as caught:
        conn_hygiene.processes(timeout=timeout)
    assert str(caught.value) == f"processes() takes a number of seconds as timeout, not {timeout!r}."


@pytest.mark.parametrize("timeout", [-1, 0, math.nan, math.inf])
def test_a_timeout_that_nobody_can_wait_for_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout") as caught:
        conn_hygiene.processes(timeout=timeout)
    assert str(caught.value) == f"processes() takes a timeout above 0 and up to 86400 seconds, not {timeout!r}."


def test_the_longest_timeout_can_be_waited_for(directory: Path) -> None:
    answers(directory)
    assert [process.answered for process in conn_hygiene.processes(timeout=24 * 60 * 60)] == [True]

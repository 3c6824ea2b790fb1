"""The runs that the pictures show, and what is written down of them.

:func:`main` makes one, in a process of its own, and prints what was seen, as JSON. Times are in seconds from
the beginning of the run. Who has which connection is told by the toolkit's events, and under plain Django by the pool:
its ``getconn`` and ``putconn`` are watched.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import django
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds that a query takes in these runs, and a call to somebody else.
QUERY, CALL = 0.02, 0.3

REQUESTS = 8


class Notes:
    """What is seen of a run. Any thread may write."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.lines: list[dict[str, Any]] = []
        # Of the thread that a request has, its number.
        self.numbers: dict[int, int] = {}
        # Whose child this is going to be, if it is one.
        self.process = "parent"

    def now(self) -> float:
        return round(time.monotonic() - self.began, 4)

    def write(self, kind: str, thread_id: int | None = None, **facts: Any) -> None:
        number = self.numbers.get(thread_id or threading.get_ident())
        self.lines.append({"at": self.now(), "kind": kind, "request": number, **facts})

    @contextmanager
    def span(self, kind: str, **facts: Any) -> Iterator[None]:
        """Write down how long the block lasts."""
        began = self.now()
        yield
        self.write(kind, began=began, **facts)


notes = Notes()


# ##### What the site does #####


def query(statement: str = "SELECT pg_sleep(%s)", seconds: float = QUERY, **facts: Any) -> Any:
    """Query for so long."""

    def watched(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        with notes.span("query", **facts):
            return execute(sql, params, many, context)

    # Where the connection is waited for, nothing is executed yet.
    with connection.execute_wrapper(watched), connection.cursor() as cursor:
        cursor.execute(statement, [seconds] if "%s" in statement else None)
        return cursor.fetchone() if cursor.description else None


def call(seconds: float = CALL) -> None:
    """Wait for somebody else's answer."""
    with notes.span("call"):
        time.sleep(seconds)


def parcel(request: HttpRequest) -> HttpResponse:
    query()
    call()
    query()
    return HttpResponse()


def lease(request: HttpRequest) -> HttpResponse:
    query()
    query()
    call(0.17)
    query()
    with transaction.atomic(), notes.span("transaction"):
        query()
        call(0.08)
        query()
    return HttpResponse()


def tenant(request: HttpRequest) -> HttpResponse:
    query("SELECT set_config('app.tenant_id', '7', false)")
    call(0.17)
    ask()
    query(seconds=0.04)
    return HttpResponse()


def ask() -> None:
    """Ask whose request it is."""
    (tenant,) = query("SELECT current_setting('app.tenant_id', true)")
    notes.write("answer", tenant=tenant)


def nobody(request: HttpRequest) -> HttpResponse:
    ask()
    query(seconds=float(request.GET["seconds"]))
    return HttpResponse()


VIEWS: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "parcel": parcel,
    "lease": lease,
    "tenant": tenant,
    "nobody": nobody,
}


# ##### Runs #####


def get(path: str, number: int, query: str = "") -> None:
    """Request a page as number so and so, the way that a WSGI server does."""
    from django.core.handlers.wsgi import WSGIHandler

    notes.numbers[threading.get_ident()] = number
    environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    with notes.span("request"):
        application: Any = WSGIHandler()
        response = application(environ, lambda status, headers: None)
        assert response.status_code == 200
        response.close()


def others() -> None:
    """Have two requests take the connections that the first has left, so that it gets the other one."""
    time.sleep(0.12)
    get("/nobody", 2, "seconds=0.01")
    get("/nobody", 3, "seconds=0.09")


def together(*requests: Callable[[], object]) -> None:
    start = threading.Barrier(len(requests))

    def begin(request: Callable[[], object]) -> None:
        start.wait()
        request()

    threads = [threading.Thread(target=begin, args=[request]) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def warm_up() -> None:
    """Have the pool open its connections, and import what the first request imports."""
    get("/nobody", 0, "seconds=0")
    default: Any = connection
    while len(default.pool._pool) < 2:
        time.sleep(0.01)
    notes.numbers.clear()
    notes.lines.clear()
    notes.began = time.monotonic()


def watch_the_pool() -> None:
    """Write down who takes a connection from a pool and puts it back, as plain Django does."""
    from psycopg_pool import ConnectionPool

    getconn, putconn = ConnectionPool.getconn, ConnectionPool.putconn

    def watched_getconn(self: Any, *arguments: Any, **named: Any) -> Any:
        began = notes.now()
        taken = getconn(self, *arguments, **named)
        notes.write("out", pid=taken.info.backend_pid, waited=notes.now() - began)
        return taken

    def watched_putconn(self: Any, conn: Any) -> None:
        pid = conn.info.backend_pid
        putconn(self, conn)
        notes.write("in", pid=pid, reason="close")

    ConnectionPool.getconn, ConnectionPool.putconn = watched_getconn, watched_putconn  # type: ignore[method-assign]


def listen() -> None:
    """Write down who has a connection, as the toolkit tells it."""
    from conn_hygiene import events

    def out(event: events.CheckedOut) -> None:
        notes.write("out", event.thread_id, pid=event.server_pid, waited=event.waited_for or 0)

    def back(event: events.CheckedIn) -> None:
        notes.write("in", event.thread_id, pid=event.server_pid, reason=event.reason)

    events.listen(events.CheckedOut, out)
    events.listen(events.CheckedIn, back)


def crowd() -> None:
    """Eight requests over two connections."""
    warm_up()
    together(*[functools.partial(get, "/parcel", number) for number in range(1, REQUESTS + 1)])


def one_lease() -> None:
    """One request in the company of others."""
    warm_up()
    together(lambda: get("/lease", 1), others)


def following() -> None:
    """One request that sets something, in the company of others; what the sessions were told is in the server's log."""
    warm_up()
    notes.write("began", clock=time.time())
    together(lambda: get("/tenant", 1), others)


def forks() -> None:
    """A process with two connections forks twice."""
    from conn_hygiene import events

    def discarded(event: events.ConnectionsDiscarded) -> None:
        notes.write("discarded", process=notes.process, count=event.count)

    events.listen(events.ConnectionsDiscarded, discarded)
    warm_up()
    default: Any = connection
    opened = [each.info.backend_pid for each in default.pool._pool]
    work("parent")
    notes.write("opened", pids=opened)
    reading, writing = os.pipe()
    children = []
    for name in ("first child", "second child"):
        time.sleep(0.03)
        before = len(notes.lines)
        notes.process = name
        notes.write("fork", process=name)
        child = os.fork()
        if child == 0:
            notes.lines = notes.lines[before + 1 :]
            time.sleep(0.05)
            work(name)
            time.sleep(0.04)
            work(name)
            notes.write("end", process=name)
            os.write(writing, (json.dumps(notes.lines) + "\n").encode())
            os._exit(0)
        children.append(child)
    time.sleep(0.06)
    work("parent")
    for child in children:
        os.waitpid(child, 0)
    work("parent")
    notes.write("end", process="parent")
    os.close(writing)
    with os.fdopen(reading) as stream:
        for line in stream:
            notes.lines += json.loads(line)


def work(process: str) -> None:
    """Ask for the session that this process has, and query."""
    (pid,) = query("SELECT pg_backend_pid()")
    query(process=process, pid=pid)


RUNS: dict[str, tuple[Callable[[], None], dict[str, Any] | None]] = {
    "crowd-plain": (crowd, None),
    "crowd-toolkit": (crowd, {}),
    # So long that it can be seen.
    "lease": (one_lease, {"RELEASE_AFTER": 0.03}),
    "following": (following, {"RELEASE_AFTER": 0.03, "FOLLOWED_SETTINGS": [], "CLEAN_SESSIONS": "seen"}),
    "forks": (forks, {"RELEASE": "never"}),
}


def main() -> None:
    run, wanted = RUNS[sys.argv[1]]
    os.environ["CONN_HYGIENE"] = "off" if wanted is None else json.dumps(wanted)
    django.setup()
    if wanted is None:
        watch_the_pool()
    else:
        listen()
    run()
    lines = sorted(notes.lines, key=lambda line: line["at"])
    print(json.dumps(lines))

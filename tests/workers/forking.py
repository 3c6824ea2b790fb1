"""Starts children in one of the ways that Python has, while its own connections are busy, and says what all have seen.

python -m tests.workers.forking WAY [START METHOD]
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import django
import psycopg
from django.apps import apps
from django.db import connection, connections, transaction

from conn_hygiene import close_all_after_fork, closing_connections, futures
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

CHILDREN = 2


def session(*_: Any) -> int:
    """Return the server's process id for the running thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
    return pid


def set_up() -> None:
    """Do what a worker begins with that may have inherited connections, or nothing at all."""
    close_all_after_fork()
    if not apps.ready:
        django.setup()


def tell(pipe: Connection) -> None:
    set_up()
    pipe.send(session())


# ##### The ways #####


def process(context: Any) -> list[int]:
    told = []
    for _ in range(CHILDREN):
        reading, writing = context.Pipe(duplex=False)
        child = context.Process(target=tell, args=[writing])
        child.start()
        told.append(reading.recv())
        child.join()
        assert child.exitcode == 0
    return told


def pool(context: Any) -> list[int]:
    with context.Pool(CHILDREN, initializer=set_up) as workers:
        told: list[int] = workers.map(session, range(6), chunksize=1)
        workers.close()
        workers.join()
    return told


def executor(context: Any) -> list[int]:
    with concurrent.futures.ProcessPoolExecutor(CHILDREN, context, initializer=set_up) as workers:
        return list(workers.map(session, range(6)))


def executor_of_ours(context: Any) -> list[int]:
    with futures.ProcessPoolExecutor(CHILDREN, context) as workers:
        return list(workers.map(session, range(6)))


def fork(leave: Callable[[int], Any]) -> list[int]:
    told = []
    for _ in range(CHILDREN):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            close_all_after_fork()
            with os.fdopen(writing, "w") as pipe:
                pipe.write(str(session()))
            leave(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told.append(int(pipe.read()))
        assert os.waitpid(child, 0)[1] == 0
    return told


WAYS: dict[str, Callable[[str], list[int]]] = {
    "Process": lambda method: process(multiprocessing.get_context(method)),
    "Pool": lambda method: pool(multiprocessing.get_context(method)),
    "ProcessPoolExecutor": lambda method: executor(multiprocessing.get_context(method)),
    "futures.ProcessPoolExecutor": lambda method: executor_of_ours(multiprocessing.get_context(method)),
    "os._exit": lambda _: fork(os._exit),
    "sys.exit": lambda _: fork(sys.exit),
}


def killed(method: str, *, beside: bool = False) -> None:
    """Die in the middle of things, with one worker that is idle and one that waits to write.

    *beside* leaves a child that is none of the pool's, and that outlives them.
    """
    with futures.ProcessPoolExecutor(CHILDREN, multiprocessing.get_context(method)) as workers:
        workers.submit(write)
        workers.submit(session).result()
        if beside and os.fork() == 0:
            connections.close_all()
            os.read(0, 1)
            time.sleep(600)
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)


def write() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM written")
        # The server would have finished the first statement without anybody to hear of it.
        cursor.execute("INSERT INTO written VALUES (2)")


# ##### The parent #####


@contextmanager
def another_thread() -> Iterator[Callable[[], int]]:
    """Have a second thread that holds a connection; yield a function that asks it for its session."""
    ask, answered, over = threading.Event(), threading.Event(), threading.Event()
    answers: list[int] = []

    @closing_connections
    def run() -> None:
        while ask.wait() and not over.is_set():
            ask.clear()
            answers.append(session())
            answered.set()

    def session_there() -> int:
        answered.clear()
        ask.set()
        assert answered.wait(30)
        return answers[-1]

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield session_there
    finally:
        over.set()
        ask.set()
        thread.join()


def gone(sessions: list[int]) -> bool:
    # Not on a connection that is tested here.
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as admin:
        query = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
        return admin.execute(query, [sessions]).fetchone() is None


def main(way: str, method: str = "") -> None:
    django.setup()
    committed: list[int] = []
    with another_thread() as session_there, transaction.atomic():
        before = [session(), session_there()]
        transaction.on_commit(lambda: committed.append(os.getpid()))
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE written AS SELECT 1 AS n")
        with connection.chunked_cursor() as rows:
            rows.execute("SELECT generate_series(1, 100)")
            read = rows.fetchmany(10)
            children = WAYS[way](method)
            read += rows.fetchall()
        wait_until(lambda: gone(children), "the children's sessions are gone")
        after = [session(), session_there()]
    assert [n for (n,) in read] == list(range(1, 101))
    assert committed == [os.getpid()]
    with connection.cursor() as cursor:
        cursor.execute("SELECT n FROM written")
        assert cursor.fetchall() == [(1,)]
    connection.close_pool()
    print(json.dumps({"before": before, "children": children, "after": after}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What the queues run."""

from __future__ import annotations

import os
import threading

from django.db import connection, transaction

from conn_hygiene import closing_connections

# As many as a worker process has threads in the tests.
THREADS = 4
_all_threads = threading.Barrier(THREADS, timeout=30)


def report(job: str = "report") -> None:
    """Say who is running, in which session."""
    with connection.cursor() as cursor:
        who = (job, os.getpid(), threading.get_ident())
        cursor.execute("INSERT INTO report VALUES (%s, %s, %s, pg_backend_pid())", who)


def together() -> None:
    """Report from each thread of the worker: none does it twice before all have begun."""
    _all_threads.wait()
    report("together")


def wait_between_queries() -> None:
    """Query, wait until all threads of the worker have, and query again."""
    report("before the wait")
    _all_threads.wait()
    report("after the wait")


def leave_open() -> None:
    """Leave a transaction open, with a lock in it."""
    transaction.set_autocommit(False)
    _lock()


@closing_connections
def leave_open_inside() -> None:
    """Do the same inside closing_connections."""
    leave_open()


def wait_in_transaction() -> None:
    """Wait in a transaction, with a lock in it, to be killed."""
    with transaction.atomic():
        _lock()
        print("waiting with a lock", flush=True)
        threading.Event().wait(60)


def _lock() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [os.getpid()])


ALL = (report, together, wait_between_queries, leave_open, leave_open_inside, wait_in_transaction)

"""What the tests give to worker processes. Those import this module by themselves, and with it models."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from django.db import connection

import conn_hygiene
from tests.testapp.models import Item

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


def session() -> int:
    """Return the server's process id for the running thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def where(*_: Any) -> tuple[int, int]:
    return os.getpid(), session()


def held() -> int:
    """Return how many connections this process holds already, before the job has queried."""
    return len(conn_hygiene.snapshot())


def count(started: Synchronized[int]) -> None:
    """Count a worker that has started, in which the models can be used and a connection was opened."""
    assert Item._meta.app_label == "testapp"
    session()
    with started.get_lock():
        started.value += 1


def leave_open() -> None:
    connection.set_autocommit(False)
    session()


def fail() -> None:
    session()
    raise LookupError("as it was told")


def die() -> None:
    session()
    os._exit(3)


def thread() -> int:
    session()
    return threading.get_ident()

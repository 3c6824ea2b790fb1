"""What the tests give to worker processes. Those import this module by themselves, and with it models."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from django.db import connection

import conn_hygiene
from conn_hygiene.leases import policy, usage
from conn_hygiene.scopes import _Closing
from conn_hygiene.work import serving
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


def surroundings() -> dict[str, Any]:
    """Return what the code around this job has a say in."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('app.tenant_id', true), current_setting('statement_timeout')")
        tenant, timeout = cursor.fetchone()
    with conn_hygiene.session_settings({"app.region": "north"}), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('app.tenant_id', true)")
        (of_block,) = cursor.fetchone()
    return {
        # A name that was set once has an empty value in its session for ever.
        "tenant": tenant or None,
        "tenant of a block": of_block or None,
        "timeout": timeout,
        "held": policy.holds("default"),
        "scopes": len(policy.entered.get()),
        "closing": len(_Closing._entered.get()),
        "measured": usage.current.get() is not None,
        "label": serving.label,
        "request": serving.request,
        "ahead of statements": len(connection.execute_wrappers),
    }


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

"""Tasks that say who runs them, in which session, and some that are careless with connections.

``QUERY_BEFORE_FORK``   set: the worker has a connection whenever it forks
``QUERY_AFTER_FORK``    set: its processes have one before Celery has made them ready
``DISCARD_AFTER_FORK``  "off" for the setting of that name
``PROMETHEUS_MULTIPROC_DIR``  where processes write what they have counted
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from celery import shared_task, signals  # type: ignore[import-untyped]
from django.db import connection, models, transaction

import conn_hygiene
from tests.workers.site import urls


class Session(models.Model):
    """A session of the server's; a model, so that there is something to ask for."""

    pid = models.IntegerField(primary_key=True)
    xact_start = models.DateTimeField()

    class Meta:
        app_label = "site"
        managed = False
        db_table = "pg_stat_activity"


@shared_task
def who() -> dict[str, int]:
    return urls.who()


@shared_task
def meet(place: str, number: int) -> dict[str, int]:
    """Query, wait until *number* tasks have come to *place*, and query again."""
    who = urls.who()
    Path(place, f"{who['process']}-{who['thread']}").touch()
    deadline = time.monotonic() + 30
    while len(list(Path(place).iterdir())) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return urls.who()


@shared_task
def held() -> list[str | None]:
    """Return for whom this process holds connections."""
    return [info.request for info in conn_hygiene.snapshot()]


@shared_task
def held_in_transaction() -> list[str | None]:
    with transaction.atomic():
        urls.session()
        return held()


@shared_task
def leave_open() -> int:
    transaction.set_autocommit(False)
    return urls.session()


@shared_task
def fail() -> None:
    with transaction.atomic():
        raise ValueError(urls.session())


@shared_task
def run_async() -> list[str | None]:
    """Query under asyncio.run(), leave a transaction open, and return what held() says in between."""

    async def main() -> list[str | None]:
        me = await sync_to_async(urls.session)()
        await Session.objects.aget(pid=me)
        found = await sync_to_async(held_in_transaction)()
        await sync_to_async(leave_open)()
        return found

    return asyncio.run(main())


@shared_task
def run_async_to_sync() -> bool:
    """Return whether what runs under async_to_sync() is in the task's transaction."""
    with transaction.atomic():
        mine = urls.session()
        return mine == async_to_sync(sync_to_async(urls.session))()


@shared_task
def run_eagerly() -> bool:
    """Return whether a task that runs inside this one leaves its transaction alone."""
    with transaction.atomic():
        mine = urls.session()
        return bool(mine == who.apply().result["session"] and connection.in_atomic_block)


def _print_pools(**kwargs: Any) -> None:
    # In one piece, which Celery makes one line of its log.
    print(f"{os.getpid()} ends with pools {[*connection._connection_pools]}", flush=True)


@signals.worker_init.connect
@signals.worker_process_init.connect
def _look_at_the_end(**kwargs: Any) -> None:
    # Connected here, they are called after those that the fixup has connected.
    signals.worker_process_shutdown.connect(_print_pools)
    signals.worker_shutdown.connect(_print_pools)


def _query_before_fork(**kwargs: Any) -> None:
    print(f"Forked by session {urls.session()}", flush=True)


def _query_after_fork(**kwargs: Any) -> None:
    print(f"Started with session {urls.session()}", flush=True)


if os.environ.get("QUERY_BEFORE_FORK"):
    signals.worker_before_create_process.connect(_query_before_fork)
if os.environ.get("QUERY_AFTER_FORK"):
    signals.worker_process_init.connect(_query_after_fork)
if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    from conn_hygiene.contrib import prometheus

    # What is written is written when a process ends.
    prometheus.multiprocess.INTERVAL = 3600
    prometheus.register()
if os.environ.get("DISCARD_AFTER_FORK") == "off":
    conn_hygiene.install(DISCARD_AFTER_FORK=False)

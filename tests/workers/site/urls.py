"""Views that say who answers, in which session."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.http import JsonResponse
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpRequest


def session() -> int:
    """Return the server's process id for the running thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
    return pid


def who() -> dict[str, int]:
    return {"process": os.getpid(), "thread": threading.get_ident(), "session": session()}


def sync_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(who())


async def async_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await sync_to_async(who)())


def alive(request: HttpRequest) -> JsonResponse:
    """Answer without a query."""
    return JsonResponse({"process": os.getpid()})


_come: list[int] = []


def meet(request: HttpRequest, number: int) -> JsonResponse:
    """Query, wait until *number* requests have come here in this process, and query again."""
    _come.append(session())
    deadline = time.monotonic() + 20
    while len(_come) < number:
        assert time.monotonic() < deadline, "the others did not come"
        time.sleep(0.01)
    return JsonResponse(who())


def wait(request: HttpRequest, name: str) -> JsonResponse:
    """Hold a connection in a transaction, with a query that runs, until somebody lets go of the server's lock."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(1)")
    return JsonResponse(who())


urlpatterns = [
    path("wait/<name>/", wait),
    path("meet/<int:number>/", meet),
    path("", sync_view),
    path("async/", async_view),
    path("alive/", alive),
]

"""A bank whose clients compare what they were told with what they find.

The client of a transfer gives it a token. It is in the ledger exactly if the transfer was committed. An answer says one
of three things: it was done; it was not, for sure; or, by any other answer or none, nobody knows.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from django.db import connections, transaction
from django.db.models import F, Sum
from django.http import JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST
from psycopg_pool import PoolTimeout

from example_project.bank.models import Account, Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse

# What the counters of a bank take for their part of the work, in seconds.
COUNTING = 0.01


class ErrorsAreTold:
    """Middleware that has an answer of status 500 say what was wrong, so that it can be counted by kind."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> JsonResponse:
        return JsonResponse({"error": described(exception)}, status=500)


def described(exception: BaseException) -> str:
    first_line = str(exception).strip().partition("\n")[0]
    return f"{type(exception).__name__}: {first_line}"


def undone(exception: Exception) -> JsonResponse:
    return JsonResponse({"undone": True, "error": described(exception)}, status=503)


@csrf_exempt
@require_POST
def transfer(request: HttpRequest) -> JsonResponse:
    """Move money in a transaction, with a pause in its middle."""
    token, amount = UUID(request.POST["token"]), int(request.POST["amount"])
    source, target = int(request.POST["source"]), int(request.POST["target"])
    committing = False
    try:
        with transaction.atomic():
            # In one order, whichever way the money goes: no deadlocks.
            list(Account.objects.select_for_update().filter(pk__in=[source, target]).order_by("pk"))
            Account.objects.filter(pk=source).update(balance=F("balance") - amount)
            time.sleep(float(request.POST.get("pause", COUNTING)))
            Account.objects.filter(pk=target).update(balance=F("balance") + amount)
            Entry.objects.create(token=token, source_id=source, target_id=target, amount=amount)
            committing = True
    except Exception as exception:
        # Once COMMIT may have been sent, it may have arrived.
        if committing:
            raise
        return undone(exception)
    return JsonResponse({"done": str(token)})


@csrf_exempt
@require_POST
def note(request: HttpRequest) -> JsonResponse:
    """Query, wait, and write a row by a single statement, which commits itself."""
    token, inserting = UUID(request.POST["token"]), False
    try:
        Account.objects.count()
        time.sleep(COUNTING)
        inserting = True
        Entry.objects.create(token=token)
    except Exception as exception:
        if inserting:
            raise
        return undone(exception)
    return JsonResponse({"done": str(token)})


@require_GET
def total(request: HttpRequest) -> JsonResponse:
    """Add up what all accounts have, which is always the same."""
    return JsonResponse({"total": Account.objects.aggregate(total=Sum("balance"))["total"]})


@require_GET
def slow(request: HttpRequest, seconds: int) -> JsonResponse:
    """Query, wait for somebody for long, query again."""
    before = Account.objects.count()
    time.sleep(seconds)
    return JsonResponse({"before": before, "after": Account.objects.count()})


@require_GET
def pool(request: HttpRequest) -> JsonResponse:
    """Say how many connections the pool should have, and how many it gives at a time that can be written through."""
    pool = connections["default"].pool  # type: ignore[attr-defined]
    # As Django does ahead of each use.
    pool.open()
    given: list[psycopg.Connection[Any]] = []
    try:
        # They have all the same time.
        deadline = time.monotonic() + 1
        while len(given) < pool.max_size:
            given.append(pool.getconn(timeout=max(deadline - time.monotonic(), 0.05)))
    except PoolTimeout:
        pass
    finally:
        good = sum(takes_writes(connection) for connection in given)
        for connection in given:
            pool.putconn(connection)
    return JsonResponse({"process": os.getpid(), "size": pool.max_size, "given": good})


def takes_writes(connection: psycopg.Connection[Any]) -> bool:
    try:
        row = connection.execute("SELECT current_setting('transaction_read_only')").fetchone()
        connection.rollback()
    except psycopg.Error:
        return False
    return row is not None and row[0] == "off"


@require_GET
def process(request: HttpRequest) -> JsonResponse:
    """Say which process has answered."""
    return JsonResponse({"process": os.getpid()})

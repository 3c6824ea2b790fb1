"""Pages that do it wrong, each in one way that the toolkit reports, and one that does it right.

Look at the log while they run, and at ``/connections/``.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from example_project.shop.models import Order

if TYPE_CHECKING:
    from django.db.models import QuerySet

LONGEST = 60  # seconds


def ask_somebody_slow(request: HttpRequest) -> str:
    """Stand in for a call that takes as long as the address says: ``?seconds=10``."""
    seconds = float(request.GET.get("seconds", 10))
    time.sleep(min(max(seconds, 0), LONGEST))
    return "an answer"


def one_order() -> QuerySet[Order]:
    return Order.objects.order_by("pk")[:1]


@require_GET
def idle_in_transaction(request: HttpRequest) -> HttpResponse:
    """Wait for somebody else inside a transaction: its locks wait, too."""
    with transaction.atomic():
        order = one_order().select_for_update().get()
        answer = ask_somebody_slow(request)
        order.save(update_fields=["status"])
    return plain(f"Order {order.pk} was locked until there was {answer}.")


@require_GET
def asked_before(request: HttpRequest) -> HttpResponse:
    """Wait first, and begin the transaction with the answer at hand."""
    answer = ask_somebody_slow(request)
    with transaction.atomic():
        order = one_order().select_for_update().get()
        order.save(update_fields=["status"])
    return plain(f"Order {order.pk} was locked only after there was {answer}.")


@require_GET
def unclosed_cursor(request: HttpRequest) -> HttpResponse:
    """Open a cursor and forget it."""
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM shop_order")
    (count,) = cursor.fetchone()
    del cursor
    # It would be collected anyway, sooner or later.
    gc.collect()
    return plain(f"{count} orders were counted, and the cursor was left to the garbage collector.")


@require_GET
def dead_thread(request: HttpRequest) -> HttpResponse:
    """Query in a thread that ends without closing what it opened."""

    def work() -> None:
        one_order().get()

    thread = threading.Thread(target=work, name="stock-counter")
    thread.start()
    thread.join()
    return plain("A thread has queried, and ended with its connection checked out.")


@require_GET
def held_too_long(request: HttpRequest) -> HttpResponse:
    """Query in a thread that then has something else to do for a long time."""

    def work() -> None:
        one_order().get()
        ask_somebody_slow(request)
        connection.close()

    threading.Thread(target=work, daemon=True, name="stock-keeper").start()
    return plain("A thread has queried, and now sleeps with its connection.")


def plain(text: str) -> HttpResponse:
    return HttpResponse(f"{text}\n", content_type="text/plain")

"""A shop whose views wait for a bank in the middle of a transaction, until somebody lets them go."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from django.db import OperationalError, transaction
from django.http import HttpResponse

from tests.testapp.models import Item

if TYPE_CHECKING:
    from django.http import HttpRequest

_answered = threading.Event()


def pay(request: HttpRequest, number: int) -> HttpResponse:
    with transaction.atomic():
        Item.objects.select_for_update().get(pk=number)
        ask_the_bank()
    return HttpResponse("paid")


def ask_the_bank() -> None:
    # Nobody waits for ever for a test that has failed.
    _answered.wait(120)


def ship(request: HttpRequest, number: int) -> HttpResponse:
    try:
        with transaction.atomic():
            Item.objects.filter(pk=number).update(name="shipped")
    except OperationalError as error:
        return HttpResponse(str(error), status=503)
    return HttpResponse("shipped")


def let_go(request: HttpRequest) -> HttpResponse:
    _answered.set()
    return HttpResponse("all go on")


def hold_again(request: HttpRequest) -> HttpResponse:
    _answered.clear()
    return HttpResponse("who asks the bank waits")

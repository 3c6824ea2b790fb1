"""What the reaper watches for: the limits in force, from the moment on in which they are set."""

from __future__ import annotations

import math
from typing import Any

import pytest
from django.db import connections, transaction

from conn_hygiene import reaper, signals
from tests.test_requests import events_of
from tests.waiting import wait_until


@pytest.mark.django_db(transaction=True)
def test_limits_that_are_set_while_connections_are_held_are_watched(settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}
    connections.close_all()
    with events_of(signals.idle_in_transaction_detected) as events, transaction.atomic():
        running: Any = reaper.running
        wait_until(lambda: running._watch_at == math.inf, "the watch rests")
        settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05}
        wait_until(lambda: events, "it is reported")

"""Sentry, which is set up for good: each function runs in a process of its own and returns what Sentry was sent.

The module imports nothing that needs Django to be set up.
"""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import django
from django.db import OperationalError, connections, transaction

import conn_hygiene
from conn_hygiene import events

with warnings.catch_warnings():
    # It imports eventlet, where that is installed, which says that it is deprecated.
    warnings.simplefilter("ignore")
    import sentry_sdk
    from sentry_sdk.integrations.logging import LoggingIntegration
    from sentry_sdk.transport import Transport

    from conn_hygiene.contrib.sentry import ConnHygieneIntegration

if TYPE_CHECKING:
    from collections.abc import Callable

Reported = TypeVar("Reported", bound=events.Event)

KEPT = ("level", "logger", "message", "fingerprint", "tags", "user", "contexts", "breadcrumbs", "exception")


class _Memory(Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Any] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.items += [item.payload.json for item in envelope.items]

    def events(self) -> list[dict[str, Any]]:
        return [{key: item[key] for key in KEPT if key in item} for item in self.items if item.get("type") is None]

    def transaction(self) -> Any:
        [found] = [item for item in self.items if item.get("type") == "transaction"]
        return found


def start(*integrations: Any) -> _Memory:
    sent = _Memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1",
            transport=sent,
            traces_sample_rate=1.0,
            integrations=[LoggingIntegration(event_level=logging.WARNING), *integrations],
            auto_enabling_integrations=False,
        )
    django.setup()
    return sent


def query(alias: str = "default") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def _told(kind: type[Reported], is_it: Callable[[Reported], bool]) -> threading.Event:
    """Return what is set when an event of *kind* has been told, to Sentry as well, which listens since before.

    The last one, of what came before, may be told late.
    """
    told = threading.Event()
    events.listen(kind, lambda event: told.set() if is_it(event) else None)
    return told


def sit_idle() -> None:
    told = _told(events.IdleInTransaction, lambda event: True)
    with transaction.atomic():
        query()
        assert told.wait(20)


def hold() -> None:
    told = _told(events.HeldTooLong, lambda event: str(event.where_checked_out).endswith("in query"))
    query()
    assert told.wait(20)


@conn_hygiene.closing_connections
def leave_open() -> None:
    transaction.set_autocommit(False)
    query()


def reports(sent: _Memory) -> Any:
    with sentry_sdk.isolation_scope() as scope:
        # The toolkit's threads begin in here, and inherit it by Sentry's ThreadingIntegration.
        scope.set_user({"id": "7"})
        sit_idle()
        connections.close_all()
        hold()
        connections.close_all()
        leave_open()
    return sent.events()


def exhausted(sent: _Memory) -> Any:
    query()
    connections.close_all()
    pool: Any = connections["default"].pool
    taken = [pool.getconn() for _ in range(pool.max_size)]
    pool.timeout = 0.01
    before = len(sent.events())
    try:
        query()
    except OperationalError as error:
        sentry_sdk.capture_exception(error)
    pool.timeout = 5
    for each in taken:
        pool.putconn(each)
    return sent.events()[before:]


def waits(sent: _Memory) -> Any:
    waited: list[float | None] = []
    events.listen(events.CheckedOut, lambda event: waited.append(event.waited_for))
    with sentry_sdk.start_transaction(name="shop"):
        query()
        with sentry_sdk.start_span(name="inner"):
            for _ in range(2):
                connections["default"].close()
                query()
        connections["default"].close()
        query("unpooled")
    # Nobody is there to be told.
    connections["unpooled"].close()
    query("unpooled")
    found = sent.transaction()
    inner = [span["data"] for span in found["spans"] if span["description"] == "inner"]
    connections.close_all()
    return list(waited), found["contexts"]["trace"]["data"], inner


def without_the_integration() -> Any:
    sent = start()
    sit_idle()
    connections.close_all()
    with sentry_sdk.start_transaction(name="shop"):
        query()
    return sent.events(), sent.transaction()["contexts"]["trace"].get("data", {})


def everything() -> Any:
    sent = start(ConnHygieneIntegration())
    told = {"reports": reports(sent), "exhausted": exhausted(sent), "waits": waits(sent)}
    return told | {"without": without_the_integration()}

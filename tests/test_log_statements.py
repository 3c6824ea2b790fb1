"""LOG_STATEMENTS: no report has the values that code has written into its SQL, unless it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction
from psycopg import sql

import conn_hygiene
from conn_hygiene import events, signals
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.django_db(transaction=True)

EXECUTED = "SELECT 'Ada', 1815, %s, NULL -- secret"
#: What is told of it, by the setting.
TOLD = {"masked": "SELECT ?, ?, %s, NULL", "raw": EXECUTED}

log_statements = pytest.mark.parametrize("log_statements", TOLD)


def execute(query: Any = EXECUTED) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query, ["a parameter"])


class Told:
    """The statements of all that was told, by who told it."""

    def __init__(self, caplog: Any) -> None:
        self._caplog = caplog
        self.events: list[str | None] = []
        self.signals: list[str | None] = []

    def event(self, event: Any) -> None:
        self.events.append(event.statement)

    def signal(self, statement: str | None, **_: Any) -> None:
        self.signals.append(statement)

    @property
    def records(self) -> list[Any]:
        return [record for record in self._caplog.records if hasattr(record, "statement")]

    def assert_all(self, statement: str) -> None:
        count = len(self.records)
        assert count
        assert [record.statement for record in self.records] == [statement] * count
        assert [record.getMessage().partition("Its last statement was: ")[2] for record in self.records] == (
            [statement] * count
        )
        assert (self.events, self.signals) == ([statement] * count, [statement] * count)


KINDS = (events.IdleInTransaction, events.LeftOpen, events.HeldTooLong)
SIGNALS = (signals.idle_in_transaction_detected, signals.connection_held_too_long)


@pytest.fixture
def told(caplog: Any) -> Iterator[Told]:
    connections.close_all()
    told = Told(caplog)
    for kind in KINDS:
        events.listen(kind, told.event)
    for signal in SIGNALS:
        signal.connect(told.signal)
    yield told
    for signal in SIGNALS:
        signal.disconnect(told.signal)
    for kind in KINDS:
        events.unlisten(kind, told.event)
    connections.close_all()


def wait_for_a_report(told: Told) -> None:
    # The signal is the last of the three.
    wait_until(lambda: told.signals, "it is reported")


@log_statements
def test_an_idle_transaction(log_statements: str, settings: Any, told: Told) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05, "LOG_STATEMENTS": log_statements}
    with transaction.atomic():
        execute()
        wait_for_a_report(told)
    told.assert_all(TOLD[log_statements])


@log_statements
def test_a_connection_that_is_held_too_long(log_statements: str, settings: Any, told: Told) -> None:
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": 0.05, "RELEASE": "never", "LOG_STATEMENTS": log_statements}
    execute()
    wait_for_a_report(told)
    connection.close()
    told.assert_all(TOLD[log_statements])


@log_statements
def test_a_transaction_that_was_left_open(log_statements: str, settings: Any, told: Told) -> None:
    settings.CONN_HYGIENE = {"LOG_STATEMENTS": log_statements}
    with conn_hygiene.closing_connections():
        transaction.set_autocommit(False)
        execute()
    told.assert_all(TOLD[log_statements])


@log_statements
def test_a_snapshot(log_statements: str, settings: Any, told: Told) -> None:
    settings.CONN_HYGIENE = {"LOG_STATEMENTS": log_statements}
    with transaction.atomic():
        execute()
        [info] = conn_hygiene.snapshot()
    assert info.statement == TOLD[log_statements]


def test_what_is_no_text_is_told_as_its_text(told: Told) -> None:
    with transaction.atomic():
        execute(sql.SQL("SELECT {}, %s").format(sql.Literal("Ada")))
        [info] = conn_hygiene.snapshot()
    assert info.statement == "SELECT ?, %s"


def test_a_long_statement_is_told_by_its_beginning(told: Told) -> None:
    with transaction.atomic():
        execute(f"SELECT %s, '{'x' * 9_983}', 'Ada'")
        [info] = conn_hygiene.snapshot()
        # The last quote that is seen is the one of 'Ada', which has no end then.
        assert info.statement == "SELECT %s, ?, ?"
        execute(f"SELECT %s, '{'x' * 20_000}', 'Ada'")
        [info] = conn_hygiene.snapshot()
        assert info.statement == "SELECT %s, ?"

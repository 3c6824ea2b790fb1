"""Text that others have chosen does not steer the terminal on which it is read: in logs, errors and the command."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from conn_hygiene import conf, events, snapshot
from conn_hygiene.leases.description import reportable
from conn_hygiene.management import rendering
from conn_hygiene.masking import harmless, printable, told
from conn_hygiene.reports import log
from conn_hygiene.server.doctor import Finding, Level
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

pytestmark = pytest.mark.django_db(transaction=True)

# Clears the screen, sets the title, the same by one character of ISO 8859-1, and has what follows written backwards.
NASTY = "\x1b[2J\x1b]0;owned\x07\x9b2J\u202e"
HARMLESS = " [2J ]0;owned  2J "


class Messages:
    """What the log says, as a handler without a formatter of its own writes it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def of(self, logger: str) -> list[str]:
        return [record.getMessage() for record in self._caplog.records if record.name == f"conn_hygiene.{logger}"]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[Messages]:
    with caplog.at_level("INFO"):
        yield Messages(caplog)


def test_what_is_replaced() -> None:
    assert harmless(NASTY) == HARMLESS
    assert told(NASTY) == HARMLESS
    assert told(7) == 7
    assert harmless("a\r\n\tb\x1b") == "a   b "
    assert harmless("a\r\n\tb\x1b", lines=True) == "a \n\tb "
    assert harmless("Grüße, 日本 🐘") == "Grüße, 日本 🐘"


EXAMPLES: dict[str, Any] = {
    "str": NASTY,
    "str | None": NASTY,
    "int": 1,
    "float": 1.0,
    "float | None": 1.0,
    "bool": True,
    "tuple[str, ...]": (NASTY,),
    "Mapping[str, str]": {NASTY: NASTY},
    "Mapping[str, int]": {NASTY: 1},
}
EXAMPLES["tuple[Holder, ...]"] = (
    events.Holder(**{field.name: EXAMPLES[str(field.type)] for field in dataclasses.fields(events.Holder)}),
)


@pytest.mark.parametrize("kind", sorted(log._LISTENERS, key=str), ids=lambda kind: kind.__name__)
def test_no_message_of_any_event(kind: type[events.Event], messages: Messages, caplog: Any) -> None:
    # A Literal is ours.
    facts = {field.name: EXAMPLES.get(str(field.type), "log") for field in dataclasses.fields(kind)}
    log.reset()
    log._LISTENERS[kind](kind(**facts))
    log.reset()
    said = [record.getMessage() for record in caplog.records]
    assert said
    for message in said:
        assert message.isprintable(), message
        # Nor does an alias in quotes, as repr() has it.
        assert "\x1b" not in message


def test_the_error_of_a_session_that_was_ended_too() -> None:
    event = events.IdleInTransaction(
        alias="default",
        server_pid=1,
        thread_id=1,
        thread_name=NASTY,
        request=None,
        statement=None,
        open_for=1.0,
        idle_for=1.0,
        where_began=NASTY,
        by_atomic_requests=False,
        where_now=None,
        action="terminate",
    )
    assert event.message.isprintable()
    assert "thread [2J ]0;owned 2J on" in event.message


@pytest.mark.parametrize("log_statements", ["masked", "raw"])
def test_the_statement_in_the_log(log_statements: str, settings: Any, messages: Messages) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05, "LOG_STATEMENTS": log_statements}
    current = threading.current_thread()
    before, current.name = current.name, f"{NASTY}worker"
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SELECT '{NASTY}'\n-- {NASTY}")
            wait_until(lambda: messages.of("transactions"), "it is reported")
            [info] = snapshot()
    finally:
        current.name = before
    [message] = messages.of("transactions")
    assert message.isprintable()
    assert "thread [2J ]0;owned 2J worker on" in message
    assert info.statement is not None
    assert "\x1b" not in info.statement


def test_raw_statements_keep_their_lines(settings: Any) -> None:
    settings.CONN_HYGIENE = {"LOG_STATEMENTS": "raw"}
    assert conf.current.LOG_STATEMENTS == "raw"
    assert reportable("SELECT 1,\n\t'a  b\x1b'") == "SELECT 1,\n\t'a  b '"


def test_the_command(admin: psycopg.Connection, capsys: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('application_name', %s, false)", [NASTY])
        call_command("connections", "status", "--database", "default")
        out = io.StringIO()
        call_command("connections", "status", "--database", "default", "--format", "json", stdout=out)
    assert capsys.readouterr().out.replace("\n", "").isprintable()
    assert out.getvalue().replace("\n", "").isprintable()
    assert json.loads(out.getvalue())["version"] == 1


def test_what_the_server_says_of_a_database_that_is_not_there(settings: Any) -> None:
    from django.db import connections

    entry = connections.settings["default"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connections.settings, "default", entry | {"NAME": f"none{NASTY}", "OPTIONS": {}})
        patch.setattr(connections["default"], "settings_dict", connections.settings["default"])
        with pytest.raises(CommandError) as caught:
            call_command("connections", "status", "--database", "default", stdout=io.StringIO())
    assert str(caught.value).isprintable()
    assert "none [2J ]0;owned 2J" in str(caught.value)


def test_findings_of_the_doctor() -> None:
    finding = Finding(Level.ERROR, "x", (f"a{NASTY}",), NASTY, NASTY, NASTY, NASTY)
    text = rendering.plain(rendering.finding_blocks([finding]))
    assert text.replace("\n", "").isprintable()
    # What is laid out stays so.
    assert "\n  Why:   [2J ]0;owned  2J \n" in text


def test_names_of_a_database_and_a_role() -> None:
    import datetime

    identity = rendering.server.Identity(NASTY, NASTY, datetime.datetime.now(datetime.timezone.utc), NASTY)
    view = rendering.View([NASTY], identity, rendering.server.Activity([], 1, 1))
    text = rendering.plain(rendering.status_blocks(rendering.Status([view], [])))
    assert text.replace("\n", "").isprintable()
    assert printable(text)

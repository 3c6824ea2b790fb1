"""What comes again and again is said seldom, and none of it is forgotten."""

from __future__ import annotations

import gc
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections

import conn_hygiene
from conn_hygiene import signals
from conn_hygiene.reports import log
from conn_hygiene.reports.repeats import Repeats
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_the_first_is_said_at_once_and_the_rest_in_time_with_their_number() -> None:
    repeats: Repeats[str] = Repeats(interval=60)
    assert repeats.count("a", 1000) == [("a", 1)]
    assert [repeats.count("a", now) for now in (1000, 1001, 1059.9)] == [[], [], []]
    assert repeats.count("a", 1060) == [("a", 4)]
    assert repeats.count("a", 1119.9) == []
    # However long that takes.
    assert repeats.count("a", 9000) == [("a", 2)]
    assert repeats.count("a", 9060) == [("a", 1)]


def test_each_has_a_time_and_a_number_of_its_own() -> None:
    repeats: Repeats[str] = Repeats(interval=60)
    assert repeats.count("a", 1000) == [("a", 1)]
    assert repeats.count("b", 1030) == [("b", 1)]
    assert repeats.count("b", 1060) == []
    assert repeats.count("a", 1060) == [("a", 1)]
    assert repeats.count("b", 1090) == [("b", 2)]


def test_no_more_are_kept_in_mind_than_may_be_and_none_is_forgotten_unsaid() -> None:
    repeats: Repeats[str] = Repeats(interval=60, most=2)
    for subject in "ab":
        repeats.count(subject, 1000)
    repeats.count("a", 1001)
    # The one that was said the longest ago goes.
    assert repeats.count("c", 1002) == [("a", 1), ("c", 1)]
    assert repeats.count("d", 1003) == [("d", 1)]
    assert repeats.count("a", 1004) == [("a", 1)]


def test_none_is_lost_between_threads() -> None:
    repeats: Repeats[str] = Repeats(interval=1)
    start = threading.Barrier(4)

    def count() -> int:
        start.wait()
        return sum(number for now in range(5000) for _, number in repeats.count("a", now / 100))

    with ThreadPoolExecutor(4) as executor:
        said = sum(future.result() for future in [executor.submit(count) for _ in range(4)])
    [(_, rest)] = repeats.count("a", 1e9)
    assert said + rest == 4 * 5000 + 1


# ##### Cursors that nobody closes #####


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repeats[tuple[str, str]]]:
    """Have nothing said yet."""
    repeats: Repeats[tuple[str, str]] = Repeats()
    monkeypatch.setattr(log, "unclosed_cursors", repeats)
    yield repeats
    connections.close_all()


def leave_open(number: int) -> str:
    """Leave as many cursors open, and return where."""
    for _ in range(number):
        connection.cursor()
    gc.collect()
    frame = inspect.currentframe()
    assert frame is not None
    return f"{__file__}:{frame.f_code.co_firstlineno + 3} in leave_open"


@pytest.mark.django_db(transaction=True)
def test_a_line_that_leaves_many_cursors_open_is_named_once(
    settings: Any, caplog: pytest.LogCaptureFixture, repeats: Repeats[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONN_HYGIENE = {"REPORT_UNCLOSED_CURSORS": True}
    before = conn_hygiene.stats().unclosed_cursors
    sent: list[str] = []

    def receive(where_opened: str, **_: Any) -> None:
        sent.append(where_opened)

    signals.unclosed_cursor_detected.connect(receive)
    try:
        where = leave_open(115)
        wait_until(lambda: len(sent) == 115, "all are sent")
        monkeypatch.setattr(repeats, "_interval", 0)
        assert leave_open(1) == where
        wait_until(lambda: len(sent) == 116, "one more is sent")
    finally:
        signals.unclosed_cursor_detected.disconnect(receive)
    assert sent == [where] * 116
    assert conn_hygiene.stats().unclosed_cursors - before == 116
    records = [record for record in caplog.records if record.name == "conn_hygiene.cursors"]
    assert [record.getMessage() for record in records] == [
        f"A cursor on 'default' was never closed; it was opened at {where}.",
        f"115 more cursors on 'default' were never closed; they were opened at {where}.",
    ]
    facts = [(vars(record)["count"], vars(record)["thread_id"]) for record in records]
    assert facts == [(1, threading.get_ident()), (115, threading.get_ident())]


@pytest.mark.django_db(transaction=True)
def test_what_is_forgotten_is_said_without_what_is_not_known(
    settings: Any, caplog: pytest.LogCaptureFixture, repeats: Repeats[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONN_HYGIENE = {"REPORT_UNCLOSED_CURSORS": True}
    monkeypatch.setattr(repeats, "_most", 0)
    monkeypatch.setattr(repeats, "_said", {("default", "elsewhere"): (0, 7)})
    leave_open(1)
    wait_until(lambda: any(record.name == "conn_hygiene.cursors" for record in caplog.records), "it is said")
    [record, *_] = [record for record in caplog.records if record.name == "conn_hygiene.cursors"]
    assert record.getMessage() == "7 more cursors on 'default' were never closed; they were opened at elsewhere."
    assert (vars(record)["thread_id"], vars(record)["request"]) == (None, None)

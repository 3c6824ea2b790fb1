"""What Sentry is sent of the toolkit: issues of a place in the code, in nobody else's name, and waits on spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.processes import in_fresh_process

pytestmark = pytest.mark.slow

SETTINGS = {
    "CONN_HYGIENE": {"IDLE_IN_TRANSACTION_AFTER": 0.05, "HELD_TOO_LONG_AFTER": 0.05},
    # Sentry takes what is logged from the loggers themselves.
    "LOGGING": {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"nowhere": {"class": "logging.NullHandler"}},
        "root": {"handlers": ["nowhere"]},
    },
}


# Sentry imports eventlet, which warns of each fork after that: it is for a process of its own.
WATCHED = Path(__file__).with_name("watched_by_sentry.py")


def everything() -> Any:
    from tests import watched_by_sentry

    return watched_by_sentry.everything()


@pytest.fixture(scope="module")
def told() -> Any:
    """Return what Sentry was sent by each function that brings something about, in one process for all of them."""
    return in_fresh_process(everything, **SETTINGS)


def place(function: str, text: str) -> str:
    """Return the line with *text* of a function there, as reports name it."""
    lines = WATCHED.read_text("utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"def {function}("))
    number = next(number for number, line in enumerate(lines) if number >= first and text in line)
    return f"{WATCHED}:{number + 1} in {function}"


def without_line(place: str) -> str:
    file, _, rest = place.partition(":")
    return f"{file} in {rest.partition(' in ')[2]}"


def test_each_report_is_an_issue_of_one_place_and_in_nobody_elses_name(told: Any) -> None:
    places = {
        "idle in transaction": place("sit_idle", "with transaction.atomic()"),
        "held too long": place("query", "with connections[alias]"),
        "transaction left open": place("leave_open", "transaction.set_autocommit"),
    }
    loggers = ["conn_hygiene.transactions", "conn_hygiene.held", "conn_hygiene.transactions"]
    # On a slow machine, the same is reported again after a while; it is the same issue then.
    by_kind = {event["fingerprint"][1]: event for event in told["reports"]}
    assert list(by_kind) == list(places)
    for (kind, event), logger in zip(by_kind.items(), loggers, strict=True):
        where = places[kind]
        assert (event["level"], event["logger"]) == ("warning", logger)
        assert event["tags"] == {"alias": "default", "where": where}, kind
        assert event["fingerprint"] == ["conn_hygiene", kind, without_line(where)]
        assert event["contexts"]["connection"]["alias"] == "default"
        assert where in event["message"]
    # The toolkit's threads began in somebody's scope, and what they find need not be theirs.
    assert {kind: event.get("user") for kind, event in by_kind.items()} == {
        "idle in transaction": None,
        "held too long": None,
        "transaction left open": {"id": "7"},
    }


def test_the_wait_is_on_the_span_in_which_it_was_waited(told: Any) -> None:
    waited, outer, [inner] = told["waits"]
    first, *within, unpooled, later = waited
    assert len(within) == inner["db.pool.checkouts"] == 2
    assert inner["db.pool.wait"] == pytest.approx(sum(within))
    assert outer["db.pool.checkouts"] == 2
    assert outer["db.pool.wait"] == pytest.approx(first + unpooled)
    assert later > 0


def test_the_error_of_who_got_no_connection_has_the_wait_among_its_breadcrumbs(told: Any) -> None:
    [error] = told["exhausted"]
    assert error["exception"]["values"][-1]["type"] == "OperationalError"
    [crumb] = [each for each in error["breadcrumbs"]["values"] if each.get("category") == "conn_hygiene"]
    assert crumb["level"] == "warning"
    assert (crumb["data"]["alias"], crumb["data"]["request"]) == ("default", None)
    assert crumb["data"]["waited_for"] >= 0.01


def test_a_client_without_the_integration_gets_what_the_log_says_and_nothing_else(told: Any) -> None:
    [logged, *again], data = told["without"]
    assert {event["logger"] for event in again} <= {"conn_hygiene.transactions"}
    assert logged["logger"] == "conn_hygiene.transactions"
    assert "fingerprint" not in logged
    assert not [name for name in data if name.startswith("db.pool")]

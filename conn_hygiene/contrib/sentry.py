"""For Sentry: what should not be, as issues, and the waits for connections on spans (the extra ``sentry``).

.. code-block:: python

   sentry_sdk.init(..., integrations=[ConnHygieneIntegration()])
"""

from __future__ import annotations

import contextlib
import re
import threading
from typing import TYPE_CHECKING, Any

from conn_hygiene import events
from conn_hygiene.contrib.extras import extra
from conn_hygiene.events import place_told, who
from conn_hygiene.masking import printable

with extra("sentry", needs="sentry-sdk"):
    import sentry_sdk
    from sentry_sdk.integrations import Integration
    from sentry_sdk.scope import Scope, ScopeType, add_global_event_processor, use_isolation_scope, use_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sentry_sdk.types import Event, Hint

# Sentry keeps that much of a tag's value.
_TAG = 200


class ConnHygieneIntegration(Integration):
    """Sends a transaction that sits idle or was left open, and a connection that is held too long, as a warning.

    Each has the tags ``alias``, ``request`` and ``where``, and a fingerprint of what is the matter and where in the
    code that is: one place is one issue, whatever its line is after the next deployment. All else that is known of it
    is in its context ``connection``; the statement is as ``LOG_STATEMENTS`` says.

    One that the toolkit's own threads find has nothing of any request's scope but its label. What fails for want of a
    connection is an error of the request, which Sentry sends itself; a breadcrumb of it says for how long it waited.

    The span in which connections were waited for gets ``db.pool.wait``, in seconds, and ``db.pool.checkouts``.
    """

    identifier = "conn_hygiene"

    @staticmethod
    def setup_once() -> None:
        """Listen to what happens; Sentry calls this, once."""
        for kind, listener in _LISTENERS.items():
            events.listen(kind, listener)
        add_global_event_processor(_drop_double)


def _is_on() -> bool:
    return sentry_sdk.get_client().get_integration(ConnHygieneIntegration) is not None


# ##### Issues #####


def _idle_in_transaction(event: events.IdleInTransaction) -> None:
    _send(
        event, "idle in transaction", "conn_hygiene.transactions", event.where_began or event.where_now, event.message
    )


def _left_open(event: events.LeftOpen) -> None:
    text = f"{event.left_by} left a transaction open on {event.alias!r}; it is rolled back.{event.beginning}"
    _send(event, "transaction left open", "conn_hygiene.transactions", event.where_began, printable(text))


def _held_too_long(event: events.HeldTooLong) -> None:
    text = (
        f"The connection of {who(event)} on {event.alias!r} (server pid {event.server_pid}) has been held for "
        f"{event.held_for:.1f} s, idle for {event.idle_for:.1f} s."
        f"{place_told('It was checked out at', event.where_checked_out)}"
        f"{place_told('Its thread is at', event.where_now)}{event.keeping}"
    )
    _send(event, "held too long", "conn_hygiene.held", event.where_checked_out or event.where_now, text)


def _send(
    event: events.IdleInTransaction | events.LeftOpen | events.HeldTooLong,
    kind: str,
    logger: str,
    where: str | None,
    text: str,
) -> None:
    if not _is_on():
        return
    # Without the line, which the next deployment moves.
    place = re.sub(r":\d+ in ", " in ", where) if where else event.request or event.alias
    tags = {"alias": event.alias, "request": event.request, "where": where}
    facts = {name: dict(value) if name == "pins" else value for name, value in event.facts().items()}
    sent: Event = {
        "level": "warning",
        "logger": logger,
        "message": text,
        "fingerprint": ["conn_hygiene", kind, place],
        # What says most of a place comes last in it.
        "tags": {name: printable(value)[-_TAG:] for name, value in tags.items() if value},
        "contexts": {"connection": facts},
    }
    with _scope_of(event.thread_id):
        sentry_sdk.capture_event(sent)


@contextlib.contextmanager
def _scope_of(thread_id: int) -> Iterator[None]:
    """Keep the scope of the running thread if it is the one that is meant, and have an empty one else.

    Threads of the toolkit's begin in whichever request is there, and Sentry lets threads inherit its user and its URL.
    """
    if thread_id == threading.get_ident():
        yield
        return
    with use_isolation_scope(Scope(ty=ScopeType.ISOLATION)), use_scope(Scope(ty=ScopeType.CURRENT)):
        yield


def _drop_double(event: Event, hint: Hint) -> Event | None:
    """Drop what a LoggingIntegration with ``event_level=WARNING`` has made of the log's record of the same thing."""
    record = hint.get("log_record")
    is_double = record is not None and hasattr(record, _DOUBLES.get(record.name, "")) and _is_on()
    return None if is_double else event


# By logger, what the records that are meant have among their facts, and nothing else of these loggers. That of an
# exhausted pool comes with an exception, which is an issue already.
_DOUBLES = {"conn_hygiene.transactions": "action", "conn_hygiene.held": "action", "conn_hygiene.pools": "holders"}


# ##### Waits #####


def _pool_exhausted(event: events.PoolExhausted) -> None:
    if _is_on():
        text = f"No connection on {event.alias!r} after {event.waited_for:.3f} s: {event.error}"
        data = {
            "alias": event.alias,
            "waited_for": event.waited_for,
            "request": event.request,
            "holders": [holder.message for holder in event.holders],
        }
        sentry_sdk.add_breadcrumb(category="conn_hygiene", level="warning", message=text, data=data)


def _checked_out(event: events.CheckedOut) -> None:
    span = sentry_sdk.get_current_span()
    if span is None or event.waited_for is None or not _is_on():
        return
    data = span.to_json().get("data") or {}
    span.set_data("db.pool.wait", data.get("db.pool.wait", 0) + event.waited_for)
    span.set_data("db.pool.checkouts", data.get("db.pool.checkouts", 0) + 1)


_LISTENERS: dict[type[events.Event], Callable[[Any], None]] = {
    events.IdleInTransaction: _idle_in_transaction,
    events.LeftOpen: _left_open,
    events.HeldTooLong: _held_too_long,
    events.PoolExhausted: _pool_exhausted,
    events.CheckedOut: _checked_out,
}

"""What is said when something is wrong: one log record and one Django signal each, with the same facts."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import callsite, conf, signals
from conn_hygiene.leases.lease import Lease
from conn_hygiene.reports import notices
from conn_hygiene.reports.repeats import Repeats

if TYPE_CHECKING:
    from django.dispatch import Signal

    from conn_hygiene.callsite import Place
    from conn_hygiene.leases.description import Description, Reclaimed

_logger = logging.getLogger("conn_hygiene.signals")
_transactions = logging.getLogger("conn_hygiene.transactions")
_held = logging.getLogger("conn_hygiene.held")
_threads = logging.getLogger("conn_hygiene.threads")
_cursors = logging.getLogger("conn_hygiene.cursors")
_broken = logging.getLogger("conn_hygiene.broken")


def send(signal: Signal, **facts: Any) -> None:
    """Send *signal*, from the class of leases, so that a receiver's failure stays the receiver's."""
    for receiver, response in signal.send_robust(sender=Lease, **facts):
        if isinstance(response, Exception):
            _logger.error("A receiver of a conn_hygiene signal failed: %r", receiver, exc_info=response)


class IdleInTransaction:
    """A transaction that runs no statement, as it was found."""

    def __init__(self, lease: Lease, found: Description) -> None:
        self._facts = _transaction_facts(lease, found) | {"action": conf.current.IDLE_IN_TRANSACTION_ACTION}
        self.message = (
            f"The transaction of {_who(self._facts)} on {lease.alias!r} (server pid {lease.server_pid}) has been idle "
            f"for {found.idle_for:.1f} s.{_describe_transaction(self._facts)}"
        )
        self._found = found

    def send(self) -> None:
        """Report it, and that its session is ended if the settings say so."""
        facts = self._facts | {"statement": self._found.statement}
        is_ended = facts["action"] == "terminate"
        ended = " Its session is ended." if is_ended else ""
        _transactions.warning("%s%s%s", self.message, ended, _last(facts), extra=facts)
        if not is_ended:
            _leave_notice(facts)
        send(signals.idle_in_transaction_detected, **facts)


class LeftOpen:
    """A transaction that a request has left open, as it was found before it is rolled back."""

    def __init__(self, lease: Lease, found: Description) -> None:
        # Where its thread is now, in whatever ends a request, says nothing.
        self._facts = _transaction_facts(lease, found) | {"where_now": None, "action": "rollback"}
        self._found = found

    def send(self, who: str) -> None:
        """Report it as left by *who*, now over."""
        facts = self._facts | {"statement": self._found.statement}
        _transactions.warning(
            "%s left a transaction open on %r (server pid %d); it is rolled back.%s%s",
            who,
            facts["alias"],
            facts["server_pid"],
            _describe_transaction(facts),
            _last(facts),
            extra=facts,
        )
        send(signals.idle_in_transaction_detected, **facts)


def _transaction_facts(lease: Lease, found: Description) -> dict[str, Any]:
    begun = found.transaction
    return _facts(lease) | {
        "open_for": found.open_for,
        "idle_for": found.idle_for,
        "where_began": _text(begun.place) if begun else None,
        "where_now": _text(callsite.of_thread(lease.thread_id)),
        "by_atomic_requests": begun is not None and begun.by_atomic_requests,
    }


def _describe_transaction(facts: dict[str, Any]) -> str:
    begun = "ATOMIC_REQUESTS began it at" if facts["by_atomic_requests"] else "It began at"
    return f"{_where(begun, facts['where_began'])}{_where('Its thread is at', facts['where_now'])}"


class HeldTooLong:
    """A connection that nobody uses, as it was found."""

    def __init__(self, lease: Lease, found: Description) -> None:
        self._facts = _facts(lease) | {
            "held_for": found.held_for,
            "idle_for": found.idle_for,
            "where_checked_out": _text(lease.checked_out_by),
            "where_now": _text(callsite.of_thread(lease.thread_id)),
            "pinned_by": tuple(found.pins),
        }
        self._found = found

    def send(self, action: str) -> None:
        """Report it, and what is done about it: ``"release"``, if nothing and nobody keeps it, or ``"log"``."""
        found = self._found
        facts = self._facts | {"statement": found.statement, "action": action}
        pinned = ", ".join(f"{reason} at {where}" for reason, where in found.pins.items())
        _held.warning(
            "The connection of %s on %r (server pid %d) has been held for %.1f s, idle for %.1f s.%s%s%s%s%s",
            _who(facts),
            facts["alias"],
            facts["server_pid"],
            found.held_for,
            found.idle_for,
            _where("It was checked out at", facts["where_checked_out"]),
            _where("Its thread is at", facts["where_now"]),
            _where("It is pinned by", pinned),
            " It is given back." if action == "release" else "",
            _last(facts),
            extra=facts,
        )
        if action == "log":
            _leave_notice(facts)
        send(signals.connection_held_too_long, **facts)


def reclaimed(found: Reclaimed) -> None:
    """Report what was taken back from a thread that has ended."""
    _threads.log(
        logging.WARNING if found.in_transaction else logging.INFO,
        "Reclaimed connection %r (server pid %d) from thread %d, which ended with it checked out%s.",
        found.alias,
        found.server_pid,
        found.thread_id,
        "; its open transaction was rolled back" if found.in_transaction else "",
        extra=vars(found),
    )
    send(signals.connection_reclaimed, **vars(found))


def replaced(lease: Lease, server_pid: int, idle_for: float) -> None:
    """Report a connection that the server had closed, and that was replaced before its use failed."""
    facts = {
        "alias": lease.alias,
        "server_pid": server_pid,
        "thread_id": lease.thread_id,
        "request": lease.request,
        "idle_for": idle_for,
    }
    _broken.info(
        "The server had closed connection %r (server pid %d); it is replaced.", lease.alias, server_pid, extra=facts
    )
    send(signals.connection_replaced, **facts)


def unclosed_cursor(lease: Lease, opened: Place) -> None:
    """Report a cursor that was collected without having been closed: in the log seldom, if it comes again and again."""
    where = str(opened)
    facts = {"alias": lease.alias, "thread_id": lease.thread_id, "request": lease.request, "where_opened": where}
    here = (lease.alias, where)
    for there, number in unclosed_cursors.count(here, time.monotonic()):
        # Of another place, these facts are not known any more.
        whose = {} if there == here else {"thread_id": None, "request": None}
        _warn_of_unclosed(facts | whose | {"alias": there[0], "where_opened": there[1], "count": number})
    send(signals.unclosed_cursor_detected, **facts)


def _warn_of_unclosed(facts: dict[str, Any]) -> None:
    alias, where, count = facts["alias"], facts["where_opened"], facts["count"]
    if count == 1:
        _cursors.warning("A cursor on %r was never closed; it was opened at %s.", alias, where, extra=facts)
    else:
        message = "%d more cursors on %r were never closed; they were opened at %s."
        _cursors.warning(message, count, alias, where, extra=facts)


# By alias and place. A page that leaves a hundred open has one line to be mended.
unclosed_cursors: Repeats[tuple[str, str]] = Repeats()


def begin_anew() -> None:
    """Say everything again in a forked child, which nobody has told of it."""
    unclosed_cursors.begin_anew()


def _leave_notice(facts: dict[str, Any]) -> None:
    directory = conf.current.NOTICE_DIRECTORY
    if directory is not None:
        notices.post(directory, facts)


def _facts(lease: Lease) -> dict[str, Any]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        "alias": lease.alias,
        "server_pid": lease.server_pid,
        "thread_id": lease.thread_id,
        "thread_name": names.get(lease.thread_id),
        "request": lease.request,
    }


def _who(facts: dict[str, Any]) -> str:
    return str(facts["request"] or f"thread {facts['thread_name'] or facts['thread_id']}")


def _where(before: str, place: str | None) -> str:
    return f" {before} {place}." if place else ""


def _last(facts: dict[str, Any]) -> str:
    return f" Its last statement was: {_short(facts['statement'])}" if facts["statement"] else ""


def _short(statement: str, limit: int = 200) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def _text(place: Place | None) -> str | None:
    return None if place is None else str(place)

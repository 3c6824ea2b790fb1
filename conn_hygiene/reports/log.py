"""What is said when something is wrong: one log record and one Django signal each, with the same facts."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from conn_hygiene import callsite, conf, signals
from conn_hygiene.leases.lease import Lease
from conn_hygiene.reports import notices

if TYPE_CHECKING:
    from django.dispatch import Signal

    from conn_hygiene.callsite import Place
    from conn_hygiene.leases.lease import Description, Reclaimed

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


def idle_in_transaction(lease: Lease, found: Description) -> None:
    """Report a transaction that runs no statement, and end its session if the settings say so."""
    facts = _transaction_facts(lease, found) | {"action": conf.current.IDLE_IN_TRANSACTION_ACTION}
    message = (
        f"The transaction of {_who(facts)} on {lease.alias!r} (server pid {lease.server_pid}) has been idle for "
        f"{found.idle_for:.1f} s.{_describe_transaction(facts)}"
    )
    ended = ""
    if facts["action"] == "terminate":
        if not lease.terminate(found.connection, f"conn_hygiene ended this session. {message}"):
            # Its owner was faster, and is at work again.
            return
        ended = " Its session is ended."
    _transactions.warning("%s%s%s", message, ended, _last(facts), extra=facts)
    if not ended:
        _leave_notice(facts)
    send(signals.idle_in_transaction_detected, **facts)


def left_open(lease: Lease, found: Description, who: str) -> None:
    """Report a transaction that *who*, now over, has left open, and that is about to be rolled back."""
    # Where its thread is now, in whatever ends a request, says nothing.
    facts = _transaction_facts(lease, found) | {"where_now": None, "action": "rollback"}
    _transactions.warning(
        "%s left a transaction open on %r (server pid %d); it is rolled back.%s%s",
        who,
        lease.alias,
        lease.server_pid,
        _describe_transaction(facts),
        _last(facts),
        extra=facts,
    )
    send(signals.idle_in_transaction_detected, **facts)


def _transaction_facts(lease: Lease, found: Description) -> dict[str, Any]:
    begun = found.transaction
    return _facts(lease, found) | {
        "open_for": found.open_for,
        "idle_for": found.idle_for,
        "where_began": _text(begun.place) if begun else None,
        "where_now": _text(callsite.of_thread(lease.thread_id)),
        "by_atomic_requests": begun is not None and begun.by_atomic_requests,
    }


def _describe_transaction(facts: dict[str, Any]) -> str:
    begun = "ATOMIC_REQUESTS began it at" if facts["by_atomic_requests"] else "It began at"
    return f"{_where(begun, facts['where_began'])}{_where('Its thread is at', facts['where_now'])}"


def held_too_long(lease: Lease, found: Description) -> None:
    """Report a connection that nobody uses, and give it back if nothing and nobody keeps it."""
    facts = _facts(lease, found) | {
        "held_for": found.held_for,
        "idle_for": found.idle_for,
        "where_checked_out": _text(lease.checked_out_by),
        "where_now": _text(callsite.of_thread(lease.thread_id)),
        "pinned_by": tuple(found.pins),
        "action": "release" if lease.give_back_if_abandoned() else "log",
    }
    pinned = ", ".join(f"{reason} at {where}" for reason, where in found.pins.items())
    _held.warning(
        "The connection of %s on %r (server pid %d) has been held for %.1f s, idle for %.1f s.%s%s%s%s%s",
        _who(facts),
        lease.alias,
        facts["server_pid"],
        found.held_for,
        found.idle_for,
        _where("It was checked out at", facts["where_checked_out"]),
        _where("Its thread is at", facts["where_now"]),
        _where("It is pinned by", pinned),
        " It is given back." if facts["action"] == "release" else "",
        _last(facts),
        extra=facts,
    )
    if facts["action"] == "log":
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
    """Report a cursor that was collected without having been closed."""
    facts = {
        "alias": lease.alias,
        "thread_id": lease.thread_id,
        "request": lease.request,
        "where_opened": str(opened),
    }
    _cursors.warning("A cursor on %r was never closed; it was opened at %s.", lease.alias, opened, extra=facts)
    send(signals.unclosed_cursor_detected, **facts)


def _leave_notice(facts: dict[str, Any]) -> None:
    directory = conf.current.NOTICE_DIRECTORY
    if directory is not None:
        notices.post(directory, facts)


def _facts(lease: Lease, found: Description) -> dict[str, Any]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        "alias": lease.alias,
        "server_pid": lease.server_pid,
        "thread_id": lease.thread_id,
        "thread_name": names.get(lease.thread_id),
        "request": lease.request,
        "statement": found.statement,
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

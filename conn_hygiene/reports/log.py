"""What the log says of events: one record each, with the event's facts as attributes."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import events
from conn_hygiene.events import place_told, shortened, who
from conn_hygiene.masking import harmless, told
from conn_hygiene.reports.repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable

    from conn_hygiene.callsite import Stack

_lease = logging.getLogger("conn_hygiene.lease")
_transactions = logging.getLogger("conn_hygiene.transactions")
_held = logging.getLogger("conn_hygiene.held")
_threads = logging.getLogger("conn_hygiene.threads")
_cursors = logging.getLogger("conn_hygiene.cursors")
_broken = logging.getLogger("conn_hygiene.broken")
_sessions = logging.getLogger("conn_hygiene.sessions")
_pools = logging.getLogger("conn_hygiene.pools")
_forks = logging.getLogger("conn_hygiene.forks")


def _say(
    logger: logging.Logger,
    level: int,
    message: str,
    *arguments: object,
    extra: dict[str, Any],
    stack: Stack | None = None,
) -> None:
    """Make a record. Texts in its message are fit for a terminal; the facts in *extra* are as the event has them.

    A *stack* is the record's ``stack_info``, which formatters write below the message.
    """
    if not logger.isEnabledFor(level):
        return
    # As if the one who asks had made it.
    if stack is None:
        logger.log(level, message, *map(told, arguments), extra=extra, stacklevel=2)
        return
    # logger.log() takes no stack but that of who calls it, and Python 3.10's findCaller() counts what only that has.
    caller = sys._getframe(1)
    file, line, function = caller.f_code.co_filename, caller.f_lineno, caller.f_code.co_name
    told_arguments = tuple(map(told, arguments))
    logger.handle(
        logger.makeRecord(
            logger.name, level, file, line, message, told_arguments, None, function, extra, _stack_info(stack)
        )
    )


def _stack_info(stack: Stack) -> str:
    # As logging writes that of its caller. A file's name may be anything.
    lines = (harmless(line) for line in str(stack).rstrip().split("\n"))
    return "\n".join(("Stack (most recent call last):", *lines))


def _pool_exhausted(event: events.PoolExhausted) -> None:
    """Tell of a pool seldom, if it goes on: each exception has its own note of who holds what."""
    here = (event.alias, event.error)
    for there, number in exhausted_pools.count(here, time.monotonic()):
        if there == here:
            _warn_of_exhausted(event, number)


def _warn_of_exhausted(event: events.PoolExhausted, count: int) -> None:
    lines = event.lines
    if count > 1:
        lines.append(f"{count - 1} more checkouts have failed like this since the last report.")
    # A record is a line, however long.
    _say(_pools, logging.WARNING, "%s", " ".join(lines), extra=event.with_plain_holders() | {"count": count})


# By alias and exception. Where there are more of them than Repeats keeps in mind, what is forgotten is not said.
exhausted_pools: Repeats[tuple[str, str]] = Repeats()


def _pinned(event: events.Pinned) -> None:
    _say(
        _lease,
        logging.INFO,
        "Connection %r (server pid %d) is pinned to its thread by %s at %s.",
        event.alias,
        event.server_pid,
        event.pinned_by,
        event.where,
        extra={
            "alias": event.alias,
            "server_pid": event.server_pid,
            "pinned_by": event.pinned_by,
            "where": event.where,
        },
    )


def _left_alone(event: events.LeftAlone) -> None:
    _say(
        _lease,
        logging.WARNING,
        "Connections of %r (%s) are left alone, and none is given back: %s.",
        event.alias,
        event.engine,
        event.reason,
        extra=event.facts(),
    )


def _idle_in_transaction(event: events.IdleInTransaction) -> None:
    ended = " Its session is ended." if event.action == "terminate" else ""
    _say(
        _transactions,
        logging.WARNING,
        "%s%s%s",
        event.message,
        ended,
        _last(event),
        extra=event.facts(),
        stack=event.stack_began or event.stack_now,
    )


def _left_open(event: events.LeftOpen) -> None:
    _say(
        _transactions,
        logging.WARNING,
        "%s left a transaction open on %r (server pid %d); it is rolled back.%s%s",
        event.left_by,
        event.alias,
        event.server_pid,
        event.beginning,
        _last(event),
        extra=event.as_idle_in_transaction(),
        stack=event.stack_began,
    )


def _held_too_long(event: events.HeldTooLong) -> None:
    _say(
        _held,
        logging.WARNING,
        "The connection of %s on %r (server pid %d) has been held for %.1f s, idle for %.1f s.%s%s%s%s%s",
        who(event),
        event.alias,
        event.server_pid,
        event.held_for,
        event.idle_for,
        place_told("It was checked out at", event.where_checked_out),
        place_told("Its thread is at", event.where_now),
        event.keeping,
        " It is given back." if event.action == "release" else "",
        _last(event),
        extra=event.with_reasons(),
        stack=event.stack_checked_out or event.stack_now,
    )


def _came_back(event: events.CameBack) -> None:
    _say(
        _held,
        logging.INFO,
        "Connection %r (server pid %d), which was reported as %s, %s after %.1f s.",
        event.alias,
        event.server_pid,
        " and as ".join(event.reported_as),
        "was ended" if event.ended else "is back",
        event.held_for,
        extra=event.facts(),
    )


def _reclaimed(event: events.Reclaimed) -> None:
    _say(
        _threads,
        logging.WARNING if event.in_transaction else logging.INFO,
        "%s",
        event.message,
        extra=event.facts(),
        stack=event.stack_began or event.stack_checked_out,
    )


def _replaced(event: events.Replaced) -> None:
    words = "Connection %r (server pid %d) could not write any more, and new ones can; it is replaced."
    _say(
        _broken,
        logging.INFO,
        words if event.could_not_write else "The server had closed connection %r (server pid %d); it is replaced.",
        event.alias,
        event.server_pid,
        extra=event.facts(),
    )


def _unclosed_cursor(event: events.UnclosedCursor) -> None:
    """Tell of it seldom, if it comes again and again."""
    here = (event.alias, event.where_opened)
    for there, number in unclosed_cursors.count(here, time.monotonic()):
        # Of another place, these facts are not known any more.
        whose = {} if there == here else {"thread_id": None, "request": None, "stack_opened": None}
        _warn_of_unclosed(event.facts() | whose | {"alias": there[0], "where_opened": there[1], "count": number})


def _warn_of_unclosed(facts: dict[str, Any]) -> None:
    alias, where, count = facts["alias"], facts["where_opened"], facts["count"]
    if count == 1:
        _say(
            _cursors,
            logging.WARNING,
            "A cursor on %r was never closed; it was opened at %s.",
            alias,
            where,
            extra=facts,
            stack=facts["stack_opened"],
        )
    else:
        message = "%d more cursors on %r were never closed; they were opened at %s."
        _say(_cursors, logging.WARNING, message, count, alias, where, extra=facts)


# By alias and place. A page that leaves a hundred open has one line to be mended.
unclosed_cursors: Repeats[tuple[str, str]] = Repeats()


def reset() -> None:
    """Forget what was said, as in a forked child, which nobody has told of it."""
    unclosed_cursors.reset()
    exhausted_pools.reset()


def _unseen_state(event: events.UnseenState) -> None:
    _say(_sessions, logging.WARNING, "%s", event.message, extra=event.facts())


def _transaction_retried(event: events.TransactionRetried) -> None:
    _say(
        _transactions,
        logging.INFO,
        "The transaction of %s on %r failed in attempt %d with SQLSTATE %s; the next attempt is in %.3f s.",
        event.function,
        event.alias,
        event.attempt,
        event.sqlstate,
        event.delay,
        extra=event.facts(),
    )


def _connections_discarded(event: events.ConnectionsDiscarded) -> None:
    _say(
        _forks,
        logging.INFO,
        "Discarded %d inherited connections of %s after a fork.",
        event.count,
        ", ".join(event.aliases),
        extra={"count": event.count, "aliases": event.aliases},
    )
    if event.left_open:
        count, names = sum(event.left_open.values()), sorted(event.left_open)
        _say(
            _forks,
            logging.INFO,
            "%d of them, of %s, cannot be closed here without harm; they stay open, unused, until this process ends.",
            count,
            ", ".join(names),
            extra={"count": count, "aliases": names},
        )


def _last(event: events.IdleInTransaction | events.LeftOpen | events.HeldTooLong) -> str:
    return f" Its last statement was: {shortened(event.statement)}" if event.statement else ""


_LISTENERS: dict[type[events.Event], Callable[[Any], None]] = {
    events.PoolExhausted: _pool_exhausted,
    events.Pinned: _pinned,
    events.LeftAlone: _left_alone,
    events.IdleInTransaction: _idle_in_transaction,
    events.LeftOpen: _left_open,
    events.HeldTooLong: _held_too_long,
    events.CameBack: _came_back,
    events.Reclaimed: _reclaimed,
    events.Replaced: _replaced,
    events.UnclosedCursor: _unclosed_cursor,
    events.UnseenState: _unseen_state,
    events.TransactionRetried: _transaction_retried,
    events.ConnectionsDiscarded: _connections_discarded,
}


def listen() -> None:
    """Have the log told of events from now on."""
    for kind, listener in _LISTENERS.items():
        events.listen(kind, listener)

"""What code leaves behind: connections of dead threads, open transactions and cursors, state in a session.

Made for tests. What is open when the watch begins is the business of whoever opened it; so is what a request leaves in
its session, since a server closes the connection where Django's test client does not.

Who may touch what: ``_told`` is a list that listeners append to, in whichever thread; ``_excused`` is written by the
thread that watches and, at the end of a request, by the one that served it, each time replaced as a whole.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.core.signals import request_finished
from django.db import connections

from conn_hygiene import conf, events
from conn_hygiene.leases.description import describe
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.masking import printable
from conn_hygiene.reaper import reaper
from conn_hygiene.work import thread_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conn_hygiene.callsite import Place
    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease

#: Seconds for which threads that are at work yet may finish, and reports that are due are waited for.
SETTLE_TIMEOUT = 1.0


class _Thing(NamedTuple):
    """Something that is open, or set: what tells it from others, and how a person would call it."""

    key: tuple[Any, ...]
    text: str
    #: Whether it is in a connection of the thread that looks.
    own: bool


class Leftovers:
    """A watch over what is left behind from its :meth:`begin` on, by any thread of the process."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._excused: frozenset[tuple[Any, ...]] = frozenset()

    def begin(self) -> None:
        """Begin to watch. Not twice without an :meth:`end`."""
        for kind, listener in self._listeners():
            events.listen(kind, listener)
        # The label of a request must be read before the toolkit's own receiver forgets it; state is what counts here.
        request_finished.connect(self._excuse_request, weak=False, dispatch_uid=id(self))
        conf.name_cursors(wanted=True)
        self.excuse()

    def end(self) -> None:
        """Watch no longer."""
        conf.name_cursors(wanted=False)
        request_finished.disconnect(dispatch_uid=id(self))
        for kind, listener in self._listeners():
            events.unlisten(kind, listener)

    def excuse(self) -> None:
        """Take what is open and set now for somebody else's."""
        self._excused = frozenset(thing.key for thing in _things())

    def _excuse_request(self, **_: Any) -> None:
        self._excused |= {thing.key for thing in _things() if thing.own and thing.key[2] in ("pin", "set")}

    def found(self) -> list[str]:
        """Return what was left behind since the last call, a sentence each. Waits for threads at work, within reason.

        It asks the server whether what this thread has set is still set.
        """
        self._flush()
        until = time.monotonic() + SETTLE_TIMEOUT
        while (left := self._open()) and any(not thing.own for thing in left) and time.monotonic() < until:
            time.sleep(0.01)
        self._excused |= {thing.key for thing in left}
        return [*self._take_told(), *(thing.text for thing in left)]

    def found_told(self) -> list[str]:
        """Return what was told since the last call; what is open or set is not looked at."""
        self._flush()
        return self._take_told()

    def _take_told(self) -> list[str]:
        told = list(self._told)
        del self._told[: len(told)]
        return told

    @staticmethod
    def _flush() -> None:
        if reaper.running is not None:
            reaper.running.flush(SETTLE_TIMEOUT)

    def _open(self) -> list[_Thing]:
        return [thing for thing in _things() if thing.key not in self._excused and _is_still_set(thing)]

    # ##### What is told #####

    def _listeners(self) -> Iterator[tuple[type[Any], Any]]:
        yield events.Reclaimed, self._reclaimed
        yield events.LeftOpen, self._left_open
        yield events.UnclosedCursor, self._unclosed
        yield events.UnseenState, self._unseen

    def _reclaimed(self, event: events.Reclaimed) -> None:
        thread = printable(str(event.thread_name or event.thread_id))
        in_transaction = ", in a transaction, which was rolled back" if event.in_transaction else ""
        self._told.append(
            f"Thread {thread} ended with a connection of {event.alias!r} checked out "
            f"(server pid {event.server_pid}){in_transaction}."
            f"{events.place_told('The thread ran', event.thread_runs)}"
            f"{events.place_told('It was checked out at', event.where_checked_out)}"
            " Close it there, with closing_connections() for one."
        )

    def _left_open(self, event: events.LeftOpen) -> None:
        self._told.append(
            printable(f"{event.left_by} left a transaction open on {event.alias!r}.{event.beginning} Rolled back.")
        )

    def _unclosed(self, event: events.UnclosedCursor) -> None:
        self._told.append(printable(f"A cursor on {event.alias!r} was never closed. Opened at {event.where_opened}."))

    def _unseen(self, event: events.UnseenState) -> None:
        self._told.append(event.message)


# ##### What is there #####


def _things() -> list[_Thing]:
    return [thing for lease in _leases() for thing in _things_of(lease)]


def _leases() -> list[Lease]:
    """Return all leases that hold a connection, and those of this thread that have given theirs back."""
    if reaper.running is None:
        return []
    own = [lease_of(wrapper) for wrapper in connections.all(initialized_only=True)]
    return list(dict.fromkeys([*reaper.running.leases(), *(lease for lease in own if lease is not None)]))


def _things_of(lease: Lease) -> list[_Thing]:
    found = describe(lease, time.monotonic())
    own = lease.thread_id == threading.get_ident()
    if found is None:
        which = _of(lease, None)
        return [_set(lease, name, which, own) for name in _carried(lease)]
    which = _of(lease, found)
    things = [
        _Thing((lease, lease.checkouts, "cursor", cursor), f"A cursor{which} is open yet{_at('opened', place)}.", own)
        for cursor, place in list(lease.open_cursors.items())
        # But for what stands for one while it is made, or while the lease is settled.
        if cursor is not lease and cursor is not lease.wrapper()
    ]
    for depth in range(_depth(lease, found)):
        # That of a TestCase outlives checkouts, if the connection breaks.
        text = (
            f"A transaction{which} is open yet{_at('begun', found.transaction.place if found.transaction else None)}."
        )
        things.append(_Thing((lease, 0, "transaction", depth), text, own))
    things.extend(
        _Thing((lease, lease.checkouts, "pin", reason), f"State is left{which}: {reason}, at {where}.", own)
        for reason, where in found.pins.items()
    )
    return [*things, *(_set(lease, name, which, own) for name in sorted(lease.session_state.follows))]


def _carried(lease: Lease) -> list[str]:
    """Return what is to be set again at the next checkout, but for what is set to its default."""
    carried = lease.carried
    try:
        values = {} if carried is None else carried.result(SETTLE_TIMEOUT)
    except psycopg.OperationalError:
        # It is lost, as the owner's next query will say.
        return []
    return sorted(name for name, value in values.items() if value)


def _depth(lease: Lease, found: Description) -> int:
    """Return how many blocks of ``atomic()`` are open; 1 for a transaction without any."""
    wrapper = lease.wrapper()
    if wrapper is None or not wrapper.in_atomic_block:
        return int(found.in_transaction)
    return 1 + len(wrapper.savepoint_ids)


def _set(lease: Lease, name: str, which: str, own: bool) -> _Thing:
    text = f"{name} is left set{which}. RESET it, or set it by session_settings()."
    return _Thing((lease, lease.checkouts, "set", name), printable(text), own)


def _of(lease: Lease, found: Description | None) -> str:
    name = thread_names().get(lease.thread_id, f"{lease.thread_id}, which has ended")
    statement = found.statement if found is not None else None
    last = f" (last statement: {statement})" if statement else ""
    return " " + printable(f"on {lease.alias!r} of {lease.request or f'thread {name}'}{last}")


def _at(verb: str, place: Place | None) -> str:
    return "" if place is None else f", {verb} at {place}"


def _is_still_set(thing: _Thing) -> bool:
    """Ask the server whether a setting has a value other than its default; a transaction will take it back in any case.

    What is in another thread's session is believed.
    """
    lease, _, kind, name = thing.key
    wrapper = lease.wrapper()
    if kind != "set" or not thing.own or wrapper is None:
        return True
    if wrapper.in_atomic_block or lease.in_transaction():
        return False
    with wrapper.cursor() as cursor:
        cursor.execute(_IS_SET, {"name": name})
        return bool(cursor.fetchone()[0])


# What pg_settings does not list is a name of one's own, a role, or a session's user.
_IS_SET = """
SELECT coalesce(
    (SELECT setting IS DISTINCT FROM reset_val FROM pg_catalog.pg_settings WHERE lower(name) = lower(%(name)s)),
    CASE %(name)s
        WHEN 'role' THEN current_setting('role') <> 'none'
        WHEN 'session_authorization' THEN false
        ELSE current_setting(%(name)s, true) <> ''
    END,
    false)
"""

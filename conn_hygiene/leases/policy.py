"""Whether the code that runs now wants idle connections given back.

The scopes around it are listed in a ContextVar: they follow a request from the event loop into the threads of
``sync_to_async``, and two requests in one thread do not see each other's. Their order does not matter: a hold wins over
every release, outside or inside of it, since its code relies on the session. So it does over one beside it, of a task
whose queries share its thread, and by that its connections.
"""

from __future__ import annotations

from contextvars import ContextVar

from conn_hygiene import conf
from conn_hygiene.leases.blocks import Blocks


class Entry:
    """One entering of a scope, which releases or holds the connections of some aliases, or of all."""

    __slots__ = ("__weakref__", "holds", "of_request", "over", "scope", "using")

    def __init__(self, scope: object, *, holds: bool, using: frozenset[str] | None, of_request: bool = False) -> None:
        self.scope = scope
        # A middleware's, which is the same one for all of a request, in whatever thread, and its streaming body.
        self.of_request = of_request
        self.holds = holds
        self.using = using
        # Tasks that were started inside have the list as it was, and go on with it when the scope has been left. What
        # they release is welcome, but a hold must end for them too.
        self.over = False


entered: ContextVar[tuple[Entry, ...]] = ContextVar("conn_hygiene_entered", default=())

#: The entries of ``hold_connection``, whosever they are.
holding: Blocks[Entry] = Blocks()


def request_of(entries: tuple[Entry, ...]) -> Entry | None:
    """Return the one of *entries* that stands for a request, the outermost; None without our middleware."""
    for entry in entries:
        if entry.of_request:
            return entry
    return None


def _answer(alias: str) -> bool | None:
    """Return True to release, False to hold, None when no scope around speaks of *alias*."""
    result = None
    for entry in entered.get():
        if entry.using is None or alias in entry.using:
            if not entry.holds:
                result = True
            elif not entry.over:
                return False
    return result


# What the scopes around want.
KEEP, RELEASE, HOLD = range(3)


def wish(alias: str) -> int:
    """Return what the settings and the scopes around want of an idle connection of *alias*."""
    mode = conf.current.RELEASE
    answer = _answer(alias)
    if answer is False or (holding.begun and _is_held_beside(alias)):
        return HOLD
    if mode == "never":
        return KEEP
    return RELEASE if answer or mode == "always" else KEEP


def releases(alias: str) -> bool:
    """Return whether an idle connection of *alias* should be given back, by the settings and the scopes around."""
    return wish(alias) == RELEASE


def holds(alias: str) -> bool:
    """Return whether a ``hold_connection`` covers *alias*, around this code or beside it in the running thread."""
    return is_inside_hold(alias) or _is_held_beside(alias)


def is_inside_hold(alias: str) -> bool:
    """Return whether a ``hold_connection`` is around this code that covers *alias*."""
    return _answer(alias) is False


def _is_held_beside(alias: str) -> bool:
    return any(entry.using is None or alias in entry.using for entry in holding.active())

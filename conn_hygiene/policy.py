"""Whether the code that runs now wants idle connections given back.

A scope is a frame on a stack, and the stack lives in a ContextVar: it follows a request from the event loop into the
threads of ``sync_to_async``, and two requests in one thread do not see each other's.
"""

from __future__ import annotations

from contextvars import ContextVar

from conn_hygiene import conf


class Frame:
    """One scope, entered once: it releases or holds the connections of some aliases, or of all.

    Immutable but for the memo of its answers, which any thread may fill: each would write the same.
    """

    __slots__ = ("_memo", "holds", "parent", "using")

    def __init__(self, parent: Frame | None, *, holds: bool, using: frozenset[str] | None) -> None:
        self.parent = parent
        self.holds = holds
        self.using = using
        self._memo: dict[str, bool | None] = {}

    def answer(self, alias: str) -> bool | None:
        """Return True to release, False to hold, None when no frame speaks of *alias*."""
        try:
            return self._memo[alias]
        except KeyError:
            result = self._memo[alias] = self._look_up(alias)
            return result

    def _look_up(self, alias: str) -> bool | None:
        """Ask the frames outside first: a hold wins over scopes inside it, since its code relies on the session."""
        inherited = None if self.parent is None else self.parent.answer(alias)
        if inherited is False or not (self.using is None or alias in self.using):
            return inherited
        return not self.holds


frame: ContextVar[Frame | None] = ContextVar("conn_hygiene_frame", default=None)


def releases(alias: str) -> bool:
    """Return whether an idle connection of *alias* should be given back, by the settings and the scopes around."""
    mode = conf.current.RELEASE
    if mode == "never":
        return False
    top = frame.get()
    answer = None if top is None else top.answer(alias)
    return mode == "always" if answer is None else answer


def holds(alias: str) -> bool:
    """Return whether a ``hold_connection`` is around that covers *alias*."""
    top = frame.get()
    return top is not None and top.answer(alias) is False

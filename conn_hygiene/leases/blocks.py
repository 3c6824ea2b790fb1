"""Which blocks have begun with the connections of the running thread, in whatever context, and are not over."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Generic, Protocol, TypeVar


class Block(Protocol):
    """One entering of a scope, which some thread ends."""

    #: Written once, by whichever thread that is.
    over: bool


B = TypeVar("B", bound=Block)


class Blocks(threading.local, Generic[B]):
    """The blocks of one kind that have begun with the connections of the running thread.

    Each thread has its own list, which it alone reads and writes, and so without a lock. Coroutines whose queries share
    a thread have blocks in it that overlap, as do generators that take turns. A block whose end is not told, since it
    was left in another context, is there for as long as the contexts are that have entered it.
    """

    #: Those that have begun, be they over by now. Nearly always there are none.
    begun: tuple[weakref.ref[B], ...] = ()

    # A forked process has the parent's blocks, and none of its tasks.
    _pid = 0

    def begin(self, block: B) -> None:
        """Take note that *block* begins, in the thread of its connections."""
        self.begun = (*map(weakref.ref, self.active()), weakref.ref(block))
        self._pid = os.getpid()

    def active(self) -> list[B]:
        """Return those that are not over."""
        if self._pid != os.getpid():
            return []
        found = (reference() for reference in self.begun)
        return [block for block in found if block is not None and not block.over]

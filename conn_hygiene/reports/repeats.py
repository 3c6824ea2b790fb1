"""How often the same thing is said."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

#: Seconds in which the same is said once at most.
INTERVAL = 60.0

#: How many different things are kept in mind. They are lines of code, of which no project has that many.
MOST = 1000


class Repeats(Generic[S]):
    """What comes again and again is said at once, then every so often, each time with how many came since.

    Python's own warnings, once for each line, would not say that it goes on, nor how much of it there is. Here nothing
    is lost: whatever has not been said yet is when the next of its kind comes, however long that takes.

    Any thread may call it. The lock is a leaf, and held while nobody is called.
    """

    def __init__(self, interval: float = INTERVAL, most: int = MOST) -> None:
        self._interval = interval
        self._most = most
        self.reset()

    def reset(self) -> None:
        """Forget all, as in a forked child: its parent will say it. Another thread may have held the lock there."""
        self._lock = threading.RLock()
        # When it was last said, the longest ago first, and what came since.
        self._said: dict[S, tuple[float, int]] = {}

    def count(self, subject: S, now: float) -> list[tuple[S, int]]:
        """Count one more of *subject*, and return what is to be said *now*, on the monotonic clock: of what, how many.

        That is nothing, or *subject*; where there are more subjects than can be kept in mind, also another one that is
        forgotten with something left to say.
        """
        with self._lock:
            last, since = self._said.get(subject, (None, 0))
            if last is not None and now < last + self._interval:
                self._said[subject] = (last, since + 1)
                return []
            self._said.pop(subject, None)
            self._said[subject] = (now, 0)
            return [*self._forgotten(), (subject, since + 1)]

    def _forgotten(self) -> list[tuple[S, int]]:
        if len(self._said) <= self._most:
            return []
        subject = next(iter(self._said))
        _, since = self._said.pop(subject)
        return [(subject, since)] if since else []

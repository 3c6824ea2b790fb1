"""What those have been like who waited for a pool's connections: whether they wanted little, or computed all the time.

By that it is decided whom to serve first, and how soon to look for who has stopped. Both cost switches of threads, and
a site whose pages keep the processor busy would have nothing for them: there, a pool does best what plain Django does.
"""

from __future__ import annotations

#: Seconds within which whoever comes anew is done with a connection if it wants little, however busy the processor is.
SHORT = 0.025

#: The share of those below which nobody is served ahead of others: nearly all want much, and would soon wait again.
FEW = 0.15

#: Seconds by which a look at who holds a connection that others wait for is late, at most.
LATEST = 0.05

#: Seconds below which looks are not worth to be put together.
_SOON = 0.01

# The share of each observation in the average.
_WEIGHT = 1 / 32


class Experience:
    """A moving average, and how patient to be. Written by any thread without a lock: a race loses one observation."""

    __slots__ = ("_looked_in_vain_at", "_patience", "_short")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._short = 1.0
        self._patience = 0.0
        self._looked_in_vain_at = 0.0

    def was_held(self, seconds: float) -> None:
        """Take note that somebody who came anew had a connection for so long."""
        self._short += ((seconds < SHORT) - self._short) * _WEIGHT

    def came_back(self) -> None:
        """Take note that somebody is back at once, whom :meth:`was_held` took for one who wants little."""
        self._short = max(0.0, self._short - _WEIGHT)

    @property
    def has_short_ones(self) -> bool:
        """Whether enough of those who come anew want little, and should not wait for those who want much."""
        return self._short >= FEW

    def ended_one(self) -> None:
        """Take note that the reaper has ended the lease of somebody who had stopped, while others waited."""
        self._patience /= 2

    def looked_in_vain(self, now: float, grace: float) -> None:
        """Take note that the reaper, who has come *now*, has found that somebody else goes on.

        *grace* is for how many seconds a connection may sit idle. Counted once, however many it finds.
        """
        if now != self._looked_in_vain_at:
            self._looked_in_vain_at = now
            self._patience = min(max(1.25 * self._patience, grace), LATEST)

    def look_at(self, due: float) -> float:
        """Return when to look at what may end at *due*: that, or one of few later moments if that was in vain lately.

        So one look serves many, and each costs whoever computes the interpreter's lock.
        """
        step = self._patience
        return due if step < _SOON else (due // step + 1) * step

"""Statistics on how requests of each kind use a pool's connections: briefly or for long, and where they pause.

By them :mod:`.queues` serves those first that are expected to be brief, and the reaper chooses when to look for idle
connections. Both cost thread switches, which do not pay on a site whose pages keep the processor busy; there the
statistics make the pool behave as it does in plain Django.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds for which a connection is held at most by a request that counts as short, however busy the processor is.
SHORT = 0.025

#: A request of an unknown kind is expected to be short if at least this share of all requests was. Where nearly all are
#: long, so will this one be, and would soon wait again.
MIN_SHORT_OF_ALL = 0.15

#: A request of a known kind is expected to be short if at least this share of its kind was.
MIN_SHORT_OF_KIND = 0.5

#: How many kinds are known at a time.
MOST = 500

#: Seconds by which a look at who holds a connection that others wait for is late, at most.
MAX_LATENESS = 0.05

# Seconds that looks have to be apart at least for it to pay that several are put together.
_MIN_STEP = 0.01

# The share of each observation in the average of all, and in that of a kind.
_WEIGHT = 1 / 32
_WEIGHT_OF_KIND = 1 / 4

#: How many characters of a request's label count.
LONGEST = 200

# What tells one object from another in a path, or one task from another: numbers, and whatever looks like a UUID.
_WHICH = re.compile(r"[0-9a-fA-F-]{12,}|\d+")

_NONE: Mapping[int, int] = MappingProxyType({})


def kind_of_request(label: str) -> str:
    """Return what requests have in common that do the same: their label, without the numbers of its path."""
    # Paths come from strangers, and may be long.
    return _without_numbers(label[:LONGEST])


@lru_cache(MOST)
def _without_numbers(label: str) -> str:
    return _WHICH.sub("0", label)


def _make_room(known: dict[Any, Any], kind: object) -> None:
    """See to it that there is room for *kind* among those that are *known*: who was first is forgotten."""
    if kind not in known and len(known) >= MOST:
        # Another thread may be at the same.
        with contextlib.suppress(RuntimeError, StopIteration):
            known.pop(next(iter(known)), None)


def kind(request: str | None, thread_id: int) -> object:
    """Return what those have in common that want as much as each other: the kind of their request, or the thread.

    :param request: the label of the request or task, None outside of any.
    """
    return thread_id if request is None else kind_of_request(request)


class Experience:
    """What one pool's requests have been like of late, as moving averages, and how far apart the reaper's looks are.

    Any thread writes it, under no lock: a race loses one observation.
    """

    __slots__ = ("_delay", "_kinds", "_looked_in_vain_at", "_pauses", "_short")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all that was seen."""
        # The share of short ones: of all requests, and of each kind.
        self._short = 1.0
        self._kinds: dict[object, float] = {}
        # Of each kind of request, behind which queries it pauses, and how often it did.
        self._pauses: dict[str, Mapping[int, int]] = {}
        # Seconds from one look of the reaper's at who holds connections to the next, while others wait.
        self._delay = 0.0
        self._looked_in_vain_at = 0.0

    def note_held(self, seconds: float, kind: object) -> None:
        """Take note for how many *seconds* a new request of that *kind* held a connection."""
        is_short = seconds < SHORT
        self._short += (is_short - self._short) * _WEIGHT
        before = self._kinds.get(kind)
        _make_room(self._kinds, kind)
        self._kinds[kind] = is_short if before is None else before + (is_short - before) * _WEIGHT_OF_KIND

    def came_back(self, kind: object) -> None:
        """Take note that what :meth:`note_held` was told of goes on in a burst, and so was not short after all."""
        self._short = max(0.0, self._short - _WEIGHT)
        known = self._kinds.get(kind)
        if known is not None:
            self._kinds[kind] = max(0.0, known - _WEIGHT_OF_KIND)

    def wants_little(self, kind: object) -> bool:
        """Return whether a new request of that *kind* is expected to be short, and so served ahead of bursts."""
        known = self._kinds.get(kind)
        return self._short >= MIN_SHORT_OF_ALL if known is None else known >= MIN_SHORT_OF_KIND

    def pauses_of(self, kind: str) -> Mapping[int, int]:
        """Return behind which queries requests of that *kind* pause; see :mod:`conn_hygiene.leases.pauses`."""
        return self._pauses.get(kind, _NONE)

    def learn_pauses(self, kind: str, pauses: Mapping[int, int]) -> None:
        """Take note of the *pauses* of requests of that *kind*."""
        _make_room(self._pauses, kind)
        self._pauses[kind] = pauses

    def ended_one(self) -> None:
        """Take note that a look of the reaper has ended a lease, while somebody waited."""
        self._delay /= 2

    def looked_in_vain(self, now: float, grace: float) -> None:
        """Take note that a look of the reaper, *now*, has ended nothing, while somebody waited.

        A look at several leases counts once. *grace* is for how many seconds a connection may sit idle.
        """
        if now != self._looked_in_vain_at:
            self._looked_in_vain_at = now
            self._delay = min(max(1.25 * self._delay, grace), MAX_LATENESS)

    def look_at(self, due: float) -> float:
        """Return when to look at what may end at *due*: that, or one of few later moments if that was in vain lately.

        So one look serves many, and each costs whoever computes the interpreter's lock.
        """
        step = self._delay
        return due if step < _MIN_STEP else (due // step + 1) * step

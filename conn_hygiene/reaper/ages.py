"""Sessions without a pool that are past their ``CONN_MAX_AGE``, while their threads have nothing to do.

Django closes them when a request ends or the next one begins, and nobody does where no next one comes: the sessions of
a burst stay open for as long as their threads live.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from conn_hygiene import conf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease

# Seconds after which one that is past its age, whose thread was not at rest, is looked at again.
_AGAIN = 0.25


def see_to(lease: Lease, found: Description, now: float) -> None:
    """Close what *found* says of *lease* if it is past its age, for no request, and its thread has nothing to do.

    A thread that has served a request is between two of them, which is where Django closes. In any other thread, no
    setting of Django's speaks of its session, so it is idle for ``HELD_TOO_LONG_AFTER`` as well. Called by the timer.
    """
    close_at = lease.close_at()
    if close_at is None or now < close_at or conf.current.RELEASE == "never":
        return
    limit = conf.current.HELD_TOO_LONG_AFTER
    if lease.outlives_request or (limit is not None and found.idle_for >= limit):
        lease.give_back_if_too_old(now)


def next_look(leases: Iterable[Lease], now: float) -> float:
    """Return when the next of *leases* that wait for a request will be past its age."""
    ages = [close_at for lease in leases if lease.outlives_request and (close_at := lease.close_at()) is not None]
    return max(min(ages), now + _AGAIN) if ages and conf.current.RELEASE != "never" else math.inf

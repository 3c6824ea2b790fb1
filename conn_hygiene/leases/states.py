"""Where a lease is in its life."""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """Where a lease is in its life; see :mod:`.lease`."""

    CLOSED = 0
    HELD = 1
    PARKED = 2
    GIVEN_BACK = 3


# Module constants: reading an enum's member costs more than the comparisons on the way of every query.
CLOSED, HELD, PARKED, GIVEN_BACK = State

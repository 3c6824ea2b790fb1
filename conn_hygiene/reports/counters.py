"""What happened in this process, in numbers."""

from __future__ import annotations

from typing import Any

from conn_hygiene import locks
from conn_hygiene.locks import Rank

# What is counted; seconds as float, the rest as int.
COUNTED = (
    "checkouts",
    "releases",
    "reclaimed",
    "pinned",
    "seconds_held",
    "seconds_in_use",
    "idle_in_transaction",
    "held_too_long",
    "unclosed_cursors",
    "replaced",
    "discarded",
)


class Counters:
    """What happened in this process since the toolkit was installed. Its lock is a leaf: nothing is taken inside."""

    __slots__ = ("_lock", "_values")

    def __init__(self) -> None:
        self._lock = locks.make(Rank.LEAF)
        self._values: dict[str, Any] = dict.fromkeys(COUNTED, 0)

    def add(self, **amounts: float) -> None:
        """Add to the totals."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] += amount

    def read(self) -> dict[str, Any]:
        """Return the totals, all as of one moment."""
        with self._lock:
            return dict(self._values)

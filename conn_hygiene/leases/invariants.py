"""Who may write what of a lease, under which lock, and what holds whenever nobody is inside.

``LOCK`` means: by any thread, under the lease's lock. ``OWNER``: by the wrapper's owner alone, under no lock, on the
way of every query; others look at it under the lease's lock, and may see it a moment late. ``REAPER``: by the timer's
thread alone; a new checkout sets it back, under the lock. ``ONCE``: when the lease is made, and in a forked child.
``ANY``: by whoever parks the lease, or waits for its pool, and by the timer; see :meth:`.Reaper.parked`. For a cursor
that another thread closes, or the garbage collector, the timer does the owner's part, under the lock.

In which order two of them are written and read matters in these places:

- ``handle`` and ``open_cursors``. The owner reads the handle, which is out then, opens the cursor, which is listed, and
  takes the handle in again: at all times one of the two shows that it is at work. Whoever wants to know looks at the
  handle first, and at the cursors after it. Put out it is under the lock, since another thread may read it as well.
- ``idle_since`` and ``open_cursors``. Inside of ``atomic()`` the owner writes the time before it takes the cursor from
  the list: whoever finds no cursor finds a time that is right.
- ``state`` and ``_connection``. Of a checkout, the state is first; of an end, the handle is taken in before both: one
  that stays readable would be somebody else's soon.
- ``look_at`` and ``state``. See :meth:`conn_hygiene.reaper.reaper.Reaper.parked`.
- What is on its way back is listed by the reaper before it is taken out of the lease, so that an exception of a signal
  handler loses nothing in between.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conn_hygiene.leases.claim import Claim
    from conn_hygiene.leases.lease import Lease


class Writer(enum.Enum):
    """Who writes an attribute, and how."""

    ONCE = "when the lease is made"
    LOCK = "under the lease's lock"
    OWNER = "by the owner, under no lock"
    REAPER = "by the reaper, or with a new checkout"
    ANY = "by any thread, under no lock"


ONCE, LOCK, OWNER, REAPER, ANY = Writer

WRITERS: dict[str, Writer] = {
    # Whose it is.
    "_lock": ONCE,
    "keeper": ONCE,
    "alias": ONCE,
    "wrapper": ONCE,
    "thread_id": ONCE,
    "thread_end": ONCE,
    "thread_name": ONCE,
    "thread_runs": ONCE,
    "tally": ONCE,
    # Where it is in its life, and with what.
    "state": LOCK,
    "_connection": LOCK,
    "_connects": LOCK,
    "checkouts": LOCK,
    "checked_out_at": LOCK,
    "_checkout_asked_at": LOCK,
    "checked_out_by": LOCK,
    "server_pid": LOCK,
    "_pool": LOCK,
    "pooled": LOCK,
    "pool_keeps": LOCK,
    "queue": LOCK,
    "_experience": LOCK,
    "_label": LOCK,
    "spare": LOCK,
    # What keeps it.
    "handle": OWNER,
    "open_cursors": OWNER,
    "_manual": LOCK,
    "_transaction": LOCK,
    "session_state": LOCK,
    "carried": LOCK,
    "_wish": LOCK,
    "_scopes": LOCK,
    "_served": LOCK,
    "_settings": LOCK,
    # How long it is used and idle.
    "in_use_since": OWNER,
    "idle_since": OWNER,
    "last_statement": OWNER,
    "boundaries": OWNER,
    "outlives_request": OWNER,
    "_used": LOCK,
    "_timing": LOCK,
    "trusted": LOCK,
    "ended_because": LOCK,
    "could_not_write": LOCK,
    "asked_at": OWNER,
    "_news": LOCK,
    "request": OWNER,
    # What the reaper knows of it.
    "look_at": ANY,
    "backoff": ONCE,
    "turn": ONCE,
    "pauses": ONCE,
    "quiet": LOCK,
    "reported": REAPER,
}

#: Which state may follow which.
FOLLOWS = {
    "CLOSED": {"CLOSED", "HELD", "GIVEN_BACK"},
    "HELD": {"CLOSED", "HELD", "PARKED", "GIVEN_BACK"},
    "PARKED": {"CLOSED", "HELD", "PARKED", "GIVEN_BACK"},
    "GIVEN_BACK": {"CLOSED", "HELD", "GIVEN_BACK"},
}


def checked_write(lease: Lease, name: str, value: Any) -> None:
    """Write an attribute of *lease*, and assert that this may be done here and now."""
    lock = getattr(lease, "_lock", None)
    # Nobody else knows of a lease that is being made.
    if lock is not None and hasattr(lease, "keeper") and hasattr(lease, "checked_out_at"):
        if WRITERS[name] is LOCK:
            assert lock._is_owned(), f"{name} is written without the lease's lock"
        if name == "state":
            assert value.name in FOLLOWS[lease.state.name], f"{value.name} follows {lease.state.name}"
    object.__setattr__(lease, name, value)


def check(lease: Claim) -> None:
    """Assert what holds whenever nobody is inside. Called under the lease's lock, which is about to be let go."""
    state, has_connection = lease.state.name, lease._connection is not None
    assert has_connection == (state in ("HELD", "PARKED")), (
        f"{state} with{'' if has_connection else 'out'} a connection"
    )
    if state == "PARKED":
        assert lease.handle is None, "PARKED with its handle out"
    if not has_connection:
        assert not lease.open_cursors, f"{state} with open cursors"

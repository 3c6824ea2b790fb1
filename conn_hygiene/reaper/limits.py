"""What the settings have a limit for: a transaction that sits idle, a connection that is held and not used.

The timer looks at each lease every :func:`interval`. What is over its limit is told of, and ended or given back if the
settings say so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from conn_hygiene import conf
from conn_hygiene.leases import ended
from conn_hygiene.leases.backoff import SLACK
from conn_hygiene.leases.description import Reported, look
from conn_hygiene.reaper import ages, watch

if TYPE_CHECKING:
    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.reaper.reaper import Reaper

# The kinds of reports that are repeated; see events.CameBack.
_TRANSACTION, _HELD = "idle in transaction", "held too long"

# In the place of the report of a transaction that has ended. The lease remains one that was reported, see
# events.CameBack, and the next transaction is reported when that is due: this one is about none.
_OVER = Reported(object(), 0.0)


def interval() -> float:
    """Return how often to look, in seconds: a quarter of the shortest limit, by which a report is late at most.

    No shorter than what a thread can be woken for; a limit of a microsecond must not keep a processor busy.
    """
    limits = (conf.current.IDLE_IN_TRANSACTION_AFTER, conf.current.HELD_TOO_LONG_AFTER)
    return max(SLACK, min((limit / 4 for limit in limits if limit is not None), default=math.inf))


def see_to(lease: Lease, now: float, reaper: Reaper) -> None:
    """Look at *lease*, and see to what is over a limit. Called by the timer, of *reaper*, under no lock."""
    found = look(lease, now)
    # One that the toolkit has ended has been reported.
    if found is None or found.active or lease.ended_because is not None:
        return
    # One that the server has not heard of sits idle nowhere. It holds a connection, as whoever does not use one.
    if found.in_transaction and not found.is_untouched:
        _see_to_transaction(lease, found, now, reaper)
        return
    if _TRANSACTION in lease.reported:
        lease.reported[_TRANSACTION] = _OVER
    if not reaper.give_back_if_hung_up(lease):
        _see_to_idle(lease, found, now, reaper)


def _see_to_transaction(lease: Lease, found: Description, now: float, reaper: Reaper) -> None:
    limit = conf.current.IDLE_IN_TRANSACTION_AFTER
    if limit is None or _is_said(lease, _TRANSACTION, found.transaction, now):
        return
    ends = conf.current.IDLE_IN_TRANSACTION_ACTION == "terminate"
    if found.idle_for < limit:
        # Two looks lie between this and the limit.
        if ends and found.idle_for >= limit / 2 - interval() / 2:
            ended.call_in_handle(lease)
        return
    event = watch.idle_in_transaction(lease, found)
    again_at = now + found.idle_for
    if ended.is_left(found.connection):
        # Ended by the server, say for its own idle_in_transaction_session_timeout: its owner will be told by whom.
        event, again_at = replace(event, action="log"), math.inf
        said = lease.reported.get(_TRANSACTION)
        if said is not None and said.about == found.transaction:
            return
    elif ends and not ended.terminate(lease, found, f"conn_hygiene ended this session. {event.message}"):
        # Its owner was faster, and is at work again.
        return
    _note(lease, _TRANSACTION, found.transaction, again_at)
    reaper.tell(watch.publish, event, found)


def _see_to_idle(lease: Lease, found: Description, now: float, reaper: Reaper) -> None:
    if not (found.pooled or lease.request is not None):
        # Kept between requests, as CONN_MAX_AGE says, and nobody waits for it.
        ages.see_to(lease, found, now)
        return
    limit = conf.current.HELD_TOO_LONG_AFTER
    if limit is None or found.idle_for < limit or _is_said(lease, _HELD, lease.checkouts, now):
        return
    _note(lease, _HELD, lease.checkouts, now + found.idle_for)
    event = watch.held_too_long(lease, found)
    if lease.give_back_if_abandoned():
        event = replace(event, action="release", kept_because=None, where_began=None)
    reaper.tell(watch.publish, event, found)


def _is_said(lease: Lease, kind: str, about: object, now: float) -> bool:
    """Return whether a report of that *kind* was made of the same thing, too short a time ago to make it again."""
    said = lease.reported.get(kind)
    return said is not None and said.about == about and now < said.again_at


def _note(lease: Lease, kind: str, about: object, again_at: float) -> None:
    lease.reported[kind] = Reported(about, again_at)

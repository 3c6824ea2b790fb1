"""What an event trigger on ``login`` leaves in each session that begins, and a reset would take away.

PostgreSQL has these from version 17 on (its documentation, "Event Triggers"). Nothing but a new session has such a
trigger run again. The values of settings can be asked for while a session is new, and are set again after a reset; a
session that loses anything else of a trigger's is closed, and another is begun in its place.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from conn_hygiene.sessions import following

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from conn_hygiene.sessions.plan import Plan

#: The first version of PostgreSQL that has such triggers.
SINCE = 170000

#: Asks whether there is one that may run, whatever it does.
EXISTS = "SELECT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D')"

# Where a psycopg connection keeps what was in its session when that was new.
_VALUES = "_conn_hygiene_login"


class Login(NamedTuple):
    """What the triggers on ``login`` of a database leave in each of its sessions."""

    #: The names of the settings that they set, in lower case.
    settings: frozenset[str] = frozenset()
    #: What else they leave, or what nobody can tell, as reasons.
    others: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return ", ".join([*(f"SET {name}" for name in sorted(self.settings)), *sorted(self.others)])

    def may_set(self, names: AbstractSet[str]) -> AbstractSet[str]:
        """Return which of the settings *names* they set, or may."""
        return names if self.others else names & self.settings

    def outlives(self, plan: Plan, connection: psycopg.Connection[Any]) -> bool:
        """Return whether the session of *connection* still has all of it, or can have it again, if *plan* is done."""
        if not self._is_undone_by(plan):
            return True
        return not self.others and _values(connection).keys() >= self.settings

    def _is_undone_by(self, plan: Plan) -> bool:
        return any(self) if plan.left else bool(self.may_set(plan.resets))

    def to_set_again(self, plan: Plan, connection: psycopg.Connection[Any]) -> dict[str, str]:
        """Return what of it is to be set in the session of *connection* again, after what *plan* resets."""
        names = self.settings if plan.left else self.settings & plan.resets
        return {name: value for name, value in _values(connection).items() if name in names and value is not None}


#: Of a database without such a trigger, or with none that leaves anything.
NOTHING = Login()


def remember(connection: psycopg.Connection[Any], login: Login | None) -> None:
    """Ask the new session of *connection* for the settings of *login*, to be set again; None if these are not known.

    Takes a round trip if there are any, and nothing else of a trigger's, for which the session would be closed anyway.
    What cannot be read is not remembered.
    """
    if login is None or not login.settings or login.others:
        return
    names = sorted(login.settings)
    try:
        with contextlib.suppress(psycopg.Error):
            [values] = following.run(connection, following.asking(connection, names))
            connection.__dict__[_VALUES] = dict(zip(names, values, strict=True))
    finally:
        if connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            connection.rollback()


def _values(connection: psycopg.Connection[Any]) -> Mapping[str, str | None]:
    values: Mapping[str, str | None] = connection.__dict__.get(_VALUES, {})
    return values

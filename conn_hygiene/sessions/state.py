"""What a session carries that its owner has left there, as far as that can be told without asking the server.

Statements say it (see :mod:`conn_hygiene.sessions.sql`), the parameters that the server reports on its own, and the
attributes that psycopg keeps on its side.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from psycopg.pq import ConnStatus

from conn_hygiene import callsite
from conn_hygiene.sessions import client, effects, following
from conn_hygiene.sessions.effects import DISCARDED, HARMLESS, INDELIBLE
from conn_hygiene.sessions.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    import psycopg

    from conn_hygiene.sessions.effects import Effect

#: Reported, and changed by an administrator who has a server take no writes.
READ_ONLY = "default_transaction_read_only"

_PATH = "search_path"

# What the server reports on its own at every change (PostgreSQL documentation, "Asynchronous Operations"), as far as a
# change of it is the session's own doing. search_path is reported from PostgreSQL 18 on.
_REPORTED = tuple(
    name.encode()
    for name in (
        "search_path",
        "TimeZone",
        "DateStyle",
        "IntervalStyle",
        "application_name",
        "client_encoding",
        READ_ONLY,
        "session_authorization",
        "is_superuser",
        "standard_conforming_strings",
    )
)


def reported_parameters(connection: psycopg.Connection[Any]) -> tuple[bytes | None, ...]:
    """Return the session parameters that libpq knows without asking the server; nothing for a closed connection."""
    pgconn = connection.pgconn
    if pgconn.status == ConnStatus.BAD:
        return ()
    return tuple(map(pgconn.parameter_status, _REPORTED))


def changed_parameters(before: tuple[bytes | None, ...], after: tuple[bytes | None, ...]) -> list[str]:
    """Return the names of the parameters that differ between two results of :func:`reported_parameters`."""
    return [name.decode() for name, old, new in zip(_REPORTED, before, after, strict=False) if old != new]


def timezone_of(reported: tuple[bytes | None, ...]) -> str:
    """Return the time zone among *reported* parameters."""
    return (reported[_REPORTED.index(b"TimeZone")] or b"UTC").decode()


# What tells of a change, where that is no setting by itself.
_TOLD_BY = {"is_superuser": following.IDENTITIES, "session_authorization": following.IDENTITIES}

# What an undoing statement does right away, be it in a transaction that is rolled back later. All else is undone by a
# commit only.
_NOT_TRANSACTIONAL = frozenset({effects.ADVISORY_LOCK, effects.PREPARED, effects.HELD_CURSOR})


class State:
    """What the owner of one checkout has left in the session, as far as that can be told without asking the server.

    Guarded by the lock of the lease that it belongs to.
    """

    __slots__ = (
        "_client",
        "_empty",
        "_of_hold",
        "_set_at_connect",
        "_soiled",
        "follows",
        "fresh",
        "held",
        "is_path_temporary",
        "overridden",
        "parameters",
        "pins",
        "reset",
        "undone",
    )

    # The settings that the owner is to find known in another session, where nobody was seen to set them. Not there
    # until some are: a state is made at each checkout.
    _empty: frozenset[str]

    def __init__(self, connection: psycopg.Connection[Any] | None = None) -> None:
        #: The reported parameters when the session was new.
        self.fresh: tuple[bytes | None, ...] = () if connection is None else fresh_parameters(connection)
        #: The reported parameters when the owner began, or as its ``DISCARD ALL`` has left what follows; None before.
        self.parameters: tuple[bytes | None, ...] | None = None
        self._client: client.Look | None = None
        #: What ties the session to its owner: reason to place in the code.
        self.pins: dict[str, str] = {}
        #: The settings whose values the owner is to find again in another session.
        self.follows: set[str] = set()
        #: Those that are at the server's default since they were reset: nothing was executed after that, as far as was
        #: seen, that sets them, or may.
        self.reset: set[str] = set()
        #: Those that a block has set for as long as it lasts, with what they were before; None for none.
        self.overridden: dict[str, str | None] = {}
        # Those that were set by receivers of `connection_created`, which run at every checkout.
        self._set_at_connect: set[str] = set()
        # Of the pins, those of what was executed under hold_connection.
        self._of_hold: set[str] = set()
        #: Of the pins, what is undone if the transaction was committed, which the server knows.
        self.undone: set[str] = set()
        #: The cursors ``WITH HOLD`` that psycopg may have declared, and whose ``CLOSE`` nobody has seen. Who closes one
        #: may be another thread, or a finaliser, and takes it out without the lock.
        self.held: set[object] = set()
        #: Whether a ``search_path`` was set that has what is created be temporary, whatever was undone since.
        self.is_path_temporary = False
        # Whether a statement has left anything but settings, undone since or not.
        self._soiled = False

    def begin(self, connection: psycopg.Connection[Any]) -> None:
        """Remember the session as it is now; what differs later is the owner's doing."""
        self.parameters = reported_parameters(connection)
        self._client = client.look(connection)

    def add(self, effect: Effect, *, setting_up: bool, of_hold: bool) -> list[str]:
        """Take note of the *effect* of a statement that is about to run, and return the pins that it has added.

        *setting_up* tells that a receiver of ``connection_created`` executes it, which runs at every checkout: its
        ``SET`` need not survive a release.
        """
        names = {setting.name for setting in effect.settings if isinstance(setting.name, str)}
        adds = effect.adds
        self.reset -= self.follows if adds else names
        if setting_up:
            # Each of the two changes the other.
            self._set_at_connect |= names.union(() if names.isdisjoint(following.IDENTITIES) else following.IDENTITIES)
        elif following.is_wanted():
            self.follows |= names
        elif names:
            adds |= {effects.SETTING}
        if names and not adds and not effect.removes:
            return []
        self._soiled = True
        self.undone -= adds
        if effects.TEMPORARY in adds and _PATH in names:
            self.is_path_temporary = True
        if setting_up and not adds & INDELIBLE:
            return []
        return self._pin(adds - HARMLESS, of_hold=of_hold)

    def _pin(self, reasons: frozenset[str], *, of_hold: bool) -> list[str]:
        added = [reason for reason in reasons if reason not in self.pins]
        self.pins.update((reason, str(callsite.here() or callsite.UNKNOWN)) for reason in added)
        if of_hold:
            self._of_hold.update(added)
        else:
            # It is needed past the hold as well.
            self._of_hold -= reasons
        return added

    def was_set_at_connect(self, names: AbstractSet[str]) -> bool:
        """Return whether a receiver of ``connection_created`` has set any of *names*, as far as was seen."""
        return not self._set_at_connect.isdisjoint(names) or self._soiled

    def is_set_at_connect(self) -> bool:
        """Return whether a receiver of ``connection_created`` was seen to set anything."""
        return bool(self._set_at_connect)

    def note_set_again(self, values: Mapping[str, str | None]) -> None:
        """Take note that *values*, which the owner has had in another session, are in this one as well.

        What is as it is in a new session need not follow; who sets it once more is seen again. What has followed unseen
        goes on, also if nothing is executed before the next release.
        """
        self._empty = frozenset(name for name, value in values.items() if value is following.KNOWN)
        self.follows |= values.keys() - self._empty
        self.reset -= values.keys()

    def soil(self) -> None:
        """Have the session cleaned before anybody else gets it."""
        self._soiled = True

    def succeeded(self, effect: Effect, connection: psycopg.Connection[Any], *, in_transaction: bool) -> None:
        """Take note that a statement has run without an error: what it undoes is undone, or will be by a commit."""
        if DISCARDED in effect.adds and following.is_wanted():
            # The session differs from what it was, and that is no reason to keep it. What was set up with it is gone.
            # Not so what psycopg keeps on its side.
            if self.parameters is not None:
                self.parameters = reported_parameters(connection)
            self.follows |= _SET_UP | self._set_at_connect
        for reason in effect.removes:
            if in_transaction and reason not in _NOT_TRANSACTIONAL:
                self.undone.add(reason)
            else:
                self._unpin(reason)
        if not in_transaction:
            self._note_reset(effect)

    def _note_reset(self, effect: Effect) -> None:
        """Take note of what *effect* has reset, if nothing that is left in the session may set it again unseen."""
        if DISCARDED in effect.adds:
            names = self.follows
        elif effects.ALL in effect.resets:
            names = self.follows - set(following.IDENTITIES)
        else:
            names = self.follows & effect.resets
        if self.pins.keys() <= {effects.SETTING}:
            self.reset |= names - self._set_at_connect - self.overridden.keys()

    def _unpin(self, reason: str) -> None:
        if reason == effects.TEMPORARY and self.is_path_temporary and _PATH in self.follows.union(self.overridden):
            # What is created from here on is temporary, too.
            return
        self.pins.pop(reason, None)

    def confirm_undone(self, left: frozenset[str]) -> None:
        """Take note of what the server has *left* of all that was to be undone by a commit."""
        for reason in self.undone - left:
            self._unpin(reason)
        self.undone.clear()

    def note_changes(
        self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...] | None = None
    ) -> list[str]:
        """Add to :attr:`follows` the settings that differ from when the owner began; return what differs and cannot.

        These are reasons for a pin: attributes of the psycopg connection, and settings where none follows, as with
        ``ON_SET = "pin"``. Notes and returns nothing for a closed connection, and while :attr:`parameters` is None.

        *reported* are the session's parameters, if they have just been read.
        """
        if self.parameters is None or connection.closed:
            return []
        if reported is None:
            reported = reported_parameters(connection)
        changed = [] if reported == self.parameters else self._changed_by_owner(self.parameters, reported)
        if changed and following.is_wanted():
            self.follows |= settings_of(changed)
            self.reset -= settings_of(changed)
            changed = []
        return changed + client.changed(connection, self._client)

    def is_untouched(self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...]) -> bool:
        """Return whether nothing was left, as far as was seen, and *connection* is what its pool gives out.

        *reported* are the session's parameters now.
        """
        if reported != self.fresh or reported != self.parameters:
            return False
        if self.pins or self.follows or self.overridden or self.undone or self._set_at_connect or self._soiled:
            return False
        if self.held:
            return False
        look = client.given_look(connection)
        return look is not None and look is self._client and look.is_still_true(connection)

    def _changed_by_owner(self, before: tuple[bytes | None, ...], after: tuple[bytes | None, ...]) -> list[str]:
        """Return the names of the parameters that differ, but for those that differ by what a block has set."""
        changed = changed_parameters(before, after)
        return [name for name in changed if self.overridden.keys().isdisjoint(settings_of([name]))]

    def is_of_hold(self) -> bool:
        """Return whether there are pins, and all of them were added under ``hold_connection``."""
        return bool(self.pins) and self.pins.keys() <= self._of_hold

    def hold_ended(self) -> None:
        """Take note that no ``hold_connection`` is around any more: what pins now does so to the end of the request."""
        self._of_hold.clear()

    def plan(
        self,
        connection: psycopg.Connection[Any],
        reported: tuple[bytes | None, ...],
        declared: frozenset[str],
        *,
        soiled: bool,
        follows: bool,
    ) -> Plan:
        """Return what is to be done to the session of *connection* before anybody else gets it.

        *reported* are its parameters now, *declared* the names that follow whoever sets them. *soiled* tells that all
        is to be reset, *follows* that the owner goes on in another session.
        """
        if follows:
            declared |= getattr(self, "_empty", frozenset())
        names = frozenset(self.follows) | declared
        resets = names | self._set_at_connect | self.overridden.keys()
        left = set(self.pins)
        differs = () if reported == self.fresh else settings_of(self._changed_by_owner(self.fresh, reported))
        if soiled or self._soiled or self.held or not resets.issuperset(differs):
            left.add(effects.SETTING)
        if not follows:
            names = frozenset()
        unseen = declared - self.follows
        # All of what was overridden, and of what was set at connect: the catalogue may have more names follow on the
        # way, see Plan.following_also().
        at_default = (names & self.follows if self._soiled else frozenset()) | self._set_at_connect
        return Plan(names, unseen, resets, frozenset(left), {**self.overridden} if follows else {}, at_default)

    def has_set(self, name: str) -> bool:
        """Return whether anything of this checkout has set *name*, as far as was seen."""
        seen = (self.follows, self._set_at_connect, self.overridden)
        return effects.SETTING in self.pins or any(name in names for names in seen)

    def carries(self) -> bool:
        """Return whether the owner has left anything, as far as was seen; not what is set at each connect."""
        return bool(self.pins or self.follows or self.overridden)

    def cleaned(self) -> None:
        """Take note that nothing is left."""
        self.pins.clear()
        self.follows.clear()
        self.reset.clear()
        self.overridden.clear()
        self._set_at_connect.clear()
        self.undone.clear()
        self.held.clear()
        self._empty = frozenset()
        self._soiled = self.is_path_temporary = False


# What every backend sets up in a new session, and may have set up differently from the server.
_SET_UP = frozenset({"timezone", "role"})


def settings_of(parameters: list[str]) -> set[str]:
    """Return the settings that may have changed where reported *parameters* have."""
    return {name for parameter in parameters for name in _TOLD_BY.get(parameter, (parameter.lower(),))}


def is_known(connection: psycopg.Connection[Any]) -> bool:
    """Return whether :func:`fresh_parameters` was asked for *connection* before."""
    return "_conn_hygiene_fresh" in connection.__dict__


def fresh_parameters(connection: psycopg.Connection[Any]) -> tuple[bytes | None, ...]:
    """Return the reported parameters of *connection* when first asked for; kept on it, as psycopg_pool's own data.

    Asked for before anybody has set anything, where that can be had.
    """
    fresh: tuple[bytes | None, ...] | None = getattr(connection, "_conn_hygiene_fresh", None)
    if fresh is None:
        fresh = reported_parameters(connection)
        set_fresh_parameters(connection, fresh)
        following.heard(connection)
        connection._conn_hygiene_opened = time.monotonic()  # type: ignore[attr-defined]
    return fresh


def set_fresh_parameters(connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...]) -> None:
    """Have :func:`fresh_parameters` be *reported* for *connection* from now on."""
    connection._conn_hygiene_fresh = reported  # type: ignore[attr-defined]


def opened_at(connection: psycopg.Connection[Any]) -> float:
    """Return when :func:`fresh_parameters` was first asked of *connection*, on the monotonic clock; never is inf."""
    opened: float = getattr(connection, "_conn_hygiene_opened", math.inf)
    return opened

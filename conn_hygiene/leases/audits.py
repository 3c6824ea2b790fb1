"""``AUDIT_SESSIONS``: whether what is in a session is what its owner's statements have said.

The session is looked at before and after each statement outside of transactions, and where the connection goes back.
What is there and was not seen is published, with the statement after which it was there. If there is more than one
statement between two looks, these are of one transaction, and the likeliest is named. Nobody looks inside of a
transaction: a query there may be one too many, and what is local to it looks like what is not.

An audit belongs to one checkout, and is kept on the psycopg connection. Who has the connection has the audit: the owner
while it is checked out, and then who carries it back.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import ServerCursor

from conn_hygiene import callsite, conf
from conn_hygiene.events import UnseenState, publish
from conn_hygiene.leases.description import reportable
from conn_hygiene.sessions import audit, effects, known, sql, state
from conn_hygiene.sessions.texts import text_of
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import psycopg
    from psycopg import Cursor as _Cursor

    from conn_hygiene.sessions.audit import Finding, Observed
else:
    _Cursor = object

# Where a connection keeps its audit.
_AUDIT = "_conn_hygiene_audit"

# How many statements of a transaction are remembered.
_MOST = 50


class _Executed(NamedTuple):
    query: Any
    text: str
    place: callsite.Place | None
    request: str | None


class Audit:
    """What is known of the session of one checkout."""

    def __init__(self, connection: psycopg.Connection[Any], alias: str, seen: state.State) -> None:
        self._connection = connection
        self._known = seen
        self._alias = alias
        self._thread_id = threading.get_ident()
        self._seen = audit.Seen()
        self._executed: deque[_Executed] = deque(maxlen=_MOST)
        self._count = 0
        self._names: set[str] = set()
        self._own_cursors: set[str] = set()
        self._with_origin = False
        # At the beginning, and at the last look. None until somebody has looked.
        self._first: Observed | None = None
        self._last: Observed | None = None
        self._reported: tuple[bytes | None, ...] = ()

    def about_to(self, cursor: object, query: Any, parameters: Any, more: Iterable[Any] = ()) -> None:
        """Take note of a statement that *cursor* is about to execute, and see what those before it have left.

        *more* are further parameters, for a statement that is executed several times.
        """
        self.look()
        # A block that has ended by the next look is to have been one.
        self._note_known()
        if isinstance(cursor, ServerCursor):
            self._own_cursors.add(cursor.name)
        text = text_of(query, self._connection) or ""
        names = audit.names_in(text, parameters, *more) - self._names
        self._look_before(names)
        effect = sql.effect_of(text) if text else effects.UNKNOWN
        if effect is not None:
            self._seen.add(effect.with_parameters(parameters) if effect.settings else effect)
        self._executed.append(_Executed(query, text, callsite.here(1), serving.label))
        self._count += 1

    def look(self) -> None:
        """Publish what has been left since the last look. Does nothing inside of a transaction."""
        for event in self.left():
            publish(event)

    def left(self) -> list[UnseenState]:
        """Return what is to be told of what has been left since the last look."""
        if not self._executed or self._first is None or self._last is None:
            return []
        now = self._observe()
        if now is None:
            return []
        reported = state.reported_parameters(self._connection)
        # What the server has told is known without an audit.
        self._seen.add_names(state.settings_of(state.changed_parameters(self._reported, reported)))
        self._note_known()
        findings = audit.unseen(self._first, self._last, now, self._seen, declared=known.followed(self._alias))
        events = [self._event(finding) for finding in findings]
        self._last, self._reported = now, reported
        self._seen.forget_reasons()
        self._executed.clear()
        self._count = 0
        return events

    def _note_known(self) -> None:
        """Take note of what the toolkit sets itself, for a block, or in the session that its owner has got."""
        self._seen.add_names({*self._known.follows, *self._known.overridden})

    def _look_before(self, names: frozenset[str]) -> None:
        """Look at what there is before a statement that may be about settings of these *names*.

        What has come since the last statement has come past all cursors, and is no statement's.
        """
        if self._first is None:
            self._begin()
        self._names |= names
        now = None if self._executed else self._observe()
        if now is None:
            return
        new = now.settings if self._first is None else {name: now.settings.get(name) for name in names}
        before = now if self._first is None else self._first
        self._first = audit.Observed({**new, **before.settings}, before.others)
        self._last, self._reported = now, state.reported_parameters(self._connection)

    def _begin(self) -> None:
        """Find what is to be asked for."""
        connection = self._connection
        # The first to be audited may come before anybody has asked what follows by itself. Without autocommit, psycopg
        # would begin a transaction for it.
        ask = conf.current.FOLLOWED_SETTINGS == "auto" and known.known_of(self._alias) is None
        if ask and connection.autocommit and audit.is_idle(connection):
            known.ask(self._alias, connection)
        with self._free() as is_free:
            if is_free:
                self._names |= audit.own_names(connection)
                self._with_origin = audit.may_ask_for_origin(connection)

    def _observe(self) -> Observed | None:
        with self._free() as is_free:
            if not is_free:
                return None
            found = audit.real_state(self._connection, self._names, with_origin=self._with_origin)
        if found is None:
            return None
        # Whoever has a cursor of psycopg's open has the connection.
        held = found.others.get(effects.HELD_CURSOR, frozenset()) - self._own_cursors
        return audit.Observed(found.settings, {**found.others, effects.HELD_CURSOR: held})

    @contextlib.contextmanager
    def _free(self) -> Iterator[bool]:
        """Have psycopg's lock of the connection, if nobody has it and the session can be asked; yield whether."""
        lock = self._connection.lock
        if not lock.acquire(blocking=False):
            yield False
            return
        try:
            yield audit.is_idle(self._connection)
        finally:
            lock.release()

    def _event(self, finding: Finding) -> UnseenState:
        # Of several that are as likely, the last.
        executed = max(reversed(self._executed), key=lambda each: audit.suspicion(each.text))
        return UnseenState(
            alias=self._alias,
            server_pid=self._connection.pgconn.backend_pid,
            thread_id=self._thread_id,
            request=executed.request,
            reason=finding.reason,
            names=finding.names,
            statement=reportable(executed.query),
            where=str(executed.place or callsite.UNKNOWN),
            others=self._count - 1,
            advice=_advice(finding, self._alias),
        )


_ELSE = (
    'Or set CONN_HYGIENE["CLEAN_SESSIONS"] to "always", and keep the connection with hold_connection() for as long as '
    "it is needed."
)
_ADVICE = {
    effects.TEMPORARY: "Create it by a statement of the request's own, which can be seen.",
    effects.ADVISORY_LOCK: "Lock until the end of the transaction, with pg_advisory_xact_lock().",
    effects.LISTEN: "Listen by a statement of the request's own, which can be seen.",
    effects.PREPARED: "Prepare it by a statement of the request's own, which can be seen.",
    effects.HELD_CURSOR: "Declare it without WITH HOLD, in a transaction.",
    effects.ORIGIN: "Reset it by pg_replication_origin_session_reset() in the function that has set it up.",
}


def _advice(finding: Finding, alias: str) -> str:
    if finding.reason != effects.SETTING:
        return f"{_ADVICE[finding.reason]} {_ELSE}"
    names = ", ".join(f'"{name}"' for name in sorted({*finding.names, *known.followed(alias)}))
    return f'Set CONN_HYGIENE["FOLLOWED_SETTINGS"] to [{names}].'


class AuditedCursor(_Cursor):
    """Mixed into the class of a leased cursor: tells its connection's audit what it executes."""

    __slots__ = ()

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Tell the audit of the statement, execute it, and have the session looked at."""
        with _audited(self, query, params):
            return super().execute(query, params, **kwargs)

    def executemany(self, query: Any, params_seq: Any, **kwargs: Any) -> Any:
        """Tell the audit of the statement, execute it for each of the parameters, and have the session looked at."""
        params_seq = list(params_seq)
        with _audited(self, query, None, params_seq):
            return super().executemany(query, params_seq, **kwargs)

    def stream(self, query: Any, params: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Tell the audit of the statement, execute it row by row, and have the session looked at."""
        with _audited(self, query, params):
            yield from super().stream(query, params, **kwargs)

    @contextlib.contextmanager
    def copy(self, statement: Any, params: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Tell the audit of the ``COPY``, begin it, and have the session looked at when it is done."""
        with _audited(self, statement, params), super().copy(statement, params, **kwargs) as copy:
            yield copy


@contextlib.contextmanager
def _audited(cursor: AuditedCursor, query: Any, parameters: Any, more: Iterable[Any] = ()) -> Iterator[None]:
    found: Audit | None = cursor._conn.__dict__.get(_AUDIT)
    if found is None:
        yield
        return
    found.about_to(cursor, query, parameters, more)
    try:
        yield
    finally:
        # What fails may have left something all the same: a session's lock outlives its transaction.
        found.look()


def begin(connection: psycopg.Connection[Any], alias: str, seen: state.State) -> None:
    """Audit the session of *connection* from here on, for the checkout that begins, of which *seen* is seen."""
    connection.__dict__[_AUDIT] = Audit(connection, alias, seen)


def is_audited(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the session of *connection* is audited."""
    return _AUDIT in connection.__dict__


def end(connection: psycopg.Connection[Any]) -> list[UnseenState]:
    """End the audit of *connection*, which goes back and is not cleaned yet; return what is to be told, under no lock.

    Does nothing without an audit.
    """
    found: Audit | None = connection.__dict__.pop(_AUDIT, None)
    return [] if found is None or connection.closed else found.left()

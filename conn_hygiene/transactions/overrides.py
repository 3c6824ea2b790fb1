"""Which settings the blocks around the running code want, and a session that is kept at them, statement by statement.

What is wanted is known where the code runs, what is in force belongs to one session. Between two statements of a block
its connection may have gone to somebody else, and its tasks may share one with others; so the two are compared ahead of
each statement, and what differs is set then, in one round trip. Nothing is sent for a block that sends no statement.
"""

from __future__ import annotations

import logging
import re
import time
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.db import Error, NotSupportedError, OperationalError
from psycopg.pq import TransactionStatus

from conn_hygiene import conf
from conn_hygiene.leases.ahead import Ahead
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import reaper
from conn_hygiene.sessions import following
from conn_hygiene.sessions.following import IDENTITIES
from conn_hygiene.sessions.lexer import Text
from conn_hygiene.sessions.sql import LONGEST_REMEMBERED
from conn_hygiene.sessions.texts import text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.leases.lease import Lease

logger = logging.getLogger("conn_hygiene.transactions")


class Block(NamedTuple):
    """One entering of a scope that wants settings."""

    scope: Any
    #: By names in lower case. None is the default, as in ``SET ... TO DEFAULT``.
    settings: Mapping[str, str | None]
    using: frozenset[str] | None
    #: Returns the error to raise in the place of one of a statement's; given its alias, and how long it ran.
    explain: Callable[[str, OperationalError, float], OperationalError | None]


#: Innermost last.
entered: ContextVar[tuple[Block, ...]] = ContextVar("conn_hygiene_session_settings", default=())


def wanted(alias: str) -> dict[str, str | None]:
    """Return what the code that runs now wants to be set on *alias*."""
    settings: dict[str, str | None] = {}
    for block in entered.get():
        if block.using is None or alias in block.using:
            settings.update(block.settings)
    return settings


def _explained(alias: str, exc: OperationalError, seconds: float) -> OperationalError | None:
    """Return what the block whose ``statement_timeout`` is in force makes of *exc*."""
    for block in reversed(entered.get()):
        if "statement_timeout" in block.settings and (block.using is None or alias in block.using):
            explained: OperationalError | None = block.explain(alias, exc, seconds)
            return explained
    return None


class _Level:
    """What blocks have set in a session, or in its transaction."""

    __slots__ = ("before", "values")

    def __init__(self, values: Mapping[str, str | None] = {}, before: Mapping[str, str | None] = {}) -> None:
        #: What is in force.
        self.values = dict(values)
        #: What was in force before any block, also for a name whose former value is in force again here, and not in the
        #: session around. None: it was not set at all.
        self.before = dict(before)

    def copy(self) -> _Level:
        return _Level(self.values, self.before)

    def doubted(self) -> _Level:
        """Return one in which nothing is what anybody wants, so that all is set again."""
        return _Level(dict.fromkeys(self.values, _IN_DOUBT), self.before)


_IN_DOUBT: Any = object()


class Overrides(Ahead):
    """Keeps one wrapper's session at what the code around each of its statements wants.

    It is one of the wrapper's ``execute_wrappers`` (Django documentation, "Database instrumentation"), the outermost.
    Outside of transactions it sets the session's values, and tells the lease, which lets nobody else have them. In a
    transaction it sets them for the transaction, which ends with them, and which a backend that nobody looks after, or
    PgBouncer, keeps in one session. It stays on the wrapper until what it has set is taken back.
    """

    def __init__(self) -> None:
        self.entered = 0
        self._session = _Level()
        self._transaction = _Level()
        # What the transaction's was at each savepoint, the newest last, and at all that are not here: they are older.
        self._savepoints: list[tuple[str, _Level]] = []
        self._elsewhere = _Level()
        # Whether a statement is on its way that Django knows of.
        self._announced = False
        # Of the lease, which session and which transaction these are of.
        self._checkout = self._boundaries = 0
        # For which blocks what was found to be wanted.
        self._blocks: tuple[Block, ...] | None = ()
        self._wanted: dict[str, str | None] = {}

    @classmethod
    def of(cls, wrapper: BaseDatabaseWrapper) -> Overrides:
        """Return the overrides of *wrapper*, put there if it has none."""
        for found in wrapper.execute_wrappers:
            if isinstance(found, cls):
                return found
        overrides = cls()
        # At the front: whoever leaves an execute_wrapper() pops the last one.
        wrapper.execute_wrappers.insert(0, overrides)
        return overrides

    @classmethod
    def forget(cls, wrapper: BaseDatabaseWrapper) -> None:
        """Take the overrides off *wrapper*, which has no session, and whose blocks nobody will leave."""
        wrapper.execute_wrappers[:] = [each for each in wrapper.execute_wrappers if not isinstance(each, cls)]

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        """Set what is wanted ahead of the statement, and have it executed."""
        wrapper: BaseDatabaseWrapper = context["connection"]
        connection: psycopg.Connection[Any] = context["cursor"].cursor.connection
        with wrapper.wrap_database_errors:
            self._adjust(wrapper, connection, sql)
        began = time.monotonic()
        succeeded, announced, self._announced = False, self._announced, True
        try:
            result = execute(sql, params, many, context)
            # For many parameters it may have been executed with none.
            succeeded = not many
        except OperationalError as exc:
            explained = _explained(wrapper.alias, exc, time.monotonic() - began)
            if explained is None:
                raise
            raise explained from exc.__cause__
        finally:
            self._announced = announced
            commands = _commands_of(sql, connection)
            if commands != ():
                self._follow(commands, connection, succeeded=succeeded)
        self._leave_if_done(wrapper)
        return result

    def ahead_of(self, statement: Any, wrapper: BaseDatabaseWrapper, connection: psycopg.Connection[Any]) -> None:
        """Set what is wanted ahead of a statement that Django may not know of."""
        self._adjust(wrapper, connection, statement)
        if not self._announced:
            # Nobody will say how it ended.
            self._follow(_commands_of(statement, connection), connection, succeeded=False)

    def left(self, wrapper: BaseDatabaseWrapper) -> None:
        """Take back what a block has set, or go to what is wanted around it, when the block ends.

        :raises django.db.Error: the server refuses a value in a transaction, which has failed by that.
        """
        self.entered -= 1
        connection: psycopg.Connection[Any] | None = None
        try:
            if self._is_set(wrapper):
                with wrapper.cursor() as cursor, wrapper.wrap_database_errors:
                    connection = cursor.cursor.connection
                    self._take_back(wrapper, connection)
            else:
                self._session = _Level()
                if not _in_transaction(wrapper):
                    self._end_transaction()
        except (Error, psycopg.Error):
            if connection is not None and connection.pgconn.transaction_status == TransactionStatus.INERROR:
                # It would be rolled back at its commit, and nobody would be told.
                raise
            # Mostly broken, as its next statement will say; and the error that it broke with may be on its way.
            logger.info("The settings of a block on %r could not be taken back.", wrapper.alias, exc_info=True)
            if connection is not None and pools.is_idle(connection):
                wrapper.close()
        finally:
            self._leave_if_done(wrapper)

    def _take_back(self, wrapper: BaseDatabaseWrapper, connection: psycopg.Connection[Any]) -> None:
        try:
            self._adjust(wrapper, connection)
        except psycopg.Error:
            if not (self._wanted and pools.is_idle(connection)):
                raise
            # What the block around wants cannot be had, which is for its next statement to say.
            self._adjust(wrapper, connection, back=True)

    def _leave_if_done(self, wrapper: BaseDatabaseWrapper) -> None:
        """Be on the wrapper no longer if no block is, and if nothing that one has set is in force or can come back."""
        if self.entered > 0 or self._session.before or self._transaction.before:
            return
        if self._elsewhere.before or any(level.before for _, level in self._savepoints):
            return
        if self in wrapper.execute_wrappers:
            wrapper.execute_wrappers.remove(self)

    def _is_set(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether there may be something to take back, without a checkout for the answer."""
        lease = lease_of(wrapper)
        if wrapper.closed_in_transaction:
            return False
        if self._transaction.before and _in_transaction(wrapper):
            return True
        return (
            lease is not None
            and bool(self._session.before)
            and self._checkout == lease.checkouts
            and lease.holds_connection()
        )

    # ##### What is in force #####

    def _adjust(
        self,
        wrapper: BaseDatabaseWrapper,
        connection: psycopg.Connection[Any],
        statement: Any = None,
        *,
        back: bool = False,
    ) -> None:
        """Set what is wanted ahead of *statement*, as far as it is not in force; *back*: what was before any block.

        :raises psycopg.Error: the server has refused it, and all is as it was, or its transaction has failed.
        """
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.INERROR:
            # Nothing can be set, and the rollback that must come next ends at once.
            return
        blocks = None if back else entered.get()
        if blocks is not self._blocks:
            self._blocks, self._wanted = blocks, {} if back else wanted(wrapper.alias)
        lease = lease_of(wrapper)
        self._forget_what_is_over(lease, status)
        if connection.autocommit and status != TransactionStatus.IDLE:
            # By psycopg's transaction(), say, which tells nobody where it begins and ends.
            self._transaction = self._transaction.doubted()
        if self._in_force() == self._wanted or (lease is not None and lease.is_setting_up()):
            # What is set up comes first, and is what comes back.
            return
        if lease is not None:
            lease.note_path(self._wanted.get("search_path"))
        if status == TransactionStatus.IDLE and connection.autocommit:
            if lease is None:
                _refuse_unless_connecting(wrapper)
                return
            self._set_for_session(connection, lease)
        elif not _must_come_first(statement, connection):
            self._set_for_transaction(connection)

    def _forget_what_is_over(self, lease: Lease | None, status: int) -> None:
        """Forget what was set in a session that was given back, and in a transaction that has ended."""
        checkout, boundaries = (0, 0) if lease is None else (lease.checkouts, lease.boundaries)
        if self._checkout != checkout:
            self._session = _Level()
        if status == TransactionStatus.IDLE or (self._checkout, self._boundaries) != (checkout, boundaries):
            self._end_transaction()
        self._checkout, self._boundaries = checkout, boundaries

    def _end_transaction(self) -> None:
        self._transaction = self._elsewhere = _Level()
        self._savepoints.clear()

    def _in_force(self) -> dict[str, str | None]:
        session, transaction = self._session, self._transaction
        if not transaction.before:
            return session.values
        outer = {name: value for name, value in session.values.items() if name not in transaction.before}
        return {**outer, **transaction.values}

    def _follow(
        self, commands: tuple[_Command, ...] | None, connection: psycopg.Connection[Any], *, succeeded: bool
    ) -> None:
        """Take note of what *commands* have done to all that was set so far, or will be able to undo."""
        if commands is None or (commands and not succeeded):
            self._doubt(commands)
            return
        for kind, name in commands:
            if kind == "made":
                self._savepoints.append((name, self._transaction))
            elif kind == "released":
                self._forget_back_to(name)
            elif kind == "back":
                self._transaction = self._forget_back_to(name)
                self._savepoints.append((name, self._transaction))
            elif kind == "ended":
                self._end_transaction()
            elif pools.is_idle(connection):
                # In a transaction it is the last to have set it, and may be rolled back, as it may be by what else
                # is in its string.
                self._session = _Level() if len(commands) == 1 else self._session.doubted()

    def _forget_back_to(self, savepoint: str) -> _Level:
        """Forget *savepoint*, and all after it, which end with it; return what the transaction's was there."""
        while self._savepoints:
            name, level = self._savepoints.pop()
            if name == savepoint:
                return level
        return self._elsewhere

    def _doubt(self, commands: tuple[_Command, ...] | None) -> None:
        """Have all be set again, here and at any savepoint: any of *commands* may have been executed, or none."""
        if commands is None or any(kind == "discarded" for kind, _ in commands):
            self._session = self._session.doubted()
        before: dict[str, str | None] = {}
        for level in (self._elsewhere, *(level for _, level in self._savepoints), self._transaction):
            before |= level.before
        self._transaction = self._elsewhere = _Level(dict.fromkeys(before, _IN_DOUBT), before)
        self._savepoints.clear()

    # ##### Setting #####

    def _set_for_session(self, connection: psycopg.Connection[Any], lease: Lease) -> None:
        before = self._session.before
        steps = self._steps(before)
        new = [name for name, _ in steps if name not in before]
        # First of all: an exception of a signal handler, at any of these lines, must not leave it for somebody else.
        for name in new:
            lease.overriding(name, None)
        try:
            found = _set(connection, steps, new, is_local=False)
        except psycopg.Error:
            for name in new:
                lease.no_longer_overriding(name)
            raise
        for name, value in found.items():
            lease.overriding(name, value)
        before = {**before, **found}
        self._session = _Level(self._wanted, {name: before[name] for name in self._wanted})
        for name in before.keys() - self._wanted.keys():
            lease.no_longer_overriding(name)

    def _set_for_transaction(self, connection: psycopg.Connection[Any]) -> None:
        before = {**self._session.before, **self._transaction.before}
        steps = self._steps(before)
        before |= _set(connection, steps, [name for name, _ in steps if name not in before], is_local=True)
        level = self._transaction.copy()
        for name, _ in steps:
            level.values.pop(name, None)
            level.before.pop(name, None)
            if name in self._wanted:
                level.values[name] = self._wanted[name]
            if name in self._wanted or name in self._session.values:
                level.before[name] = before[name]
        self._transaction = level

    def _steps(self, before: Mapping[str, str | None]) -> list[tuple[str, str | None]]:
        """Return what is to be set, in this order, to come from what is in force to what is wanted."""
        there, wanted = self._in_force(), self._wanted
        changed = [name for name in {**there, **wanted} if _differs(name, there, wanted)]
        others = [name for name in changed if name not in IDENTITIES]
        # What only the role of before may set is set by it, and so is what it had set.
        first = [name for name in IDENTITIES if name in there] if others else []
        steps = [(name, before[name]) for name in first]
        steps += [(name, wanted[name] if name in wanted else before[name]) for name in others]
        if first or len(others) < len(changed):
            steps += [(name, wanted[name]) for name in IDENTITIES if name in wanted]
            steps += [(name, before[name]) for name in IDENTITIES if name in there and name not in {*wanted, *first}]
        return steps


def _differs(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return name not in one or name not in other or bool(one[name] != other[name])


def _set(
    connection: psycopg.Connection[Any], steps: list[tuple[str, str | None]], new: list[str], *, is_local: bool
) -> dict[str, str | None]:
    """Set *steps*, all or none, in one round trip; return what the names in *new* were before."""
    if all(name in _TIMEOUTS for name, _ in steps):
        rows = following.run(connection, _timeouts(connection, steps, new, is_local=is_local))
        return {name: row[0] for name, row in zip(new, rows, strict=True)}
    asked = ", ".join(["pg_catalog.current_setting(%s, true)"] * len(new))
    given = ", ".join([f"pg_catalog.set_config(%s, %s, {is_local})"] * len(steps))
    # The inner row is there before anything of the outer one is computed. SET would take a list for one name.
    query = f"SELECT before.*, {given} FROM (SELECT {asked} OFFSET 0) AS before" if new else f"SELECT {given}"
    # In the order of the text.
    [row] = following.run(connection, query, [*(part for step in steps for part in step), *new])
    return dict(zip(new, row, strict=False))


# SHOW and SET do the same to these, and take no snapshot: a LOCK TABLE ahead of the first query of a transaction in
# REPEATABLE READ is there to have it taken late.
_TIMEOUTS = frozenset(conf.TIMEOUTS)


def _timeouts(
    connection: psycopg.Connection[Any], steps: list[tuple[str, str | None]], new: list[str], *, is_local: bool
) -> str:
    command = "SET LOCAL" if is_local else "SET"
    values = ["DEFAULT" if value is None else following.literal(connection, value) for _, value in steps]
    given = [f"{command} {name} = {value}" for (name, _), value in zip(steps, values, strict=True)]
    return "; ".join([*(f"SHOW {name}" for name in new), *given])


def _in_transaction(wrapper: BaseDatabaseWrapper) -> bool:
    lease = lease_of(wrapper)
    return not wrapper.autocommit if lease is None else lease.in_transaction()


def _refuse_unless_connecting(wrapper: BaseDatabaseWrapper) -> None:
    """Let receivers of ``connection_created`` query before there is a lease; raise for who will never get one."""
    if reaper.running is None or not pools.understands(wrapper):
        scopes = " and ".join(sorted({f"{block.scope.name}()" for block in entered.get()}))
        raise NotSupportedError(
            f"Outside of a transaction, {scopes} needs conn_hygiene to look after {wrapper.alias!r}, and it "
            "does not. Use it inside atomic(), or have conn_hygiene in INSTALLED_APPS and use Django's own backend."
        )


# ##### Statements that matter here #####

# Where a comment begins, up to where it ends or another one begins in it.
_COMMENT = r"/\*[^*/]*(?:(?:\*(?!/)|/(?!\*))[^*/]*)*"

# All of them rare, and told from the rest by their first word, unless they are among others.
_MAY_MATTER = re.compile(
    rf"""(?:\s|--[^\n\r]*[\n\r]|{_COMMENT}\*/)*
    (?:{_COMMENT}/\*|savepoint|release|rollback|commit|end|abort|prepare|discard|reset)""",
    re.IGNORECASE | re.VERBOSE,
)

# What a text with any of them among others has to contain.
_HINTS = ("savepoint", "release", "rollback", "commit", "end", "abort", "prepare", "discard", "reset")

_SAVEPOINT_NAME = r'(?:"[^"]+"|[^\s;"]+)'

# In what the lexer makes of a text.
_COMMAND = re.compile(
    rf"""(?:^|;)\s*(?:
        savepoint\b\s*(?P<made>{_SAVEPOINT_NAME})
      | release\b\s*(?:savepoint\b\s*)?(?P<released>{_SAVEPOINT_NAME})
      | rollback\s+(?:(?:work|transaction)\s+)?to\b\s*(?:savepoint\b\s*)?(?P<back>{_SAVEPOINT_NAME})
      | (?P<discarded>(?:discard|reset)\s+all\b)
      | (?P<ended>(?:commit|end|rollback|abort|prepare\s+transaction)\b)
    )""",
    re.VERBOSE | re.ASCII,
)


class _Command(NamedTuple):
    """Something that matters here, by the name of its group, and of which savepoint it is, if of any."""

    kind: str
    name: str


def _commands_of(statement: Any, connection: psycopg.Connection[Any]) -> tuple[_Command, ...] | None:
    """Return what of *statement* matters here, in its order; None if that cannot be told."""
    if type(statement) is str and ";" not in statement and not _MAY_MATTER.match(statement):
        return ()
    text = text_of(statement, connection)
    if text is None:
        return None
    return _remembered_commands_in(text) if len(text) <= LONGEST_REMEMBERED else _commands_in(text)


def _commands_in(sql: str) -> tuple[_Command, ...] | None:
    lowered = sql.lower()
    if not any(hint in lowered for hint in _HINTS):
        return ()
    commands = _commands_as_read(Text(sql))
    # Whether a backslash escapes in a plain string is for the session to say, and not for us.
    if "\\'" in sql and _commands_as_read(Text(sql, backslashes_escape=True)) != commands:
        return None
    return commands


def _commands_as_read(text: Text) -> tuple[_Command, ...] | None:
    if text.unreadable:
        return None
    found = [(str(command.lastgroup), command) for command in _COMMAND.finditer(text.plain)]
    if found and "atomic" in text.plain:
        # In the body of a function, statements end in semicolons, too.
        return None
    return tuple(_Command(kind, text.value(command[kind]) or "") for kind, command in found)


_remembered_commands_in = lru_cache(maxsize=256)(_commands_in)


# What has to be the first statement of its transaction, and reads no setting; nothing may come after it in one string.
# In what the lexer makes of a text.
_FIRST = re.compile(
    r"[\s;]*set\s+(?:(?:local|session)\s+)?"
    r"(?:transaction\s|transaction_(?:isolation|read_only|deferrable)\b)[^;]*;?\s*",
    re.DOTALL,
)


def _must_come_first(statement: Any, connection: psycopg.Connection[Any]) -> bool:
    """Return whether a query ahead of *statement* would have the server refuse it."""
    text = None if statement is None else text_of(statement, connection)
    return text is not None and "transaction" in text.lower() and _FIRST.fullmatch(Text(text).plain) is not None

"""Settings of the code that runs: what its sessions are set to, and how long its statements may run."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import NotSupportedError, OperationalError, connections

from conn_hygiene import conf, internals
from conn_hygiene.scoping import Scope, is_on_event_loop
from conn_hygiene.sessions.lexer import folded
from conn_hygiene.transactions.errors import QUERY_CANCELED, sqlstate_of
from conn_hygiene.transactions.overrides import Block, Overrides, entered

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from typing_extensions import Self

    from conn_hygiene.using import Using


# ##### What both have in common #####


class _Settings(Scope):
    """A scope whose statements run under settings of its own."""

    lasts = True
    takes_arguments = True
    _entered = entered
    _wanted: Mapping[str, str | None]

    def __enter__(self) -> Self:
        self._refuse_event_loop()
        return super().__enter__()

    def _refuse_event_loop(self) -> None:
        if is_on_event_loop():
            raise SynchronousOnlyOperation(
                f"Use `async with {self.name}(...)`: queries run in another thread than this."
            )

    def _entry(self) -> Block:
        return Block(self, self._wanted, self._using, self._explain)

    def _explain(self, alias: str, exc: OperationalError, seconds: float) -> OperationalError | None:
        """Return the error to raise in the place of *exc*, if any, of a statement that ran for so many *seconds*."""
        return None

    def _wrappers(self) -> list[BaseDatabaseWrapper]:
        if self._using is None:
            return [wrapper for wrapper in connections.all() if wrapper.vendor == "postgresql"]
        return [connections[alias] for alias in self._using]

    def _begin(self, entry: Any) -> None:
        if not internals.TIMEOUTS.available:
            missing = ", ".join(internals.TIMEOUTS.missing)
            raise NotSupportedError(f"{self.name}() needs {missing}, which is missing.")
        wrappers = self._wrappers()
        for wrapper in wrappers:
            if wrapper.vendor != "postgresql":
                raise NotSupportedError(f"{self.name}() is for PostgreSQL, and {wrapper.alias!r} is another database.")
        for wrapper in wrappers:
            Overrides.of(wrapper).entered += 1

    def _end(self, entry: Any) -> None:
        # All of them, also if one raises.
        with ExitStack() as stack:
            for wrapper in self._wrappers():
                stack.callback(Overrides.of(wrapper).left, wrapper)


# ##### session_settings #####


def session_settings(settings: Mapping[str, str | float | bool | None], *, using: Using = None) -> _SessionSettings:
    """Run statements under settings of their own: a decorator, and a context manager for ``with`` and ``async with``.

    Any parameter that a session may set can be given: PostgreSQL's own, such as ``search_path`` or ``role``, and custom
    ones, such as ``app.tenant_id``. Values mean what they mean to ``set_config()`` (PostgreSQL documentation,
    "Configuration Settings Functions"), so that ``"tenant_7, public"`` is a list of two schemas. Of nested blocks
    the innermost counts, for each name. At the end of a block the values come back that were there before it. A custom
    parameter that was never set in the session comes back as the empty string, since PostgreSQL does not forget the
    name. If the code inside sets one of the names itself, that counts, until the block ends or gets another session.

    The settings are set with the first statement on each connection (outside of transactions) or in each transaction,
    all in one round trip, and taken back at the end in another. A block without statements costs no round trip. If the
    connection is given back in the middle of the block, they are taken back from it, and set on the next one before its
    first statement. If they cannot be set, the statement does not run, and raises the server's error.

    In async code they hold for the queries of the ORM, which run in the thread that ``sync_to_async`` takes for them.

    :param settings: names and values. A bool is sent as ``true`` or ``false``. None is the parameter's default, as in
        ``SET ... TO DEFAULT``.
    :param using: an alias of DATABASES, or several; by default all that are PostgreSQL's.
    :raises TypeError: *settings* is no mapping, a name is no string, a value is of another type, *using* is no alias,
        or what is decorated is not a function.
    :raises ValueError: PostgreSQL has no parameters of such a name, or cannot take such a value; or the name is that of
        a transaction's characteristic; or *using* names none.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    :raises django.core.exceptions.SynchronousOnlyOperation: at ``with``, in a thread that runs an event loop.
    :raises django.db.NotSupportedError: at ``with``, if an alias of *using* is not PostgreSQL's; at the first statement
        outside of a transaction, if the backend is one that the toolkit leaves alone, or if the toolkit is not
        installed: the settings would then stay in a session that other code gets.
    :raises django.db.Error: at the end of the block, if it was entered in a transaction that goes on, and the server
        refuses a value that was there before.
    """
    return _SessionSettings(settings, using)


class _SessionSettings(_Settings):
    name = "session_settings"

    def __init__(self, settings: Mapping[str, str | float | bool | None], using: Using) -> None:
        self._wanted = _checked(settings)
        super().__init__(using)

    def around_generator(self) -> Any:
        """Return what is entered for the whole life of a generator, whose consumer is under no settings of ours."""
        return _Lifetime(self)


class _Lifetime:
    """Has the connections ready for a scope that is entered step by step, and what it has set taken back at the end."""

    def __init__(self, scope: _Settings) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._scope._refuse_event_loop()
        self._scope._begin(None)

    def __exit__(self, *exc_info: object) -> None:
        self._scope._end(None)

    async def __aenter__(self) -> None:
        await sync_to_async(self._scope._begin)(None)

    async def __aexit__(self, *exc_info: object) -> None:
        # For the same reason as the scope's own.
        await asyncio.shield(sync_to_async(self._scope._end)(None))


# PostgreSQL's rule for custom parameters (valid_custom_variable_name() in its guc.c), which its own names follow.
_PART = r"(?:[A-Za-z_]|[^\x00-\x7f])(?:[A-Za-z0-9_$]|[^\x00-\x7f])*"
_NAME = re.compile(rf"{_PART}(?:\.{_PART})*")

# What begins with a transaction and ends with it. They could not be taken back.
_OF_TRANSACTIONS = frozenset({"transaction_isolation", "transaction_read_only", "transaction_deferrable", "seed"})


def _checked(settings: Any) -> dict[str, str | None]:
    """Return *settings* by names as PostgreSQL compares them, with values as it takes them."""
    if not isinstance(settings, Mapping):
        raise TypeError(f"session_settings() takes a mapping of names to values, not {settings!r}.")
    checked: dict[str, str | None] = {}
    for given, value in settings.items():
        name = _checked_name(given)
        if name in checked:
            raise ValueError(f"session_settings() got {given!r} twice: PostgreSQL's names have no case.")
        checked[name] = _checked_value(name, value)
    if "session_authorization" in checked:
        # The server sets it, and would not take it back.
        checked.setdefault("role", "none")
    return checked


def _checked_name(given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError(f"session_settings() takes names that are strings, not {given!r}.")
    if not _NAME.fullmatch(given):
        raise ValueError(
            f"session_settings() takes names such as 'search_path' or 'app.tenant_id', and {given!r} is not one: "
            "letters, digits, _ and $, with dots in between."
        )
    name = folded(given)
    if name in _OF_TRANSACTIONS:
        raise ValueError(f"session_settings() cannot set {name!r}, which cannot be taken back.")
    return name


def _checked_value(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    # Of an enum's member, say, the plain value.
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"session_settings() cannot set {name!r} to {value!r}.")
        return float.__repr__(value)
    if not isinstance(value, str):
        raise TypeError(f"session_settings() takes strings, numbers, True, False and None; {name!r} is {value!r}.")
    if "\0" in value:
        raise ValueError(f"session_settings() cannot set {name!r} to a string with a NUL character.")
    return str.__str__(value)


# ##### query_timeout #####


class QueryTimeout(OperationalError):
    """A statement ran longer than the :func:`~conn_hygiene.query_timeout` around it allows.

    The ``__cause__`` is psycopg's error.
    """

    #: The limit, in seconds.
    seconds: float


def query_timeout(seconds: float, *, using: Using = None) -> _QueryTimeout:
    """Limit how long each statement may run: a decorator, and a context manager for ``with`` and ``async with``.

    The limit is PostgreSQL's ``statement_timeout``. It takes the place of the one in the settings or on the server,
    be that longer or shorter; of nested limits the innermost counts, and the outer one comes back after it. A statement
    that runs longer is ended by the server, and raises :exc:`~conn_hygiene.QueryTimeout`.

    The limit is set and taken back as :func:`~conn_hygiene.session_settings` does with any setting: with the first
    statement on each connection (outside of transactions) or in each transaction, which costs a round trip, and at the
    end, which costs another one. A block without statements costs none. The limit holds for no code outside of the
    block, whichever connection that uses.

    In async code it holds for the queries of the ORM, which run in the thread that ``sync_to_async`` takes for them.

    :param seconds: for each statement, above 0. The server counts whole milliseconds; fractions are rounded up.
    :param using: an alias of DATABASES, or several; by default all that are PostgreSQL's.
    :raises TypeError: *seconds* is no number, *using* is no alias, or what is decorated is not a function.
    :raises ValueError: *seconds* is 0 or less, or more than the server can count; or *using* names none.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    :raises django.core.exceptions.SynchronousOnlyOperation: at ``with``, in a thread that runs an event loop.
    :raises django.db.NotSupportedError: at ``with``, if an alias of *using* is not PostgreSQL's; at the first statement
        outside of a transaction, if the backend is one that the toolkit leaves alone, or if the toolkit is not
        installed: the limit would then stay in a session that other code gets.
    """
    return _QueryTimeout(seconds, using)


# PostgreSQL's integer parameters end here.
_MOST = 2**31 - 1


class _QueryTimeout(_Settings):
    name = "query_timeout"

    def __init__(self, seconds: float, using: Using) -> None:
        if not conf.is_number(seconds):
            raise TypeError(f"query_timeout() takes a number of seconds, not {seconds!r}.")
        # Said this way round, NaN is out as well.
        if not 0 < seconds * 1000 <= _MOST:
            raise ValueError(f"query_timeout() takes seconds above 0 and up to {_MOST // 1000}, not {seconds!r}.")
        super().__init__(using)
        self._milliseconds = math.ceil(seconds * 1000)
        self._wanted = {"statement_timeout": str(self._milliseconds)}

    def _explain(self, alias: str, exc: OperationalError, seconds: float) -> QueryTimeout | None:
        if not _is_timeout(exc, seconds, self._milliseconds):
            return None
        limit = self._milliseconds / 1000
        told = QueryTimeout(f"A statement on {alias!r} ran longer than the {limit:g} s that query_timeout() allows.")
        told.seconds = limit
        return told


def _is_timeout(exc: OperationalError, elapsed: float, limit: int) -> bool:
    """Return whether *exc* came from our own limit: the same SQLSTATE comes from ``pg_cancel_backend()``.

    The server tells them apart in the text of the message alone, which may be in any language; so the clock decides
    where it can.
    """
    if sqlstate_of(exc) != QUERY_CANCELED or elapsed * 1000 < limit * _CLOCKS:
        return False
    return "user request" not in str(exc)


# The server's clock and ours may differ by this.
_CLOCKS = 0.99

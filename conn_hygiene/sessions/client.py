"""What psycopg keeps on its own side of a connection, of which the server knows nothing.

Whoever has a pooled connection may set a row factory, register a loader, add a handler. psycopg_pool hands all of it to
the next. So what the pool has given out is remembered once for each connection, on it, and put back at each return.

Backends and receivers of ``connection_created`` set much of it anew at each checkout, some on top of what they find
there (django-prometheus wraps ``cursor_factory``): they find what the pool has given out.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from copy import copy
from dis import get_instructions, opmap
from functools import lru_cache
from inspect import unwrap
from operator import attrgetter, itemgetter
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from psycopg.adapt import AdaptersMap

from conn_hygiene import internals
from conn_hygiene.interruptions import is_of_handler

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

logger = logging.getLogger("conn_hygiene.pools")

# What look() compares, by what it is called in a reason. The first are for anybody to set. The next have public
# counterparts, which take psycopg's lock and refuse inside of a transaction; what is set here is for the next one. The
# last are contexts, which nobody but who has entered them can leave.
_SETTINGS = ("prepare_threshold", "prepared_max", "row_factory", "cursor_factory", "server_cursor_factory")
_CHARACTERISTICS = ("_isolation_level", "_read_only", "_deferrable")
_CONTEXTS = {"_tpc": "two-phase transaction", "_pipeline": "pipeline", "_num_transactions": "transaction()"}
_FACTORY = _SETTINGS.index("cursor_factory")
_CALLED = (*_SETTINGS, *["transaction characteristics"] * len(_CHARACTERISTICS), *_CONTEXTS.values())

_public = attrgetter(*_SETTINGS, "isolation_level", "read_only", "deferrable")
_contexts = attrgetter(*_CONTEXTS)
# Out of the connection's dictionary, and without a call of a property: a connection is looked at in each cycle of
# checkout and return.
_prepared_settings = attrgetter(*_SETTINGS[:2])
_of_dictionary = itemgetter(*_SETTINGS[2:], *_CHARACTERISTICS, *_CONTEXTS)
_of_class = attrgetter(*[f"_prepared.{name}" for name in _SETTINGS[:2]], *_SETTINGS[2:], *_CHARACTERISTICS, *_CONTEXTS)


def _attributes(connection: psycopg.Connection[Any]) -> tuple[Any, ...]:
    kept = connection.__dict__
    try:
        # Both are tuples.
        return _prepared_settings(kept["_prepared"]) + _of_dictionary(kept)  # type: ignore[no-any-return]
    except KeyError:
        # Of a class that has a property for one.
        return _of_class(connection)


# Not there before psycopg 3.2.4. None while a generator reads it.
_BACKLOG = "_notifies_backlog"
_HANDLERS = ("_notice_handlers", "_notify_handlers")
# What is registered of an AdaptersMap is in dictionaries, which are compared by identity first.
_MAPPINGS = ("_loaders", "_dumpers_by_oid", "_dumpers", "types._registry")
_mappings = attrgetter(*_MAPPINGS)
_handlers = itemgetter(*_HANDLERS)
# Where a connection keeps what its pool has given out, and how all begins that the toolkit keeps there.
_GIVEN = "_conn_hygiene_given"
_OURS = "_conn_hygiene"


class Look:
    """What psycopg keeps of a connection at one time."""

    __slots__ = ("_handlers", "_mappings", "_seen", "adapters", "attributes", "backlog", "notice", "notify")

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.attributes = self._seen = _attributes(connection)
        self.notice = connection._notice_handlers.copy()
        self.notify = connection._notify_handlers.copy()
        self.backlog = copy(connection.__dict__.get(_BACKLOG))
        self.adapters: AdaptersMap | None = None
        if connection._adapters is not None:
            # Copies are copy-on-write: whatever is registered from here on leaves this one, and what it is made of, as
            # it is.
            self.adapters = AdaptersMap(connection._adapters)
        self._handlers = (self.notice, self.notify)
        self._mappings = None if self.adapters is None else _mappings(self.adapters)

    def is_still_true(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether nothing of *connection* has changed. Mostly by identity, which takes a microsecond."""
        try:
            attributes, kept = _attributes(connection), connection.__dict__
            if attributes not in (self._seen, self.attributes):
                return False
            if attributes[_FACTORY] is not self._seen[_FACTORY]:
                # Equal, but not the same: a class that stands for another one, which it takes Python code to tell.
                self._seen = attributes
            adapters = kept["_adapters"]
            if (adapters if adapters is None else _mappings(adapters)) != self._mappings:
                return False
            return bool(_handlers(kept) == self._handlers and kept.get(_BACKLOG) == self.backlog)
        except (AttributeError, KeyError):
            # What they were read from is not there any more.
            return False
        except Exception as error:
            # What the application has set there may mind being compared.
            if is_of_handler(error):
                raise
            return False

    def has_adapters_of(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether the loaders, dumpers and types of *connection* are what they were."""
        adapters = connection._adapters
        if adapters is None or self.adapters is None:
            return adapters is self.adapters
        return bool(_mappings(adapters) == _mappings(self.adapters))

    def changed(self, connection: psycopg.Connection[Any]) -> Iterator[str]:
        """Yield what has changed, as reasons are called."""
        for name, old, new in zip(_CALLED, self.attributes, _attributes(connection), strict=True):
            if old != new:
                yield name
        if connection._notice_handlers != self.notice:
            yield "notice handlers"
        if connection._notify_handlers != self.notify:
            yield "notify handlers"
        if connection.__dict__.get(_BACKLOG) != self.backlog:
            yield "notifications"
        if not self.has_adapters_of(connection):
            yield "adapters"


class Given:
    """What a pool gives out."""

    __slots__ = ("autocommit", "look", "names", "public", "size", "wrapped")

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.public = _public(connection)
        self.look: Look | None = None
        if internals.CLIENT.available:
            self.look = Look(connection)
            self.autocommit = connection._autocommit
        attributes = connection.__dict__
        #: The names of its attributes.
        self.names = frozenset(attributes)
        #: How many it had when nobody else's was left; not known yet.
        self.size = -1
        #: Those that are in the place of methods, as instrumentation puts them there when it opens the connection.
        self.wrapped = {
            name: attributes[name] for name in attributes if callable(getattr(type(connection), name, None))
        }


def remember(connection: psycopg.Connection[Any]) -> None:
    """Remember what *connection* is like, unless that was done before. Before anybody has set anything, that is."""
    if _GIVEN not in connection.__dict__:
        # The first connection of all may come before anybody has looked for the names that it has.
        with suppress(AttributeError):
            connection.__dict__[_GIVEN] = Given(connection)


def look(connection: psycopg.Connection[Any]) -> Look | None:
    """Return what psycopg keeps of *connection* now, for :func:`changed`; None where that cannot be known."""
    if not internals.CLIENT.available:
        return None
    given: Given | None = connection.__dict__.get(_GIVEN)
    if given is not None and given.look is not None and given.look.is_still_true(connection):
        return given.look
    return Look(connection)


def given_look(connection: psycopg.Connection[Any]) -> Look | None:
    """Return what the pool of *connection* gives out, as :func:`look` has it; None where that is not known."""
    given: Given | None = connection.__dict__.get(_GIVEN)
    return None if given is None else given.look


def changed(connection: psycopg.Connection[Any], before: Look | None) -> list[str]:
    """Return what of *connection* differs from what :func:`look` has returned *before*, as reasons are called."""
    if before is None or not internals.CLIENT.available or before.is_still_true(connection):
        return []
    return [f"{name} of the psycopg connection" for name in dict.fromkeys(before.changed(connection))]


def restore(connection: psycopg.Connection[Any]) -> bool:
    """Put *connection* back to what its pool has given out; return False if that cannot be, and it is to be closed.

    Asks nothing of the server, waits for nobody, and raises only what a signal handler does. Nothing that anybody else
    has set stays, in any attribute: who has noted there that a loader is registered would not register it again.
    """
    given: Given | None = connection.__dict__.get(_GIVEN)
    if given is None or connection.closed:
        return True
    try:
        if given.look is None or not internals.CLIENT.available:
            return bool(_public(connection) == given.public)
        if (
            given.look.is_still_true(connection)
            and connection._autocommit == given.autocommit
            and len(connection.__dict__) == given.size
        ):
            return True
        return _restore(connection, given, given.look)
    except Exception as error:
        if is_of_handler(error):
            raise
        logger.info("What was set on a psycopg connection could not be undone; it is closed.", exc_info=True)
        return False


def has_nothing_new(connection: psycopg.Connection[Any]) -> bool:
    """Return whether there is nothing to :func:`restore` for *connection*, whose :func:`given_look` is still true."""
    given: Given = connection.__dict__[_GIVEN]
    return connection._autocommit == given.autocommit and len(connection.__dict__) == given.size


def _restore(connection: psycopg.Connection[Any], given: Given, look: Look) -> bool:
    backlog = connection.__dict__.get(_BACKLOG)
    # A generator that somebody has left has the notifications, and will put them back when it is collected.
    if (backlog is None and look.backlog is not None) or _contexts(connection) != look.attributes[-len(_CONTEXTS) :]:
        return False
    if backlog:
        backlog.clear()
    for name, value in zip((*_SETTINGS, *_CHARACTERISTICS), given.public, strict=True):
        setattr(connection, name, value)
    # Made from the characteristics when it is first needed.
    connection._begin_statement = b""
    connection._autocommit = given.autocommit
    connection._notice_handlers[:] = look.notice
    connection._notify_handlers[:] = look.notify
    if not look.has_adapters_of(connection):
        # Another one each time: who has kept it may register something yet.
        connection._adapters = None if look.adapters is None else AdaptersMap(look.adapters)
    _delete_attributes_of_others(connection, given)
    # Where something was put in the place of methods, something else may be there now, which no number tells.
    connection.__dict__.update(given.wrapped)
    given.size = -1 if given.wrapped else len(connection.__dict__)
    return True


def _delete_attributes_of_others(connection: psycopg.Connection[Any], given: Given) -> None:
    added = [name for name in connection.__dict__ if name not in given.names and not name.startswith(_OURS)]
    if added:
        classes: tuple[Any, ...] = (type(connection), type(getattr(connection, "_pool", None)))
        own = _kept_by(*classes)
        for name in added:
            if name not in own:
                del connection.__dict__[name]


@lru_cache(maxsize=64)
def _kept_by(cls: Any, pool: Any) -> frozenset[str]:
    """Return the names of all attributes that connections of *cls* set on themselves, and their *pool*'s class on them.

    What is in the place of a method is none of these: it is there to do something else than that.
    """
    kept = _stored_by(cls, on_self=True) | _stored_by(pool, on_self=False)
    for each in reversed(cls.__mro__):
        for name, value in vars(each).items():
            if type(value).__name__ == "cached_property":
                kept.add(name)
            elif isinstance(value, _METHODS):
                kept.discard(name)
    return frozenset(kept)


_METHODS = (FunctionType, classmethod, staticmethod)


def _stored_by(cls: Any, *, on_self: bool) -> set[str]:
    """Return the names of the attributes that methods of *cls* store: on themselves, or else on what is not."""
    functions = (function for each in cls.__mro__ for value in vars(each).values() for function in _functions(value))
    return {
        name
        for function in functions
        for name, owner in _stores(function.__code__)
        if owner is None or (owner == "self") == on_self
    }


def _stores(code: CodeType) -> Iterator[tuple[str, str | None]]:
    """Yield the names of the attributes that *code* stores, and of what each belongs to; None if that is not simple."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _stores(each)
    if _STORE_ATTR not in code.co_code[::2]:
        return
    before: Any = None
    for instruction in get_instructions(code):
        if instruction.opcode == _STORE_ATTR:
            # What it belongs to was loaded right before, by an instruction that may load two.
            loaded = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
            yield instruction.argval, loaded if isinstance(loaded, str) else None
        before = instruction


_STORE_ATTR = opmap["STORE_ATTR"]


def _functions(value: Any) -> Iterator[Any]:
    for each in (value, getattr(value, "__func__", None), getattr(value, "fget", None), getattr(value, "fset", None)):
        function = unwrap(each) if callable(each) else None
        if hasattr(function, "__code__"):
            yield function


def prepared(connection: psycopg.Connection[Any]) -> int:
    """Return how many statements psycopg believes to be prepared on the server; -1 if it is about to drop some."""
    return -1 if connection._prepared._to_flush else len(connection._prepared._names)


def forget_prepared(connection: psycopg.Connection[Any]) -> None:
    """Have psycopg believe no more in the statements that it has prepared, since the server has just dropped them all.

    Called after ``DISCARD ALL`` or ``DEALLOCATE ALL``, which psycopg notices in some cases only; sends nothing. Where
    :data:`conn_hygiene.internals.CLEANING` is off, it cannot be.
    """
    connection._prepared.clear()
    # What is due to be deallocated, of which nothing is there any more.
    connection._prepared._to_flush.clear()

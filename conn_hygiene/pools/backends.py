"""Which database backends are understood, and what is said of those that are not.

Giving back goes past a backend's own ``close()``, which runs when Django or the application calls it, and then only.
That is right for one that keeps books beside the connection, as those for tenants do, and wrong for one that has a pool
of its own behind it: its connections would be closed one by one.
"""

from __future__ import annotations

import threading
from inspect import unwrap
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper

from conn_hygiene import internals
from conn_hygiene.pools import sqlalchemy
from conn_hygiene.sessions import connect_options

if TYPE_CHECKING:
    from collections.abc import Iterator

load_backend: Any = internals.imported("django.db.utils", "load_backend")

# Packages whose backends have pools of their own, which OPTIONS does not tell.
_POOLED = frozenset({sqlalchemy.PACKAGE, "django_db_geventpool", "django_pg_real_pool"})

# What was said in this process, by alias and ENGINE: an alias may get another one in tests.
_left_alone: dict[tuple[str, str], str] = {}
_lock = threading.RLock()


def has_own_close(cls: type[BaseDatabaseWrapper]) -> bool:
    """Return whether *cls*, which is a backend's own, has a ``close()`` that is not Django's."""
    return next(_own_closes(cls), None) is not None


def refusal_of(cls: type[BaseDatabaseWrapper]) -> str | None:
    """Return why wrappers of *cls* are left alone; None if they are not, as far as their class tells."""
    if not issubclass(cls, PostgreSQLWrapper):
        return "its class is not made from Django's PostgreSQL backend"
    if cls._close is not PostgreSQLWrapper._close:  # type: ignore[attr-defined]
        return f"{_owner_of('_close', cls)} replaces _close(), and with it the way back to the pool"
    if sqlalchemy.is_backend(cls) and not sqlalchemy.is_known():
        return "its connections are SQLAlchemy's, of a release that is not known here"
    for base in _own_closes(cls):
        if not _goes_on_to_super(base):
            return f"close() of {_named(base)} does not call super().close(), as far as can be seen"
    return None


def refusal(wrapper: BaseDatabaseWrapper) -> str | None:
    """Return why *wrapper*, which is connected, is left alone; None if giving back is known to be safe for it."""
    reason = refusal_of(type(wrapper))
    if reason is None and sqlalchemy.driver_connection(wrapper.connection) is None:
        return f"its connections are no psycopg connections, but {_named(type(wrapper.connection))}"
    return reason


def why_left_alone(alias: str) -> str | None:
    """Return why *alias*, which is on PostgreSQL, is left alone, by its backend and by what this process has seen."""
    if not internals.LEASES.available:
        return None
    engine = connections.settings[alias]["ENGINE"]
    try:
        cls = load_backend(engine).DatabaseWrapper
    except ImproperlyConfigured:
        return None
    return refusal_of(cls) or _left_alone.get((alias, engine))


def has_pool(alias: str) -> bool:
    """Return whether connections of *alias* come out of a pool, be it Django's or the backend's own."""
    if connect_options.options_written(alias).get("pool"):
        return True
    try:
        cls = load_backend(connections.settings[alias]["ENGINE"]).DatabaseWrapper
    except ImproperlyConfigured:
        return False
    return _has_own_pool(cls)


def makes_djangos_pool(alias: str) -> bool:
    """Return whether it is Django that makes the pool of *alias*, if ``OPTIONS`` has it make one."""
    try:
        cls = load_backend(connections.settings[alias]["ENGINE"]).DatabaseWrapper
    except ImproperlyConfigured:
        return False
    djangos = getattr(PostgreSQLWrapper, "pool", None)
    return djangos is not None and getattr(cls, "pool", None) is djangos and not _has_own_pool(cls)


def _has_own_pool(cls: type[BaseDatabaseWrapper]) -> bool:
    return any(base.__module__.partition(".")[0] in _POOLED for base in cls.__mro__)


def on_postgresql() -> list[str]:
    """Return the aliases of DATABASES whose backends are PostgreSQL's, in their order there; makes no wrapper."""
    if not (settings.configured and internals.CONNECT_OPTIONS.available):
        return []
    return [alias for alias in connections.settings if connect_options.is_postgresql(alias)]


def leave_alone(alias: str, engine: str, reason: str) -> bool:
    """Take note that *alias* is left alone; return whether that is the first time in this process."""
    here = (alias, engine)
    # Of two threads that come at the same time, one counts.
    with _lock:
        if here in _left_alone:
            return False
        _left_alone[here] = reason
        return True


def reset() -> None:
    """Forget what was said: nobody has told a forked child, nor whoever installs the toolkit again."""
    global _lock  # noqa: PLW0603 - another thread may have held it at a fork
    _lock = threading.RLock()
    _left_alone.clear()


def _own_closes(cls: type[BaseDatabaseWrapper]) -> Iterator[type[Any]]:
    """Yield the classes of which *cls* is made that have a ``close()`` of their own, first those that run first."""
    djangos = unwrap(BaseDatabaseWrapper.close)
    for base in cls.__mro__:
        # Instrumentation may have put something around Django's, which is none of the backend's.
        if "close" in base.__dict__ and unwrap(base.__dict__["close"]) is not djangos:
            yield base


def _goes_on_to_super(cls: type[Any]) -> bool:
    code = getattr(unwrap(cls.__dict__["close"]), "__code__", None)
    return code is not None and {"super", "close"} <= set(code.co_names)


def _owner_of(name: str, cls: type[Any]) -> str:
    return next(_named(base) for base in cls.__mro__ if name in base.__dict__)


def _named(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

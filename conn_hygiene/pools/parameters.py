"""A pool's connection parameters, asked of the backend anew for each new connection.

A backend may put a token for a password into ``get_connection_params()``, which is good for minutes: RDS IAM, Microsoft
Entra, Vault. Django asks it once, when it makes the pool, whose connections after that are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, KeysView, MutableMapping
from time import monotonic
from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper

from conn_hygiene import internals
from conn_hygiene.interruptions import is_of_handler

logger = logging.getLogger("conn_hygiene.pools")

#: Seconds for which what the backend has said serves for further connections, which a pool often opens together.
GOOD_FOR = 1.0


class Parameters(MutableMapping[str, Any]):
    """The ``kwargs`` of a pool, which are asked of a backend when they are about to be used.

    psycopg_pool unpacks them, or copies them first. What somebody else puts there goes over what the backend says.
    """

    def __init__(self, backend: PostgreSQLWrapper, kwargs: dict[str, Any]) -> None:
        self.backend = backend
        #: What Django gave to the pool.
        self.first = kwargs
        self._put: dict[str, Any] = {}
        # Replaced whole: several threads of the pool may be here, and each then asks for itself.
        self._current = kwargs
        # Those that the pool was made with are of that moment.
        self._asked_at = monotonic()

    def _renew(self) -> None:
        if monotonic() - self._asked_at < GOOD_FOR:
            return
        try:
            asked = dict(self.backend.get_connection_params())
        except Exception as error:
            if is_of_handler(error):
                raise
            # The old ones may do, and plain Django would go on with them; if not, the pool says so, and tries again.
            logger.exception("Connection parameters of %r were not renewed.", self.backend.alias)
            return
        # As Django does when it makes a pool. That stays one of one database, whatever the thread is asked for.
        asked["autocommit"] = True
        if "dbname" in self.first:
            asked["dbname"] = self.first["dbname"]
        self._current = {**asked, **self._put}
        self._asked_at = monotonic()

    def keys(self) -> KeysView[str]:
        """Return the keys of what is in force now, having asked the backend: unpacking begins with this."""
        self._renew()
        return self._current.keys()

    def copy(self) -> dict[str, Any]:
        """Return what is in force now, having asked the backend."""
        self._renew()
        return dict(self._current)

    def __getitem__(self, key: str) -> Any:
        return self._current[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._put[key] = value
        self._current = {**self._current, key: value}

    def __delitem__(self, key: str) -> None:
        self._put.pop(key, None)
        self._current = {name: value for name, value in self._current.items() if name != key}

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)


def watch(pool: Any, backend: Any) -> None:
    """Have *pool* ask *backend* for the parameters of each new connection, if they are not simply Django's.

    *backend* is the wrapper that Django has made the pool with, and that configures its connections.
    """
    kwargs = getattr(pool, "kwargs", None)
    # Where it is a function, somebody has seen to it.
    if not internals.PARAMETERS.available or type(kwargs) is not dict:
        return
    if isinstance(backend, PostgreSQLWrapper) and _has_own_parameters(backend):
        pool.kwargs = Parameters(backend, kwargs)


def unwatch(pool: Any) -> None:
    """Give *pool* what it was made with."""
    kwargs = getattr(pool, "kwargs", None)
    if isinstance(kwargs, Parameters):
        pool.kwargs = kwargs.first


def _has_own_parameters(backend: PostgreSQLWrapper) -> bool:
    return type(backend).get_connection_params is not PostgreSQLWrapper.get_connection_params

"""Connection hygiene for Django on PostgreSQL, without replacing the database backend."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# Nothing else may be imported here: a server's config file is read before the server patches threading for gevent or
# eventlet, and what is imported by then keeps real locks, queues and thread-locals. Django does, for one.
from conn_hygiene import home as _home  # noqa: F401 - takes note of the process

if TYPE_CHECKING:
    from conn_hygiene.public import (
        Histogram,
        Histograms,
        LeaseInfo,
        PoolInfo,
        Process,
        QueryTimeout,
        Stats,
        close_all_after_fork,
        close_all_before_fork,
        closing_connections,
        histograms,
        histograms_by_alias,
        hold_connection,
        install,
        pool_stats,
        processes,
        query_timeout,
        release_between_queries,
        release_connections,
        reset_connections,
        retry_transaction,
        session_settings,
        snapshot,
        stats,
        stats_by_alias,
        uninstall,
    )

__version__ = "0.1.0"

__all__ = [
    "Histogram",
    "Histograms",
    "LeaseInfo",
    "PoolInfo",
    "Process",
    "QueryTimeout",
    "Stats",
    "close_all_after_fork",
    "close_all_before_fork",
    "closing_connections",
    "histograms",
    "histograms_by_alias",
    "hold_connection",
    "install",
    "pool_stats",
    "processes",
    "query_timeout",
    "release_between_queries",
    "release_connections",
    "reset_connections",
    "retry_transaction",
    "session_settings",
    "snapshot",
    "stats",
    "stats_by_alias",
    "uninstall",
]


# To a type checker, there is no name but those above.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            public = import_module("conn_hygiene.public")
            globals().update((each, getattr(public, each)) for each in __all__)
            return globals()[name]
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

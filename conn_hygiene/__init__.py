"""Connection hygiene for Django on PostgreSQL, without replacing the database backend."""

from __future__ import annotations

from conn_hygiene.activity import LeaseInfo, Stats, snapshot, stats
from conn_hygiene.forks import close_all_after_fork, close_all_before_fork
from conn_hygiene.installation import install, uninstall
from conn_hygiene.scopes import (
    closing_connections,
    hold_connection,
    release_between_queries,
    release_connections,
    reset_connections,
)

__version__ = "0.1.0"

__all__ = [
    "LeaseInfo",
    "Stats",
    "close_all_after_fork",
    "close_all_before_fork",
    "closing_connections",
    "hold_connection",
    "install",
    "release_between_queries",
    "release_connections",
    "reset_connections",
    "snapshot",
    "stats",
    "uninstall",
]

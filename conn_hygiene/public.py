"""The public names, all of them in one place. Imported when the first of them is used: see the package itself."""

from __future__ import annotations

from conn_hygiene.forks.hooks import close_all_after_fork, close_all_before_fork
from conn_hygiene.installation import install, uninstall
from conn_hygiene.reports.live import Process, processes
from conn_hygiene.reports.snapshot import (
    Histogram,
    Histograms,
    LeaseInfo,
    PoolInfo,
    Stats,
    histograms,
    histograms_by_alias,
    pool_stats,
    snapshot,
    stats,
    stats_by_alias,
)
from conn_hygiene.scopes import (
    closing_connections,
    hold_connection,
    release_between_queries,
    release_connections,
    reset_connections,
)
from conn_hygiene.transactions.retry import retry_transaction
from conn_hygiene.transactions.settings import QueryTimeout, query_timeout, session_settings

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

"""System checks: what is wrong with ``CONN_HYGIENE``, and what keeps the toolkit from helping.

Errors: E001 not a dict, E002 unknown key, E003 wrong value, E004 a pool with persistent connections, E005 a pool
without psycopg_pool. Warnings: W001 releasing with ATOMIC_REQUESTS, W002 the middleware is not outermost enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from conn_hygiene import conf

_RELEASING = (
    "conn_hygiene.middleware.ConnectionHygieneMiddleware",
    "conn_hygiene.middleware.ReleaseBetweenQueriesMiddleware",
)
_OURS = (*_RELEASING, "conn_hygiene.middleware.IdleInTransactionMiddleware")

# Middleware that do not query, and that have reasons of their own to be first.
_MAY_BE_OUTSIDE = ("django.middleware.security.SecurityMiddleware", "whitenoise.middleware.WhiteNoiseMiddleware")

AppConfigs = Sequence[AppConfig] | None


def register() -> None:
    """Register the checks with Django; registering twice is the same as once."""
    for check in (check_setting, check_databases, check_middleware):
        # All of them read settings only, the databases' too: they need no connection and no --database.
        checks.register(check, checks.Tags.compatibility)


def check_setting(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report unknown keys and wrong values in ``CONN_HYGIENE`` (E001 to E003)."""
    values = getattr(settings, "CONN_HYGIENE", {})
    return [checks.Error(problem.message, hint=problem.hint, id=problem.id) for problem in conf.problems(values)]


def check_databases(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report pools that cannot work (E004, E005), and aliases on which nothing can be released (W001)."""
    messages: list[checks.CheckMessage] = []
    for alias, options in connections.settings.items():
        if not _is_postgresql(alias):
            continue
        if options.get("OPTIONS", {}).get("pool"):
            messages += _check_pool(alias, options)
        if _releasing() and options.get("ATOMIC_REQUESTS"):
            messages.append(_atomic_requests(alias))
    return messages


def _is_postgresql(alias: str) -> bool:
    # Others have options of the same names: Oracle a pool, SQLite ATOMIC_REQUESTS.
    try:
        return connections[alias].vendor == "postgresql"
    except ImproperlyConfigured:
        # There is no such backend here, which Django says best itself.
        return False


def _check_pool(alias: str, options: dict[str, Any]) -> list[checks.CheckMessage]:
    messages: list[checks.CheckMessage] = []
    if options.get("CONN_MAX_AGE", 0) != 0:
        messages.append(
            checks.Error(
                f"DATABASES[{alias!r}] has a pool and CONN_MAX_AGE = {options['CONN_MAX_AGE']!r}.",
                hint="Remove CONN_MAX_AGE: with a pool, connections live in the pool and Django allows 0 only.",
                id="conn_hygiene.E004",
            )
        )
    if find_spec("psycopg_pool") is None:
        messages.append(
            checks.Error(
                f"DATABASES[{alias!r}] has a pool, but psycopg_pool is not installed.",
                hint='Install it with: pip install "psycopg[binary,pool]".',
                id="conn_hygiene.E005",
            )
        )
    return messages


def _atomic_requests(alias: str) -> checks.CheckMessage:
    return checks.Warning(
        f"DATABASES[{alias!r}] has ATOMIC_REQUESTS, so nothing can be released there between queries.",
        hint="Each view runs in one transaction, which needs its connection to the end. Put atomic() around what has "
        "to be one, or exempt slow views with @transaction.non_atomic_requests.",
        id="conn_hygiene.W001",
    )


def check_middleware(app_configs: AppConfigs = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report middleware that queries outside of ours (W002)."""
    messages: list[checks.CheckMessage] = []
    middleware = list(settings.MIDDLEWARE or ())
    ours = next((path for path in middleware if path in _RELEASING), None)
    if ours is not None:
        outside = [path for path in middleware[: middleware.index(ours)] if path not in (*_MAY_BE_OUTSIDE, *_OURS)]
        if outside:
            messages.append(
                checks.Warning(
                    f"{ours} comes after {', '.join(outside)} in MIDDLEWARE, so it does not cover them.",
                    hint="Put it first, or right behind SecurityMiddleware: a query outside of it holds a connection "
                    "for the whole request.",
                    id="conn_hygiene.W002",
                )
            )
    return messages


def _releasing() -> bool:
    if conf.current.RELEASE == "never":
        return False
    return conf.current.RELEASE == "always" or any(path in _RELEASING for path in settings.MIDDLEWARE or ())

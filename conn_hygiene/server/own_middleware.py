"""Which entries of ``MIDDLEWARE`` are the toolkit's: its own classes, and those that a site has made from them."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string

from conn_hygiene.interruptions import is_of_handler

#: The one that does the work of all, and the others.
WHOLE = "conn_hygiene.middleware.ConnectionHygieneMiddleware"
_RELEASING = "conn_hygiene.middleware.ReleaseBetweenQueriesMiddleware"
_OURS = (WHOLE, _RELEASING, "conn_hygiene.middleware.IdleInTransactionMiddleware")


def origin(path: str) -> str | None:
    """Return which of the toolkit's middleware *path* is, or is made from; None if it is neither."""
    if path in _OURS:
        return path
    found = _class(path)
    return next((ours for ours in _OURS if found is not None and issubclass(found, import_string(ours))), None)


def is_releasing(path: str) -> bool:
    """Return whether *path* is, or is made from, one of the toolkit's that gives back between queries."""
    if path in _OURS:
        return path in (WHOLE, _RELEASING)
    # Whoever makes one from ours may have given it a scope, or taken it away.
    return origin(path) is not None and getattr(_class(path), "scope", None) is not None


def _class(path: str) -> type[Any] | None:
    try:
        found = import_string(path)
    except Exception as error:
        # A server that starts says best what is wrong with it.
        if is_of_handler(error):
            raise
        return None
    return found if isinstance(found, type) else None

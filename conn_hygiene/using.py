"""What ``using`` may be, wherever it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db import connections

from conn_hygiene import internals

Using = str | Iterable[str] | None


def aliases(using: Any, name: str) -> frozenset[str] | None:
    """Return *using* as a set of aliases, None for all; *name* is who asks, for the messages."""
    if using is None:
        return None
    found = frozenset([using] if isinstance(using, str) or not isinstance(using, Iterable) else using)
    if not all(isinstance(alias, str) for alias in found):
        raise TypeError(f"{name}(using=...) takes an alias of DATABASES or several, not {using!r}.")
    if settings.configured and internals.CONNECT_OPTIONS.available:
        for alias in found:
            if alias not in connections.settings:
                known = ", ".join(map(repr, connections.settings))
                raise connections.exception_class(f"{name}: there is no connection {alias!r}. DATABASES has {known}.")
    return found

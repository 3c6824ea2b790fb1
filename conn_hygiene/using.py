"""What ``using`` may be, wherever it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

from conn_hygiene import internals

Using = str | Iterable[str] | None


def aliases(using: Any, name: str) -> frozenset[str] | None:
    """Return *using* as a set of aliases, None for all; *name* is who asks, for the messages.

    :raises TypeError: *using* is neither an alias nor several.
    :raises ValueError: it names none, or an empty one: a list that was filtered down to nothing must do neither nothing
        nor everything without a word.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    if using is None:
        return None
    # A mapping's keys may be aliases, as those of DATABASES are; what is meant by its values nobody knows.
    several = isinstance(using, Iterable) and not isinstance(using, (str, Mapping))
    found = tuple(using) if several else (using,)
    if not all(isinstance(alias, str) for alias in found):
        raise TypeError(f"{name}(using=...) takes an alias of DATABASES or several, not {using!r}.")
    if not all(found) or not found:
        raise ValueError(f"{name}(using={using!r}) names no alias. Leave it out for all of DATABASES.")
    _check(found, name)
    return frozenset(found)


def alias(using: Any, name: str) -> str:
    """Return *using*, which must be one alias; else as :func:`aliases`."""
    if not isinstance(using, str):
        raise TypeError(f"{name}(using=...) takes one alias of DATABASES, not {using!r}.")
    aliases(using, name)
    return using


def exempting(alias: str) -> str:
    """Return the decorator that exempts a view from ``ATOMIC_REQUESTS`` of *alias*, for messages.

    Django's bare one means the alias ``default``, and does nothing for any other.
    """
    argument = "" if alias == DEFAULT_DB_ALIAS else f"(using={alias!r})"
    return f"@transaction.non_atomic_requests{argument}"


def _check(found: Iterable[str], name: str) -> None:
    if not (settings.configured and internals.CONNECT_OPTIONS.available):
        return
    for alias in found:
        if alias not in connections.settings:
            known = ", ".join(map(repr, connections.settings))
            raise connections.exception_class(f"{name}: there is no connection {alias!r}. DATABASES has {known}.")

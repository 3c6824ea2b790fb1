"""What ``manage.py connections audit`` runs, with ``AUDIT_SESSIONS`` on: a project's own URLs, or its tests."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test import Client
from django.test.utils import override_settings
from django.urls import get_resolver
from django.urls.resolvers import RegexPattern

from conn_hygiene import events
from conn_hygiene.server import sessions as server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What makes a regular expression more than a text.
_SPECIAL = frozenset("()[]{}*+?.|\\")

# The host that Django's test client asks for.
_HOST = "testserver"


@contextlib.contextmanager
def audited() -> Iterator[list[events.UnseenState]]:
    """Audit all sessions of this process that are checked out inside; yield a list of what is found."""
    found: list[events.UnseenState] = []
    # The owner gives back and tells what is found there, so that all is in the list at the end.
    wanted = {**getattr(settings, "CONN_HYGIENE", {}), "AUDIT_SESSIONS": True, "RELEASE_AFTER": 0}
    # One that is checked out already is not audited.
    _close_all()
    events.listen(events.UnseenState, found.append)
    try:
        with override_settings(CONN_HYGIENE=wanted):
            yield found
            _close_all()
    finally:
        events.unlisten(events.UnseenState, found.append)


def _close_all() -> None:
    for alias in server.aliases():
        connections[alias].close()


def paths() -> list[str]:
    """Return the paths of the project's URLs that have no parameters, in the order of its URLconf."""
    return list(dict.fromkeys(f"/{route}" for route in _routes(get_resolver().url_patterns)))


def _routes(patterns: Iterable[Any]) -> Iterator[str]:
    for pattern in patterns:
        route = _text(pattern.pattern)
        if route is None:
            continue
        if hasattr(pattern, "url_patterns"):
            yield from (f"{route}{rest}" for rest in _routes(pattern.url_patterns))
        else:
            yield route


def _text(pattern: Any) -> str | None:
    """Return what is to be written where *pattern* is, or None if that has parameters."""
    text = str(pattern)
    if not isinstance(pattern, RegexPattern):
        # A route, or the prefix of a language.
        return None if "<" in text else text
    text = text.removeprefix("^").removesuffix("$").removesuffix("\\Z")
    return None if _SPECIAL & set(text) else text


def request(path: str) -> int:
    """Get *path* as Django's test client does, as nobody who is logged in; return the response's status."""
    client = Client(raise_request_exception=False)
    with override_settings(ALLOWED_HOSTS=[*settings.ALLOWED_HOSTS, _HOST]):
        # Of a project that redirects to HTTPS, the pages are there.
        response = client.get(path, secure=settings.SECURE_SSL_REDIRECT)
        if getattr(response, "streaming", False):
            b"".join(response)
        response.close()
    _close_all()
    return int(response.status_code)


def run_tests(labels: Iterable[str], **options: Any) -> bool:
    """Run the project's own tests, those of *labels* or all, in this process; return whether they passed."""
    try:
        call_command("test", *labels, **options)
    except SystemExit as error:
        return not error.code
    return True

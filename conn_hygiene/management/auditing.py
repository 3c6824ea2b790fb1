"""What ``manage.py connections audit`` runs, with ``AUDIT_SESSIONS`` on: a project's own URLs, or its tests."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock
from urllib.parse import SplitResult, parse_qsl, urlsplit

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.shortcuts import resolve_url
from django.test import Client
from django.test.runner import DiscoverRunner
from django.test.utils import get_runner, override_settings
from django.urls import NoReverseMatch, get_resolver
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
    written = getattr(settings, "CONN_HYGIENE", {})
    # What is no dictionary says nothing to the toolkit either, and the system check says that of it.
    values = written if isinstance(written, Mapping) else {}
    wanted = {**values, "AUDIT_SESSIONS": True, "RELEASE_AFTER": 0}
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


# Statuses of a response by which no view has done its work. A permanent redirect is what APPEND_SLASH answers.
_UNANSWERED = frozenset({301, 308, 400, 401, 403, 404, 405})
# Redirects of today, such as to a page to log in at.
_REDIRECTS = frozenset({302, 303, 307})


class Answer(NamedTuple):
    """What has come back from a path."""

    status: int
    #: Whether it sends whoever asks to log in, so that no view has run, or none to its end.
    to_login: bool

    @property
    def is_from_view(self) -> bool:
        """Whether a view has done its work, or has failed at it."""
        return self.status not in _UNANSWERED and not self.to_login

    @property
    def is_refused(self) -> bool:
        """Whether somebody who is logged in may get more."""
        return self.status in (401, 403) or self.to_login

    def __str__(self) -> str:
        return f"{self.status}, to log in" if self.to_login else str(self.status)


def request(path: str) -> Answer:
    """Get *path* as Django's test client does, as nobody who is logged in."""
    client = Client(raise_request_exception=False)
    with override_settings(ALLOWED_HOSTS=[*settings.ALLOWED_HOSTS, _HOST]):
        # Of a project that redirects to HTTPS, the pages are there.
        response = client.get(path, secure=settings.SECURE_SSL_REDIRECT)
        if getattr(response, "streaming", False):
            b"".join(response)
        response.close()
    _close_all()
    location = response.headers.get("Location", "") if response.status_code in _REDIRECTS else ""
    return Answer(int(response.status_code), bool(location) and _leads_to_login(path, location))


def _leads_to_login(path: str, location: str) -> bool:
    """Return whether *location* is LOGIN_URL, or is told the way back to *path*, as any other page to log in at is."""
    asked, where, login = _split(path), _split(location), None
    # One that is no URL, and the name of none, is nobody's to go to.
    with contextlib.suppress(NoReverseMatch, TypeError):
        login = _split(resolve_url(settings.LOGIN_URL))
    if login and login.path and where.path == login.path and login.netloc in ("", where.netloc):
        return True
    # The way back to the front page is found in other links, too.
    ways = [_split(value) for _, value in parse_qsl(where.query)]
    return asked.path != "/" and any((way.path, way.query) == (asked.path, asked.query) for way in ways)


def _split(url: str) -> SplitResult:
    """Return the parts of *url*; none of what is no URL."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def run_tests(labels: Iterable[str], **options: Any) -> str | None:
    """Run the project's own tests, those of *labels* or all, in this process.

    Returns what is to be said of them: that they failed, or that there were none; None if they passed.
    """
    with _counted() as counts:
        try:
            call_command("test", *labels, **options)
        except SystemExit as error:
            if error.code:
                return "The tests failed."
    return "Nothing was audited, since no test has run." if counts and not any(counts) else None


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """Yield a list of how many tests run inside, a number for each run of a runner that is derived from Django's."""
    runner, counts = get_runner(settings), []
    if not issubclass(runner, DiscoverRunner):
        yield counts
        return

    def suite_result(self: DiscoverRunner, suite: Any, result: Any, **options: Any) -> Any:
        counts.append(result.testsRun)
        return before(self, suite, result, **options)

    before = runner.suite_result
    # To Django, a run of no tests is one that has passed.
    with mock.patch.object(runner, "suite_result", suite_result):
        yield counts

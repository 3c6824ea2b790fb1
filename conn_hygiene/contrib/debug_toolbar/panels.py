"""The panel of django-debug-toolbar that shows a request's connections: held, in use, idle, and waited for.

It goes into ``DEBUG_TOOLBAR_PANELS``, and is on for as long as its box in the toolbar is ticked. A request without the
toolbar pays nothing for it.

What it shows is stored as numbers and texts (django-debug-toolbar's documentation, "Third-party panels"), so the
history panel can show another request's; the pictures are made of them when somebody looks. They are SVG with
presentation attributes and without a style, a script or an address, so no Content-Security-Policy keeps them from being
seen.
"""

from __future__ import annotations

import contextlib
import inspect
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.template import Context, Engine, Template

from conn_hygiene import installation, internals, scoping
from conn_hygiene.contrib.debug_toolbar import drawing
from conn_hygiene.contrib.extras import extra
from conn_hygiene.leases import usage
from conn_hygiene.reports.timeline import Timeline

with extra("debug-toolbar", needs="django-debug-toolbar"):
    from debug_toolbar.panels import Panel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from contextvars import Token

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase
    from django.utils.safestring import SafeString


class ConnectionsPanel(Panel):
    """Shows the connections of a request by alias and thread, over its time."""

    is_async = True
    title = "Database connections"
    nav_title = "Connections"
    # Where the application is in INSTALLED_APPS; else there is none.
    nav_icon: Any = "conn_hygiene/connections.svg"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeline: Timeline | None = None
        self._token: Token[usage.Timing | None] | None = None

    @classmethod
    def ready(cls) -> None:
        """Install the toolkit, for sites that have the panel without the application in INSTALLED_APPS."""
        installation.install()

    # ##### While the request runs #####

    def enable_instrumentation(self) -> None:
        """Begin to listen, in the running context alone."""
        if self._timeline is None:
            self._timeline = Timeline(usage.current.get())
            self._token = usage.current.set(self._timeline)

    def disable_instrumentation(self) -> None:
        """Listen no more, but for what a streaming response has yet to do."""
        token, self._token = self._token, None
        if token is not None:
            # It may be another context than it began in, where there is nothing to be reset.
            with contextlib.suppress(ValueError):
                usage.current.reset(token)

    def process_request(self, request: HttpRequest) -> Any:
        """Have the rest of the request run; what it raises goes on."""
        try:
            response = super().process_request(request)
        except BaseException:
            self._finish()
            raise
        return self._finished(response) if inspect.isawaitable(response) else response

    async def _finished(self, response: Awaitable[HttpResponseBase]) -> HttpResponseBase:
        try:
            return await response
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        if self._timeline is not None:
            self._timeline.finish()

    # ##### When there is a response #####

    def generate_stats(self, request: HttpRequest, response: Any) -> None:
        """Store what has happened; of a streaming response once more when its body has ended."""
        timeline = self._timeline
        if timeline is None:
            return
        streams = response.streaming and getattr(response, "file_to_stream", None) is None
        if streams and internals.STREAMING.available:
            timeline.body = response._iterator
            scoping.cover_streaming(response, _Body(timeline))
            response._resource_closers.append(partial(self._body_ended, timeline))
        else:
            timeline.finish()
        self.record_stats(timeline.told())

    def _body_ended(self, timeline: Timeline) -> None:
        timeline.finish()
        # The store may be the database, and this the end of a response that has been served.
        with contextlib.suppress(Exception):
            if self.toolbar.store.exists(self.toolbar.request_id):
                self.record_stats(timeline.told())

    def generate_server_timing(self, request: HttpRequest, response: Any) -> None:
        """Add to the header what the middleware would say, in milliseconds."""
        stats = self.get_stats()
        for key, title in (
            ("waited", "waited for a database connection"),
            ("held", "database connection held"),
            ("used", "database connection used"),
        ):
            self.record_server_timing(key, title, round(stats.get(key, 0.0) * 1000, 1))

    # ##### When somebody looks #####

    @property
    def nav_subtitle(self) -> str:
        """What there is to know at a glance."""
        stats = self.get_stats()
        return drawing.subtitle(stats) if stats else ""

    @property
    def content(self) -> SafeString:
        """The timeline, and all that it is made of as tables."""
        return _template().render(Context(drawing.drawn(self.get_stats())))


class _Body(scoping.Scope):
    """Has the body of a response told to a timeline, step by step."""

    lasts = False

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        token = usage.current.set(self._timeline)
        try:
            yield
        finally:
            usage.current.reset(token)


@lru_cache(maxsize=1)
def _template() -> Template:
    # By an engine of its own: the project's may be another one, or have no APP_DIRS.
    return Engine(dirs=[str(Path(__file__).parent / "templates")]).get_template("connections.html")

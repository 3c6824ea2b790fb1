"""For Channels: a socket is to the toolkit what a request is.

Django gives each request under ASGI a thread for its queries. Channels does not: all consumers of a process query in
one thread, one after another, on one connection, and what one of them sets there, the next one has.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from conn_hygiene import installation, internals
from conn_hygiene.contrib.jobs import JobThread
from conn_hygiene.masking import printable
from conn_hygiene.scopes import RequestScope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Application = Callable[[dict[str, Any], Callable[..., Any], Callable[..., Any]], Awaitable[None]]

logger = logging.getLogger("conn_hygiene.channels")


class ConnectionHygieneMiddleware:
    """Gives connections back between the queries of a socket, and at its end.

    An ASGI application around another: ``ConnectionHygieneMiddleware(URLRouter([...]))``. Each socket runs inside
    :func:`~conn_hygiene.release_between_queries`, and what is thread-sensitive in it, such as its queries, in a thread
    of its own, which begins with the first of them and ends with the socket. What it leaves in the session of a thread
    that outlives it, such as that of ``asyncio.to_thread``, reaches no other socket. Reports and
    :func:`~conn_hygiene.snapshot` have its path where they have a request's. After it, connections go back to the pool,
    or are closed; a transaction that is still open is rolled back, with a warning.
    """

    def __init__(self, app: Application) -> None:
        installation.install_for(f"{type(self).__module__}.{type(self).__qualname__}")
        self.app = app
        self._socket = RequestScope()

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Run the application inside, or as it is where *scope* is the server's life and no client's."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        async with _thread(_label(scope)):
            with self._socket.step():
                await self.app(scope, receive, send)


def _label(scope: dict[str, Any]) -> str:
    # Paths come from strangers, and go into logs and onto terminals.
    what = scope.get("method", scope["type"].upper())
    return printable(f"{what} {scope.get('path', scope.get('channel', '?'))}")


@asynccontextmanager
async def _thread(label: str) -> AsyncIterator[None]:
    """Have what is thread-sensitive inside run in a thread of its own, which the toolkit treats as a request's."""
    if not internals.ASYNC_TASKS.available or SyncToAsync.thread_sensitive_context.get(None) is not None:
        # asgiref's own, which knows no request; or that of somebody around, who has one thread for more than this.
        async with ThreadSensitiveContext():
            yield
        return
    thread = JobThread("conn-hygiene-socket", label, logger)
    try:
        with thread.installed():
            yield
    finally:
        # Not waiting, on the event loop of all sockets, for a query that is still running.
        ended = thread.end(wait=False)
        if ended is not None:
            await asyncio.shield(asyncio.wrap_future(ended))
